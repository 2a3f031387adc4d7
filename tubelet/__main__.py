"""`python -m tubelet` is the command `tubelet`."""

from tubelet.cli import main

if __name__ == "__main__":
    raise SystemExit(main())

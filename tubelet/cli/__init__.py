"""The command `tubelet VERB ...`: reads arguments, calls the function of the verb, shows errors.

Heavy imports wait until a verb needs them, so that `tubelet --help` answers at once.
"""

from __future__ import annotations

import difflib
import logging
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from tubelet.cli.benching import bench
from tubelet.cli.checkpoints import convert, inspect
from tubelet.cli.data import check, demo, doctor, merge_labels, prepare, toy
from tubelet.cli.embedding import embed
from tubelet.cli.models import evaluate, predict, reconstruct, similarity
from tubelet.cli.parsing import EXIT_BUG, EXIT_ERROR, EXIT_INTERRUPTED
from tubelet.cli.planning import plan
from tubelet.cli.runs import cache, distil, finetune, list_runs, pretrain
from tubelet.errors import TubeletError


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command -> exit code: 0 done, 1 a user's error, 2 wrong options, 70 a bug."""
    args = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in args
    args = [arg for arg in args if arg != "--debug"]
    if not args or args[0] in ("-h", "--help", "help"):
        return _usage(sys.stdout)
    if args[0] in ("-V", "--version", "version"):
        from tubelet import __version__

        print(f"tubelet {__version__}")
        return 0
    verb, rest = args[0], args[1:]
    if verb not in VERBS:
        near = difflib.get_close_matches(verb, VERBS, 1)
        hint = f" Did you mean {near[0]!r}?" if near else " `tubelet --help` lists them."
        print(f"tubelet: there is no command {verb!r}.{hint}", file=sys.stderr)
        return 2
    _log_to_terminal()
    try:
        return VERBS[verb](rest) or 0
    except TubeletError as error:
        if debug:
            raise
        print(f"tubelet {verb}: {error}", file=sys.stderr)
        return EXIT_ERROR
    except KeyboardInterrupt:
        print(f"\ntubelet {verb}: stopped.", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # the reader of our output has gone, as with `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_ERROR
    except Exception as error:
        if debug:
            raise
        print(
            f"tubelet {verb}: {type(error).__name__}: {error}\n"
            "This is a fault of tubelet's, not yours. Run it again with --debug for the traceback "
            "to report.",
            file=sys.stderr,
        )
        return EXIT_BUG


def _usage(stream: Any) -> int:
    print(
        "usage: tubelet VERB [OPTIONS]    tubelet VERB --help    tubelet --version\n", file=stream
    )
    for name, verb in VERBS.items():
        print(f"  {name:<12} {(verb.__doc__ or '').splitlines()[0]}", file=stream)
    print("\n--debug with any verb shows the traceback of an error.", file=stream)
    return 0


class _Terminal(logging.Handler):
    """Messages to stderr as it is at that moment: a progress bar puts its own in its place."""

    def emit(self, record: logging.LogRecord) -> None:
        prefix = "" if record.levelno < logging.WARNING else f"{record.levelname.lower()}: "
        print(prefix + self.format(record), file=sys.stderr)


def _log_to_terminal() -> None:
    logger = logging.getLogger("tubelet")
    if not logger.handlers:
        logger.addHandler(_Terminal())
    logger.setLevel(logging.INFO)


VERBS: dict[str, Callable[[list[str]], int | None]] = {
    "demo": demo,
    "check": check,
    "prepare": prepare,
    "plan": plan,
    "pretrain": pretrain,
    "cache": cache,
    "finetune": finetune,
    "distil": distil,
    "evaluate": evaluate,
    "predict": predict,
    "embed": embed,
    "reconstruct": reconstruct,
    "similarity": similarity,
    "convert": convert,
    "inspect": inspect,
    "merge-labels": merge_labels,
    "toy": toy,
    "bench": bench,
    "list": list_runs,
    "doctor": doctor,
}

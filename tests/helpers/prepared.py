"""What tests of `prepare` share."""

from __future__ import annotations

from pathlib import Path

from tubelet.data.prepare.ledger import NAME
from tubelet.data.prepare.reencode import Settings

SETTINGS = Settings(short_side=32, keyframe_every=6, crf=18)
LOSSLESS = Settings(crf=0, codec="h264")


def contents(folder: Path) -> dict[str, bytes]:
    """All files but the notes, which tell times."""
    files = {str(p.relative_to(folder)): p for p in folder.rglob("*") if p.is_file()}
    return {name: path.read_bytes() for name, path in files.items() if name != NAME}

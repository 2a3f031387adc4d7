"""Two processes that train together, as torchrun starts them."""

from __future__ import annotations

import socket
from pathlib import Path

from processes import end, start


def in_two(script: str | Path, folder: Path) -> Path:
    """Runs `script spread FOLDER` in two processes to their end -> the folder."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    world = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    started = [
        start(script, "spread", folder, **world, RANK=rank, LOCAL_RANK=rank) for rank in ("0", "1")
    ]
    assert [end(process) for process in started] == [0, 0]
    return folder

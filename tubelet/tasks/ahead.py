"""Work done ahead in threads: decoding frees Python's lock, so that a model computes meanwhile."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterable
from typing import Generic, TypeVar

T = TypeVar("T")


class _Failed(Generic[T]):
    """What a thread raised, on its way to the one who waits."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


def ahead(
    streams: Iterable[Iterable[T]], *, threads: int, waiting: int
) -> Generator[T, None, None]:
    """The items of all streams, those of one in their order, up to `waiting` made ahead.

    Each thread works through one stream at a time. What a stream raises is raised here. When the
    iterator is closed, or fails, the threads end after the item that they are at.
    """
    items: queue.Queue[T | _Failed[T] | None] = queue.Queue(waiting)  # None: a thread is done
    rest, lock, stop = iter(streams), threading.Lock(), threading.Event()

    def put(item: T | _Failed[T] | None) -> bool:
        while not stop.is_set():
            try:
                items.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        try:
            while True:
                with lock:
                    stream = next(rest, None)
                if stream is None:
                    break
                for item in stream:
                    if not put(item):
                        return
        except BaseException as error:  # noqa: BLE001 - raised again where it is waited for
            put(_Failed(error))
        put(None)

    workers = [threading.Thread(target=work, daemon=True) for _ in range(threads)]
    for worker in workers:
        worker.start()
    try:
        working = threads
        while working:
            item = items.get()
            if isinstance(item, _Failed):
                raise item.error
            if item is None:
                working -= 1
            else:
                yield item
    finally:
        stop.set()
        for worker in workers:
            worker.join()

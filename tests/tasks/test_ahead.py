"""Work ahead in threads: order, errors, the end."""

import threading

import pytest

from tubelet.tasks.ahead import ahead


@pytest.mark.parametrize("threads", [1, 3])
def test_each_stream_keeps_its_order(threads: int) -> None:
    streams = [[(s, i) for i in range(20)] for s in range(7)]
    items = list(ahead(iter(streams), threads=threads, waiting=3))
    for s in range(7):
        assert [item for item in items if item[0] == s] == streams[s]
    assert len(items) == 140
    if threads == 1:
        assert items == [item for stream in streams for item in stream]


def test_no_more_is_made_than_may_wait() -> None:
    made: list[int] = []
    seen = threading.Event()
    before = threading.active_count()

    def stream():
        for i in range(100):
            made.append(i)
            if i == 4:
                seen.set()
            yield i

    items = ahead([stream()], threads=1, waiting=3)
    assert next(items) == 0
    assert seen.wait(10)
    assert len(made) == 5  # the one taken, three that wait, and one that cannot yet
    items.close()
    assert threading.active_count() == before
    assert len(made) == 5


def test_errors_come_out_and_end_the_threads() -> None:
    before = threading.active_count()

    def bad():
        yield 1
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        list(ahead([bad(), range(1000)], threads=2, waiting=2))
    assert threading.active_count() == before

"""The order of batches, resuming, workers and processes; unreadable videos; what goes wrong."""

import logging
import os
import signal
import subprocess
import sys
import threading
import time
import types
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch

from tubelet import masks
from tubelet.data import workers as workers_module
from tubelet.data.clips import ClipDataset, EvalDataset, Views
from tubelet.data.lists import read_list
from tubelet.data.loader import (
    Order,
    Unreadable,
    eval_loader,
    steps_per_epoch,
    train_loader,
)
from tubelet.data.order import epoch_order
from tubelet.data.transforms import PRETRAIN
from tubelet.errors import TubeletError
from tubelet.shapes import ClipSpec, Grid

SPEC = ClipSpec(num_frames=4, sampling_rate=2, size=(16, 16))


def hide(rng: np.random.Generator) -> torch.Tensor:
    return masks.tube(Grid(2, 2, 2), rng, mask_ratio=0.5)[None]


@pytest.fixture(scope="module", autouse=True)
def importable():
    """Workers import this file by its name, so the folder of `tests` has to be on their path."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parents[2])
        yield


@pytest.fixture(scope="module")
def dataset(ten_videos) -> ClipDataset:
    videos = read_list([(path, at) for at, path in enumerate(sorted(ten_videos.iterdir()))])
    return ClipDataset(videos, SPEC, PRETRAIN, seed=0, num_sample=2)


@pytest.fixture(scope="module")
def masked(ten_videos) -> ClipDataset:
    return ClipDataset(read_list(ten_videos), SPEC, PRETRAIN, seed=0, mask=hide)


def flat(lists) -> list:
    return list(chain.from_iterable(lists))


def content(batch) -> tuple:
    """All that a batch holds, to compare."""
    masked = () if batch.masks is None else (batch.masks.keep.tolist(), batch.masks.asked.tolist())
    labels = None if batch.labels is None else batch.labels.tolist()
    clip = batch.clip.numpy().tobytes()
    return clip, batch.paths, batch.index.tolist(), batch.seeds.tolist(), labels, masked


def rows(batches) -> list[tuple]:
    """The samples of batches, one after another."""
    return [
        (b.clip[i].numpy().tobytes(), b.paths[i], int(b.seeds[i]))
        for b in batches
        for i in range(len(b.paths))
    ]


# --- order -----------------------------------------------------------------------------------


def test_order_of_an_epoch_is_a_permutation_of_seed_and_epoch_alone():
    orders = [epoch_order(100, seed, epoch) for seed in (0, 1) for epoch in (0, 1, 2)]
    for order in orders:
        assert sorted(order) == list(range(100))
    assert len({tuple(order) for order in orders}) == 6
    assert (epoch_order(100, 1, 2) == orders[5]).all()
    # Pinned: a run must find its order again under any later version.
    assert epoch_order(8, 0, 0).tolist() == PINNED


PINNED = [1, 2, 3, 7, 0, 4, 5, 6]


def test_every_video_is_equally_likely_everywhere():
    first = np.bincount([epoch_order(10, 0, epoch)[0] for epoch in range(2000)], minlength=10)
    assert first.min() > 140 and first.max() < 260  # 200 expected, 4 standard deviations


def keys(world=1, micro=4, videos=30, batch=12, start=0, steps=7, shuffle=True):
    """[step][rank] -> the (epoch, index) pairs of that part, micro-batches put together."""
    found = []
    for rank in range(world):
        order = Order(
            videos,
            batch_size=batch,
            micro_batch=micro,
            seed=5,
            total_steps=steps,
            start_step=start,
            rank=rank,
            world=world,
            shuffle=shuffle,
        )
        parts = [[(k.epoch, k.index) for k in part] for part in order]
        assert len(parts) == len(order) and all(len(part) == micro for part in parts)
        each = batch // world // micro
        found.append([flat(parts[s * each : (s + 1) * each]) for s in range(steps - start)])
    return [[part[s] for part in found] for s in range(steps - start)]


def test_an_update_is_the_same_for_any_processes_and_micro_batches():
    reference = [parts[0] for parts in keys()]
    for world, micro in [(1, 1), (1, 12), (2, 6), (2, 3), (3, 2), (4, 3), (6, 1), (12, 1)]:
        assert [flat(parts) for parts in keys(world, micro)] == reference


def test_an_epoch_has_every_video_once_and_drops_the_rest():
    updates = [parts[0] for parts in keys(videos=30, batch=12, steps=6)]
    for epoch in range(3):
        pair = updates[2 * epoch] + updates[2 * epoch + 1]
        assert {e for e, _ in pair} == {epoch}
        assert len({i for _, i in pair}) == 24
        assert [i for _, i in pair] == epoch_order(30, 5, epoch)[:24].tolist()
    assert [i for _, i in keys(shuffle=False, steps=1)[0][0]] == list(range(12))


def test_a_later_start_gives_the_rest():
    whole = keys(steps=7)
    for start in range(7):
        assert keys(start=start, steps=7) == whole[start:]
    assert list(Order(30, batch_size=12, micro_batch=4, seed=0, total_steps=3, start_step=5)) == []


def test_sizes_that_do_not_fit():
    assert steps_per_epoch(30, 12) == 2
    with pytest.raises(TubeletError, match="6 videos, fewer than one batch of 2048: pass --batch-"):
        steps_per_epoch(6, 2048)
    with pytest.raises(TubeletError, match="batch_size is 0"):
        steps_per_epoch(6, 0)
    make = partial(Order, 100, seed=0, total_steps=1)
    with pytest.raises(TubeletError, match=r"shared by 3 processes: .*--batch-size 15"):
        make(batch_size=16, micro_batch=1, world=3)
    with pytest.raises(TubeletError, match=r"divide the 8 videos .*--micro-batch 2"):
        make(batch_size=16, micro_batch=3, world=2)
    with pytest.raises(TubeletError, match="rank 2 of 2"):
        make(batch_size=16, micro_batch=8, world=2, rank=2)


# --- batches ---------------------------------------------------------------------------------


def load(dataset, *, workers=0, **options):
    given = {"batch_size": 4, "micro_batch": 2, "seed": 1, "total_steps": 5, **options}
    pack = None if dataset.mask is None else masks.pack
    return list(train_loader(dataset, workers=workers, pack=pack, **given))


def test_batches_are_the_samples_of_their_keys(dataset):
    batches = load(dataset)
    order = Order(10, batch_size=4, micro_batch=2, seed=1, total_steps=5)
    assert len(batches) == 10 == len(order)
    for batch, part in zip(batches, order, strict=True):
        samples = [sample for key in part for sample in dataset[key]]
        assert batch.seeds.tolist() == [s.seed for s in samples]
        assert torch.equal(batch.clip, torch.stack([s.views["clip"] for s in samples]))
        assert batch.labels.tolist() == [s.index for s in samples]


def test_workers_change_nothing(dataset, masked):
    for data in (dataset, masked):
        reference = [content(batch) for batch in load(data)]
        for workers in (1, 2):
            assert [content(batch) for batch in load(data, workers=workers)] == reference
    assert reference[0][-1] != ()  # masks were compared


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("start", [1, 2, 3])  # in an epoch, at its end, in the next
def test_resuming_continues_exactly(masked, start, workers):
    whole = [content(batch) for batch in load(masked)]
    rest = [content(batch) for batch in load(masked, start_step=start, workers=workers)]
    assert rest == whole[2 * start :] and len(rest) == 10 - 2 * start


@pytest.mark.parametrize(("world", "micro"), [(1, 4), (1, 1), (2, 2), (2, 1), (4, 1)])
def test_processes_and_micro_batches_change_nothing(dataset, world, micro):
    reference = rows(load(dataset, micro_batch=4))
    ranks = [load(dataset, micro_batch=micro, rank=r, world=world) for r in range(world)]
    each = 4 // world // micro
    together = [
        batch
        for step in range(5)
        for rank in range(world)
        for batch in ranks[rank][step * each : (step + 1) * each]
    ]
    assert rows(together) == reference


def test_the_global_generator_is_not_touched(dataset):
    before = torch.get_rng_state()
    load(dataset, total_steps=1)
    load(dataset, total_steps=1, workers=1)
    assert torch.equal(torch.get_rng_state(), before)


class Spy(ClipDataset):
    """Says which process made a sample, with how many threads, and how SIGINT is taken there."""

    def __getitem__(self, key):
        samples = super().__getitem__(key)
        quiet = signal.getsignal(signal.SIGINT) == signal.SIG_IGN
        for sample in samples:
            sample.path = f"{os.getpid()},{torch.get_num_threads()},{quiet},{os.getppid()}"
        return samples


def test_workers_stay_over_epochs_and_have_one_thread(ten_videos):
    spy = Spy(read_list(ten_videos), SPEC, PRETRAIN, seed=0)
    batches = load(spy, workers=2, total_steps=12)  # six epochs
    facts = [tuple(path.split(",")) for batch in batches for path in batch.paths]
    assert len({pid for pid, *_ in facts}) == 2
    assert {(threads, quiet) for _, threads, quiet, _ in facts} == {("1", "True")}
    assert str(os.getpid()) not in {pid for pid, *_ in facts}  # nothing here
    assert str(os.getpid()) not in {parent for *_, parent in facts}  # not forked from here


def test_workers_end_when_the_iteration_is_left(ten_videos):
    spy = Spy(read_list(ten_videos), SPEC, PRETRAIN, seed=0)
    batches = iter(train_loader(spy, batch_size=2, micro_batch=2, seed=0, total_steps=10**6))
    pids = {int(next(batches).paths[0].split(",")[0]) for _ in range(4)}
    assert pids and all(alive(pid) for pid in pids)
    del batches
    assert not any(alive(pid) for pid in pids)


SCRIPT = """
import sys
from tests.data.test_loader import PRETRAIN, SPEC, Spy, read_list, train_loader

if __name__ == "__main__":
    spy = Spy(read_list(sys.argv[1]), SPEC, PRETRAIN, seed=0)
    batches = iter(train_loader(spy, batch_size=2, micro_batch=2, seed=0, total_steps=10**6))
    pids = {next(batches).paths[0].split(",")[0] for _ in range(6)}
    print(*pids, flush=True)
    sys.stdin.read()
"""


def test_workers_end_when_the_main_process_is_killed(ten_videos, tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    root = Path(__file__).parents[2]
    with subprocess.Popen(
        [sys.executable, tmp_path / "script.py", ten_videos],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(root)},
    ) as process:
        pids = [int(pid) for pid in process.stdout.readline().split()]
        assert len(pids) == 2 and all(alive(pid) for pid in pids)
        process.kill()
    for _ in range(200):
        if not any(alive(pid) for pid in pids):
            return
        time.sleep(0.1)
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    pytest.fail("workers outlived a killed main process")


def alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


# --- evaluation ------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("world", [1, 3])
def test_evaluation_sees_every_video_once(ten_videos, workers, world):
    data = EvalDataset(read_list(ten_videos), SPEC, segments=2, crops=3)
    seen: dict[int, Views] = {}
    for rank in range(world):
        views_of = eval_loader(data, batch_size=4, workers=workers, rank=rank, world=world)
        lists = list(views_of)
        assert len(lists) == len(views_of)
        for views in flat(lists):
            assert views.index not in seen
            seen[views.index] = views
    assert sorted(seen) == list(range(10))
    for index, views in seen.items():
        assert torch.equal(views.clips, data[index].clips)


def test_evaluation_can_be_repeated_and_keeps_errors(ten_videos, tmp_path):
    (tmp_path / "bad.mp4").write_text("no video")
    data = EvalDataset(read_list([ten_videos / "0.mp4", tmp_path / "bad.mp4"]), SPEC)
    views_of = eval_loader(data, workers=1)
    for _ in range(2):
        (good,), (bad,) = list(views_of)
        assert good.clips is not None and bad.clips is None and "bad.mp4" in bad.error
    with pytest.raises(TubeletError, match="batch_size is 0"):
        eval_loader(data, batch_size=0)


# --- unreadable videos -----------------------------------------------------------------------


def test_one_bad_file_is_let_pass_and_logged_once(ten_videos, tmp_path, caplog):
    (tmp_path / "bad.mp4").write_text("no video")
    paths = [*sorted(ten_videos.iterdir()), tmp_path / "bad.mp4"]
    data = ClipDataset(read_list(paths), SPEC, PRETRAIN, seed=0, num_sample=2)
    with caplog.at_level(logging.WARNING, "tubelet"):
        batches = train_loader(
            data, batch_size=11, micro_batch=11, seed=0, total_steps=4, workers=0
        )
        assert all(len(batch.paths) == 22 for batch in batches)
    assert [r.message for r in caplog.records if "bad.mp4" in r.message] == [
        f"unreadable, replaced by another video: {tmp_path / 'bad.mp4'}"
    ]
    assert batches.unreadable.replaced >= 4 and len(batches.unreadable.paths) == 1
    assert batches.unreadable.drawn == 44 + batches.unreadable.replaced


@pytest.mark.parametrize("workers", [0, 2])
def test_too_many_stop_the_run(ten_videos, tmp_path, workers):
    for at in range(3):
        (tmp_path / f"bad{at}.mp4").write_text("no video")
    paths = [*sorted(ten_videos.iterdir()), *sorted(tmp_path.iterdir())]
    data = ClipDataset(read_list(paths), SPEC, PRETRAIN, seed=0)
    with pytest.raises(TubeletError) as error:
        load(data, batch_size=13, micro_batch=1, total_steps=3, workers=workers)
    message = str(error.value)
    assert "2 of 13 so far" in message and "bad" in message and "tubelet check" in message
    assert "--max-unreadable" in message


def test_the_share_that_is_let_pass():
    assert [Unreadable(n, 0.01).allowed for n in (1, 10, 199, 200, 1000)] == [1, 1, 1, 2, 10]
    assert Unreadable(1000, 0.0).allowed == 0
    strict = Unreadable(1000, 0.0)
    strict.note([], 100)
    with pytest.raises(TubeletError):
        strict.note(["a.mp4"], 1)


def test_many_failures_stop_a_long_list_early_and_few_never():
    rng = np.random.default_rng(0)

    def stops_after(truth: float, videos: int, draws: int) -> int | None:
        counter = Unreadable(videos, 0.01)
        for start in range(0, draws, 8):
            drawn = rng.integers(videos, size=8)
            try:
                counter.note([f"{i}.mp4" for i in drawn if i < truth * videos], 8)
            except TubeletError:
                return start
        return None

    early = [stops_after(0.10, 1_000_000, 2000) for _ in range(20)]
    assert all(at is not None and at < 500 for at in early)
    assert [stops_after(0.008, 1_000_000, 20_000) for _ in range(10)] == [None] * 10


def test_one_bad_file_of_a_small_source_with_a_large_weight_stops_nothing():
    counter = Unreadable(100_010, 0.01)
    for _ in range(1000):
        counter.note(["bad.mp4"], 20)
    assert counter.replaced == 1000


# --- what goes wrong -------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_from_a_worker_keeps_its_message(tmp_path, workers):
    for at in range(4):
        (tmp_path / f"{at}.mp4").write_text("no video")
    data = ClipDataset(read_list(tmp_path), SPEC, PRETRAIN, seed=0)
    with pytest.raises(TubeletError) as error:
        load(data, workers=workers)
    assert str(error.value).startswith("All 4 videos could not be decoded")
    assert "Traceback" not in str(error.value)


class Dies(ClipDataset):
    def __getitem__(self, key):
        os.kill(os.getpid(), signal.SIGKILL)


class Hangs(ClipDataset):
    def __getitem__(self, key):
        threading.Event().wait()


def test_a_worker_that_hangs_is_explained(ten_videos, monkeypatch):
    monkeypatch.setattr(workers_module, "POLL_SECONDS", 1)
    monkeypatch.setattr(workers_module, "TIMEOUT_SECONDS", 2)
    data = Hangs(read_list(ten_videos), SPEC, PRETRAIN, seed=0)
    with pytest.raises(TubeletError, match="No batch in 2 s: a loading worker hangs"):
        load(data, workers=1)


def test_a_worker_that_dies_is_explained(ten_videos, monkeypatch):
    monkeypatch.setattr(workers_module, "POLL_SECONDS", 1)
    data = Dies(read_list(ten_videos), SPEC, PRETRAIN, seed=0)
    with pytest.raises(TubeletError, match=r"worker was killed \(SIGKILL\).*--workers"):
        load(data, workers=1)


def test_a_function_that_cannot_be_sent_is_explained(ten_videos):
    data = ClipDataset(read_list(ten_videos), SPEC, PRETRAIN, seed=0, mask=lambda rng: hide(rng))
    assert len(load(data)) == 10
    with pytest.raises(TubeletError, match="cannot be sent to the loading workers"):
        load(data, workers=1)


class Elsewhere(ClipDataset):
    """Its module is one that no worker can import."""


def test_a_worker_that_cannot_start_is_explained(ten_videos, monkeypatch):
    module = types.ModuleType("only_in_this_process")
    module.Elsewhere = Elsewhere
    monkeypatch.setitem(sys.modules, "only_in_this_process", module)
    monkeypatch.setattr(Elsewhere, "__module__", "only_in_this_process")
    monkeypatch.setattr(workers_module, "POLL_SECONDS", 1)
    data = Elsewhere(read_list(ten_videos), SPEC, PRETRAIN, seed=0)
    with pytest.raises(TubeletError, match=r"could not start.*__main__.*--workers 0"):
        load(data, workers=1)

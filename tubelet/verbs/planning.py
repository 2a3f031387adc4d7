"""Before a run is started: plan."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tubelet.errors import TubeletError
from tubelet.methods.finetune import Finetune
from tubelet.methods.run import Pretraining, Run, changed, find
from tubelet.plan import steps
from tubelet.plan.counting import count
from tubelet.plan.memory import Plan, Weights
from tubelet.train.config import derive


def plan(
    run: Run | str,
    *,
    processes: int = 1,
    memory_gib: float | None = None,
    videos: int | None = None,
    clips_per_second: float | None = None,
    classes: int = 400,
    progress: Callable[[int, int], None] | None = None,
    **changes: Any,
) -> Plan:
    """The memory that a run takes, its operations, steps and time; nothing is computed.

    Args:
        run: any run, or its name ("videomae_v2:giant_hybrid").
        processes: that it is started in.
        memory_gib: of the device of each; the plan then says whether the run fits.
        videos: in its list; the plan then says how many steps there are.
        clips_per_second: of all processes together, as training shows it; then how long it takes.
        classes: of a fine-tuning run.
        progress: called with (forwards done, forwards in all).
        changes: fields of the run, its clip and its training by name.

    Raises:
        TubeletError: no such run, numbers that are not above 0, a batch that does not split.
    """
    name = run if isinstance(run, str) else type(run).__name__
    run = changed(find(run) if isinstance(run, str) else run, **changes)
    given = {
        "processes": processes,
        "memory_gib": memory_gib,
        "videos": videos,
        "clips_per_second": clips_per_second,
        "classes": classes,
    }
    wrong = [f"{key} {value}" for key, value in given.items() if value is not None and value <= 0]
    if wrong:
        raise TubeletError(f"{', '.join(wrong)}: expected numbers above 0.")
    derived = derive(run.train, run.train.batch_size if videos is None else videos, processes)
    if isinstance(run, Pretraining):
        model, step, left_out = steps.pretraining(run)
    elif isinstance(run, Finetune):
        model, step, left_out = steps.finetuning(run, classes)
    else:
        raise TubeletError(f"A {type(run).__name__} has no model to plan for.")
    bf16 = run.train.precision != "float32"
    height, width = run.clip.size
    return Plan(
        name=name,
        weights=Weights.of(model, processes),
        count=count(model, step, bf16=bf16, progress=progress),
        derived=derived,
        clips=run.num_sample,
        # As read, uint8, and as float32.
        clip_bytes=(1 + 4) * run.clip.in_chans * run.clip.num_frames * height * width,
        parallel=run.train.parallel,
        recompute=run.train.checkpoint_blocks,
        average=bool(run.train.model_ema),
        bf16=bf16,
        left_out=tuple(left_out),
        memory_gib=memory_gib,
        videos=videos,
        clips_per_second=clips_per_second,
    )

"""A plan as text."""

from __future__ import annotations

from collections.abc import Callable

from tubelet.plan.memory import Memory, Plan

GIB = 2**30
ROWS: dict[str, Callable[[Memory], int]] = {
    "weights": lambda m: m.weights,
    "gradients": lambda m: m.gradients,
    "AdamW's moments": lambda m: m.moments,
    "average of the weights": lambda m: m.average,
    "gathered blocks": lambda m: m.gathered,
    "clips": lambda m: m.clips,
}
NOT_COUNTED = (
    "Not counted: what CUDA, its libraries and NCCL hold (1 to 3 GiB), gaps between blocks of memory, "
    "results in passing."
)


def text(plan: Plan) -> str:
    """Parameters, memory of a process, whether it fits, steps and time."""
    sections = [_model(plan), _memory(plan), _length(plan)]
    verdict = _verdict(plan)
    return "\n\n".join([*sections[:2], *([verdict] if verdict else []), sections[2], _notes(plan)])


def _model(plan: Plan) -> str:
    w, c = plan.weights, plan.count
    lines = [f"{plan.name}", f"{'parameters':<38}{w.all:>16,}"]
    lines += [f"{'  ' + part:<38}{count:>16,}" for part, count in w.parts.items()]
    if w.trained < w.all:
        lines.append(f"{'  of these trained':<38}{w.trained:>16,}")
    flops, again = (n / plan.clips / 1e9 for n in (c.flops, c.recomputed))
    lines.append(f"{'GFLOP a clip, forward and backward':<38}{flops:>16,.1f}")
    lines.append(f"{'  more with --checkpoint-blocks':<38}{again:>16,.1f}")
    return "\n".join(lines)


def _memory(plan: Plan) -> str:
    d = plan.derived
    alone = "one process" if d.world == 1 else "ddp"
    ways = [plan.memory(way) for way in plan.ways]
    heads = "".join(f"{name:>12}" for name in (alone, "fsdp")[: len(ways)])
    title = f"GiB of each of {d.world} processes" if d.world > 1 else "GiB"
    lines = [f"{title:<38}" + heads]
    for name, value in ROWS.items():
        if any(value(memory) for memory in ways):
            lines.append(_row(name, [value(memory) for memory in ways]))
    for recompute, flag in ((False, ""), (True, " with --checkpoint-blocks")):
        held = [plan.memory(way, recompute) for way in plan.ways]
        lines.append(_row(f"activations{flag}", [memory.activations for memory in held]))
    for recompute, flag in ((False, ""), (True, " with --checkpoint-blocks")):
        held = [plan.memory(way, recompute) for way in plan.ways]
        lines.append(_row(f"in all{flag}", [memory.total for memory in held]))
        if plan.memory_gib is not None:
            most = [plan.largest(way, recompute) for way in plan.ways]
            name = f"  largest --micro-batch in {plan.memory_gib:g}"
            lines.append(f"{name:<38}" + "".join(f"{n or 'none':>12}" for n in most))
    return "\n".join(lines)


def _row(name: str, values: list[int]) -> str:
    return f"{name:<38}" + "".join(f"{value / GIB:>12.2f}" for value in values)


def _verdict(plan: Plan) -> str:
    if plan.memory_gib is None:
        return ""
    total = plan.memory().total / GIB
    flags = f"--parallel {plan.parallel}" if plan.derived.world > 1 else ""
    flags += " --checkpoint-blocks" if plan.recompute else ""
    how = f"This run ({flags.strip() or 'one process'}, --micro-batch {plan.derived.micro_batch})"
    if plan.fits:
        return f"{how} takes {total:.1f} of {plan.memory_gib:g} GiB: it fits."
    changes = plan.changes()
    what = f"{how} takes {total:.1f} GiB, more than {plan.memory_gib:g}."
    if changes:
        return f"{what} It fits with: " + "; or ".join(changes) + "."
    many = "" if plan.derived.world > 1 else " Several processes can split weights (--processes 8)."
    return f"{what} No smaller --micro-batch makes it fit.{many}"


def _length(plan: Plan) -> str:
    d = plan.derived
    videos = d.micro_batch * d.accumulate * d.world
    lines = [
        f"A step: {videos:,} videos, {plan.clips_per_step:,} clips: {d.micro_batch} videos a forward "
        f"x {d.accumulate} accumulated x {d.world} process{'es' if d.world > 1 else ''}."
    ]
    if plan.videos is not None:
        epochs = d.total_steps / d.steps_per_epoch
        lines.append(
            f"In all: {d.total_steps:,} steps, {epochs:g} epochs of {d.steps_per_epoch:,}; "
            f"{d.total_steps * plan.clips_per_step:,} clips."
        )
    if plan.hours is not None and plan.clips_per_second is not None:
        speed = plan.clips_per_second * plan.count.flops / plan.clips / d.world / 1e12
        lines.append(
            f"At {plan.clips_per_second:g} clips a second: {plan.hours:,.1f} hours "
            f"({plan.hours / 24:,.1f} days); {speed:.3g} TFLOP a second in each process."
        )
    return "\n".join(lines)


def _notes(plan: Plan) -> str:
    precision = "bf16, weights in float32" if plan.bf16 else "float32"
    lines = [f"Computed in {precision}. {NOT_COUNTED}"]
    if plan.left_out:
        lines.append(f"Teachers are not counted: {', '.join(plan.left_out)}.")
    whole = plan.weights.all * 4 / GIB
    if "fsdp" in plan.ways and plan.weights.all:
        lines.append(
            f"Before fsdp splits it, each process makes the whole model ({whole:.2f} GiB, in main memory "
            "and then on its GPU)."
        )
    return "\n".join(lines)

"""How a run is trained: the values a user gives, and those that follow from them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tubelet.errors import TubeletError


@dataclass(frozen=True)
class TrainConfig:
    """What a run is trained with; independent of the hardware up to `micro_batch`.

    `lr` and `min_lr` are per 256 videos (`lr` 1.5e-4 at `batch_size` 2048 trains at 1.2e-3).
    The defaults are those of VideoMAE's pretraining (arXiv 2203.12602, supplement, table of
    pretraining settings); what has no counterpart there is ours.
    """

    epochs: float = 800
    steps: int | None = None  # updates; overrides `epochs`, and shortens the warm-up with them
    batch_size: int = 256  # videos per update, over all processes and accumulated micro-batches
    micro_batch: int = 8  # at most so many videos per forward of one process
    lr: float = 1.5e-4  # per 256 videos
    min_lr: float = 1e-5  # per 256 videos
    warmup_epochs: float = 40
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.95)
    clip_grad: float | None = None  # the largest norm of the whole gradient
    layer_decay: float = 1.0  # lr of a layer = this times the lr of the layer above
    model_ema: float = 0.0  # decay of an averaged copy of the weights; 0: none is kept
    precision: Literal["auto", "float32", "bf16"] = "auto"
    checkpoint_blocks: bool = False  # recompute each block in the backward pass: less memory
    compile: bool = False  # torch.compile, block by block
    parallel: Literal["ddp", "fsdp"] = "ddp"  # fsdp: weights and their state split over processes
    workers: int = 2  # processes that decode, per training process
    seed: int = 0
    save_every_steps: int | None = None  # overrides `save_every_epochs`
    save_every_epochs: float = 20
    keep_checkpoints: int = 2  # the newest ones; older ones are removed
    eval_every_epochs: float | None = None  # None: only after the last update
    log_every_steps: int = 10
    device: str = "auto"
    progress: bool = True  # a bar, or lines where stderr is no terminal
    tensorboard: bool = False


@dataclass(frozen=True)
class Derived:
    """What follows from a `TrainConfig`, the number of videos and the number of processes."""

    steps_per_epoch: int
    total_steps: int
    warmup_steps: int
    lr: float
    min_lr: float
    micro_batch: int  # videos per forward of one process
    accumulate: int  # forwards per update
    save_every_steps: int
    eval_every_steps: int
    world: int  # processes
    rules: tuple[str, ...]  # how each value came about, to be shown and saved


def derive(config: TrainConfig, videos: int, world: int = 1) -> Derived:
    """The one place where values follow from others; raises TubeletError where they cannot.

    `videos`: in the training list; `world`: processes.
    """
    _check(config)
    per_epoch = _steps_per_epoch(config, videos)
    total, warmup, lengths = _lengths(config, per_epoch)
    micro, accumulate, batch_rule = _micro_batches(config, world)
    factor = config.batch_size / 256
    save = config.save_every_steps or max(1, round(config.save_every_epochs * per_epoch))
    evaluate = (
        max(1, round(config.eval_every_epochs * per_epoch)) if config.eval_every_epochs else 0
    )
    rules = (
        f"steps_per_epoch {per_epoch} = {videos} videos // batch_size {config.batch_size}",
        *lengths,
        f"lr {config.lr * factor:g} = {config.lr:g} x {config.batch_size} / 256",
        f"min_lr {config.min_lr * factor:g} = {config.min_lr:g} x {config.batch_size} / 256",
        batch_rule,
        f"a checkpoint every {save} steps",
    )
    return Derived(
        steps_per_epoch=per_epoch,
        total_steps=total,
        warmup_steps=warmup,
        lr=config.lr * factor,
        min_lr=config.min_lr * factor,
        micro_batch=micro,
        accumulate=accumulate,
        save_every_steps=save,
        eval_every_steps=min(evaluate, total) or total,
        world=world,
        rules=rules,
    )


def _steps_per_epoch(config: TrainConfig, videos: int) -> int:
    if videos < config.batch_size:
        raise TubeletError(
            f"{videos} videos, fewer than one batch of {config.batch_size}: "
            f"pass --batch-size {max(videos, 1)} or less."
            if videos
            else "The training list holds no videos."
        )
    return videos // config.batch_size


def _lengths(config: TrainConfig, per_epoch: int) -> tuple[int, int, list[str]]:
    """-> total steps, warm-up steps, the rules behind them."""
    if config.steps is None:
        total = max(1, round(config.epochs * per_epoch))
        warmup = round(config.warmup_epochs * per_epoch)
        return (
            total,
            warmup,
            [
                f"total_steps {total} = {config.epochs:g} epochs x {per_epoch}",
                f"warmup_steps {warmup} = {config.warmup_epochs:g} epochs x {per_epoch}",
            ],
        )
    warmup = round(config.steps * config.warmup_epochs / config.epochs)
    share = f"{config.warmup_epochs:g} / {config.epochs:g} epochs"
    return (
        config.steps,
        warmup,
        [
            f"total_steps {config.steps}, as given (overrides {config.epochs:g} epochs)",
            f"warmup_steps {warmup} = {config.steps} x {share}",
        ],
    )


def _micro_batches(config: TrainConfig, world: int) -> tuple[int, int, str]:
    """-> videos per forward, forwards per update, the rule behind them."""
    if config.batch_size % world:
        raise TubeletError(
            f"batch_size {config.batch_size} cannot be split evenly over {world} processes: "
            f"pass --batch-size {max(1, config.batch_size // world) * world}, "
            "or start another number of processes."
        )
    share = config.batch_size // world
    micro = next(m for m in range(min(config.micro_batch, share), 0, -1) if share % m == 0)
    rule = (
        f"batch_size {config.batch_size} = {micro} videos per forward (micro_batch at most "
        f"{config.micro_batch}) x {share // micro} accumulated x {world} process"
        + ("es" if world > 1 else "")
    )
    return micro, share // micro, rule


def _check(config: TrainConfig) -> None:
    """TubeletError for values that no run can have; says the field, the value and the range."""
    positive = ("epochs", "batch_size", "micro_batch", "keep_checkpoints", "log_every_steps")
    wrong = [f"{f} {getattr(config, f)}: above 0" for f in positive if getattr(config, f) <= 0]
    wrong += [
        f"{f} {getattr(config, f)}: above 0, or left out"
        for f in ("steps", "save_every_steps", "clip_grad")
        if getattr(config, f) is not None and getattr(config, f) <= 0
    ]
    wrong += [
        f"{f} {getattr(config, f)}: 0 or more"
        for f in ("lr", "min_lr", "warmup_epochs", "weight_decay", "workers", "seed")
        if not getattr(config, f) >= 0
    ]
    if config.save_every_epochs <= 0:
        wrong.append(f"save_every_epochs {config.save_every_epochs}: above 0")
    if config.eval_every_epochs is not None and config.eval_every_epochs <= 0:
        wrong.append(f"eval_every_epochs {config.eval_every_epochs}: above 0, or left out")
    if not 0 < config.layer_decay <= 1:
        wrong.append(f"layer_decay {config.layer_decay}: above 0, at most 1")
    if not 0 <= config.model_ema < 1:
        wrong.append(f"model_ema {config.model_ema}: 0 (off) or a decay below 1, such as 0.9999")
    if not all(0 <= beta < 1 for beta in config.betas):
        wrong.append(f"betas {config.betas}: each from 0 to below 1")
    if config.warmup_epochs > config.epochs > 0:
        wrong.append(f"warmup_epochs {config.warmup_epochs:g}: at most epochs {config.epochs:g}")
    if wrong:
        raise TubeletError("These settings cannot be trained with. " + "; ".join(wrong) + ".")

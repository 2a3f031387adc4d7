"""The memory of a process, by what holds it, and the length of a run."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import ceil
from typing import Any, Literal

from torch import nn

from tubelet.plan.counting import Count
from tubelet.train.config import Derived
from tubelet.train.parallel import blocks_of

Parallel = Literal["ddp", "fsdp"]
FLOAT32 = 4  # bytes


@dataclass(frozen=True)
class Weights:
    """How many weights a model has, and how many of them a process holds."""

    parts: dict[str, int]
    """By part of the model; adds up to all of them."""
    all: int
    trained: int
    split: int
    """Of one process that shares them (FSDP2): each tensor is cut along its first axis."""
    split_trained: int
    gathered: int
    """Whole at a time with FSDP2: what is outside the blocks, a block, and the one fetched ahead."""

    @staticmethod
    def of(model: nn.Module, processes: int) -> Weights:
        """Counts a model, which may be on the meta device."""

        def share(parameter: nn.Parameter) -> int:
            rows = max(1, parameter.shape[0] if parameter.dim() else 1)
            return parameter.numel() // rows * ceil(rows / processes)

        parameters = list(model.parameters())
        trained = [p for p in parameters if p.requires_grad]
        blocks = [sum(p.numel() for p in block.parameters()) for block in blocks_of(model)]
        every = sum(p.numel() for p in parameters)
        return Weights(
            parts=parts_of(model),
            all=every,
            trained=sum(p.numel() for p in trained),
            split=sum(map(share, parameters)),
            split_trained=sum(map(share, trained)),
            gathered=every - sum(blocks) + 2 * max(blocks, default=0),
        )


def parts_of(model: nn.Module) -> dict[str, int]:
    """Parameters of the backbone, of each branch and of the rest."""
    found: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        first, *rest = name.split(".")
        part = " ".join(rest[:2]) if first == "branches" else first
        part = {"backbone": "encoder", "fc_norm": "head"}.get(part, part)
        found[part] = found.get(part, 0) + parameter.numel()
    return found


@dataclass(frozen=True)
class Memory:
    """Bytes of one process at its peak: the end of a forward, with the gradients of those before."""

    weights: int
    gradients: int
    moments: int
    average: int
    gathered: int
    clips: int
    activations: int

    @property
    def total(self) -> int:
        return sum(asdict(self).values())


@dataclass(frozen=True)
class Plan:
    """What a run needs, on that many processes; see `tubelet.verbs.plan`."""

    name: str
    weights: Weights
    count: Count
    derived: Derived
    clips: int  # of a video
    clip_bytes: int
    parallel: Parallel
    recompute: bool
    average: bool
    bf16: bool
    left_out: tuple[str, ...]
    memory_gib: float | None = None
    videos: int | None = None
    clips_per_second: float | None = None

    def memory(
        self,
        parallel: Parallel | None = None,
        recompute: bool | None = None,
        micro_batch: int | None = None,
    ) -> Memory:
        """Of a process; None: as the run says."""
        split = (parallel or self.parallel) == "fsdp" and self.derived.world > 1
        recompute = self.recompute if recompute is None else recompute
        videos = self.derived.micro_batch if micro_batch is None else micro_batch
        held = FLOAT32 * (self.weights.split if split else self.weights.all)
        learned = FLOAT32 * (self.weights.split_trained if split else self.weights.trained)
        kept = self.count.recomputing if recompute else self.count.kept
        return Memory(
            weights=held,
            gradients=learned,
            moments=2 * learned,
            average=learned if self.average else 0,
            # Their gradients are whole, too, until the processes have summed them.
            gathered=2 * FLOAT32 * self.weights.gathered if split else 0,
            clips=self.clip_bytes * self.clips * videos,
            activations=kept(videos),
        )

    def largest(self, parallel: Parallel, recompute: bool) -> int:
        """The most videos in a forward that fit into `memory_gib`, of those that split a process's
        share of the batch evenly; 0: not even one."""
        if self.memory_gib is None:
            return 0
        share = self.derived.micro_batch * self.derived.accumulate
        fit = [
            videos
            for videos in range(1, share + 1)
            if share % videos == 0
            and self.memory(parallel, recompute, videos).total <= self.memory_gib * 2**30
        ]
        return max(fit, default=0)

    @property
    def fits(self) -> bool | None:
        """Whether the run as it is fits into `memory_gib`; None where that is not given."""
        if self.memory_gib is None:
            return None
        return self.memory().total <= self.memory_gib * 2**30

    def changes(self) -> list[str]:
        """What makes a run fit that does not: each a way of its own, the cheapest first."""
        others: tuple[Parallel, ...] = self.ways if self.parallel == "ddp" else ("fsdp",)
        recomputes = (True,) if self.recompute else (False, True)
        ways: list[tuple[Parallel, bool]] = [(p, r) for p in others for r in recomputes]
        found: list[str] = []
        for parallel, recompute in ways:
            videos = min(self.largest(parallel, recompute), self.derived.micro_batch)
            flags = [
                ("--parallel fsdp", parallel != self.parallel),
                ("--checkpoint-blocks", recompute != self.recompute),
                (f"--micro-batch {videos}", videos < self.derived.micro_batch),
            ]
            if videos:
                found.append(" ".join(flag for flag, wanted in flags if wanted))
        return found

    @property
    def hours(self) -> float | None:
        """Of the whole run, where the list's length and the speed are given."""
        if self.videos is None or self.clips_per_second is None:
            return None
        return self.derived.total_steps * self.clips_per_step / self.clips_per_second / 3600

    @property
    def clips_per_step(self) -> int:
        d = self.derived
        return d.micro_batch * d.accumulate * d.world * self.clips

    def table(self) -> str:
        """As text: parameters, memory, whether it fits, steps, time."""
        from tubelet.plan.report import text  # which needs this module

        return text(self)

    def to_json(self) -> dict[str, Any]:
        """Every number, bytes as they are."""
        ways: list[tuple[Parallel, bool]] = [(p, r) for p in self.ways for r in (False, True)]
        return {
            "run": self.name,
            "parameters": asdict(self.weights),
            "flops_per_clip": self.count.flops // self.clips,
            "flops_recomputed_per_clip": self.count.recomputed // self.clips,
            "precision": "bf16" if self.bf16 else "float32",
            "processes": self.derived.world,
            "micro_batch": self.derived.micro_batch,
            "accumulate": self.derived.accumulate,
            "clips_per_step": self.clips_per_step,
            "total_steps": None if self.videos is None else self.derived.total_steps,
            "memory": [
                {"parallel": p, "checkpoint_blocks": r, **asdict(m), "total": m.total}
                for p, r in ways
                for m in [self.memory(p, r)]
            ],
            "chosen": {"parallel": self.parallel, "checkpoint_blocks": self.recompute},
            "memory_gib": self.memory_gib,
            "fits": self.fits,
            "hours": self.hours,
            "left_out": list(self.left_out),
        }

    @property
    def ways(self) -> tuple[Parallel, ...]:
        """How weights can be held: "ddp" is also one process alone."""
        return ("ddp", "fsdp") if self.derived.world > 1 else ("ddp",)

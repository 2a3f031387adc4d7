"""Records of comparisons."""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import median

from tubelet.bench import machine
from tubelet.bench.turns import Took


@dataclass(frozen=True)
class Record:
    """One of ours against one of others, in one run. Ratios above 1 in time and below 1 in memory
    are in our favour."""

    name: str  # "videomae-b-f32"
    against: str  # "hf", "plain", "plain-bf16", ...
    ratio_time: float  # their time through ours: the median over pairs of turns
    precision: str
    shape: str  # "4x3x16x224x224"
    ratio_memory: float | None = None  # our peak through theirs
    mfu: float | None = None  # share of the machine's rate of products in the same run
    mfu_against: float | None = None
    bar: float | None = None  # of ratio_time
    bar_memory: float | None = None  # of ratio_memory
    spread: tuple[float, float] | None = None  # of ratio_time: the least and the greatest
    seconds: float | None = None  # ours, a turn: the median
    seconds_against: float | None = None
    peak_gib: float | None = None
    peak_gib_against: float | None = None
    flops: int | None = None
    flops_against: int | None = None
    loss: float | None = None
    loss_against: float | None = None
    note: str = ""
    versions: dict[str, str] = field(default_factory=machine.versions)

    @property
    def met(self) -> bool | None:
        """Whether the bars are reached; None without any."""
        if self.bar is None and self.bar_memory is None:
            return None
        quick = self.bar is None or self.ratio_time >= self.bar
        return quick and self.small

    @property
    def small(self) -> bool:
        """Whether the bar of memory is reached, where there is one and memory is known."""
        if self.bar_memory is None or self.ratio_memory is None:
            return True
        return self.ratio_memory <= self.bar_memory


def compared(
    name: str,
    ours: Took,
    against: str,
    theirs: Took,
    *,
    precision: str,
    shape: str,
    bar: float | None = None,
    bar_memory: float | None = None,
    views: tuple[int, int] = (1, 1),
) -> Record:
    """The record of two rows of one run. `views` (ours, theirs): what a step of each is divided by,
    where one step learns from several views of a clip."""
    own, other = views
    peaks = (ours.peak_gib, theirs.peak_gib)
    ratios = [b / other / (a / own) for a, b in zip(ours.seconds, theirs.seconds, strict=True)]
    return Record(
        name=name,
        against=against,
        ratio_time=median(ratios),
        precision=precision,
        shape=shape,
        ratio_memory=peaks[0] / peaks[1] if peaks[0] and peaks[1] else None,
        mfu=median(ours.shares),
        mfu_against=median(theirs.shares),
        bar=bar,
        bar_memory=bar_memory,
        spread=(min(ratios), max(ratios)),
        seconds=median(ours.seconds) / own,
        seconds_against=median(theirs.seconds) / other,
        peak_gib=peaks[0],
        peak_gib_against=peaks[1],
        flops=ours.flops,
        flops_against=theirs.flops,
        loss=ours.value,
        loss_against=theirs.value,
    )

"""Clips that are decoded once and kept in memory, for sets so small that decoding would take most
of the time: the built-in videos are decoded faster than they are learned from, but not by much.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from tubelet.data.clips import AskedDraw, ClipDataset, EvalDataset, Key, MaskDraw
from tubelet.data.lists import VideoList
from tubelet.data.loader import eval_loader
from tubelet.data.sampling import draw_frames, rng_for, sample_seed
from tubelet.data.transforms import Augment
from tubelet.errors import TubeletError
from tubelet.shapes import ClipSpec, Sample


def decode_all(
    videos: VideoList,
    spec: ClipSpec,
    *,
    workers: int,
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """The centred clip of every video of a list: uint8 [n,C,T,H,W]. An unreadable one is an error."""
    clips: list[Tensor] = []
    for views in eval_loader(EvalDataset(videos, spec), batch_size=64, workers=workers):
        for view in views:
            if view.clips is None:
                raise TubeletError(view.error)
            clips.append(view.clips[0])
        if progress is not None:
            progress(len(clips), len(videos))
    return torch.stack(clips)


class Remembered(ClipDataset):
    """Training samples of such clips: whole, neither cropped nor flipped, with masks and labels.

    A spec of fewer frames than the clips have takes a run of frames out of each.
    """

    def __init__(
        self,
        videos: VideoList,
        clips: Tensor,
        spec: ClipSpec,
        *,
        seed: int,
        mask: MaskDraw | None = None,
        asked: AskedDraw | None = None,
        stored: Mapping[str, Tensor] | None = None,
    ) -> None:
        """`clips` uint8 [n,C,T,H,W]: see `decode_all`. `stored`: further views of every clip,
        [n,...] each. Other arguments: see `ClipDataset`."""
        super().__init__(videos, spec, Augment(), seed=seed, mask=mask, asked=asked)
        self.clips = clips
        self.stored = dict(stored or {})

    def __getitem__(self, key: Key) -> list[Sample]:
        rng = rng_for(self.seed, key.epoch, key.index)
        clip = self.clips[key.index]
        if clip.shape[1] > self.spec.num_frames:
            clip = clip[:, draw_frames(self.spec, clip.shape[1], 1.0, rng)]
        hidden = None if self.mask is None else self.mask(rng)
        sample = Sample(
            views={"clip": clip, **{name: x[key.index] for name, x in self.stored.items()}},
            path=self.videos.path(key.index),
            index=key.index,
            seed=sample_seed(self.seed, key.epoch, key.index, 0),
            hidden=hidden,
            asked=None if self.asked is None or hidden is None else self.asked(rng, hidden),
            label=self.videos.target(key.index),
        )
        return [sample]

"""Samples: one decode, one crop, one mask, a function of (seed, epoch, index, repeat) alone."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from tubelet.data.cache import FeatureCache, one_sample_a_video
from tubelet.data.clock import Clock
from tubelet.data.decode import DecodeError, Decoder, Video, available_decoders
from tubelet.data.lists import Kind, Part, VideoList, as_target
from tubelet.data.sampling import draw_frames, rng_for, sample_seed, test_frames
from tubelet.data.transforms import Augment, Size, augment, to_channels, views_of
from tubelet.data.yuv import YuvClip
from tubelet.errors import TubeletError
from tubelet.shapes import Batch, ClipSpec, Masks, Sample

MaskDraw = Callable[[np.random.Generator], Tensor]  # -> bool [k,N], True = hidden
AskedDraw = Callable[[np.random.Generator, Tensor], Tensor]  # hidden [k,N] -> bool [k,N]
Pack = Callable[[Tensor, Tensor | None], Masks]

Repeats = Literal["crop", "clip"]

TRIES = 10  # videos tried for one sample before giving up
# Short side of a frame; RGB of smaller ones is made and resized as fast whole.
YUV_PAYS_PIXELS = 240


@dataclass(frozen=True, slots=True)
class Key:
    """What a sample is drawn for: the position `index` of the list in `epoch`.

    Where sources have weights `epoch` is the pass through the source's videos (see `order.py`).
    """

    epoch: int
    index: int


def usable(decoder: Decoder) -> Decoder:
    """The decoder, if it is installed; else the error, before any video is called unreadable."""
    found = available_decoders()
    state = found.get(decoder, f"none of {', '.join(found)}")
    if decoder not in found or state.startswith("missing"):
        raise TubeletError(f"The decoder {decoder!r} is {state}.")
    return decoder


class Table:
    """The paths and labels of a list in a few arrays: cheap to send to many workers."""

    def __init__(self, videos: VideoList) -> None:
        paths = [entry.path.encode("utf-8", "surrogateescape") for entry in videos.entries]
        self._paths = b"".join(paths)
        self._ends = np.cumsum([len(path) for path in paths], dtype=np.int64)
        self._labels = _pack_labels(videos)
        self.kind: Kind = videos.kind
        self.classes = len(videos.classes)

    def __len__(self) -> int:
        return len(self._ends)

    def path(self, index: int) -> str:
        start = self._ends[index - 1] if index else 0
        return self._paths[start : self._ends[index]].decode("utf-8", "surrogateescape")

    def target(self, index: int) -> Tensor | None:
        """int64 [] (single), float32 [classes] (multi), float32 [values] (regression), None."""
        if self._labels is None:
            return None
        label = self._labels[index]
        if self.kind == "single":
            return as_target(int(label), self.kind, self.classes)
        return as_target(tuple(label.tolist()), self.kind, self.classes)


def _pack_labels(videos: VideoList) -> np.ndarray | list[np.ndarray] | None:
    labels = [entry.label for entry in videos.entries]
    if videos.kind == "unlabelled":
        return None
    if videos.kind == "multi":
        return [np.asarray(label, dtype=np.int32) for label in labels]
    return np.asarray(labels, dtype=np.int64 if videos.kind == "single" else np.float64)


class ClipDataset(Dataset[list[Sample]]):
    """Training samples: `dataset[Key(epoch, index)]` -> `num_sample` samples of one decode.

    Crop, flip and mask are drawn anew for each repeat, and with repeats="clip" its frames too: of one
    opened file, each needed frame decoded once. An unreadable video
    is replaced by another of its source, drawn from the same (seed, epoch, index), and named in
    `Sample.unreadable`; a sample then carries path, index and label of what it shows.

    Args:
        videos: the list; each of its parts, where it has some, with clips of its own spec.
        spec: what a clip is.
        augment: the crop and what else is done to the pixels.
        seed: of the run.
        num_sample: repeats of each video (repeated augmentation).
        repeats: "crop" takes them from the same frames; "clip" draws frames for each.
        views: further views of each crop, {name: (height, width)}; "clip" has the spec's size.
        mask: rng -> hidden bool [k,N]; None: samples without masks.
        asked: (rng, hidden) -> asked bool [k,N]; None: what is hidden is asked for.
        decoder: "pyav" or "torchcodec".
        max_unreadable: share of the list above which a run stops; see `loader.Unreadable`.
        features: a cache: frames and crop of epoch e are those of epoch e % crops, and their
            features come as further views, float16 [N,P]. Masks and seeds are the true epoch's.
    """

    def __init__(
        self,
        videos: VideoList,
        spec: ClipSpec,
        augment: Augment,
        *,
        seed: int,
        num_sample: int = 1,
        repeats: Repeats = "crop",
        views: Mapping[str, Size] | None = None,
        mask: MaskDraw | None = None,
        asked: AskedDraw | None = None,
        decoder: Decoder = "pyav",
        max_unreadable: float = 0.01,
        features: FeatureCache | None = None,
    ) -> None:
        if num_sample < 1:
            raise TubeletError(
                f"num_sample is {num_sample}: expected 1 or more repeats of a video."
            )
        if repeats not in get_args(Repeats):
            raise TubeletError(
                f"repeats is {repeats!r}: expected one of {', '.join(get_args(Repeats))}."
            )
        if features is not None:
            one_sample_a_video(num_sample)
        self.videos = Table(videos)
        self.parts = videos.parts
        self._whole = Part("", 0, len(videos), None, spec, "")
        self.spec = spec
        self.augment = augment
        self.seed = seed
        self.num_sample = num_sample
        self.repeats: Repeats = repeats
        self.sizes = {"clip": spec.size, **(views or {})}
        self.mask = mask
        self.asked = asked
        self.decoder: Decoder = usable(decoder)
        self.max_unreadable = max_unreadable
        self.features = features

    def __len__(self) -> int:
        return len(self.videos)

    def __getitem__(self, key: Key) -> list[Sample]:
        crop = key.epoch if self.features is None else key.epoch % self.features.crops
        rngs = [rng_for(self.seed, crop, key.index)]
        rngs += [
            rng_for(self.seed, key.epoch, key.index, repeat) for repeat in range(1, self.num_sample)
        ]
        drawing = rngs if self.repeats == "clip" else rngs[:1]
        clock = Clock()
        clips, shown, unreadable = self._decode(key.index, drawing)
        clock.lap("decode")
        label = self.videos.target(shown)
        samples = []
        for repeat, rng in enumerate(rngs):
            views = augment(clips[repeat % len(clips)], self.sizes, self.augment, rng)
            clock.lap("augment")
            if self.features is not None:
                views |= self._cached(self.features, crop, key.index, shown)
                clock.lap("decode")
            if crop != key.epoch:  # fixed crops, but other masks in each epoch
                rng = rng_for(self.seed, key.epoch, key.index)
            hidden = None if self.mask is None else self.mask(rng)
            asked = None if self.asked is None or hidden is None else self.asked(rng, hidden)
            clock.lap("collate")
            samples.append(
                Sample(
                    views=views,
                    path=self.videos.path(shown),
                    index=shown,
                    seed=sample_seed(self.seed, key.epoch, key.index, repeat),
                    hidden=hidden,
                    asked=asked,
                    label=label,
                    unreadable=unreadable,
                    spent=clock.taken(),
                )
            )
        return samples

    def _cached(
        self, features: FeatureCache, crop: int, index: int, shown: int
    ) -> dict[str, Tensor]:
        """The features of an entry, which must be those of the video that is shown."""
        of, views = features.read(crop, index)
        if of != shown:
            raise TubeletError(
                f"The feature cache {features.folder} has features of {self.videos.path(of)} where "
                f"now {self.videos.path(shown)} is shown in crop {crop} of "
                f"{self.videos.path(index)}: a video can be read that could not be read before, or no "
                "longer. Repair or remove the file, and make the cache anew."
            )
        return views

    def _decode(
        self, index: int, rngs: Sequence[np.random.Generator]
    ) -> tuple[Sequence[Tensor | YuvClip], int, tuple[str, ...]]:
        """A clip for each generator (uint8 [T,H,W,C] or as it is stored), the index that they show,
        and the paths that failed before."""
        failed: dict[int, str] = {}
        part = self._part(index)
        while True:
            path = self.videos.path(index)
            try:
                with Video(path, decoder=self.decoder) as video:
                    clips = self._read(video, part.clip, rngs)
            except (DecodeError, OSError) as error:
                failed[index] = str(error)
            else:
                bad = tuple(self.videos.path(at) for at in failed)
                return clips, index, bad
            if len(failed) == min(TRIES, part.videos):
                raise all_failed(list(failed.values()), part.videos, part.name)
            while index in failed:
                index = part.first + int(rngs[0].integers(part.videos))

    def _read(
        self, video: Video, spec: ClipSpec, rngs: Sequence[np.random.Generator]
    ) -> Sequence[Tensor | YuvClip]:
        """Clips of a video: as they are stored where that pays, else uint8 [T,H,W,C]."""
        info = video.info
        drawn = [draw_frames(spec, info.frames, info.fps, rng) for rng in rngs]
        needed, where = np.unique(np.stack(drawn), return_inverse=True)
        where = where.reshape(len(drawn), -1)
        large = min(info.height, info.width) >= YUV_PAYS_PIXELS
        if self.augment.takes_yuv and large and self.spec.in_chans == 3:
            stored = video.yuv(needed)
            if stored is not None:
                return [stored.pick(one) for one in where]
        frames = to_channels(video.frames(needed), self.spec.in_chans)
        if len(where) == 1 and where.size == len(needed):  # in their order: no copy
            return [frames]
        return [frames[torch.from_numpy(one)] for one in where]

    def _part(self, index: int) -> Part:
        """The source of an entry; all of the list where it has no parts."""
        if not self.parts:
            return self._whole
        return self.parts[bisect_right(self.parts, index, key=lambda part: part.first) - 1]

    def count(self, index: Tensor) -> dict[str, int]:
        """index int64 [B] -> {source: how many of them are its}, of every source."""
        ends = torch.tensor([part.first + part.videos for part in self.parts])
        at = torch.bucketize(index, ends, right=True)
        counts = torch.bincount(at, minlength=len(ends)).tolist()
        return dict(zip((part.name for part in self.parts), counts, strict=True))


def all_failed(reasons: Sequence[str], videos: int, source: str = "") -> TubeletError:
    """The error of a list (or source) of which so many videos were tried in vain."""
    tried = f"All {videos}" if len(reasons) == videos else f"{len(reasons)} in a row of {videos}"
    shown = "\n".join(f"  {reason}" for reason in reasons[:3])
    return TubeletError(
        f"{tried} videos{source and f' of source {source}'} could not be decoded, for example:\n"
        f"{shown}\n"
        "`tubelet check` on this data lists every file that cannot be read."
    )


def collate(groups: Sequence[Sequence[Sample]], *, pack: Pack | None = None) -> Batch:
    """Samples of B/num_sample videos -> a Batch of B, the repeats of a video side by side."""
    clock = Clock()
    samples = [sample for group in groups for sample in group]
    hidden = _stack([s.hidden for s in samples], "hidden")
    if hidden is not None and pack is None:
        raise TubeletError("The samples carry masks: pass pack=tubelet.masks.pack.")
    batch = Batch(
        views={
            name: torch.stack([sample.views[name] for sample in samples])
            for name in samples[0].views
        },
        paths=[sample.path for sample in samples],
        index=torch.tensor([sample.index for sample in samples]),
        seeds=torch.tensor([sample.seed for sample in samples]),
        masks=pack(hidden, _stack([s.asked for s in samples], "asked"))
        if pack is not None and hidden is not None
        else None,
        labels=_stack([s.label for s in samples], "label"),
        unreadable=tuple(path for group in groups for path in group[0].unreadable),
    )
    clock.lap("collate")
    spent = sum((Counter(s.spent) for s in samples), Counter(clock.taken()))
    batch.spent = dict(spent)
    return batch


def _stack(tensors: Sequence[Tensor | None], what: str) -> Tensor | None:
    there = [tensor for tensor in tensors if tensor is not None]
    assert len(there) in (0, len(tensors)), f"{what} in {len(there)} of {len(tensors)} samples"
    return torch.stack(there) if there else None


@dataclass
class Views:
    """All test views of one video, or why there are none."""

    index: int
    path: str
    clips: Tensor | None  # uint8 [V,C,T,h,w]: V = segments x crops, the crops of a segment together
    label: Tensor | None = None
    error: str = ""  # set where `clips` is None

    def pin_memory(self) -> Views:
        """Called by the loader where the device copies from pinned memory."""
        if self.clips is not None:
            self.clips = self.clips.pin_memory()
        return self


class EvalDataset(Dataset[Views]):
    """Test views: item i is every view of video i, from one decode.

    Nothing is random, and nothing is replaced: an unreadable video comes with its error and
    without clips. `segments` temporal by `crops` spatial views: 5 and 3 are the published protocol
    for Kinetics (MaskFeat: 10 and 1), 2 and 3 for Something-Something, 1 and 1 the centre of the
    video, or of an image.
    """

    def __init__(
        self,
        videos: VideoList,
        spec: ClipSpec,
        *,
        segments: int = 1,
        crops: int = 1,
        decoder: Decoder = "pyav",
    ) -> None:
        if segments < 1 or crops < 1:
            raise TubeletError(
                f"{segments} segments x {crops} crops: expected at least 1 of each, such as 5x3."
            )
        self.videos = Table(videos)
        self.spec = spec
        self.segments = segments
        self.crops = crops
        self.decoder: Decoder = usable(decoder)

    def __len__(self) -> int:
        return len(self.videos)

    def __getitem__(self, index: int) -> Views:
        path, label = self.videos.path(index), self.videos.target(index)
        try:
            clips = self._views(path)
        except (DecodeError, OSError) as error:
            return Views(index, path, None, label, str(error))
        return Views(index, path, clips, label)

    def _views(self, path: str) -> Tensor:
        spec = self.spec
        with Video(path, decoder=self.decoder) as video:
            at = test_frames(spec, video.info.frames, video.info.fps, self.segments)
            needed, where = np.unique(at, return_inverse=True)  # segments may overlap
            frames = to_channels(video.frames(needed), spec.in_chans)
        where = torch.from_numpy(where.reshape(at.shape))
        return torch.cat([views_of(frames[one], spec, self.crops) for one in where])

"""Further views of a sample: the same frames, crop and flip as the clip, at another size."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tubelet import masks
from tubelet.backbones.vit import ViT, ViTShape
from tubelet.data.clips import ClipDataset, Key, collate
from tubelet.data.decode import Video
from tubelet.data.lists import VideoList, read_list
from tubelet.data.sampling import draw_frames, rng_for
from tubelet.data.transforms import Augment, multiscale_box, random_resized_box, resize
from tubelet.decoders import DecoderShape
from tubelet.methods.mae import image
from tubelet.methods.mvd import MVD, Distilled
from tubelet.shapes import ClipSpec
from tubelet.tasks.pretrain import Pretrain
from tubelet.teachers import connect, teacher_of

SPEC = ClipSpec(num_frames=4, sampling_rate=2, size=(32, 32))
OTHER = {"clip_28x28": (28, 28)}


@pytest.fixture(scope="module")
def videos(ten_videos) -> VideoList:
    return read_list(ten_videos)


@pytest.mark.parametrize(
    ("crop", "draw"), [("multiscale", multiscale_box), ("random_resized", random_resized_box)]
)
def test_a_view_shows_the_crop_and_the_flip_of_the_clip(videos, crop, draw) -> None:
    how = Augment(crop=crop, flip=0.5)
    dataset = ClipDataset(videos, SPEC, how, seed=1, views=OTHER)
    plain = ClipDataset(videos, SPEC, how, seed=1)
    flipped = set()
    for index in range(10):
        (sample,) = dataset[Key(0, index)]
        rng = rng_for(1, 0, index)
        with Video(videos.entries[index].path) as video:
            frames = video.frames(draw_frames(SPEC, video.info.frames, video.info.fps, rng))
        cut = draw((32, 48), SPEC.size, how, rng).cut(frames)
        clip, view = resize(cut, (32, 32)), resize(cut, (28, 28))
        if rng.random() < 0.5:
            clip, view = clip.flip(-1), view.flip(-1)
            flipped.add(index)
        assert torch.equal(sample.views["clip"], clip)
        assert torch.equal(sample.views["clip_28x28"], view)
        # A further view changes nothing in the clip, whatever is drawn.
        assert torch.equal(plain[Key(0, index)][0].views["clip"], clip)
    assert 0 < len(flipped) < 10


def test_views_are_stacked_moved_and_pinned_with_the_clip(videos, monkeypatch) -> None:
    dataset = ClipDataset(videos, SPEC, Augment(), seed=1, views=OTHER)
    batch = collate([dataset[Key(0, index)] for index in (2, 5, 7)])
    assert batch.views["clip_28x28"].shape == (3, 3, 4, 28, 28)
    assert torch.equal(batch.views["clip_28x28"][1], dataset[Key(0, 5)][0].views["clip_28x28"])
    moved = batch.to("meta")
    assert {view.device.type for view in moved.views.values()} == {"meta"}
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: pinned.append(self) or self)
    batch.pin_memory()
    assert {tuple(x.shape) for x in pinned} >= {(3, 3, 4, 28, 28), (3, 3, 4, 32, 32)}


def test_a_teacher_that_sees_another_size_gets_its_view_and_resizes_nothing(
    videos, monkeypatch
) -> None:
    net = ViTShape(16, 1, 2, patch=8, position="sincos_3d")
    run = MVD(
        clip=SPEC,
        encoder=net,
        decoder=DecoderShape(16, 1, 2),
        image=Distilled(width=24, size=(28, 28)),
        video=Distilled(weight=0.0),
        mask_ratio=0.75,
    )
    vit = ViT(replace(image(net), width=24, patch=7), trained=(1, 28, 28))
    model = run.model()
    views = connect(model, {"image": teacher_of(vit)})
    assert views == OTHER
    dataset = ClipDataset(videos, SPEC, Augment(), seed=1, views=views, mask=run.draw_hidden)
    batch = collate([dataset[Key(0, index)] for index in range(2)], pack=masks.pack)

    class Resized(Exception):
        pass

    def refuse(*_: object, **__: object) -> None:
        raise Resized

    monkeypatch.setattr("torch.nn.functional.interpolate", refuse)
    with_view, _ = Pretrain(model)(batch)["image"]
    features = vit(batch.views["clip_28x28"][:, :, 0].float()[:, :, None] / 255).x
    assert features.shape == (2, 16, 24) and torch.isfinite(with_view)
    other = replace(batch, views=batch.views | {"clip_28x28": batch.views["clip_28x28"].flip(0)})
    assert Pretrain(model)(other)["image"][0] != with_view
    with pytest.raises(Resized):
        Pretrain(model)(replace(batch, views={"clip": batch.clip}))

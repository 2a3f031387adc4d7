"""VideoMAE V2: the values of its scripts, and a decoder mask beside the encoder's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small import write_video

import tubelet
from tubelet.backbones.vit import BASE, GIANT, HUGE, LARGE, ViTShape
from tubelet.data import clips
from tubelet.data.lists import read_list
from tubelet.data.sampling import rng_for
from tubelet.decoders import DecoderShape
from tubelet.errors import TubeletError
from tubelet.methods import videomae_v2
from tubelet.methods.mae import ImageMAE
from tubelet.methods.maskfeat import MaskFeat
from tubelet.methods.mvd import MVD, Distilled
from tubelet.methods.run import Pretraining
from tubelet.methods.videomae import VideoMAE
from tubelet.methods.videomae_v2 import VideoMAEV2, encoder
from tubelet.model import Classifier
from tubelet.shapes import ClipSpec
from tubelet.train.config import derive
from tubelet.verbs.begin import clips_of

SPEC = ClipSpec(num_frames=8, size=(32, 32))
SHAPE = ViTShape(32, 2, 2, patch=8)  # 4x4x4 tokens
DECODER = DecoderShape(16, 2, 2)
TINY = VideoMAEV2(clip=SPEC, encoder=SHAPE, decoder=DECODER, mask_ratio=0.75)

# The specification, 4.2: encoder, decoder, epochs, warm-up, videos a step, peak and least rate,
# clipping, recomputed blocks.
PRETRAINING = {
    "base_hybrid": (BASE, (384, 4, 6, 4.0), 200, 20, 1024, 4e-3, 4e-5, None, False),
    "large_hybrid": (LARGE, (512, 4, 8, 4.0), 300, 30, 1536, 6e-3, 6e-5, None, False),
    "huge_hybrid": (HUGE, (512, 4, 8, 4.0), 300, 30, 2048, 8e-3, 8e-5, None, False),
    "giant_hybrid": (GIANT, (512, 4, 8, 48 / 11), 300, 30, 2048, 4.8e-3, 8e-5, 0.02, True),
}
# 1.1: parameters of pretraining, and of fine-tuning on 710 classes.
PARAMETERS = {
    "small": (24_029_376, 22_153_286),
    "base": (94_210_944, 86_773_190),
    "large": (317_782_016, 304_588_486),
    "huge": (645_659_392, 632_516_550),
    "giant": (1_026_306_560, 1_012_611_142),
}
# 4.3: encoder, clips a step, peak rate, epochs, warm-up, weight decay, layer decay, drop path, head
# dropout, uniform sampling, clipping.
FINETUNING = {
    "base_k400": (BASE, 1024, 1.4e-3, 90, 5, 0.05, 0.75, 0.1, 0, False, None),
    "base_k710": (BASE, 1024, 1.4e-3, 90, 5, 0.05, 0.75, 0.1, 0, False, None),
    "base_ssv2": (BASE, 512, 2e-3, 25, 5, 0.05, 0.65, 0.1, 0, True, None),
    "large_k400": (LARGE, 384, 1.5e-3, 35, 5, 0.05, 0.75, 0.2, 0, False, None),
    "large_ssv2": (LARGE, 384, 3.75e-4, 20, 5, 0.05, 0.75, 0.2, 0, True, None),
    "huge_k400": (HUGE, 256, 5e-4, 40, 5, 0.05, 0.8, 0.2, 0.5, False, None),
    "huge_k710": (HUGE, 256, 5e-4, 40, 5, 0.05, 0.8, 0.2, 0.5, False, None),
    "huge_ssv2": (HUGE, 256, 2.5e-4, 20, 5, 0.05, 0.8, 0.2, 0, True, None),
    "giant_k400": (GIANT, 384, 7.5e-4, 30, 5, 0.1, 0.9, 0.2, 0, False, None),
    "giant_k710": (GIANT, 192, 3.75e-4, 35, 5, 0.1, 0.9, 0.3, 0, False, 5.0),
    "giant_k710_k400": (GIANT, 192, 3.75e-6, 3, 1, 0.1, 0.9, 0.25, 0, False, None),
    "giant_k710_k600": (GIANT, 192, 3.75e-6, 3, 1, 0.1, 0.9, 0.25, 0, False, None),
    "giant_ssv2": (GIANT, 192, 1.125e-4, 20, 5, 0.05, 0.9, 0.25, 0, True, None),
    "giant_k710_ucf101": (GIANT, 48, 9.375e-5, 50, 5, 0.05, 0.9, 0.35, 0.5, False, None),
    "giant_k710_hmdb51": (GIANT, 48, 4.6875e-5, 15, 5, 0.05, 0.9, 0.35, 0.5, False, None),
}


@pytest.mark.parametrize("name", PRETRAINING)
def test_pretraining_recipes_have_the_published_values(name: str) -> None:
    run = getattr(videomae_v2, name)
    shape, decoder, epochs, warmup, videos, lr, least, clip, recompute = PRETRAINING[name]
    derived = derive(run.train, 10**6)
    assert run.encoder == encoder(shape)
    assert run.encoder.positions == "rebuild"
    assert run.decoder == DecoderShape(*decoder)
    assert (run.train.epochs, run.train.warmup_epochs, run.train.batch_size) == (
        *(epochs, warmup, videos),
    )
    assert (derived.lr, derived.min_lr) == pytest.approx((lr, least))
    assert (run.train.betas, run.train.weight_decay) == ((0.9, 0.95), 0.05)
    assert (run.train.clip_grad, run.train.checkpoint_blocks) == (clip, recompute)
    assert run.train.parallel == ("fsdp" if recompute else "ddp")
    assert (run.mask_type, run.mask_ratio) == ("tube", 0.9)
    assert (run.decoder_mask_type, run.decoder_mask_ratio) == ("running_cell", 0.5)
    assert run.decode_visible
    assert (run.num_sample, run.drop_path, run.augment.crop) == (4, 0.0, "multiscale")
    assert (run.clip.num_frames, run.clip.sampling_rate) == (16, 4)


@pytest.mark.parametrize("name", FINETUNING)
def test_fine_tuning_recipes_have_the_published_values(name: str) -> None:
    run = getattr(videomae_v2, f"{name}_finetune")
    shape, clips, lr, epochs, warmup, decay, layers, path, head, uniform, clip = FINETUNING[name]
    assert run.encoder == encoder(shape)
    assert run.train.batch_size * run.num_sample == clips
    assert run.num_sample == 2
    assert derive(run.train, 10**6).lr == pytest.approx(lr)
    assert (run.train.epochs, run.train.warmup_epochs) == (epochs, warmup)
    assert (run.train.weight_decay, run.train.layer_decay) == (decay, layers)
    assert (run.drop_path, run.head_dropout, run.train.clip_grad) == (path, head, clip)
    assert (run.clip.sampling == "uniform") is uniform
    assert run.augment.flip == (0.0 if uniform else 0.5)
    assert (run.test_num_segment, run.test_num_crop) == ((2 if uniform else 5), 3)
    if not uniform:
        assert run.clip.sampling_rate == (2 if name.endswith("hmdb51") else 4)


@pytest.mark.parametrize("size", PARAMETERS)
def test_parameters(size: str) -> None:
    run = getattr(videomae_v2, f"{size}_hybrid")
    with torch.device("meta"):
        model = run.model()
        classifier = Classifier(run.encoder.build(final_norm=False), 710)
    found = tuple(sum(p.numel() for p in net.parameters()) for net in (model, classifier))
    assert found == PARAMETERS[size]


def test_the_giant_has_its_published_names() -> None:
    with torch.device("meta"):
        model = tubelet.create("pretrain_videomae_giant_patch14_224")
        classifier = tubelet.create("vit_giant_patch14_224", num_classes=710)
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS["giant"][0]
    assert sum(p.numel() for p in classifier.parameters()) == PARAMETERS["giant"][1]
    assert model.backbone.grid == (8, 16, 16)


# --- dual masking --------------------------------------------------------------------------------


def drawn(run: Pretraining, count: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """Hidden and asked, bool [count,1,N]."""
    hidden, asked = [], []
    for i in range(count):
        rng = rng_for(0, 0, i)
        hidden.append(run.draw_hidden(rng))
        asked.append(run.draw_asked(rng, hidden[-1]))
    return torch.stack(hidden), torch.stack(asked)


def test_repeats_have_masks_of_their_own_on_the_frames_of_one_decode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = replace(TINY, clip=replace(SPEC, sampling_rate=1))
    opened: list[str] = []
    real = clips.Video

    def counted(path: str, **options: Any) -> Any:
        opened.append(path)
        return real(path, **options)

    monkeypatch.setattr(clips, "Video", counted)
    videos = read_list(write_video(tmp_path / "a.mp4"), kind="unlabelled")
    dataset = clips_of(run, videos, mask=run.draw_hidden, asked=run.draw_asked)
    samples = dataset[clips.Key(0, 0)]
    assert (len(samples), len(opened)) == (4, 1)
    for name in ("hidden", "asked"):
        rows = [tuple(getattr(sample, name).flatten().tolist()) for sample in samples]
        assert len(set(rows)) > 1, name  # there are only four running cells
    assert len({sample.hidden.numpy().tobytes() for sample in samples}) == 4
    assert len({sample.views["clip"].numpy().tobytes() for sample in samples}) == 4


def test_the_published_counts() -> None:
    """Specification, 2.3: 944 tokens in B's decoder, of which 704 carry loss; 1,232 and 920 in g's."""
    for run, tokens, counted in (
        (videomae_v2.base_hybrid, 944, 704),
        (videomae_v2.giant_hybrid, 1232, 920),
    ):
        masks = run.pack(*drawn(run))
        assert masks.keep.shape[-1] + masks.asked.shape[-1] == tokens
        assert masks.weight.sum(-1).tolist() == [[counted], [counted]]
        fewer = replace(run, decode_visible=False)
        masks = fewer.pack(*drawn(fewer))
        assert masks.asked.shape[-1] == counted
        assert masks.weight.all()


@pytest.mark.parametrize("kind", ["running_cell", "frame", "random"])
def test_decoder_masks_of_the_paper(kind: str) -> None:
    run = replace(TINY, decoder_mask_type=kind)
    _, asked = drawn(run)
    assert asked.sum(-1).tolist() == [[32], [32]]
    if kind == "frame":
        assert set(asked.view(2, 4, 16).sum(-1).flatten().tolist()) == {0, 16}
    assert replace(TINY, decoder_mask_ratio=0.0).narrows is False


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"decoder_mask_type": "random", "decode_visible": False}, "do not go together"),
        ({"mask_type": "random", "decode_visible": False}, "do not go together"),
        ({"clip": replace(SPEC, num_frames=4), "decode_visible": False}, "do not go together"),
        (
            {"mask_type": "frame", "mask_ratio": 0.5, "decoder_mask_type": "frame"},
            "nothing that is hidden is decoded",
        ),
        ({"decoder_mask_ratio": 0.9}, r"--decoder-mask-ratio.*0\.25, 0\.5 or 0\.75"),
        ({"decoder_mask_ratio": 0.0, "decode_visible": False}, "give --decoder-mask-ratio too"),
    ],
)
def test_masks_that_do_not_go_together_are_errors_at_the_start(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(TubeletError, match=message):
        replace(TINY, **changes).narrows  # noqa: B018


def test_image_mae_has_no_decoder_mask() -> None:
    with pytest.raises(TubeletError, match="Leave out --decoder-mask-ratio"):
        ImageMAE(decoder_mask_ratio=0.5)


def test_a_clip_does_not_depend_on_its_batch_where_tokens_are_replaced() -> None:
    """A decoder that attends gets no positions that only fill up a row."""
    shape = replace(SHAPE, hide="replace")
    run = MaskFeat(clip=SPEC, encoder=shape, decoder=DECODER, mask_type="tube", mask_ratio=0.5)
    assert run.even == 32
    torch.manual_seed(0)
    model = run.model()
    hidden, _ = drawn(run, 4)
    clips = torch.rand(4, 3, 8, 32, 32)
    together = model.predict(clips, run.pack(hidden))["hog"]
    alone = model.predict(clips[:1], run.pack(hidden[:1]))["hog"]
    torch.testing.assert_close(together[:1], alone)


def test_two_ways_to_say_what_is_decoded_are_an_error() -> None:
    with pytest.raises(TubeletError, match="leave one out"):
        VideoMAE(centre_frame_only=True, decoder_mask_ratio=0.5)


DROP = {"clip": SPEC, "encoder": SHAPE, "decoder": DECODER, "mask_ratio": 0.5}
DUAL = {"decoder_mask_ratio": 0.5}


@pytest.mark.parametrize(
    "run",
    [
        VideoMAE(**DROP, **DUAL),
        MVD(
            **DROP,
            **DUAL,
            image=Distilled(weight=0),
            video_teacher="ema",
            pixel_weight=1.0,
            drop_path=0.0,
        ),
        MaskFeat(**DROP, **DUAL, mask_type="tube"),
        MaskFeat(clip=SPEC, encoder=replace(SHAPE, hide="replace"), mask_ratio=0.5, **DUAL),
    ],
    ids=["VideoMAE", "MVD, two branches", "MaskFeat, dropped", "MaskFeat, replaced"],
)
def test_every_method_takes_a_decoder_mask(run: Pretraining) -> None:
    torch.manual_seed(0)
    model = run.model()
    hidden, asked = drawn(run)
    assert run.narrows
    terms = model(torch.rand(2, 3, 8, 32, 32), run.pack(hidden, asked))
    assert terms["loss"][1] == (hidden & asked).sum()
    (terms["loss"][0] / terms["loss"][1]).backward()
    for branch in model.branches.values():
        assert all(p.grad is not None for p in branch.decoder.parameters())

import dataclasses
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from tubelet.backbones.vit import BASE, HUGE, LARGE, ViTShape
from tubelet.backbones.vit import SMALL as SMALL_VIT
from tubelet.errors import TubeletError
from tubelet.masks import pack
from tubelet.methods import videomae
from tubelet.methods.finetune import Finetune
from tubelet.methods.run import changed, find, from_config, from_dict, named_runs, to_dict
from tubelet.methods.videomae import VideoMAE
from tubelet.shapes import ClipSpec
from tubelet.train.config import derive

SMALL = VideoMAE(clip=ClipSpec(num_frames=4, size=(32, 32)), encoder=ViTShape(32, 1, 2, patch=8))

# The scripts' table (specification of arXiv 2203.12602, 6.2): total batch, epochs, actual lr and
# min_lr, stride, mask ratio, depth of the decoder.
PUBLISHED = {
    "small_k400": (1024, 1600, 6e-4, 4e-5, 4, 0.9, 4),
    "base_k400": (2048, 800, 1.2e-3, 8e-5, 4, 0.9, 4),
    "base_k400_1600": (2048, 1600, 1.2e-3, 8e-5, 4, 0.9, 4),
    "large_k400": (512, 1600, 3e-4, 2e-5, 4, 0.9, 12),
    "huge_k400": (1024, 1600, 6e-4, 4e-5, 4, 0.9, 12),
    "small_ssv2": (1024, 2400, 6e-4, 4e-5, 2, 0.9, 4),
    "base_ssv2": (2048, 800, 1.2e-3, 8e-5, 2, 0.9, 4),
    "base_ssv2_2400": (2048, 2400, 1.2e-3, 8e-5, 2, 0.9, 4),
    "base_ucf101": (192, 3200, 2.25e-4, 7.5e-6, 4, 0.75, 4),
}
# 6.3: total batch, epochs, actual lr, actual min_lr, layer decay, drop path, head dropout,
# num_sample, flip, test views.
FINETUNED = {
    "small_k400_finetune": (384, 150, 7.5e-4, 1.5e-6, 0.75, 0.1, 0.0, 2, 0.5, (5, 3)),
    "base_k400_finetune": (512, 100, 2e-3, 2e-6, 0.75, 0.1, 0.0, 1, 0.5, (5, 3)),
    "base_k400_1600_finetune": (384, 75, 7.5e-4, 1.5e-6, 0.75, 0.1, 0.0, 2, 0.5, (5, 3)),
    "large_k400_finetune": (128, 35, 1e-3, 5e-7, 0.75, 0.1, 0.0, 2, 0.5, (5, 3)),
    "huge_k400_finetune": (512, 50, 2e-3, 2e-5, 0.75, 0.2, 0.5, 2, 0.5, (5, 3)),
    "small_ssv2_finetune": (384, 40, 1.5e-3, 1.5e-6, 0.7, 0.1, 0.0, 2, 0.0, (2, 3)),
    "base_ssv2_finetune": (512, 50, 1e-3, 2e-6, 0.75, 0.1, 0.0, 1, 0.0, (2, 3)),
    "base_ssv2_2400_finetune": (384, 30, 7.5e-4, 1.5e-6, 0.75, 0.1, 0.0, 2, 0.0, (2, 3)),
    "base_ucf101_finetune": (128, 100, 2.5e-4, 5e-6, 0.7, 0.2, 0.5, 2, 0.5, (5, 3)),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_pretraining_recipes_have_the_published_values(name: str) -> None:
    run = getattr(videomae, name)
    batch, epochs, lr, min_lr, stride, ratio, depth = PUBLISHED[name]
    derived = derive(run.train, 100_000)
    assert (run.train.batch_size, run.train.epochs, run.train.warmup_epochs) == (batch, epochs, 40)
    assert (derived.lr, derived.min_lr) == pytest.approx((lr, min_lr))
    assert (run.clip.num_frames, run.clip.sampling_rate) == (16, stride)
    assert (run.mask_type, run.mask_ratio, run.decoder.depth) == ("tube", ratio, depth)
    assert (run.train.betas, run.train.weight_decay) == ((0.9, 0.95), 0.05)
    assert (run.augment.crop, run.augment.flip, run.drop_path) == ("multiscale", 0.0, 0.0)
    assert run.normalise_target


@pytest.mark.parametrize("name", FINETUNED)
def test_finetuning_recipes_have_the_published_values(name: str) -> None:
    run = getattr(videomae, name)
    batch, epochs, lr, min_lr, decay, path, dropout, sample, flip, views = FINETUNED[name]
    derived = derive(run.train, 100_000)
    assert (run.train.batch_size, run.train.epochs, run.train.warmup_epochs) == (batch, epochs, 5)
    assert (derived.lr, derived.min_lr) == pytest.approx((lr, min_lr))
    assert (run.train.layer_decay, run.drop_path, run.head_dropout) == (decay, path, dropout)
    assert (run.num_sample, run.augment.flip) == (sample, flip)
    assert (run.test_num_segment, run.test_num_crop) == views
    size = {"small": SMALL_VIT, "base": BASE, "large": LARGE, "huge": HUGE}[name.split("_")[0]]
    assert run.encoder == size
    assert run.clip.sampling == ("uniform" if "ssv2" in name else "dense")
    assert (run.mixing.mixup, run.mixing.cutmix, run.mixing.smoothing) == (0.8, 1.0, 0.1)
    assert (run.augment.auto_augment, run.augment.reprob) == ("rand-m7-n4-mstd0.5-inc1", 0.25)


def test_every_named_run_says_its_source_and_result_and_travels_through_json() -> None:
    runs = named_runs()
    assert len(runs) >= len(PUBLISHED) + len(FINETUNED)
    for name, run in runs.items():
        assert run.source, name
        assert run.published, name
        assert from_dict(json.loads(json.dumps(to_dict(run)))) == run
        assert find(name) is run


def test_what_the_specifications_do_not_give_is_said_to_be_ours() -> None:
    assert "our values" in videomae.base_hmdb51.source
    assert "our values" in videomae.base_hmdb51_finetune.source
    assert "our values" not in videomae.base_k400.source


@pytest.mark.parametrize("mask_type", ["tube", "random", "frame"])
def test_each_mask_type_draws_packs_and_trains(mask_type) -> None:
    run = dataclasses.replace(SMALL, mask_type=mask_type, mask_ratio=0.5)
    hidden = torch.stack([run.draw_hidden(np.random.default_rng(i)) for i in range(2)])
    assert hidden.shape == (2, 1, run.grid.size)
    total, weight = run.model()(torch.rand(2, 3, 4, 32, 32), pack(hidden))["loss"]
    assert weight == 2 * hidden[0].sum()
    total.backward()


@pytest.mark.parametrize("mask_type", ["tube", "random"])
def test_centre_frame_only_counts_hidden_tokens_of_the_middle_slot(mask_type) -> None:
    run = dataclasses.replace(
        SMALL,
        clip=ClipSpec(num_frames=8, size=(32, 32)),
        mask_type=mask_type,
        mask_ratio=0.5,
        centre_frame_only=True,
    )
    rngs = [np.random.default_rng(i) for i in range(4)]
    hidden = torch.stack([run.draw_hidden(rng) for rng in rngs])
    asked = torch.stack([run.draw_asked(rng, row) for rng, row in zip(rngs, hidden, strict=True)])
    masks = pack(hidden, asked)
    slot = masks.asked // 16
    assert (slot == 2).all()
    assert masks.weight.sum() == hidden.view(4, 4, 16)[:, 2].sum()
    assert run.model()(torch.rand(4, 3, 8, 32, 32), masks)["loss"][1] == masks.weight.sum()


def test_centre_frame_only_refuses_frame_masks() -> None:
    with pytest.raises(TubeletError, match="'tube' or 'random'"):
        dataclasses.replace(SMALL, mask_type="frame", centre_frame_only=True)


def test_raw_pixels_are_a_knob() -> None:
    run = dataclasses.replace(SMALL, normalise_target=False)
    assert not run.model().branches["pixels"].target.normalise


def test_draws_can_be_sent_to_workers() -> None:
    draw = pickle.loads(pickle.dumps(SMALL.draw_hidden))
    one, other = (f(np.random.default_rng(3)) for f in (draw, SMALL.draw_hidden))
    assert torch.equal(one, other)


def test_changed_finds_the_field_in_clip_and_train() -> None:
    run = changed(SMALL, epochs=3, num_frames=8, mask_ratio=0.5)
    assert (run.train.epochs, run.clip.num_frames, run.mask_ratio) == (3, 8, 0.5)
    assert run.clip.size == (32, 32)
    assert changed(Finetune(), mixup=0.0, data=Path("videos")).mixing.mixup == 0.0
    assert changed(Finetune(), data=Path("videos")).data == "videos"
    with pytest.raises(TubeletError, match=r"no field 'mask_ration'\. Did you mean 'mask_ratio'"):
        changed(SMALL, mask_ration=0.5)


def test_a_run_of_a_users_file(tmp_path: Path) -> None:
    (tmp_path / "my_runs.py").write_text(
        "from tubelet.methods.videomae import VideoMAE\nrun3 = VideoMAE(mask_ratio=0.8)\n"
    )
    assert find(f"{tmp_path}/my_runs.py:run3").mask_ratio == 0.8


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("base_k400", "named module:run"),
        ("videomea:base_k400", "There is no module 'videomea'"),
        ("videomae:base_k40", "Did you mean base_k400"),
        ("./nowhere.py:run", "There is no file ./nowhere.py"),
    ],
)
def test_a_name_that_does_not_exist(name: str, said: str) -> None:
    with pytest.raises(TubeletError, match=said):
        find(name)


def test_a_config_with_an_unknown_field_names_the_nearest(tmp_path: Path) -> None:
    values = to_dict(Finetune())
    values["drop_pth"] = 0.1
    (tmp_path / "config.json").write_text(json.dumps({"header": {"run": values}}))
    with pytest.raises(TubeletError, match="Did you mean 'drop_path'"):
        from_config(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(TubeletError, match="describes no run"):
        from_config(tmp_path / "config.json")

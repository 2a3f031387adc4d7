"""MVD's named runs have the values of its scripts, and its knobs do what they say."""

import dataclasses

import numpy as np
import pytest
import torch

from tubelet import losses
from tubelet.backbones.vit import BASE, HUGE, LARGE, SMALL, ViTShape
from tubelet.decoders import DecoderShape, Joint, Mlp
from tubelet.errors import TubeletError
from tubelet.masks import pack
from tubelet.methods import mvd
from tubelet.methods.mvd import MVD, Distilled, Further, student
from tubelet.methods.run import changed
from tubelet.model import MaskedModel
from tubelet.shapes import ClipSpec
from tubelet.targets.ema import Bootstrap
from tubelet.targets.features import Features
from tubelet.targets.hog import Hog
from tubelet.targets.pixels import Pixels
from tubelet.train.config import derive

TINY = MVD(
    clip=ClipSpec(num_frames=4, size=(32, 32)),
    encoder=ViTShape(32, 2, 2, patch=8, position="sincos_3d"),
    decoder=DecoderShape(16, 1, 2),
    mask_ratio=0.5,
    drop_path=0.0,
)
SIZES = {"small": SMALL, "base": BASE, "large": LARGE, "huge": HUGE}

# The specification of arXiv 2212.04500, 6.4 and 1.8: student, width of its teachers, epochs, total
# batch, actual lr and min_lr, drop path, checkpointing; decoder's width, depth, heads.
PUBLISHED = {
    "small_from_base_k400": ("small", 768, 400, 1024, 6e-4, 4e-4, 0.1, False, (384, 2, 6)),
    "small_from_large_k400": ("small", 1024, 400, 1024, 6e-4, 4e-4, 0.1, False, (384, 2, 6)),
    "base_from_base_k400": ("base", 768, 400, 1024, 6e-4, 4e-4, 0.1, False, (768, 2, 12)),
    "base_from_large_k400": ("base", 1024, 400, 1024, 6e-4, 4e-4, 0.1, False, (768, 2, 12)),
    "large_from_large_k400": ("large", 1024, 400, 512, 3e-4, 2e-4, 0.1, False, (512, 4, 8)),
    "large_from_large_k400_800": ("large", 1024, 800, 512, 3e-4, 2e-5, 0.1, False, (512, 4, 8)),
    "huge_from_huge_k400": ("huge", 1280, 800, 512, 3e-4, 2e-5, 0.2, True, (640, 8, 8)),
}
# 1.1: parameters in millions, of which trainable; and of each of the two decoders.
PARAMETERS = {
    "small_from_base_k400": (31.672, 29.866, 3.845),
    "small_from_large_k400": (31.869, 30.063, 3.943),
    "base_from_base_k400": (120.555, 116.943, 14.766),
    "base_from_large_k400": (120.949, 117.336, 14.963),
    "large_from_large_k400": (334.390, 331.179, 13.134),
    "large_from_large_k400_800": (334.390, 331.179, 13.134),
    "huge_from_huge_k400": (717.672, 713.658, 40.205),
}
# 6.5: size, epochs, total batch, actual lr and min_lr, layer decay, drop path, head dropout,
# checkpointing, flip, test views.
FINETUNED = {
    "small_k400_finetune": (150, 384, 7.5e-4, 1.5e-6, 0.75, 0.1, 0.0, False, 0.5, (5, 3)),
    "base_k400_finetune": (75, 384, 7.5e-4, 1.5e-6, 0.75, 0.1, 0.0, False, 0.5, (5, 3)),
    "large_k400_finetune": (50, 512, 2e-3, 2e-6, 0.75, 0.3, 0.5, False, 0.5, (5, 3)),
    "large_k400_800_finetune": (50, 512, 2e-3, 2e-6, 0.75, 0.3, 0.5, True, 0.5, (5, 3)),
    "huge_k400_finetune": (50, 256, 1e-3, 1e-6, 0.75, 0.3, 0.5, True, 0.5, (5, 3)),
    "small_ssv2_finetune": (40, 384, 1.5e-3, 1.5e-6, 0.7, 0.1, 0.0, False, 0.0, (2, 3)),
    "base_ssv2_finetune": (30, 384, 7.5e-4, 1.5e-6, 0.75, 0.1, 0.0, True, 0.0, (2, 3)),
    "large_ssv2_finetune": (30, 256, 5e-4, 1e-6, 0.75, 0.3, 0.5, True, 0.0, (2, 3)),
    "huge_ssv2_finetune": (30, 128, 2.5e-4, 5e-6, 0.75, 0.3, 0.5, True, 0.0, (2, 3)),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_pretraining_recipes_have_the_published_values(name: str) -> None:
    run = getattr(mvd, name)
    size, width, epochs, batch, lr, min_lr, path, recompute, decoder = PUBLISHED[name]
    derived = derive(run.train, 100_000)
    assert run.encoder == student(SIZES[size])
    assert run.encoder.position == "sincos_3d"
    assert (run.train.epochs, run.train.batch_size, run.train.warmup_epochs) == (epochs, batch, 40)
    assert (derived.lr, derived.min_lr) == pytest.approx((lr, min_lr))
    assert (run.train.betas, run.train.weight_decay) == ((0.9, 0.95), 0.05)
    assert (run.train.save_every_epochs, run.train.checkpoint_blocks) == (10, recompute)
    assert (run.clip.num_frames, run.clip.sampling_rate, run.clip.size) == (16, 4, (224, 224))
    assert (run.mask_type, run.mask_ratio, run.decoder_mask_ratio) == ("tube", 0.9, 0.0)
    assert (run.augment.crop, run.augment.flip, run.num_sample) == ("multiscale", 0.0, 1)
    assert (run.drop_path, run.masks_per_clip) == (path, 1)
    assert (run.pixel_weight, run.hog_weight) == (0.0, 0.0)
    assert run.decoder == DecoderShape(*decoder)
    for one in (run.image, run.video):
        assert (one.width, one.loss, one.weight, one.norm_feature) == (width, "smooth_l1", 1, False)
        assert one.layer == -1
    # H's image teacher has patches of 14 pixels, and its table is made anew (5.1).
    huge = size == "huge"
    assert (run.image.size, run.video.size) == ((196, 196) if huge else None, None)
    assert run.image.positions == ("rebuild" if huge else None)


@pytest.mark.parametrize("name", FINETUNED)
def test_finetuning_recipes_have_the_published_values(name: str) -> None:
    run = getattr(mvd, name)
    epochs, batch, lr, min_lr, decay, path, dropout, recompute, flip, views = FINETUNED[name]
    derived = derive(run.train, 100_000)
    assert run.encoder == student(SIZES[name.split("_")[0]])
    assert (run.train.epochs, run.train.batch_size, run.train.warmup_epochs) == (epochs, batch, 5)
    assert (derived.lr, derived.min_lr) == pytest.approx((lr, min_lr))
    assert (run.train.betas, run.train.weight_decay) == ((0.9, 0.999), 0.05)
    assert (run.train.layer_decay, run.drop_path, run.head_dropout) == (decay, path, dropout)
    assert (run.train.checkpoint_blocks, run.num_sample) == (recompute, 2)
    assert (run.augment.flip, run.augment.reprob) == (flip, 0.25)
    assert run.augment.auto_augment == "rand-m7-n4-mstd0.5-inc1"
    assert (run.mixing.mixup, run.mixing.cutmix, run.mixing.smoothing) == (0.8, 1.0, 0.1)
    assert (run.test_num_segment, run.test_num_crop) == views
    assert run.clip.sampling == ("uniform" if "ssv2" in name else "dense")


def test_every_published_recipe_is_pinned_here() -> None:
    named = {name for name, run in vars(mvd).items() if isinstance(run, mvd.MVD)}
    assert named == set(PUBLISHED) == set(PARAMETERS)


WITH_POSITIONS = ("backbone", "branches.image.decoder", "branches.video.decoder")


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_are_those_of_the_published_models(name: str) -> None:
    """Trainable ones, and with the three fixed position tables their totals."""
    total, trainable, decoder = PARAMETERS[name]
    with torch.device("meta"):
        model = getattr(mvd, name).model()
    count = sum(p.numel() for p in model.parameters() if p.requires_grad)
    tables = [model.get_submodule(f"{of}.positions").table for of in WITH_POSITIONS]
    assert f"{count / 1e6:.3f}" == f"{trainable:.3f}"
    assert f"{(count + sum(t.numel() for t in tables)) / 1e6:.3f}" == f"{total:.3f}"
    for branch in ("image", "video"):
        own = model.branches[branch].decoder
        # The published decoder is without its projection and its mask token.
        found = sum(
            p.numel() for n, p in own.named_parameters() if not n.startswith(("pro", "mask"))
        )
        assert f"{found / 1e6:.3f}" == f"{decoder:.3f}"


# The knobs.


def losses_of(run: MVD) -> dict[str, float]:
    """One step with features drawn at random, with gradients for all parameters."""
    rng = np.random.default_rng(0)
    hidden = torch.stack([run.draw_hidden(rng) for _ in range(2)])
    asked = torch.stack([run.draw_asked(rng, row) for row in hidden])
    model = run.model()
    views = {"clip": torch.rand(2, 3, 4, 32, 32)}
    for branch in model.branches.values():
        if isinstance(branch.target, Features):
            branch.target.view = "features"
            views["features"] = torch.randn(2, 32, branch.target.width)
    masks = pack(hidden, asked, count_visible=run.count_visible)
    terms = model(views["clip"], masks, None, views)
    terms["loss"][0].backward()
    learning = [p for p in model.parameters() if p.requires_grad]
    assert all(p.grad is not None for p in learning)
    return {name: float(total.detach() / weight) for name, (total, weight) in terms.items()}


def test_the_loss_is_the_weighted_sum_of_the_branches() -> None:
    run = dataclasses.replace(TINY, image=Distilled(weight=2.0), pixel_weight=0.5)
    terms = losses_of(run)
    expected = 2 * terms["image"] + terms["video"] + 0.5 * terms["pixels"]
    assert terms["loss"] == pytest.approx(expected, rel=1e-5)


def test_branches_of_weight_0_are_left_out_with_their_teachers() -> None:
    run = dataclasses.replace(TINY, video=Distilled(weight=0.0), image_teacher="a")
    assert list(run.model().branches) == ["image"]
    assert run.teachers() == {"image": "a"}
    with pytest.raises(TubeletError, match="Nothing is predicted"):
        dataclasses.replace(TINY, video=Distilled(weight=0), image=Distilled(weight=0))


@pytest.mark.parametrize("loss", ["smooth_l1", "l1", "mse", "cosine"])
def test_each_branch_has_a_loss_of_its_own(loss) -> None:
    run = dataclasses.replace(TINY, video=Distilled(loss=loss))
    model = run.model()
    assert model.branches["video"].loss is getattr(losses, loss)
    assert model.branches["image"].loss is losses.smooth_l1
    assert np.isfinite(losses_of(run)["video"])


def test_decoders_are_separate_and_targets_as_told() -> None:
    taught = {
        "image": Distilled(width=24, layer=1, norm_feature=True),
        "video": Distilled(width=40),
    }
    further = (Further(name="third", teacher="b", width=12),)
    run = dataclasses.replace(TINY, **taught, further=further, pixel_weight=1.0)
    model = run.model()
    assert isinstance(model, MaskedModel)
    assert list(model.branches) == ["image", "video", "third", "pixels"]
    image, video, third, pixels = model.branches.values()
    assert [b.target.width for b in (image, video, third, pixels)] == [24, 40, 12, 2 * 8 * 8 * 3]
    assert (image.target.layer, image.target.norm_feature) == (1, True)
    assert isinstance(pixels.target, Pixels)
    parameters = [
        {id(p) for p in branch.decoder.parameters()} for branch in model.branches.values()
    ]
    assert len(set.union(*parameters)) == sum(map(len, parameters))
    assert all(isinstance(branch.decoder, Joint) for branch in model.branches.values())


def test_histograms_of_gradients_as_a_branch() -> None:
    run = dataclasses.replace(TINY, hog_weight=0.25)
    hog = run.model().branches["hog"]
    assert isinstance(hog.target, Hog) and hog.target.width == 3 * 9
    assert hog.loss is losses.mse
    terms = losses_of(run)
    expected = terms["image"] + terms["video"] + 0.25 * terms["hog"]
    assert terms["loss"] == pytest.approx(expected, rel=1e-5)
    alone = {"image": Distilled(weight=0), "video": Distilled(weight=0)}
    assert list(dataclasses.replace(run, **alone).model().branches) == ["hog"]
    small = dataclasses.replace(run, encoder=dataclasses.replace(TINY.encoder, patch=4))
    with pytest.raises(TubeletError, match=r"tokens of 4x4 pixels cannot be cut into cells of 8x8"):
        small.model()


def test_the_decoders_projection_has_a_bias_and_its_mask_token_is_learned() -> None:
    decoder = TINY.model().branches["image"].decoder
    assert decoder.project.bias is not None
    assert decoder.mask_token.requires_grad
    assert decoder.mask_token.abs().max() <= 0.02


def test_the_students_average_as_a_teacher() -> None:
    run = dataclasses.replace(TINY, video_teacher="ema", video=Distilled(norm_feature=True))
    assert "video" not in run.teachers()
    assert isinstance(run.model().branches["video"].target, Bootstrap)
    assert losses_of(run)["video"] > 0


def test_without_masks_an_mlp_predicts_all_tokens() -> None:
    run = dataclasses.replace(TINY, mask_type="none")
    assert isinstance(run.model().branches["image"].decoder, Mlp)
    assert not run.draw_hidden(np.random.default_rng(0)).any()
    assert run.draw_asked(np.random.default_rng(0), torch.zeros(1, 32, dtype=torch.bool)).all()
    assert losses_of(run)["image"] > 0
    with pytest.raises(TubeletError, match="decoder_mask_ratio leaves out tokens"):
        dataclasses.replace(run, decoder_mask_ratio=0.5)


def test_a_decoder_mask_leaves_out_running_cells() -> None:
    run = dataclasses.replace(TINY, decoder_mask_ratio=0.5)
    rng = np.random.default_rng(0)
    asked = run.draw_asked(rng, run.draw_hidden(rng))
    assert int(asked.sum()) == run.grid.size // 2
    assert losses_of(run)["image"] > 0


def test_widths_that_were_left_open_are_the_teachers() -> None:
    further = (Further(name="third", teacher="b"),)
    run = dataclasses.replace(TINY, video=Distilled(width=8), further=further)
    fitted = run.fitted({"image": 24, "video": 40, "third": 12})
    assert (fitted.image.width, fitted.video.width, fitted.further[0].width) == (24, 8, 12)


def test_how_a_teacher_is_loaded() -> None:
    run = dataclasses.replace(TINY, image=Distilled(positions="rebuild", position="sincos_3d"))
    assert run.teacher_options("image") == {"positions": "rebuild", "position": "sincos_3d"}
    told = MVD(video=Distilled(heads=3, trained=(8, 32, 32))).teacher_options("video")
    assert told["heads"] == 3
    assert told["trained"] == (8, 32, 32)


@pytest.mark.parametrize("name", ["", "image", "pixels", "hog"])
def test_each_further_branch_needs_a_name_of_its_own(name: str) -> None:
    with pytest.raises(TubeletError, match="needs a name of its own"):
        dataclasses.replace(TINY, further=(Further(name=name, teacher="b"),))


def test_masks_per_clip_draw_as_many() -> None:
    run = changed(TINY, masks_per_clip=3)
    hidden = run.draw_hidden(np.random.default_rng(0))
    assert hidden.shape == (3, run.grid.size)
    assert not torch.equal(hidden[0], hidden[1])
    assert losses_of(run)["image"] > 0


def test_predict_all_asks_for_every_token_and_counts_it() -> None:
    run = changed(
        MVD(image=Distilled(width=32), video=Distilled(weight=0.0)),
        encoder=ViTShape(32, 1, 2, patch=8, position="sincos_3d"),
        decoder=DecoderShape(16, 1, 2),
        clip=ClipSpec(num_frames=4, size=(32, 32)),
        mask_ratio=0.75,
        predict="all",
    )
    rng = np.random.default_rng(0)
    hidden = run.draw_hidden(rng)[None]
    masks = pack(hidden, run.draw_asked(rng, hidden[0])[None], count_visible=run.count_visible)
    assert masks.keep.shape[-1] == 8 and masks.asked.shape[-1] == 32
    assert bool((masks.weight == 1).all())
    model = run.model().eval()
    predicted = model.predict(torch.rand(1, 3, 4, 32, 32), masks)["image"]
    assert predicted.shape == (1, 32, 32)
    with pytest.raises(TubeletError, match="set it to 0"):
        changed(run, decoder_mask_ratio=0.5)


def test_a_students_average_sees_the_students_clips() -> None:
    with pytest.raises(
        TubeletError, match=r"video teacher is the student's average.*--video\.size"
    ):
        changed(TINY, video_teacher="ema", video=Distilled(size=(28, 28)))
    assert changed(TINY, video_teacher="ema").teachers() == {"image": ""}

"""Hugging Face's folders, both ways: transformers (a dev extra) does the other side."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file
from torch import Tensor

import tubelet
from tubelet import stored
from tubelet.backbones.backbone import IMAGENET_MEAN, IMAGENET_STD
from tubelet.backbones.positions import sincos_2d
from tubelet.backbones.vit import BASE, SMALL, ViT, ViTShape
from tubelet.decoders import DecoderShape
from tubelet.errors import TubeletError
from tubelet.interop import huggingface_write, layouts
from tubelet.interop.found import Found
from tubelet.masks import pack, tube
from tubelet.methods.mvd import MVD
from tubelet.methods.run import to_dict
from tubelet.methods.videomae import VideoMAE
from tubelet.model import Card, Classifier, MaskedModel
from tubelet.shapes import ClipSpec, Grid

CLIP = ClipSpec(num_frames=8, size=(32, 32))
SHAPE = ViTShape(48, 2, 4, patch=8)
DECODER = DecoderShape(32, 2, 2)
SIZES: dict[str, Any] = {
    "image_size": 32,
    "patch_size": 8,
    "num_frames": 8,
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 192,
    "decoder_num_attention_heads": 2,
    "decoder_hidden_size": 32,
    "decoder_num_hidden_layers": 2,
    "decoder_intermediate_size": 128,
    "layer_norm_eps": 1e-6,
    "use_mean_pooling": False,
}
NAMES = ("jump", "run", "sit")
STATED = {"image_mean": list(IMAGENET_MEAN), "image_std": list(IMAGENET_STD)}
REAL = {"S": (SMALL, DecoderShape(192, 4, 3)), "B": (BASE, DecoderShape(384, 4, 6))}


def randomise(module: torch.nn.Module) -> Any:
    """Away from the initialisation, where biases are zero and norms are one."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return module.eval()


def pretrained(
    shape: ViTShape = SHAPE, decoder: DecoderShape = DECODER, clip: ClipSpec = CLIP
) -> MaskedModel:
    run = VideoMAE(clip=clip, encoder=shape, decoder=decoder)
    model = randomise(run.model())
    model.card = Card(clip=clip, run=to_dict(run))
    return model


def classifier(
    shape: ViTShape = SHAPE, names: tuple[str, ...] = NAMES, clip: ClipSpec = CLIP
) -> Classifier:
    encoder = ViT(shape, trained=(clip.num_frames, *clip.size), final_norm=False)
    model = randomise(Classifier(encoder, len(names), init_scale=1))
    model.card = Card(clip=clip, classes=names, label_kind="single")
    return model


def theirs_pretrained(**changed: Any) -> Any:
    return randomise(hf.VideoMAEForPreTraining(hf.VideoMAEConfig(**SIZES | changed)))


def theirs_classifier(**changed: Any) -> Any:
    labels = {i: name for i, name in enumerate(NAMES)}
    config = hf.VideoMAEConfig(**{**SIZES, "use_mean_pooling": True, "id2label": labels, **changed})
    return randomise(hf.VideoMAEForVideoClassification(config))


def theirs_encoder(**changed: Any) -> Any:
    return randomise(hf.VideoMAEModel(hf.VideoMAEConfig(**SIZES | changed)))


def vit(**changed: Any) -> Any:
    return randomise(hf.ViTModel(hf.ViTConfig(**SIZES | changed)))


def vit_classifier() -> Any:
    return randomise(hf.ViTForImageClassification(hf.ViTConfig(**SIZES)))


def vit_mae() -> Any:
    """With its fixed tables, which a new one has not: they come with the weights."""
    model = randomise(hf.ViTMAEForPreTraining(hf.ViTMAEConfig(**SIZES)))
    tables = {48: model.vit.embeddings.position_embeddings, 32: model.decoder.decoder_pos_embed}
    for width, table in tables.items():
        table.data.zero_()[0, 1:] = sincos_2d(Grid(1, 4, 4), width)
    return model


def folder_of(model: Any, path: Path, **stated: Any) -> Path:
    model.save_pretrained(path)
    (path / "preprocessor_config.json").write_text(json.dumps(STATED | stated))
    return path


def written(model: stored.VideoModel, path: Path) -> Path:
    layouts.write(stored.found_of(model), "hf", path)
    return path


def their_load(kind: Any, path: Path) -> Any:
    """from_pretrained, and nothing missing or left over."""
    model, told = kind.from_pretrained(path, output_loading_info=True)
    assert not told["missing_keys"] and not told["unexpected_keys"]
    assert not told["mismatched_keys"]
    return model.eval()


def config(path: Path) -> dict[str, Any]:
    return json.loads((path / "config.json").read_text())


def change(path: Path, **changed: Any) -> None:
    (path / "config.json").write_text(json.dumps(config(path) | changed))


def normal(clip: Tensor, mean: Any = IMAGENET_MEAN, std: Any = IMAGENET_STD) -> Tensor:
    """[B,C,T,H,W] in [0,1] -> [B,T,C,H,W] as their processor normalises."""
    of = [torch.tensor(v, dtype=clip.dtype).view(-1, 1, 1, 1) for v in (mean, std)]
    return ((clip - of[0]) / of[1]).transpose(1, 2)


def hidden_of(model: stored.VideoModel, batch: int, ratio: float = 0.75) -> Tensor:
    rng = np.random.default_rng(0)
    grid = model.backbone.grid
    return torch.stack([tube(grid, rng, mask_ratio=ratio) for _ in range(batch)])


@torch.no_grad()
def compare_losses(ours: MaskedModel, theirs: Any, clip: Tensor) -> tuple[float, float]:
    """-> the largest difference of predictions, in parts of the largest, and of losses.

    The norm that ends their decoder has torch's eps of 1e-5, whatever the configuration says;
    published is 1e-6. It is set right for predictions, and left for losses.
    """
    hidden = hidden_of(ours, len(clip))
    packed = pack(hidden[:, None])
    total, weight = ours(clip, packed)["loss"]
    loss = theirs(normal(clip), bool_masked_pos=hidden).loss
    theirs.decoder.norm.eps = 1e-6
    logits = theirs(normal(clip), bool_masked_pos=hidden).logits
    theirs.decoder.norm.eps = 1e-5
    predicted = ours.predict(clip, packed)["pixels"]
    apart = float((predicted - logits).abs().max() / logits.abs().max())
    return apart, abs(float(total / weight / loss) - 1)


@pytest.mark.parametrize("normalised", [True, False])
def test_pretraining_has_the_same_loss_in_both_directions(normalised: bool, tmp_path: Path) -> None:
    theirs = theirs_pretrained(norm_pix_loss=normalised)
    ours = tubelet.load(folder_of(theirs, tmp_path / "theirs"))
    assert ours.card.clip == CLIP
    assert ours.card.run["normalise_target"] is normalised
    clip = torch.rand(2, 3, 8, 32, 32)
    assert max(compare_losses(ours, theirs, clip)) < 1e-5
    again = their_load(hf.AutoModelForPreTraining, written(ours, tmp_path / "again"))
    assert again.config.norm_pix_loss is normalised
    assert max(compare_losses(ours, again, clip)) < 1e-5
    new = pretrained()
    theirs = their_load(hf.VideoMAEForPreTraining, written(new, tmp_path / "new"))
    assert max(compare_losses(new, theirs, clip)) < 1e-5


def test_gradients_are_the_same(tmp_path: Path) -> None:
    """Nearly cancelling over many tokens, they are compared where rounding does not matter."""
    ours = pretrained().train()
    theirs = their_load(hf.VideoMAEForPreTraining, written(ours, tmp_path)).train().double()
    theirs.decoder.norm.eps = 1e-6  # torch's 1e-5 there, whatever the configuration says
    ours = ours.double()
    ours.backbone.mean, ours.backbone.std = ours.backbone.mean.double(), ours.backbone.std.double()
    of = [
        torch.tensor(v, dtype=torch.float64).view(-1, 1, 1, 1)
        for v in (IMAGENET_MEAN, IMAGENET_STD)
    ]
    ours.backbone.mean, ours.backbone.std = of
    clip, hidden = torch.rand(2, 3, 8, 32, 32, dtype=torch.float64), hidden_of(ours, 2)
    total, weight = ours(clip, pack(hidden[:, None]))["loss"]
    (total / weight).backward()
    theirs(normal(clip), bool_masked_pos=hidden).loss.backward()
    header = stored.describe(ours, ours.card)
    found = Found(header, {n: p.grad for n, p in ours.named_parameters()})
    mapped = {
        n.replace("q_bias", "query.bias").replace("v_bias", "value.bias"): grad
        for n, grad in layouts.state_of(found, "hf").items()
    }
    for name, parameter in theirs.named_parameters():
        if parameter.requires_grad:
            scale = float(parameter.grad.abs().max())
            assert float((parameter.grad - mapped.pop(name)).abs().max()) <= 1e-10 * scale, name
    assert not mapped


def test_classification_has_the_same_logits_in_both_directions(tmp_path: Path) -> None:
    theirs = theirs_classifier()
    ours = tubelet.load(folder_of(theirs, tmp_path / "theirs"))
    assert ours.card.classes == NAMES
    clip = torch.rand(2, 3, 8, 32, 32)
    torch.testing.assert_close(ours(clip), theirs(normal(clip)).logits, rtol=1e-5, atol=1e-5)
    new = classifier()
    path = written(new, tmp_path / "new")
    theirs = their_load(hf.AutoModelForVideoClassification, path)
    assert theirs.config.id2label == {0: "jump", 1: "run", 2: "sit"}
    assert theirs.config.label2id == {"jump": 0, "run": 1, "sit": 2}
    assert theirs.config.layer_norm_eps == 1e-6
    torch.testing.assert_close(new(clip), theirs(normal(clip)).logits, rtol=1e-5, atol=1e-5)
    assert tubelet.load(path).card == new.card


@pytest.mark.slow
@pytest.mark.parametrize("size", ["S", "B"])
def test_real_sizes_agree_in_both_directions(size: str, tmp_path: Path) -> None:
    """16 frames of 224 pixels, heads as published: 6 and 12."""
    shape, decoder = REAL[size]
    spec, clip = ClipSpec(), torch.rand(1, 3, 16, 224, 224)
    ours = pretrained(shape, decoder, spec)
    theirs = their_load(hf.VideoMAEForPreTraining, written(ours, tmp_path / "a"))
    assert theirs.config.num_attention_heads == shape.heads
    back = tubelet.load(folder_of(theirs, tmp_path / "b"))
    figures = [compare_losses(one, theirs, clip) for one in (ours, back)]
    ours = classifier(shape, tuple(map(str, range(400))), spec)
    theirs = their_load(hf.VideoMAEForVideoClassification, written(ours, tmp_path / "c"))
    back = tubelet.load(folder_of(theirs, tmp_path / "d"))
    with torch.no_grad():
        logits = theirs(normal(clip)).logits
        apart = [float((one(clip) - logits).abs().max()) for one in (ours, back)]
    print(size, "predictions and losses", figures, "logits", apart)
    assert max(max(pair) for pair in figures) < 1e-5
    assert max(apart) < 1e-5 * max(1.0, float(logits.abs().max()))


@pytest.mark.parametrize("pooled", [True, False])
def test_an_encoder_alone(pooled: bool, tmp_path: Path) -> None:
    theirs = theirs_encoder(use_mean_pooling=pooled)
    ours = tubelet.load(folder_of(theirs, tmp_path / "theirs"))
    assert isinstance(ours, MaskedModel) and not ours.branches
    clip = torch.rand(1, 3, 8, 32, 32)
    expected = theirs(normal(clip)).last_hidden_state
    torch.testing.assert_close(ours.forward_features(clip), expected, rtol=1e-4, atol=1e-5)
    again = their_load(hf.AutoModel, written(ours, tmp_path / "again"))
    assert torch.equal(again(normal(clip)).last_hidden_state, expected)


MODELS: list[Callable[[], Any]] = [
    theirs_pretrained,
    theirs_classifier,
    theirs_encoder,
    vit,
    vit_classifier,
    vit_mae,
]


@pytest.mark.parametrize("spelling", ["as saved", "of transformers 5"])
@pytest.mark.parametrize("make", MODELS)
def test_a_folder_through_ours_is_bit_identical(make, spelling: str, tmp_path: Path) -> None:
    path = folder_of(model := make(), tmp_path / "theirs")
    if spelling != "as saved":
        save_file(model.state_dict(), path / "model.safetensors", {"format": "pt"})
    stored.save(tubelet.load(path), tmp_path / "ours.safetensors")
    again = written(tubelet.load(tmp_path / "ours.safetensors"), tmp_path / "again")
    before, after = load_file(path / "model.safetensors"), load_file(again / "model.safetensors")
    assert list(before) == list(after)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert config(again)["architectures"] == [type(model).__name__]
    their_load(type(model), again)


def test_half_precision_comes_back_as_it_was(tmp_path: Path) -> None:
    path = folder_of(theirs_classifier().half(), tmp_path / "theirs")
    ours = tubelet.load(path)
    assert next(ours.parameters()).dtype == torch.float32
    assert any("float16" in note for note in ours.report.notes)
    again = written(ours, tmp_path / "again")
    assert config(again)["torch_dtype"] == "float16"
    before, after = load_file(path / "model.safetensors"), load_file(again / "model.safetensors")
    assert all(before[n].dtype == after[n].dtype == torch.float16 for n in before)


def test_files_of_torch_and_shards_are_read(tmp_path: Path) -> None:
    path = folder_of(theirs := theirs_pretrained(), tmp_path / "theirs")
    whole = tubelet.load(path).state_dict()
    weights = load_file(path / "model.safetensors")
    (path / "model.safetensors").unlink()
    torch.save(weights, path / "pytorch_model.bin")
    same(tubelet.load(path).state_dict(), whole)
    same(tubelet.load(path / "pytorch_model.bin").state_dict(), whole)
    (path / "pytorch_model.bin").unlink()
    theirs.save_pretrained(path, max_shard_size="100KB")
    assert len(list(path.glob("model-*.safetensors"))) > 1
    same(tubelet.load(path).state_dict(), whole)
    shards = sorted(path.glob("model-*.safetensors"))
    last = load_file(shards[-1])
    save_file(last | {"unnamed.weight": torch.ones(2)}, shards[-1])  # the index has it not
    with pytest.raises(TubeletError, match=r"no place for: unnamed\.weight"):
        tubelet.load(path)
    save_file(last | {next(iter(load_file(shards[0]))): torch.ones(2)}, shards[-1])
    with pytest.raises(TubeletError, match="more than one of its files"):
        tubelet.load(path)
    shards[0].unlink()
    with pytest.raises(TubeletError, match="cannot be read as weights"):
        tubelet.load(path)


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_an_index_names_files_of_its_folder_alone(tmp_path: Path) -> None:
    path = folder_of(theirs_pretrained(), tmp_path / "theirs")
    weights = path / "model.safetensors"
    weights.rename(tmp_path / "outside.safetensors")
    said = {"weight_map": {"mask_token": "../outside.safetensors"}}
    (path / "model.safetensors.index.json").write_text(json.dumps(said))
    with pytest.raises(TubeletError, match="outside its folder: refused"):
        tubelet.load(path)


def test_folders_are_read_and_written_without_transformers(tmp_path: Path, monkeypatch) -> None:
    path = folder_of(theirs_classifier(), tmp_path / "theirs")
    monkeypatch.setitem(sys.modules, "transformers", None)
    written(tubelet.load(path), tmp_path / "again")
    assert (tmp_path / "again/config.json").is_file()


def test_the_weights_file_of_a_folder_is_the_folder(tmp_path: Path) -> None:
    path = folder_of(theirs_classifier(), tmp_path / "theirs")
    assert tubelet.load(path / "model.safetensors").card.classes == NAMES


@pytest.mark.parametrize("make", [vit, vit_classifier, vit_mae])
def test_images_give_an_encoder_with_the_same_features(make, tmp_path: Path) -> None:
    model = make()
    ours = tubelet.load(folder_of(model, tmp_path, image_mean=[0.5] * 3, image_std=[0.25] * 3))
    shape = ours.backbone.shape
    assert (shape.tubelet_size, shape.class_token) == (1, True)
    assert shape.position == ("sincos_2d" if make is vit_mae else "learned")
    image = torch.rand(2, 3, 1, 32, 32)
    pixels = normal(image, [0.5] * 3, [0.25] * 3)[:, 0]
    tower = getattr(model, "vit", model)
    if make is vit_mae:
        hidden = torch.zeros(2, 16, dtype=torch.bool)
        hidden[:, [1, 4, 5, 9, 10, 12]] = True
        noise = hidden.float() + torch.arange(16) / 100  # sorted: what stays keeps its order
        model.config.mask_ratio = 6 / 16
        theirs = model(pixels, noise=noise)
        got = ours.predict(image, pack(hidden[:, None]))["pixels"]
        torch.testing.assert_close(got, theirs.logits[hidden].view_as(got), rtol=1e-4, atol=2e-5)
        return
    tokens = ours.backbone(image)
    expected = tower(pixels).last_hidden_state
    torch.testing.assert_close(
        torch.cat([tokens.prefix, tokens.x], 1), expected, rtol=1e-4, atol=1e-5
    )
    dropped = {one.name: one.why for one in ours.report.dropped}
    assert any("changes no softmax" in why for why in dropped.values())
    assert any(
        n.startswith(("pooler", "classifier")) and "class token" in dropped[n] for n in dropped
    )


def test_without_biases_of_queries_and_values(tmp_path: Path) -> None:
    theirs = theirs_classifier(qkv_bias=False)
    path = folder_of(theirs, tmp_path / "theirs")
    ours = tubelet.load(path)
    assert not ours.backbone.blocks[0].attn.q_bias.any()
    clip = torch.rand(1, 3, 8, 32, 32)
    torch.testing.assert_close(ours(clip), theirs(normal(clip)).logits, rtol=1e-5, atol=1e-5)
    again = written(ours, tmp_path / "again")
    assert (
        load_file(again / "model.safetensors").keys()
        == load_file(path / "model.safetensors").keys()
    )
    their_load(hf.VideoMAEForVideoClassification, again)
    ours.backbone.blocks[0].attn.q_bias.data.fill_(0.1)  # as training does
    learned = their_load(hf.VideoMAEForVideoClassification, written(ours, tmp_path / "learned"))
    torch.testing.assert_close(ours(clip), learned(normal(clip)).logits, rtol=1e-5, atol=1e-5)


def test_biases_that_a_config_has_and_the_weights_lack_are_an_error(tmp_path: Path) -> None:
    path = folder_of(theirs_classifier(), tmp_path / "theirs")
    weights = load_file(path / "model.safetensors")
    gone = ("q_bias", "v_bias", "query.bias", "value.bias")
    save_file(
        {n: v for n, v in weights.items() if not n.endswith(gone)}, path / "model.safetensors"
    )
    with pytest.raises(TubeletError, match=r"attn\.q_bias is missing"):
        tubelet.load(path)


def test_the_preprocessor_both_ways(tmp_path: Path) -> None:
    spec = ClipSpec(num_frames=8, size=(32, 32), crop_pct=0.8, interpolation="bicubic")
    shape = ViTShape(48, 2, 4, patch=8, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    path = written(classifier(shape, clip=spec), tmp_path)
    processor = hf.AutoImageProcessor.from_pretrained(path)
    assert "VideoMAEImageProcessor" in type(processor).__name__
    frames = [np.full((50, 60, 3), 255, dtype=np.uint8)] * 8
    pixels = processor(frames, return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 8, 3, 32, 32)
    torch.testing.assert_close(pixels, torch.full_like(pixels, 2.0))
    assert dict(processor.size) == {"shortest_edge": 40}
    ours = tubelet.load(path)
    assert ours.card.clip == spec
    assert ours.backbone.shape == shape


@pytest.mark.parametrize(
    ("stated", "mean", "std"),
    [
        ({"do_normalize": False}, 0.0, 1.0),
        ({"image_mean": [1.0] * 3, "image_std": [2.0] * 3, "rescale_factor": 1 / 127.5}, 0.5, 1.0),
        ({"image_mean": [51.0] * 3, "image_std": [255.0] * 3, "do_rescale": False}, 0.2, 1.0),
    ],
)
def test_other_scales_of_pixels(
    stated: dict[str, Any], mean: float, std: float, tmp_path: Path
) -> None:
    ours = tubelet.load(folder_of(theirs_encoder(), tmp_path, **stated))
    assert ours.backbone.mean.flatten().tolist() == pytest.approx([mean] * 3)
    assert ours.backbone.std.flatten().tolist() == pytest.approx([std] * 3)


def test_notes_of_what_is_not_as_published(tmp_path: Path) -> None:
    small = {"hidden_size": 384, "num_attention_heads": 16, "intermediate_size": 64}
    path = tmp_path / "model"
    theirs_classifier(**small, layer_norm_eps=1e-12).save_pretrained(path)
    told = "\n".join(tubelet.load(path).report.notes)
    assert "layer_norm_eps is 1e-12 in config.json: read as 1e-06" in told
    assert "16 heads for width 384" in told and "--heads 6" in told
    assert "no preprocessor_config.json" in told
    assert tubelet.load(path, heads=6).backbone.shape.heads == 6
    folder_of(theirs_classifier(), path)
    assert not any("eps" in note for note in tubelet.load(path).report.notes)


def test_contradictions_are_errors(tmp_path: Path) -> None:
    path = folder_of(theirs_pretrained(), tmp_path)
    change(path, hidden_size=96, decoder_num_hidden_layers=3)
    with pytest.raises(
        TubeletError,
        match="hidden_size 96 in the config, 48 in the tensors; decoder_num_hidden_layers 3 in the config, 2",
    ):
        tubelet.load(path)
    path = folder_of(theirs_classifier(), tmp_path / "b")
    change(path, id2label={"0": "jump", "1": "run"})
    with pytest.raises(TubeletError, match="id2label names 2 classes, and the head has 3"):
        tubelet.load(path)
    path = folder_of(vit(), tmp_path / "c")
    change(path, image_size=64)
    with pytest.raises(TubeletError, match="has 16 positions, and an image_size of 64 64 tokens"):
        tubelet.load(path)


def test_what_ours_cannot_be_is_refused(tmp_path: Path) -> None:
    path = folder_of(theirs_classifier(use_mean_pooling=False), tmp_path / "token")
    with pytest.raises(
        TubeletError, match=r"use_mean_pooling False\) reads one token.*encoder_only=True"
    ):
        tubelet.load(path)
    assert tubelet.load(path, encoder_only=True).backbone.norm.weight.shape == (48,)
    path = folder_of(theirs_pretrained(use_mean_pooling=True), tmp_path / "unnormed")
    with pytest.raises(TubeletError, match="has no norm after its encoder"):
        tubelet.load(path)
    path = folder_of(theirs_classifier(hidden_act="relu"), tmp_path / "relu")
    with pytest.raises(TubeletError, match="hidden_act is 'relu'"):
        tubelet.load(path)
    path = folder_of(theirs_classifier(), tmp_path / "said")
    with pytest.raises(TubeletError, match=r"says its positions itself \(sinusoid_1d\)"):
        tubelet.load(path, position="sincos_3d")
    change(path, model_type="bert")
    with pytest.raises(TubeletError, match="type 'bert': known are videomae, vit, vit_mae"):
        tubelet.load(path)
    vit().save_pretrained(tmp_path / "vit")
    with pytest.raises(TubeletError, match=r"has no preprocessor_config\.json"):
        tubelet.load(tmp_path / "vit")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_attention_heads", "4"),
        ("num_frames", 0),
        ("image_size", [32, 32, 32]),
        ("image_size", 0),
        ("layer_norm_eps", None),
        ("use_mean_pooling", "yes"),
        ("id2label", ["jump", "run", "sit"]),
        ("model_type", ["videomae"]),
    ],
)
def test_a_config_of_wrong_types_is_one_error(name: str, value: Any, tmp_path: Path) -> None:
    path = folder_of(theirs_classifier(), tmp_path)
    change(path, **{name: value})
    with pytest.raises(TubeletError, match=name if name != "model_type" else "known are videomae"):
        tubelet.load(path)


@pytest.mark.parametrize(
    "stated",
    [
        {"image_std": [0.0] * 3},
        {"image_mean": 0.5},
        {"image_mean": ["a", "b", "c"]},
        {"rescale_factor": "1/255"},
        {"rescale_factor": 0},
    ],
)
def test_a_preprocessor_of_wrong_values_is_one_error(stated: Any, tmp_path: Path) -> None:
    path = folder_of(theirs_classifier(), tmp_path, **stated)
    with pytest.raises(TubeletError, match=next(iter(stated))):
        tubelet.load(path)
    folder_of(theirs_classifier(), tmp_path, size=40, do_center_crop=True)  # as in old ones
    assert tubelet.load(path).card.clip.crop_pct == 0.8


def test_tensors_of_wrong_shapes_are_one_error(tmp_path: Path) -> None:
    path = folder_of(theirs_classifier(), tmp_path)
    file = path / "model.safetensors"
    weights = load_file(file)
    block = "videomae.encoder.layer.1."
    shapes = {
        "videomae.embeddings.patch_embeddings.projection.weight": (48,),
        f"{block}attention.attention.key.weight": (48, 40),
        f"{block}output.dense.weight": (40, 192),
    }
    for name, shape in shapes.items():
        save_file({**weights, name: torch.zeros(shape)}, file, {"format": "pt"})
        with pytest.raises(TubeletError):
            tubelet.load(path)
    path = folder_of(vit(), tmp_path / "vit")
    file, name = path / "model.safetensors", "embeddings.position_embeddings"
    save_file({**load_file(file), name: torch.zeros(17)}, file, {"format": "pt"})
    with pytest.raises(TubeletError, match=r"position_embeddings is \[17\]: expected \[1,N,48\]"):
        tubelet.load(path)


def test_an_image_mae_with_learned_positions_gives_its_encoder(tmp_path: Path) -> None:
    model = vit_mae()
    model.vit.embeddings.position_embeddings.data.add_(0.1)
    path = folder_of(model, tmp_path / "learned")
    with pytest.raises(TubeletError, match="encoder_only=True"):
        tubelet.load(path)
    assert tubelet.load(path, encoder_only=True).backbone.shape.position == "learned"
    model = vit_mae()
    model.decoder.decoder_pos_embed.data.add_(0.1)
    with pytest.raises(TubeletError, match=r"decoder_pos_embed is not the fixed one"):
        tubelet.load(folder_of(model, tmp_path / "decoder"))


@pytest.mark.parametrize("mode", ["interpolate", "rebuild"])
def test_another_size_is_resized_and_said_so(mode: Any, tmp_path: Path) -> None:
    path = folder_of(theirs_pretrained(), tmp_path)
    plain = tubelet.load(path)
    same(plain.state_dict(), tubelet.load(path, positions=mode).state_dict())
    clip = torch.rand(1, 3, 8, 32, 32)
    alike = tubelet.load(path, positions=mode).forward_features(clip)
    assert torch.equal(alike, plain.forward_features(clip))
    larger = tubelet.load(path, num_frames=16, img_size=(32, 48), positions=mode)
    assert any(one.before == "4x4x4" and one.after == "8x4x6" for one in larger.report.resized)
    features = larger.forward_features(torch.rand(1, 3, 16, 32, 48))
    assert features.shape == (1, 192, 48)


def test_missing_and_further_tensors_are_errors(tmp_path: Path) -> None:
    path = folder_of(theirs_classifier(), tmp_path)
    file = path / "model.safetensors"
    weights = load_file(file)
    save_file({**weights, "extra.weight": torch.ones(1)}, file, {"format": "pt"})
    with pytest.raises(TubeletError, match=r"no place for: extra\.weight"):
        tubelet.load(path)
    gone = "videomae.encoder.layer.1.attention.attention.key.weight"
    save_file({k: v for k, v in weights.items() if k != gone}, file, {"format": "pt"})
    with pytest.raises(TubeletError, match="attention"):
        tubelet.load(path)
    file.unlink()
    with pytest.raises(TubeletError, match="holds no weights"):
        tubelet.load(path)


def test_what_theirs_cannot_be_is_refused(tmp_path: Path) -> None:
    shape = ViTShape(48, 2, 4, patch=8, position="sincos_3d")
    with pytest.raises(TubeletError, match="no place for this model: position 'sincos_3d'"):
        written(classifier(shape), tmp_path)
    student = MVD(clip=CLIP, encoder=SHAPE, decoder=DecoderShape(32, 1, 2)).model()
    student.card = Card(clip=CLIP)
    with pytest.raises(TubeletError, match=r"one branch `pixels`.*It has branches\.image"):
        written(student, tmp_path)
    stored.save(classifier(), tmp_path / "ours.safetensors")
    longer = tubelet.load(tmp_path / "ours.safetensors", num_frames=16)
    with pytest.raises(TubeletError, match="resized from those of clips of 8x32x32 to 16x32x32"):
        written(longer, tmp_path)
    images = ViTShape(48, 2, 4, patch=8, tubelet_size=1, class_token=True)
    with pytest.raises(TubeletError, match="its head reads the mean"):
        written(classifier(images, clip=ClipSpec(num_frames=1, size=(32, 32))), tmp_path)
    assert not (tmp_path / "config.json").exists()


def test_rebuilt_positions_and_oblong_clips_are_theirs_too(tmp_path: Path) -> None:
    stored.save(classifier(), tmp_path / "ours.safetensors")
    ours = tubelet.load(
        *[tmp_path / "ours.safetensors"], num_frames=16, img_size=(32, 48), positions="rebuild"
    )
    theirs = their_load(hf.AutoModelForVideoClassification, written(ours, tmp_path / "hf"))
    clip = torch.rand(1, 3, 16, 32, 48)
    torch.testing.assert_close(ours(clip), theirs(normal(clip)).logits, rtol=1e-5, atol=1e-5)
    assert tubelet.load(tmp_path / "hf").card.clip.size == (32, 48)


@pytest.mark.parametrize("kind", ["multi", "regression"])
def test_kinds_of_labels(kind: str, tmp_path: Path) -> None:
    model = classifier()
    model.card = Card(clip=CLIP, classes=NAMES, label_kind=kind)
    path = written(model, tmp_path)
    assert tubelet.load(path).card.label_kind == kind
    theirs = their_load(hf.AutoModelForVideoClassification, path)
    assert theirs.config.problem_type in ("multi_label_classification", "regression")


def test_no_name_is_lost() -> None:
    """What has no row in a table is an error, not left out."""
    found = stored.found_of(classifier())
    found.weights["backbone.other"] = torch.zeros(1)
    with pytest.raises(TubeletError, match=r"no name in the other layout: backbone\.other"):
        huggingface_write.write(found)

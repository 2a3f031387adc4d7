"""Networks and folders of Hugging Face's transformers, of the sizes of small ones of ours."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as hf
from torch import Tensor

from tubelet import stored
from tubelet.backbones.backbone import IMAGENET_MEAN, IMAGENET_STD
from tubelet.backbones.positions import sincos_2d
from tubelet.backbones.vit import ViT, ViTShape
from tubelet.decoders import DecoderShape
from tubelet.interop import layouts
from tubelet.masks import pack, tube
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


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)

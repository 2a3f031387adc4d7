from typing import Any

import distil
import pytest
import torch
from torch import Tensor, nn

from tubelet.backbones.vit import BASE, HUGE, LARGE, SMALL, ViT, ViTShape
from tubelet.decoders import DecoderShape, Joint
from tubelet.errors import TubeletError
from tubelet.losses import mse
from tubelet.masks import pack
from tubelet.methods import videomae
from tubelet.methods.mvd import Distilled
from tubelet.methods.run import changed
from tubelet.model import Branch, Classifier, MaskedModel
from tubelet.shapes import Batch, patchify
from tubelet.targets.pixels import Pixels


def masks_of(n: int, hidden: int, rows: tuple[int, int]):
    b, k = rows
    return pack(torch.stack([torch.randperm(n) < hidden for _ in range(b * k)]).view(b, k, n))


# Millions of parameters: the published models with 400 classes and in pretraining.
@pytest.mark.parametrize(
    ("run", "shape", "classifier", "pretraining"),
    [
        (videomae.small_k400, SMALL, 22.034, 24.029),
        (videomae.base_k400, BASE, 86.535, 94.211),
        (videomae.large_k400, LARGE, 304.271, 342.997),
        (videomae.huge_k400, HUGE, 632.119, 692.487),
    ],
)
def test_parameter_counts(run, shape: ViTShape, classifier: float, pretraining: float) -> None:
    def millions(module: nn.Module) -> float:
        return round(sum(p.numel() for p in module.parameters()) / 1e6, 3)

    with torch.device("meta"):
        assert millions(run.model()) == pretraining
        assert millions(Classifier(ViT(shape, final_norm=False), 400)) == classifier


def test_pixels_equal_the_formula_written_out(tiny_vit: ViT) -> None:
    clip = torch.rand(2, 3, 8, 32, 32)
    asked = torch.tensor([[3, 17], [60, 5]])
    y = Pixels(tiny_vit.patch)(clip, asked)
    for b in range(2):
        for m in range(2):
            n = int(asked[b, m])
            t, h, w = n // 16, n // 4 % 4, n % 4
            cube = clip[b, :, 2 * t : 2 * t + 2, 8 * h : 8 * h + 8, 8 * w : 8 * w + 8]
            flat = cube.reshape(3, -1)
            normal = (flat - flat.mean(1, keepdim=True)) / (flat.std(1, keepdim=True) + 1e-6)
            torch.testing.assert_close(y[b, m], normal.T.reshape(-1), rtol=1e-4, atol=1e-5)


def test_raw_pixels_keep_their_values_and_come_back(tiny_vit: ViT) -> None:
    clip = torch.rand(1, 3, 8, 32, 32)
    target = Pixels(tiny_vit.patch, normalise=False)
    y = target(clip)
    assert y.shape == (1, 64, target.width)
    assert y[0, 0, 0] == clip[0, 0, 0, 0, 0]
    assert y[0, 0, 1] == clip[0, 1, 0, 0, 0]
    assert torch.equal(target.cubes(y), patchify(clip, tiny_vit.patch))


def test_the_loss_is_the_mean_over_asked_tokens(tiny_model: MaskedModel) -> None:
    clip, masks = torch.rand(2, 3, 8, 32, 32), masks_of(64, 48, (2, 1))
    terms = tiny_model(clip, masks)
    pred = tiny_model.predict(clip, masks)["pixels"]
    y = tiny_model.branches["pixels"].target(clip, masks.asked[:, 0])
    total, weight = terms["loss"]
    assert weight == 2 * 48
    torch.testing.assert_close(total / weight, nn.functional.mse_loss(pred, y))


def test_weight_zero_asks_without_counting(tiny_model: MaskedModel) -> None:
    clip, masks = torch.rand(2, 3, 8, 32, 32), masks_of(64, 48, (2, 1))
    masks.weight[:, :, ::2] = 0
    total, weight = tiny_model(clip, masks)["loss"]
    pred = tiny_model.predict(clip, masks)["pixels"]
    y = tiny_model.branches["pixels"].target(clip, masks.asked[:, 0])
    assert weight == 2 * 24
    torch.testing.assert_close(total / weight, mse(pred, y)[:, 1::2].mean())


def test_k_masks_equal_the_clip_repeated(tiny_model: MaskedModel) -> None:
    clip, masks = torch.rand(2, 3, 8, 32, 32), masks_of(64, 48, (2, 3))
    total, weight = tiny_model(clip, masks)["loss"]
    repeated = pack(masks.hidden.flatten(0, 1)[:, None])
    slow, slow_weight = tiny_model(clip.repeat_interleave(3, 0), repeated)["loss"]
    assert weight == slow_weight
    torch.testing.assert_close(total, slow, rtol=1e-5, atol=0)


def test_branches_add_up_by_weight(tiny_vit: ViT) -> None:
    def branch(name: str, weight: float) -> Branch:
        target = Pixels(tiny_vit.patch, normalise=name == "a")
        decoder = Joint(32, target.width, DecoderShape(16, 1, 2), trained=tiny_vit.grid)
        return Branch(name, decoder, target, mse, weight)

    model = MaskedModel(tiny_vit, [branch("a", 1.0), branch("b", 0.25)])
    terms = model(torch.rand(2, 3, 8, 32, 32), masks_of(64, 48, (2, 1)))
    assert set(terms) == {"loss", "a", "b"}
    torch.testing.assert_close(terms["loss"][0], terms["a"][0] + 0.25 * terms["b"][0])


def test_the_decoder_does_not_care_for_the_order_of_visible_tokens(tiny_model: MaskedModel) -> None:
    clip, masks = torch.rand(1, 3, 8, 32, 32), masks_of(64, 48, (1, 1))
    tokens = tiny_model.backbone(clip, masks)
    decoder = tiny_model.branches["pixels"].decoder
    asked = masks.asked[:, 0]
    straight = decoder(tokens, asked)
    order = torch.randperm(16)
    tokens.x, tokens.at = tokens.x[:, order], tokens.at[:, order]
    torch.testing.assert_close(decoder(tokens, asked), straight, rtol=1e-4, atol=1e-5)


def test_the_whole_step_traces_to_one_graph(tiny_model: MaskedModel) -> None:
    clip, masks = torch.rand(2, 3, 8, 32, 32), masks_of(64, 48, (2, 1))
    seeds = torch.arange(2)
    traced = torch.compile(tiny_model, backend="eager", fullgraph=True)
    assert torch.equal(
        traced(clip, masks, seeds)["loss"][0], tiny_model(clip, masks, seeds)["loss"][0]
    )
    explained = torch._dynamo.explain(tiny_model)(clip, masks, seeds)
    assert (explained.graph_count, explained.graph_break_count) == (1, 0)


def test_a_classifier_traces_to_one_graph(tiny_shape: ViTShape) -> None:
    model = Classifier(ViT(tiny_shape, trained=(8, 32, 32), final_norm=False), 5).eval()
    explained = torch._dynamo.explain(model)(torch.rand(1, 3, 8, 32, 32))
    assert (explained.graph_count, explained.graph_break_count) == (1, 0)


def test_features_and_intermediates(tiny_model: MaskedModel) -> None:
    clip = torch.rand(2, 3, 8, 32, 32)
    features = tiny_model.forward_features(clip)
    assert features.shape == (2, 64, 32)
    swapped = tiny_model.forward_features(clip.transpose(1, 2), layout="BTCHW")
    assert torch.equal(features, swapped)
    maps = tiny_model.forward_intermediates(clip, 2)
    assert [m.shape for m in maps] == [(2, 4, 4, 4, 32)] * 2
    tokens = tiny_model.forward_intermediates(clip, [2], norm=True, output_fmt="NLC")
    assert torch.equal(tokens[0], features)
    hidden = torch.zeros(2, 64, dtype=torch.bool)
    hidden[:, 10:] = True
    by_mask = tiny_model.forward_features(clip, hidden)
    by_index = tiny_model.forward_features(clip, torch.arange(10).expand(2, -1))
    assert by_mask.shape == (2, 10, 32)
    assert torch.equal(by_mask, by_index)


def test_reset_classifier_and_pooled_features(tiny_shape: ViTShape) -> None:
    model = Classifier(ViT(tiny_shape, trained=(8, 32, 32), final_norm=False), 5).eval()
    clip = torch.rand(2, 3, 8, 32, 32)
    assert model(clip).shape == (2, 5)
    assert (
        float(model(clip).detach().abs().max()) < 0.01
    )  # the published init: head scaled by 0.001
    model.reset_classifier(0)
    pooled = model(clip)
    slow = nn.functional.layer_norm(model.backbone(clip).x.mean(1), (32,), eps=1e-6)
    torch.testing.assert_close(pooled, slow)
    model.reset_classifier(9)
    assert model(clip).shape == (2, 9)


def test_a_classifier_wants_no_norm_before_pooling(tiny_vit: ViT) -> None:
    with pytest.raises(TubeletError, match="final_norm=False"):
        Classifier(tiny_vit, 5)


def test_head_dropout_follows_the_seeds(tiny_shape: ViTShape) -> None:
    model = Classifier(
        ViT(tiny_shape, trained=(8, 32, 32), final_norm=False), 5, head_dropout=0.5, init_scale=1
    ).train()
    clip, seeds = torch.rand(2, 3, 8, 32, 32), torch.tensor([5, 6])
    assert torch.equal(model(clip, seeds), model(clip, seeds))
    assert not torch.equal(model(clip, seeds), model(clip, seeds + 1))


def test_initialisation_is_the_published_one() -> None:
    model = MaskedModel(ViT(SMALL), [])
    qkv = model.backbone.blocks[0].attn.qkv.weight
    bound = (6 / (384 + 3 * 384)) ** 0.5
    assert bound * 0.99 < float(qkv.detach().abs().max()) <= bound
    patch = model.backbone.patch_embed.proj.weight
    assert float(patch.detach().abs().max()) <= (3 * 2 * 16 * 16) ** -0.5
    decoder = Joint(384, 1536, DecoderShape(192, 1, 3), trained=model.backbone.grid)
    assert float(decoder.mask_token.detach().abs().max()) <= 0.02
    assert float(decoder.mask_token.detach().std()) == pytest.approx(0.0108, abs=0.002)
    assert float(decoder.project.weight.detach().abs().max()) <= 384**-0.5
    assert decoder.project.bias is None
    classifier = Classifier(ViT(SMALL, final_norm=False, init="normal"), 400)
    assert float(classifier.backbone.blocks[0].mlp.fc1.weight.detach().std()) == pytest.approx(
        0.02, abs=1e-3
    )
    assert float(classifier.head.weight.detach().std()) == pytest.approx(2e-5, rel=0.05)


def test_names_exempt_from_weight_decay(tiny_model: MaskedModel) -> None:
    assert tiny_model.no_weight_decay() == {"branches.pixels.decoder.mask_token"}
    assert tiny_model.no_weight_decay() <= dict(tiny_model.named_parameters()).keys()


TAUGHT = changed(
    distil.RUN,
    video_teacher="given",
    video=Distilled(width=48, weight=0.5),
    drop_path=0.0,
    masks_per_clip=3,
)


def gradients(model: MaskedModel, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def inputs(batch: Batch) -> tuple[Tensor, Any]:
    return batch.clip.float() / 255, batch.masks


@pytest.mark.parametrize("ratio", [0.0, 0.5])
@pytest.mark.parametrize("taught", ["frozen", "ema"])
def test_k_masks_equal_k_passes_with_one(taught: str, ratio: float) -> None:
    """Loss, terms and gradients of one pass are the sums over three passes with a mask each."""
    run = TAUGHT if taught == "frozen" else changed(TAUGHT, video_teacher="ema")
    run = changed(run, decoder_mask_ratio=ratio)
    model = distil.model(run).train()
    clip, together = inputs(distil.batch([0, 1], run))
    terms = model(clip, together)
    found = gradients(model, terms["loss"][0])
    asked = torch.zeros_like(together.hidden).scatter(-1, together.asked, True)
    sums: dict[str, Any] = {name: torch.zeros(2) for name in terms}
    slow: dict[str, Any] = {}
    for i in range(3):
        own = pack(together.hidden[:, i : i + 1], asked[:, i : i + 1])
        alone = model(clip, own)
        for name, (part, weight) in alone.items():
            sums[name] += torch.stack([part.detach(), weight])
        for name, gradient in gradients(model, alone["loss"][0]).items():
            slow[name] = slow.get(name, 0) + gradient
    assert set(terms) == {"loss", "image", "video"}
    for name, (part, weight) in terms.items():
        torch.testing.assert_close(torch.stack([part, weight]), sums[name], rtol=1e-5, atol=0)
    assert found.keys() == slow.keys()
    assert found.keys() == {n for n, p in model.named_parameters() if p.requires_grad}
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, slow[name], rtol=1e-4, atol=1e-4, msg=name)


def test_teachers_see_each_clip_once_whatever_the_masks() -> None:
    model = distil.model(TAUGHT)
    seen: dict[str, list[int]] = {}
    for name, branch in model.branches.items():
        target: Any = branch.target

        def note(module: Any, args: Any, name: str = name) -> None:
            seen.setdefault(name, []).append(len(args[0]))

        target.teacher.module.register_forward_pre_hook(note)
    model(*inputs(distil.batch([0, 1], TAUGHT)))
    # The image teacher sees the first frame of each of the two tubelets.
    assert seen == {"image": [4], "video": [2]}


def test_a_decoder_mask_asks_for_half_and_counts_what_is_hidden() -> None:
    run = changed(TAUGHT, decoder_mask_ratio=0.5, masks_per_clip=1)
    model = distil.model(run).eval()
    clip, packed = inputs(distil.batch([0, 1, 2], run))
    rows: dict[str, list[int]] = {}
    for name, branch in model.branches.items():
        decoder: Any = branch.decoder

        def note(module: Any, args: Any, output: Tensor, name: str = name) -> None:
            rows.setdefault(name, []).append(output.shape[1])

        decoder.blocks[0].register_forward_hook(note)
        decoder.blocks[1].register_forward_hook(note)
    terms = model(clip, packed)
    visible = packed.keep.shape[-1]
    assert rows == {name: [visible + 16, 16] for name in ("image", "video")}  # of 32 positions
    predictions = {n: p.detach() for n, p in model.predict(clip, packed).items()}
    slow, count = 0.0, 0
    for name, weight in (("image", 1.0), ("video", 0.5)):
        target: Any = model.branches[name].target
        features = target(clip)
        for b in range(3):
            for m, n in enumerate(packed.asked[b, 0].tolist()):
                counted = bool(packed.hidden[b, 0, n])
                assert float(packed.weight[b, 0, m]) == counted
                if counted:
                    error = predictions[name][b, m] - features[b, n]
                    slow += weight * float(nn.functional.smooth_l1_loss(error, 0 * error))
                    count += name == "image"
    assert 0 < count < 3 * 16
    assert float(terms["loss"][0].detach()) == pytest.approx(slow, rel=1e-5)
    assert float(terms["loss"][1]) == count


def test_without_masks_all_tokens_are_seen_and_count() -> None:
    run = changed(TAUGHT, mask_type="none", masks_per_clip=1)
    model = distil.model(run).eval()
    clip, packed = inputs(distil.batch([0, 1], run))
    total, weight = model(clip, packed)["loss"]
    assert float(weight) == 2 * 32
    tokens = model.backbone(clip).x
    slow = 0.0
    for name, share in (("image", 1.0), ("video", 0.5)):
        branch: Any = model.branches[name]
        decoder = branch.decoder
        prediction = decoder.fc2(nn.functional.gelu(decoder.fc1(tokens)))
        error = nn.functional.smooth_l1_loss(prediction, branch.target(clip), reduction="none")
        slow += share * float(error.detach().mean(-1).sum())
    assert float(total.detach()) == pytest.approx(slow, rel=1e-5)


@pytest.mark.parametrize("video", ["given", "ema"])
def test_distillation_traces_to_one_graph(video: str) -> None:
    run = changed(TAUGHT, video_teacher=video, drop_path=0.5, decoder_mask_ratio=0.5)
    model, batch = distil.model(run).train(), distil.batch([0, 1], run)
    clip, packed = inputs(batch)
    traced = torch.compile(model, backend="eager", fullgraph=True)  # raises at a break
    total = traced(clip, packed, batch.seeds)["loss"][0]
    torch.testing.assert_close(total, model(clip, packed, batch.seeds)["loss"][0])
    total.backward()

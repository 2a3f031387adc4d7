"""A step waits for the device nowhere: no value of a tensor decides anything, and nothing is copied.

On a CPU, where nothing has to be waited for: so what a GPU would have to be waited for is made an error.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from tubelet.backbones.mvit import MViTShape
from tubelet.backbones.vit import ViT, ViTShape
from tubelet.bench.steps import batch_of
from tubelet.decoders import DecoderShape
from tubelet.methods import mae, maskfeat, mvd, videomae, videomae_v2
from tubelet.methods.mae import image
from tubelet.methods.mvd import MVD, Distilled
from tubelet.methods.run import Pretraining, changed
from tubelet.model import MaskedModel
from tubelet.shapes import Batch, ClipSpec
from tubelet.targets.hog import Hog
from tubelet.tasks.pretrain import Pretrain
from tubelet.teachers import connect, teacher_of
from tubelet.train.log import Meter
from tubelet.train.optim import Averaged, Updater
from tubelet.train.parallel import Place

WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "equal.default")
CALLS: set[Any] = {
    *(Tensor.tolist, Tensor.numpy, Tensor.cpu, Tensor.item, Tensor.__bool__, Tensor.__float__),
    *(Tensor.__int__, Tensor.__index__),
    *(torch.tensor, torch.as_tensor, torch.from_numpy),  # made on the CPU, and then copied
}


class Operations(TorchDispatchMode):
    """An operation whose result has to be known to go on is an error."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func)
        if any(word in name for word in WAITING):
            raise AssertionError(f"{name} waits for the device")
        chosen = args[1] if "index.Tensor" in name or "index_put" in name else ()
        if any(i is not None and i.dtype == torch.bool for i in chosen):
            raise AssertionError("a boolean index waits for the device")
        return func(*args, **(kwargs or {}))


class Calls(TorchFunctionMode):
    """So is a call that reads values, or makes a tensor of them."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in CALLS:
            raise AssertionError(f"{func.__name__} waits for the device")
        return func(*args, **(kwargs or {}))


@contextmanager
def no_wait() -> Iterator[None]:
    with Calls(), Operations():
        yield


def small(run: Pretraining) -> Pretraining:
    clip = ClipSpec(num_frames=8, size=(32, 32))
    shape = replace(run.encoder, width=48, depth=2, heads=3, patch=8)
    return changed(run, clip=clip, encoder=shape, decoder=DecoderShape(32, 2, 2), drop_path=0.1)


def feat(run: Pretraining) -> Pretraining:
    return changed(
        run,
        clip=ClipSpec(num_frames=4, size=(32, 32)),
        encoder=MViTShape((1, 1, 1), (8, 16, 16), (1, 2, 2), pool_last=False, pool_kv=4),
        drop_path=0.1,
    )


RUNS: dict[str, Callable[[], tuple[Pretraining, MaskedModel]]] = {
    "videomae": lambda: own(small(videomae.base_k400)),
    "videomae_v2": lambda: own(small(videomae_v2.base_hybrid)),
    "mvd": lambda: taught(4),
    "mae": lambda: own(
        changed(
            mae.base_in1k,
            clip=replace(mae.base_in1k.clip, size=(32, 32)),
            encoder=replace(mae.base_in1k.encoder, width=48, depth=2, heads=3, patch=8),
            decoder=DecoderShape(32, 2, 2),
        )
    ),
    "maskfeat": lambda: own(feat(maskfeat.small_k400)),
    "maskfeat, vit": lambda: own(
        changed(feat(maskfeat.small_k400), encoder=ViTShape(48, 2, 3, patch=8, hide="replace"))
    ),
}


def own(run: Pretraining) -> tuple[Pretraining, MaskedModel]:
    return run, run.model()


def taught(masks: int) -> tuple[Pretraining, MaskedModel]:
    """A small student with two teachers, in bf16."""
    run = small(changed(mvd.base_from_base_k400, masks_per_clip=masks))
    assert isinstance(run, MVD)
    how = Distilled(width=48, precision="bf16")
    run = replace(run, image=how, video=how, image_teacher="here", video_teacher="here")
    model, shape = run.model(), ViTShape(48, 2, 3, patch=8)
    teachers = {
        "image": ViT(image(shape), trained=(1, *run.clip.size)),
        "video": ViT(shape, trained=(run.clip.num_frames, *run.clip.size)),
    }
    connect(model, {name: teacher_of(vit) for name, vit in teachers.items()})
    return run, model


def steps(task: Pretrain, batch: Batch, place: Place, watch: Callable[[], Any] = no_wait) -> Meter:
    """Two updates as the loop makes them, with an average of the weights, watched."""
    updater = Updater(task.model, place, weight_decay=0.05, betas=(0.9, 0.95), clip_grad=1.0)
    average = Averaged(updater.named, 0.99)
    meter = Meter(place)
    task.model.train()
    for step in range(2):
        with watch():
            with torch.autocast(place.device.type, torch.bfloat16, cache_enabled=False):
                terms = task(batch)
            terms["loss"][0].backward()
            meter.forward(batch, terms)
            skipped, norm = updater.apply(1e-4, meter.loss, 5.0)
            average.move(skipped)
            meter.update(step + 1, skipped, norm)
    return meter


@pytest.mark.parametrize("name", RUNS)
def test_no_step_waits(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Hog, "_scattered", Hog._bin_by_bin)  # as on a GPU
    run, model = RUNS[name]()
    meter = steps(Pretrain(model), batch_of(run, 2), Place(torch.device("cpu")))
    means, skipped, clips, _ = meter.read()
    assert means["loss"] > 0 and not skipped and clips == 4


def test_what_waits_is_noticed() -> None:
    x = torch.arange(4.0)
    waits: list[Callable[[], Any]] = [
        lambda: x.sum().item(),
        lambda: bool(x.sum() > 1),
        lambda: float(x[0]),
        lambda: x.tolist(),
        lambda: x[x > 1],
        lambda: x.nonzero(),
        lambda: x.cpu(),
        lambda: torch.tensor([1.0]),
    ]
    for each in waits:
        with pytest.raises(AssertionError, match="waits for the device"), no_wait():
            each()

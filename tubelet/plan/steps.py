"""One training step of a run on videos without pixels: what is counted."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tubelet import losses
from tubelet.data.sampling import rng_for
from tubelet.methods.distil import Distil
from tubelet.methods.finetune import Finetune
from tubelet.methods.run import Pretraining
from tubelet.model import Branch, Classifier, MaskedModel
from tubelet.plan.counting import Step
from tubelet.shapes import Masks
from tubelet.targets.features import Features
from tubelet.targets.ids import Ids
from tubelet.zoo import new_encoder

DRAWS = 16  # masks that are looked at: ragged ones take the room of the largest


class Untaught(nn.Module):
    """Stands for a teacher's features, or ids: what they are made by is not counted."""

    view = "clip"

    def __init__(self, target: Features) -> None:
        super().__init__()
        self.width = target.width
        self.ids = isinstance(target, Ids)

    def forward(self, view: Tensor, asked: Tensor) -> Tensor:
        """asked int64 [B,M] -> [B,M,P], or ids [B,M]."""
        if self.ids:
            return torch.zeros_like(asked)
        return torch.zeros(*asked.shape, self.width, device=view.device)


def pretraining(run: Pretraining) -> tuple[MaskedModel, Step, list[str]]:
    """-> the model on the meta device, its step, the branches whose teachers are left out."""
    with torch.device("meta"):
        model = run.model()
    taught: list[str] = []
    for name, branch in model.branches.items():
        assert isinstance(branch, Branch)
        if isinstance(branch.target, Features):
            branch.target = Untaught(branch.target)
            taught.append(name)
    masks, clip = masks_of(run), (run.clip.in_chans, run.clip.num_frames, *run.clip.size)

    def step(model: nn.Module, videos: int) -> Tensor:
        clips = videos * run.num_sample
        given = {name: rows.expand(clips, -1, -1) for name, rows in vars(masks).items()}
        seeds = torch.zeros(clips, dtype=torch.int64)
        return model(torch.empty(clips, *clip), Masks(**given), seeds)["loss"][0]

    return model, step, taught


def masks_of(run: Pretraining) -> Masks:
    """The masks of one clip, [1,k,...], of the size that they have in a batch."""
    hidden, asked, narrows = [], [], run.narrows
    for i in range(DRAWS):
        rng = rng_for(run.train.seed, 0, i)
        hidden.append(run.draw_hidden(rng))
        asked.append(run.draw_asked(rng, hidden[-1]))
    packed = run.pack(torch.stack(hidden), torch.stack(asked) if narrows else None)
    return Masks(**{name: rows[:1] for name, rows in vars(packed).items()})


def finetuning(run: Finetune, classes: int) -> tuple[Classifier, Step, list[str]]:
    """-> the model on the meta device, its step on mixed labels, what is left out."""
    with torch.device("meta"):
        model = run.model(new_encoder(run.encoder, run.clip, drop_path=run.drop_path), classes)
    clip = (run.clip.in_chans, run.clip.num_frames, *run.clip.size)

    def step(model: nn.Module, videos: int) -> Tensor:
        clips = videos * run.num_sample
        outputs = model(torch.empty(clips, *clip), torch.zeros(clips, dtype=torch.int64))
        with torch.autocast("cpu", enabled=False):
            return losses.cross_entropy(outputs, torch.zeros(clips, classes)).sum()

    return model, step, ["teacher"] if isinstance(run, Distil) else []

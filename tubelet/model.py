"""What is trained: a backbone with branches to predict targets, or with a head to classify."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from tubelet.backbones import layers as parts
from tubelet.backbones.backbone import Backbone, per_mask
from tubelet.errors import TubeletError
from tubelet.masks import as_masks
from tubelet.shapes import ClipSpec, Grid, Masks, Tokens

Layout = Literal["BCTHW", "BTCHW"]


@dataclass(frozen=True)
class Card:
    """How a model is to be used; travels in the header of its checkpoint."""

    clip: ClipSpec = ClipSpec()
    classes: tuple[str, ...] = ()  # names, by label
    label_kind: str = "unlabelled"  # single, multi, regression
    run: dict[str, Any] = field(default_factory=dict)  # what it was trained with


class VideoModel(nn.Module):
    """What every model with a backbone offers, under the names that timm's users know."""

    backbone: Backbone
    card = Card()
    origin: Any = None  # what the file of others that it came from held beside it
    report: Any = None  # of its load: what became of each tensor

    def forward_features(
        self, clip: Tensor, mask: Masks | Tensor | None = None, *, layout: Layout = "BCTHW"
    ) -> Tensor:
        """clip float in [0,1] -> tokens [B,L,D]; all N, or the visible ones under `mask` where the
        encoder drops the others.

        `mask`: see `tubelet.masks.as_masks`; with k masks a clip the result has B*k rows.
        """
        return self._encode(clip, mask, layout).x

    def grid_for(self, frames: int, height: int, width: int) -> Grid:
        """The grid of the tokens of a clip of this size."""
        return self.backbone.grid_for(frames, height, width)

    def forward_intermediates(
        self,
        clip: Tensor,
        indices: int | Sequence[int] | None = None,
        *,
        norm: bool = False,
        output_fmt: Literal["BTHWD", "NLC"] = "BTHWD",
        layout: Layout = "BCTHW",
    ) -> list[Tensor]:
        """clip -> a list of [B,t,h,w,D] (or [B,N,D] for "NLC"), one per block asked for.

        `indices`: block numbers, an int for the last so many, None for all. In a multiscale
        encoder the blocks of each stage have their own grid and width.
        """
        depth = len(self.backbone.blocks)
        if isinstance(indices, int):
            if not 0 < indices <= depth:
                raise TubeletError(f"The last {indices} blocks were asked for, of {depth}.")
            indices = range(depth - indices, depth)
        wanted = list(range(depth)) if indices is None else list(indices)
        tokens = self._encode(clip, None, layout, layers=wanted, norm=norm)
        if output_fmt == "NLC":
            return list(tokens.layers)
        shaped = zip(tokens.layers, tokens.layer_grids, strict=True)
        return [x.unflatten(1, tuple(grid)) for x, grid in shaped]

    def _encode(
        self,
        clip: Tensor,
        mask: Masks | Tensor | None,
        layout: Layout,
        layers: Sequence[int] | None = None,
        norm: bool = True,
    ) -> Tokens:
        clip = clip.transpose(1, 2) if layout == "BTCHW" else clip
        if isinstance(mask, Tensor):
            size = self.backbone.grid_for(*clip.shape[2:]).size
            mask = as_masks(mask, size, replace=self.backbone.hide == "replace")
        return self.backbone(clip, mask, layers=layers, norm=norm)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block in the backward pass: less memory, about a third more time.

        Frozen parts have none.
        """
        for part in self.modules():
            trained = any(p.requires_grad for p in part.parameters())
            if part is not self and trained and hasattr(part, "set_grad_checkpointing"):
                part.set_grad_checkpointing(enable)  # pyright: ignore[reportCallIssue]

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that their owners exempt from weight decay."""
        return {
            f"{prefix}.{name}"
            for prefix, module in self.named_modules()
            if module is not self and hasattr(module, "no_weight_decay")
            for name in module.no_weight_decay()  # pyright: ignore[reportCallIssue]
        }

    @property
    def num_layers(self) -> int:
        return self.backbone.num_layers

    def layer_of(self, name: str) -> int:
        """Parameter name -> layer number for layer decay; all outside the backbone is the last."""
        if name.startswith("backbone."):
            return self.backbone.layer_of(name.removeprefix("backbone."))
        return self.num_layers - 1


class Target(Protocol):
    """Makes what is predicted: `target(view, asked)` -> [B,M,P]."""

    width: int
    view: str  # of the sample: "clip" is the student's

    def __call__(self, view: Tensor, asked: Tensor | None = None) -> Tensor: ...


Loss = Callable[[Tensor, Tensor], Tensor]


class Branch(nn.Module):
    """One thing to predict: a decoder, the target it is compared with, the loss and its weight."""

    def __init__(
        self, name: str, decoder: nn.Module, target: nn.Module, loss: Loss, weight: float = 1.0
    ):
        super().__init__()
        if not weight > 0:
            raise TubeletError(
                f"The branch {name!r} has weight {weight:g}: give one above 0, or leave it out."
            )
        self.name = name
        self.decoder = decoder
        self.target = target
        self.loss = loss
        self.weight = weight


class MaskedModel(VideoModel):
    """Encode what is visible once; for each branch decode, compare, weigh."""

    def __init__(self, backbone: Backbone, branches: Iterable[Branch]):
        super().__init__()
        self.backbone = backbone
        self.branches = nn.ModuleDict({branch.name: branch for branch in branches})

    def forward(
        self,
        clip: Tensor,
        masks: Masks,
        seeds: Tensor | None = None,
        views: Mapping[str, Tensor] | None = None,
    ) -> dict[str, tuple[Tensor, Tensor]]:
        """clip float [B,C,T,H,W] in [0,1] -> {"loss": (sum, weight), each branch: (sum, weight)}.

        The mean loss is sum / weight; sums add up over micro-batches and processes. Targets are
        made once per clip, for all its masks. `views`: of the same clips, for targets that want
        one of their own; without it they get the clip.
        """
        # Targets first: what they need meanwhile is free again before activations are kept.
        targets = self.targets({"clip": clip, **(views or {})}, masks)
        predictions = self.predict(clip, masks, seeds)
        weight = masks.weight.flatten(0, 1)
        terms: dict[str, tuple[Tensor, Tensor]] = {}
        total = torch.zeros((), device=clip.device)
        with torch.autocast(clip.device.type, enabled=False):
            for name, branch in self._branches():
                part = (branch.loss(predictions.pop(name), targets.pop(name)) * weight).sum()
                terms[name] = (part, weight.sum())
                total = total + branch.weight * part
        return {"loss": (total, weight.sum()), **terms}

    @torch.no_grad()
    def targets(self, views: Mapping[str, Tensor], masks: Masks) -> dict[str, Tensor]:
        """views [B,...], "clip" among them -> what each branch is to predict: {name: [B*k,M,P]}.

        Made once per clip, for all its masks; a target that wants a view that is not there gets the
        clip. In float32 whatever the precision of the rest.
        """
        _, k, m = masks.asked.shape
        made: dict[str, Tensor] = {}
        for name, branch in self._branches():
            target: Any = branch.target
            view = views.get(target.view, views["clip"])
            with torch.autocast(view.device.type, enabled=False):
                y = target(view, masks.asked.flatten(1))
            made[name] = y.unflatten(1, (k, m)).flatten(0, 1)
        return made

    def predict(self, clip: Tensor, masks: Masks, seeds: Tensor | None = None) -> dict[str, Tensor]:
        """clip -> what each branch predicts at the asked positions: {name: [B*k,M,P]}."""
        tokens = self.backbone(clip, masks, seeds=seeds)
        seeds = None if seeds is None else per_mask(seeds, masks.asked.shape[1])
        asked = masks.asked.flatten(0, 1)
        return {name: branch.decoder(tokens, asked, seeds) for name, branch in self._branches()}

    def _branches(self) -> Iterable[tuple[str, Branch]]:
        for name, branch in self.branches.items():
            assert isinstance(branch, Branch)
            yield name, branch


class Classifier(VideoModel):
    """Mean over tokens, LayerNorm, dropout, linear head: the published fine-tuning model.

    `num_classes=0` leaves the head out: pooled features. Also the model for several labels a
    clip and for regression (a head of as many outputs).
    """

    HEAD_SALT = 1_000_000

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        *,
        head_dropout: float = 0.0,
        init_scale: float = 0.001,
    ):
        super().__init__()
        if not isinstance(backbone.norm, nn.Identity):
            raise TubeletError(
                "Classifier normalises after pooling: build the encoder with final_norm=False."
            )
        self.backbone = backbone
        self.fc_norm = nn.LayerNorm(backbone.dim, eps=parts.NORM_EPS)
        self.head_dropout = parts.Dropout(head_dropout, self.HEAD_SALT)
        self.init_scale = init_scale
        self.head: nn.Module = nn.Identity()
        self.reset_classifier(num_classes)

    def reset_classifier(self, num_classes: int) -> None:
        """A new head for another label set; 0 removes it. Published init: scaled by 0.001."""
        self.num_classes = num_classes
        self.head = nn.Identity()
        if num_classes:
            head = nn.Linear(self.backbone.dim, num_classes).to(self.fc_norm.weight.device)
            head.apply(parts.init_normal)
            with torch.no_grad():
                head.weight.mul_(self.init_scale)
            self.head = head

    def gather_head(self, rows: Sequence[int]) -> Classifier:
        """A classifier of these classes alone, in this order: the rows of the head that they have.

        How a head for a merged label set serves one of its parts (arXiv 2303.16727: K710 for
        K400). The encoder and its norm are shared with this model, the rows are copies. A row that
        is not there, or twice, is a TubeletError.
        """
        have, head = self.num_classes, self.head
        wrong = sorted({row for row in rows if rows.count(row) > 1 or not 0 <= row < have})
        if not isinstance(head, nn.Linear) or wrong or not rows:
            said = f"rows {wrong[:5]}" if wrong else f"{len(rows)} rows"
            raise TubeletError(
                f"The head has {have} classes, and {said} were asked for: expected numbers from 0 to "
                f"{have - 1}, each of them once."
            )
        gathered = Classifier(self.backbone, 0, init_scale=self.init_scale)
        gathered.fc_norm, gathered.head_dropout = self.fc_norm, self.head_dropout
        kept = torch.tensor(rows, device=head.weight.device)
        part = nn.Linear(head.in_features, len(rows)).to(head.weight)
        part.load_state_dict({name: value[kept] for name, value in head.state_dict().items()})
        gathered.head, gathered.num_classes = part, len(rows)
        names = self.card.classes
        gathered.card = replace(self.card, classes=tuple(names[row] for row in rows if names))
        return gathered.train(self.training)

    def forward(
        self, clip: Tensor, seeds: Tensor | None = None, *, layout: Layout = "BCTHW"
    ) -> Tensor:
        """clip float in [0,1] -> logits [B,classes]."""
        clip = clip.transpose(1, 2) if layout == "BTCHW" else clip
        return self.forward_head(self.backbone(clip, seeds=seeds).x, seeds)

    def forward_head(
        self, x: Tensor, seeds: Tensor | None = None, *, pre_logits: bool = False
    ) -> Tensor:
        """tokens [B,N,D] -> logits [B,classes], or the pooled, normed features [B,D]."""
        pooled = self.fc_norm(x.mean(1))
        return pooled if pre_logits else self.head(self.head_dropout(pooled, seeds))

"""The base of every run: what all methods share, and how a run travels through JSON.

A run is a frozen dataclass. Its named values (`tubelet.methods.videomae:base_k400`) are recipes;
the command line changes single fields; `config.json` holds all of them, so that a run can be
repeated. `source` says where the values come from and `published` what was reached with them.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import json
import os
import sys
import types
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

import numpy as np
import torch
import tyro
from torch import Tensor

from tubelet import masks
from tubelet.backbones import Encoder
from tubelet.backbones.backbone import Backbone
from tubelet.backbones.vit import BASE, ViTShape
from tubelet.data import transforms
from tubelet.data.sampling import rng_for
from tubelet.data.sources import DataSource
from tubelet.data.transforms import Augment
from tubelet.decoders import DecoderShape, Joint
from tubelet.errors import TubeletError
from tubelet.interop.found import Told
from tubelet.methods.records import record
from tubelet.methods.source_words import Sources
from tubelet.model import MaskedModel
from tubelet.shapes import ClipSpec, Grid, Masks
from tubelet.train.config import TrainConfig

R = TypeVar("R", bound="Run")
Flat = tyro.conf.arg(name="")  # flags without the field's name in front
# What weights of others do not say: a group of its own, with flags as short as those of a run.
OfOthers = Annotated[Told, tyro.conf.arg(name="weights-of-others"), tyro.conf.OmitArgPrefixes]
AnyEncoder = Annotated[Encoder, tyro.conf.AvoidSubcommands]  # flags of the kind that a run has


@dataclass(frozen=True)
class Run:
    """What pretraining and fine-tuning share."""

    verb: ClassVar[str] = ""  # the command that takes such a run
    data: str = ""
    """Training videos: a folder, a csv, txt or jsonl list (docs/data.md)."""
    root: str = ""
    """Joined in front of relative paths in lists (`data_root`)."""
    clip: Annotated[ClipSpec, Flat] = ClipSpec()
    augment: Augment = transforms.PRETRAIN
    num_sample: int = 1
    """Crops taken from each decoded video (repeated augmentation)."""
    repeats: Literal["crop", "clip"] = "crop"
    """What they have of their own. crop: a crop of the same frames; clip: frames too, so that one opened
    file gives several clips (arXiv 2205.09113, 3)."""
    video_decoder: Literal["pyav", "torchcodec"] = "pyav"
    max_unreadable: float = 0.01
    """Share of the videos that may be unreadable before training stops."""
    train: Annotated[TrainConfig, Flat] = TrainConfig()
    source: Annotated[str, tyro.conf.Suppress] = ""
    published: Annotated[str, tyro.conf.Suppress] = ""


@dataclass(frozen=True)
class Pretraining(Run, ABC):
    """A run that hides tokens and predicts a target: what every method adds to."""

    verb = "pretrain"
    sources: Sources = ()
    """Several lists in the place of --data, NAME=LIST[,kind=...][,weight=...] each, or a TOML file
    (docs/mixed-data.md)."""
    encoder: AnyEncoder = BASE
    drop_path: float = 0.0
    mask_ratio: float = 0.9
    masks_per_clip: int = 1
    """Masks drawn for each clip: one decode and one target serve them all (arXiv 2212.07525, 3.2)."""
    decoder_mask_ratio: float = 0.0
    """Share of the tokens that is not decoded, by a mask of its own (arXiv 2303.16727, 3.2); 0: what
    is hidden is decoded."""
    decoder_mask_type: Literal["running_cell", "frame", "random"] = "running_cell"
    """running_cell: in each 2x2 cell, by turns; shares of 0.25, 0.5 and 0.75."""
    decode_visible: bool = True
    """With a decoder mask, decode visible tokens too, as published: they carry no loss, but a
    decoder that attends to them learns on as many tokens in every clip."""

    def mixed(self) -> tuple[DataSource, ...]:
        """The sources of a mixed run, with the run's root where they have none; () where it has one
        list."""
        return tuple(replace(source, root=source.root or self.root) for source in self.sources)

    @property
    def needs(self) -> str:
        """The flags by which videos are given: for messages."""
        return "--data (or --sources)"

    @property
    def lacking(self) -> tuple[str, ...]:
        """Sources of the run's recipe that were not given."""
        return ()

    @property
    def grid(self) -> Grid:
        """The token grid of this run's clips; a size of which tokens would be cut is an error."""
        return self.encoder.token.grid_for(self.clip.num_frames, *self.clip.size)

    def backbone(self, **options: Any) -> Backbone:
        """The encoder, new; `options` (final_norm, init) are those of its class."""
        return self.encoder.build(
            trained=(self.clip.num_frames, *self.clip.size),
            in_chans=self.clip.in_chans,
            drop_path=self.drop_path,
            **options,
        )

    def joint(self, out: int, shape: DecoderShape, **options: Any) -> Joint:
        """A decoder of `out` values a token, with positions as the encoder has them.

        An encoder without any has a decoder with a sinusoid for each axis.
        """
        encoder = self.encoder
        if isinstance(encoder, ViTShape):
            options |= {"position": encoder.position, "positions": encoder.positions}
        else:
            options |= {"position": "sincos_3d"}
        return Joint(
            encoder.dim, out, shape, trained=self.grid, drop_path=self.drop_path, **options
        )

    @property
    def ragged(self) -> bool:
        """Whether masks hide a varying number of tokens."""
        return False

    @abstractmethod
    def mask(self, grid: Grid, rng: np.random.Generator) -> Tensor:
        """-> hidden bool [N]."""

    def asked(self, grid: Grid, hidden: Tensor, rng: np.random.Generator) -> Tensor | None:
        """hidden bool [N] -> what is predicted, bool [N]; None: all that is hidden."""
        if not self.decoder_mask_ratio:
            return None
        draw = masks.DECODER_DRAWS[self.decoder_mask_type]
        try:
            decoded = ~draw(grid, rng, mask_ratio=self.decoder_mask_ratio)
        except TubeletError as error:
            raise TubeletError(f"The decoder's mask (--decoder-mask-ratio): {error}") from error
        return decoded if self.decode_visible else decoded & hidden

    @property
    def fills(self) -> bool:
        """Whether positions without weight may be asked for, to make rows equal: not where a decoder
        attends to them."""
        return False

    @property
    def count_visible(self) -> bool:
        """Whether the loss counts what is asked for though it is visible."""
        return False

    def teachers(self) -> dict[str, str]:
        """{branch: where its teacher comes from}, of the branches that learn from a network."""
        return {}

    @property
    def cached_features(self) -> str:
        """Folder of features that teachers have computed before (`tubelet cache`); "": none."""
        return ""

    def teacher_options(self, branch: str) -> dict[str, Any]:
        """How the teacher of a branch is loaded: options of `tubelet.teachers.load_teacher`."""
        return {}

    def teacher_flags(self, branch: str) -> tuple[str, str]:
        """How a user gives the teacher of a branch, and how the branch is left out: for messages."""
        return f"pass --{branch}-teacher with", f"--{branch}.weight 0"

    def fitted(self, widths: Mapping[str, int]) -> Self:
        """The run with what its teachers say: {branch: width of its teacher's features}."""
        return self

    @abstractmethod
    def model(self) -> MaskedModel:
        """Encoder, decoders and targets."""

    def draw_hidden(self, rng: np.random.Generator) -> Tensor:
        """One sample's masks, bool [k,N]: what the loading workers call."""
        if self.masks_per_clip < 1:
            raise TubeletError(f"masks_per_clip is {self.masks_per_clip}: expected 1 or more.")
        return torch.stack([self._one_mask(rng) for _ in range(self.masks_per_clip)])

    def _one_mask(self, rng: np.random.Generator) -> Tensor:
        """hidden bool [N]; of one number in all samples where the encoder drops what is hidden."""
        hidden = self.mask(self.grid, rng)
        return masks.even(hidden, self.even, rng) if self.even else hidden

    @property
    def even(self) -> int:
        """Tokens that each mask is made to hide, where ragged ones cannot be; else 0."""
        ragged = self.ragged and not (self.fills and self.encoder.hide == "replace")
        return round(self.mask_ratio * self.grid.size) if ragged else 0

    def moved(self, draws: int = 64) -> float:
        """Tokens of a mask, on average, that are hidden or shown to make it even."""
        drawn = [int(self.mask(self.grid, rng_for(0, 0, i)).sum()) for i in range(draws)]
        return sum(abs(count - self.even) for count in drawn) / draws

    @property
    def narrows(self) -> bool:
        """Whether something else is asked for than what is hidden; TubeletError for masks that
        cannot be, by a look at some."""
        apart = self.decoder_mask_type != "running_cell" or not self.decode_visible
        if apart and not self.decoder_mask_ratio:
            raise TubeletError(
                "decoder_mask_type and decode_visible say which part of the tokens is decoded: give "
                "--decoder-mask-ratio too, or leave them out."
            )
        hidden, asked, narrows = [], [], False
        for i in range(32):
            rng = rng_for(self.train.seed, 0, i)
            hidden.append(self.draw_hidden(rng))
            narrows |= self.asked(self.grid, hidden[-1][0], rng) is not None
            asked.append(self.draw_asked(rng, hidden[-1]))
        try:
            drawn = self.pack(torch.stack(hidden), torch.stack(asked) if narrows else None)
        except TubeletError as error:
            if not self.decoder_mask_ratio:
                raise
            raise TubeletError(
                f"The masks of encoder and decoder do not go together: {error} Choose another "
                "--decoder-mask-type, or decode visible tokens too (--decode-visible)."
            ) from error
        if not drawn.weight.sum(-1).all():
            raise TubeletError(
                "The masks of encoder and decoder leave clips in which nothing that is hidden is "
                "decoded: choose another --mask-type or --decoder-mask-type."
            )
        return narrows

    def pack(self, hidden: Tensor, asked: Tensor | None = None) -> Masks:
        """The masks of a batch, [B,k,N] each: what the collate calls."""
        return masks.pack(
            hidden,
            asked,
            count_visible=self.count_visible,
            replace=self.encoder.hide == "replace",
            fill=self.fills,
        )

    def draw_asked(self, rng: np.random.Generator, hidden: Tensor) -> Tensor:
        """hidden [k,N] -> asked [k,N]."""
        rows = [self.asked(self.grid, row, rng) for row in hidden]
        return torch.stack(
            [row if ask is None else ask for row, ask in zip(hidden, rows, strict=True)]
        )


def to_dict(run: Run) -> dict[str, Any]:
    """A run as plain JSON values, with its type's name, and its file where that is a user's."""
    cls = type(run)
    values: dict[str, Any] = {"type": f"{cls.__module__}:{cls.__qualname__}", **asdict(run)}
    if not cls.__module__.startswith("tubelet."):
        values["file"] = inspect.getfile(cls)
    return values


def from_dict(values: dict[str, Any]) -> Run:
    """The inverse of `to_dict`; a name that the run does not have is an error."""
    values = dict(values)
    module, _, name = values.pop("type", "tubelet.methods.run:Run").rpartition(":")
    module = values.pop("file", module)
    cls = getattr(_module(module), name, None)
    if not (isinstance(cls, type) and issubclass(cls, Run)):
        raise TubeletError(f"{module} has no class of runs {name!r}, which this was made with.")
    return record(cls, values, name)


def from_config(path: str | Path) -> Run:
    """The run that a `config.json` (or the folder that holds it) was written for."""
    file = Path(path) / "config.json" if Path(path).is_dir() else Path(path)
    try:
        values = json.loads(file.read_text())["header"]["run"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TubeletError(
            f"{file} describes no run ({type(error).__name__}: {error}). Expected the config.json "
            "that a run writes into its folder."
        ) from error
    return from_dict(values)


def find(name: str) -> Run:
    """`module:attribute` -> the run.

    The module is looked up in `tubelet.methods` (`videomae:base_k400`), is a full module name, or
    is a file of the user's (`./mine.py:run3`).
    """
    module_name, _, attribute = name.rpartition(":")
    if not module_name:
        raise TubeletError(
            f"A run is named module:run, as in videomae:base_k400, or ./mine.py:run3 in a file of "
            f"your own; got {name!r}. `tubelet list` shows the named runs."
        )
    module = _module(module_name)
    run = getattr(module, attribute, None)
    if not isinstance(run, Run):
        known = [n for n, v in vars(module).items() if isinstance(v, Run)]
        near = difflib.get_close_matches(attribute, known, 3)
        hint = f" Did you mean {' or '.join(near)}?" if near else ""
        raise TubeletError(
            f"{module_name} has no run {attribute!r}.{hint} It has: {', '.join(known) or 'none'}."
        )
    return run


def _module(name: str) -> types.ModuleType:
    if name.endswith(".py"):
        path = Path(name)
        if not path.is_file():
            raise TubeletError(f"There is no file {name} to take a run from.")
        # On the path, so that loading workers can import it by name too.
        sys.path.insert(0, str(path.parent.resolve()))
        module = importlib.import_module(path.stem)
        if Path(module.__file__ or "").resolve() != path.resolve():
            raise TubeletError(
                f"{name} cannot be imported: there is another module {path.stem!r} "
                f"({module.__file__}). Give your file another name."
            )
        return module
    full = name if "." in name else f"tubelet.methods.{name}"
    try:
        return importlib.import_module(full)
    except ModuleNotFoundError as error:
        if error.name not in (full, full.rpartition(".")[0]):
            raise
        raise TubeletError(
            f"There is no module {name!r} with runs. Known: {', '.join(METHODS)}."
        ) from error


METHODS = ("videomae", "videomae_v2", "mae", "mvd", "maskfeat")


def named_runs() -> dict[str, Run]:
    """Every recipe that ships: {"videomae:base_k400": run, ...}."""
    return {
        f"{method}:{name}": run
        for method in METHODS
        for name, run in vars(_module(method)).items()
        if isinstance(run, Run)
    }


def changed(run: R, **values: Any) -> R:
    """A copy with fields replaced; those of `clip`, `train` and `mixing` by their own names."""
    own = {f.name for f in fields(run)}
    nested = {part: getattr(run, part) for part in ("clip", "train", "mixing") if part in own}
    homes = {f.name: part for part, record in nested.items() for f in fields(record)}
    inner: dict[str, dict[str, Any]] = {}
    outer: dict[str, Any] = {}
    for name, value in values.items():
        value = os.fspath(value) if isinstance(value, os.PathLike) else value
        if name in own:
            outer[name] = value
        elif name in homes:
            inner.setdefault(homes[name], {})[name] = value
        else:
            near = difflib.get_close_matches(name, [*own, *homes], 1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise TubeletError(f"{type(run).__name__} has no field {name!r}.{hint}")
    for part, changes in inner.items():
        outer[part] = replace(outer.get(part, nested[part]), **changes)
    return replace(run, **outer)

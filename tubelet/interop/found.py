"""What a reader of foreign files is told, and what it finds: a checkpoint in our terms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import tyro
from torch import Tensor

from tubelet.backbones.positions import PositionKind
from tubelet.errors import TubeletError
from tubelet.interop.report import Report

Inflation = Literal["mean", "centre"]


@dataclass(frozen=True)
class Told:
    """What weights of others do not say of themselves, said by their user."""

    position: PositionKind | None = None
    """Position table, where names do not tell: sinusoid_1d (VideoMAE) or sincos_3d (MVD)."""
    heads: int | None = None
    """Heads of the encoder's attention, where its width is none of the published."""
    decoder_heads: int | None = None
    """Heads of the decoders' attention, where their width is none of the published."""
    trained: tuple[int, int, int] | None = None
    """Frames, height and width of the clips of its training, where not 16 224 224."""
    pooled: tuple[int, ...] | None = None
    """Blocks of an MViT (0 the first) that pool their queries, where its tables do not tell."""
    pool_kv: int | None = None
    """By how much the first blocks of an MViT pool keys and values, where its tables do not tell."""
    wrapper: str = ""
    """Which entry of the file to read, where several hold weights: model, module, model_ema."""
    encoder_only: bool = False
    """Leave out decoders and heads."""
    # Another flag than in Python: `evaluate` has --allow-missing, of videos.
    allow_missing: Annotated[tuple[str, ...], tyro.conf.arg(name="allow-missing-weights")] = ()
    """Parameters (the begin of their names here) that may stay at their new, random values."""
    allow_extra: tuple[str, ...] = ()
    """Tensors (the begin of their names in the file) that may be left out."""

    trust_code: bool = False
    """Run the Python files that weights of ours name: of runs and teachers of one's own."""

    inflate: Inflation | None = None
    """Make a model of images one of clips: the kernels of its patches spread over the frames of a
    tubelet (mean), or laid into its middle frame (centre)."""
    tubelet_size: int = 2
    """Frames of a tubelet, of a model that is inflated."""

    def __post_init__(self) -> None:
        counts = ("heads", "decoder_heads", "pool_kv", "tubelet_size", "trained")
        for name, value in ((name, getattr(self, name)) for name in counts):
            least = min(value) if isinstance(value, tuple) else value
            if least is not None and least < 1:
                raise TubeletError(f"{name} is {value}: numbers from 1 on are expected.")
        if self.inflate is None and self.tubelet_size != 2:
            raise TubeletError(
                f"tubelet_size={self.tubelet_size} is of a model of images that is inflated: say how, "
                "--inflate mean or centre (in Python: inflate=...), or leave it out."
            )

    def said(self) -> dict[str, Any]:
        """What was said, by name."""
        return {
            name: value for name, value in vars(self).items() if value != getattr(NOTHING, name)
        }


NOTHING = Told()


@dataclass(frozen=True)
class Origin:
    """What a file held beyond a model of ours: enough to write it again bit by bit."""

    layout: str
    names: dict[str, str]  # as in the file, in its order: the layout's plain names
    dtypes: dict[str, str] = field(default_factory=dict)  # of names in the file, where not float32
    wrapper: str = ""
    # Under plain names: what has no place in our model (fixed tables, biases of keys; decoders of
    # MAE-ST). It comes back as it was read, also where the model was trained on since.
    kept: dict[str, Tensor] = field(default_factory=dict)
    # Plain values saved beside: of the training that wrote it.
    settings: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Without its tensors, as JSON values."""
        return {
            "layout": self.layout,
            "names": self.names,
            "dtypes": self.dtypes,
            "wrapper": self.wrapper,
            "settings": self.settings,
        }


@dataclass(frozen=True)
class Found:
    """A checkpoint in our terms, whoever wrote it."""

    header: dict[str, Any]  # as `tubelet.stored.describe` makes them
    weights: dict[str, Tensor]  # under our names; in the file's precision, mapped from it
    origin: Origin | None = None
    report: Report = field(default_factory=Report)

    @property
    def kind(self) -> str:
        """pretraining, classifier or encoder."""
        return self.header["kind"]


class Question(NamedTuple):
    """Something that a file does not say: what, how to say it, and a value to read on with."""

    what: str
    flag: str
    choices: str
    guess: Any

    @property
    def name(self) -> str:
        """Its field of `Told`."""
        return self.flag.removeprefix("--").rpartition(".")[2].replace("-", "_")


class Unsaid(TubeletError):
    """What a file does not say of itself, all of it at once; `questions` holds each."""

    def __init__(self, path: str | Path, questions: Sequence[Question]):
        self.path, self.questions = path, tuple(questions)
        what = "; nor ".join(question.what for question in questions)
        say = ", ".join(f"{q.flag} {q.choices} (in Python: {q.name}=...)" for q in questions)
        super().__init__(f"{path} does not say {what}. Say it: {say}.")

    def of(self, network: str) -> Unsaid:
        """The same of one of several networks, whose flags have its name in front."""
        flags = [f"--{network}.{question.flag.removeprefix('--')}" for question in self.questions]
        asked = zip(self.questions, flags, strict=True)
        return Unsaid(self.path, [question._replace(flag=flag) for question, flag in asked])


def ask(path: str | Path, what: str, flag: str, choices: str, guess: Any) -> Unsaid:
    """The error for what a file does not say; reading goes on with the guess to ask for the rest."""
    return Unsaid(path, [Question(what, flag, choices, guess)])

"""The result of an evaluation: a table, JSON, the scores of each video, a confusion picture."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.table import Table
from torch import Tensor

from tubelet.errors import TubeletError
from tubelet.tasks.metrics import confusion_matrix

UNITS = {"MAE": "", "R2": ""}  # the others are percentages
NAMES = {
    "top1": "top-1 (video)",
    "top5": "top-5 (video)",
    "clip_top1": "top-1 (single clip)",
    "clip_top5": "top-5 (single clip)",
    "mean_class_accuracy": "mean class accuracy",
}


@dataclass(frozen=True)
class Evaluation:
    """What a model scores on a list. `metrics` are percentages but for MAE and R2."""

    kind: Literal["single", "multi", "regression"]
    source: str  # of the list
    classes: tuple[str, ...]
    paths: tuple[str, ...]  # [n] of the videos that were scored
    labels: Tensor  # int64 [n], or float32 [n,outputs]
    scores: Tensor  # float64 [n,outputs]: mean over views
    metrics: dict[str, float]
    missing: tuple[tuple[str, str], ...]  # (path, why) of videos that could not be read
    protocol: dict[str, Any]
    fingerprint: dict[str, str]

    @property
    def decoded(self) -> int:
        """Decodings that gave views: one a video."""
        return len(self.paths)

    @property
    def confusion(self) -> Tensor:
        """int64 [classes,classes]: rows are what is true, columns what was answered."""
        if self.kind != "single":
            raise TubeletError(
                f"A confusion matrix needs one label a video; these are {self.kind}."
            )
        return confusion_matrix(self.scores.argmax(1), self.labels, self.scores.shape[1])

    @property
    def views(self) -> str:
        """Frames x segments x crops, as in tables of results."""
        p = self.protocol
        return f"{p['clip']['num_frames']}x{p['segments']}x{p['crops']}"

    def to_json(self) -> dict[str, Any]:
        """Plain values; equal for equal scores, whatever the batch size and the workers were."""
        finite = {k: v if math.isfinite(v) else None for k, v in self.metrics.items()}
        report = {
            "metrics": finite,
            "kind": self.kind,
            "list": self.source,
            "videos": len(self.paths),
            "missing": [{"path": path, "reason": why} for path, why in self.missing],
            "views": self.views,
            "protocol": self.protocol,
            "fingerprint": self.fingerprint,
        }
        if self.kind == "single":
            report["classes"] = self._by_class()
        return report

    def _by_class(self) -> list[dict[str, Any]]:
        """Videos and accuracy (percent; null without videos) of each class."""
        matrix = self.confusion
        rows = zip(self.classes, matrix.sum(1).tolist(), matrix.diagonal().tolist(), strict=True)
        return [
            {"class": name, "videos": count, "accuracy": 100 * right / count if count else None}
            for name, count, right in rows
        ]

    def table(self) -> Table:
        """For the terminal."""
        table = Table(title=f"{self.source}, views {self.views}", title_justify="left")
        table.add_column("score")
        table.add_column("value", justify="right")
        for name, value in self.metrics.items():
            unit = UNITS.get(name, " %")
            digits = 2 if unit else 4
            table.add_row(NAMES.get(name, name), f"{value:.{digits}f}{unit}")
        table.add_section()
        table.add_row("videos", str(len(self.paths)))
        table.add_row("missing videos", str(len(self.missing)))
        table.add_row("fingerprint", self.fingerprint["all"][:12])
        return table

    def write(self, out: str | Path) -> list[Path]:
        """Into a folder: evaluation.json, scores.csv, and of classes confusion.csv and .png."""
        out = Path(out)
        try:
            out.mkdir(parents=True, exist_ok=True)
            written = [out / "evaluation.json", out / "scores.csv"]
            written[0].write_text(json.dumps(self.to_json(), indent=2) + "\n", encoding="utf-8")
            self.write_scores(written[1])
            if self.kind == "single":
                written += [out / "confusion.csv", out / "confusion.png"]
                self._write_confusion(written[2])
                self.picture(written[3])
        except OSError as error:
            raise TubeletError(
                f"The evaluation cannot be written to {out}: {error.strerror or error}. Choose "
                "another folder, or make room."
            ) from error
        return written

    def write_scores(self, path: str | Path) -> None:
        """One row a video, as .csv or .jsonl: path, label, what was answered, every score."""
        path = Path(path)
        if path.suffix not in (".csv", ".jsonl"):
            raise TubeletError(
                f"Scores are written as .csv or .jsonl, not {path.suffix!r} ({path})."
            )
        with path.open("w", newline="", encoding="utf-8") as file:
            if path.suffix == ".jsonl":
                file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in self._rows())
                return
            names = self.classes or tuple(f"value {i}" for i in range(self.scores.shape[1]))
            writer = csv.writer(file)
            writer.writerow(["path", "label", "answer", *names])
            for row in self._rows():
                label, answer = (_plain(row[key]) for key in ("label", "answer"))
                writer.writerow([row["path"], label, answer, *row["scores"]])

    def _rows(self):
        """Names of classes for label and answer; several labels as a list of names."""
        for path, label, scores in zip(self.paths, self.labels, self.scores, strict=True):
            if self.kind == "single":
                truth: Any = self.classes[int(label)]
                answer: Any = self.classes[int(scores.argmax())]
            elif self.kind == "multi":
                truth = [self.classes[i] for i in (label > 0.5).nonzero()[:, 0].tolist()]
                answer = [self.classes[i] for i in (scores > 0.5).nonzero()[:, 0].tolist()]
            else:
                truth, answer = label.tolist(), scores.tolist()
            yield {"path": path, "label": truth, "answer": answer, "scores": scores.tolist()}

    def _write_confusion(self, path: Path) -> None:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["true \\ answered", *self.classes])
            for name, row in zip(self.classes, self.confusion.tolist(), strict=True):
                writer.writerow([name, *row])

    def picture(self, path: str | Path) -> None:
        """The confusion matrix as PNG: each row is the share of a class's videos, in percent."""
        matrix = self.confusion.double()
        share = (100 * matrix / matrix.sum(1, keepdim=True).clamp(min=1)).numpy()
        n = len(self.classes)
        side = min(16.0, max(4.0, 2.0 + 0.42 * n))
        figure = Figure(figsize=(side + 1, side), layout="constrained", dpi=120)
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        shown = axes.imshow(share, cmap="Blues", vmin=0, vmax=100)
        figure.colorbar(shown, ax=axes, label="% of the class's videos", shrink=0.8)
        axes.set(xlabel="answered", ylabel="true")
        axes.set_title(f"top-1 {self.metrics['top1']:.2f} %  (views {self.views})", fontsize=11)
        small = max(5, min(9, 260 // n))
        if n <= 60:
            axes.set_xticks(range(n), self.classes, rotation=90, fontsize=small)
            axes.set_yticks(range(n), self.classes, fontsize=small)
        if n <= 20:
            for row, column in ((r, c) for r in range(n) for c in range(n) if share[r, c] >= 0.5):
                colour = "white" if share[row, column] > 55 else "black"
                text = f"{share[row, column]:.0f}"
                axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=small)
        figure.savefig(path)


def _plain(value: Any) -> str:
    """A cell of a csv: lists with semicolons."""
    return ";".join(map(str, value)) if isinstance(value, list) else str(value)

"""What scores are worth: accuracy, average precision, errors. Shares are percentages."""

from __future__ import annotations

import torch
from torch import Tensor


def ranks(scores: Tensor, labels: Tensor) -> Tensor:
    """[n,classes], int64 [n] -> int64 [n]: how many classes come before the right one.

    Of equal scores the lower class number comes first: the same on every machine.
    """
    own = scores.gather(1, labels[:, None])
    before = torch.arange(scores.shape[1]) < labels[:, None]
    return ((scores > own) | ((scores == own) & before)).sum(1)


def percent(right: Tensor) -> float:
    """Booleans -> the share of true ones, in percent; NaN of none."""
    return 100 * float(right.double().mean())


def confusion_matrix(predicted: Tensor, labels: Tensor, classes: int) -> Tensor:
    """int64 [n], int64 [n] -> int64 [classes, classes]: rows are what is true."""
    flat = torch.bincount(labels * classes + predicted, minlength=classes * classes)
    return flat.reshape(classes, classes)


def mean_class_accuracy(confusion: Tensor) -> float:
    """The mean, in percent, of the accuracies of the classes that occur."""
    count = confusion.sum(1)
    seen = count > 0
    return 100 * float((confusion.diagonal()[seen].double() / count[seen]).mean())


def average_precision(scores: Tensor, truth: Tensor) -> float:
    """float [n], bool [n] -> the area under precision over recall, as a sum of steps, in [0,1].

    Equal scores make one step, so the order of the list does not matter. NaN without positives.
    """
    order = scores.argsort(descending=True, stable=True)
    ranked, hits = scores[order], truth[order].double().cumsum(0)
    last = torch.ones_like(truth)
    last[:-1] = ranked[1:] != ranked[:-1]
    hits, taken = hits[last], torch.arange(1, len(scores) + 1)[last]
    gained = hits.diff(prepend=torch.zeros(1, dtype=torch.float64))
    return float((gained * hits / taken).sum() / hits[-1])


def classification(scores: Tensor, labels: Tensor) -> dict[str, float]:
    """float64 [n,classes], int64 [n] -> top1, top5 (of more than 5 classes), mean_class_accuracy."""
    classes = scores.shape[1]
    place = ranks(scores, labels)
    found = {"top1": percent(place < 1)}
    if classes > 5:
        found["top5"] = percent(place < 5)
    matrix = confusion_matrix(scores.argmax(1), labels, classes)
    return {**found, "mean_class_accuracy": mean_class_accuracy(matrix)}


def multi_label(scores: Tensor, truth: Tensor) -> dict[str, float]:
    """float64 [n,classes], {0,1} [n,classes] -> mAP over the classes that occur, in percent."""
    truth = truth > 0.5
    seen = truth.any(0).nonzero()[:, 0].tolist()
    each = [average_precision(scores[:, c], truth[:, c]) for c in seen]
    return {"mAP": 100 * sum(each) / len(each) if each else float("nan")}


def regression(predicted: Tensor, truth: Tensor) -> dict[str, float]:
    """float64 [n,values] twice -> MAE in the labels' unit and R2, both means over the values.

    R2 of a value that is the same everywhere is NaN.
    """
    truth = truth.double()
    rest = (predicted - truth).square().sum(0)
    total = (truth - truth.mean(0)).square().sum(0)
    return {
        "MAE": float((predicted - truth).abs().mean()),
        "R2": float(torch.where(total > 0, 1 - rest / total, torch.nan).mean()),
    }

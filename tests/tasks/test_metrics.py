"""Metrics against scikit-learn and against slow formulas."""

import math

import pytest
import torch

from tubelet.tasks import metrics

sklearn = pytest.importorskip("sklearn.metrics")


def drawn(n: int = 60, classes: int = 7) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    # Few levels: many equal scores.
    scores = torch.randint(0, 6, (n, classes), generator=generator).double() / 6
    return scores, torch.randint(0, classes, (n,), generator=generator)


def test_ranks_break_ties_by_the_lower_class() -> None:
    scores, labels = drawn()
    for row, label, got in zip(scores, labels, metrics.ranks(scores, labels), strict=True):
        order = sorted(range(len(row)), key=lambda c: (-float(row[c]), c))
        assert order.index(int(label)) == int(got)
    assert torch.equal(metrics.ranks(scores, labels) < 1, scores.argmax(1) == labels)


def test_classification_equals_scikit_learn() -> None:
    scores, labels = drawn()
    found = metrics.classification(scores, labels)
    answers = scores.argmax(1)
    assert found["top1"] == pytest.approx(100 * sklearn.accuracy_score(labels, answers))
    expected = sklearn.balanced_accuracy_score(labels, answers)
    assert found["mean_class_accuracy"] == pytest.approx(100 * expected)
    in_five = [
        int(label) in sorted(range(7), key=lambda c: (-float(row[c]), c))[:5]
        for row, label in zip(scores, labels, strict=True)
    ]
    assert found["top5"] == pytest.approx(100 * sum(in_five) / len(in_five))
    matrix = metrics.confusion_matrix(answers, labels, 7)
    assert matrix.tolist() == sklearn.confusion_matrix(labels, answers).tolist()


def test_top5_of_five_classes_says_nothing_and_is_left_out() -> None:
    scores, labels = drawn(classes=5)
    assert "top5" not in metrics.classification(scores, labels)


def test_mean_class_accuracy_leaves_out_classes_without_videos() -> None:
    matrix = torch.tensor([[3, 1, 0], [0, 2, 0], [0, 0, 0]])
    assert metrics.mean_class_accuracy(matrix) == pytest.approx(100 * (0.75 + 1) / 2)


@pytest.mark.parametrize("seed", range(5))
def test_average_precision_equals_scikit_learn_with_ties(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(0, 8, (50,), generator=generator).double()
    truth = torch.rand(50, generator=generator) < 0.3
    expected = sklearn.average_precision_score(truth.numpy(), scores.numpy())
    assert metrics.average_precision(scores, truth) == pytest.approx(expected, abs=1e-12)
    shuffled = torch.randperm(50, generator=generator)
    again = metrics.average_precision(scores[shuffled], truth[shuffled])
    assert again == pytest.approx(expected, abs=1e-12)


def test_map_leaves_out_classes_without_positives() -> None:
    scores = torch.tensor([[0.9, 0.1], [0.2, 0.4]], dtype=torch.float64)
    truth = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    assert metrics.multi_label(scores, truth) == {"mAP": 100.0}
    assert math.isnan(metrics.multi_label(scores, torch.zeros(2, 2))["mAP"])


def test_regression_equals_scikit_learn() -> None:
    generator = torch.Generator().manual_seed(0)
    truth = torch.randn(30, 2, generator=generator)
    guess = truth.double() + 0.5 * torch.randn(30, 2, generator=generator).double()
    found = metrics.regression(guess, truth)
    assert found["R2"] == pytest.approx(sklearn.r2_score(truth, guess))
    assert found["MAE"] == pytest.approx(sklearn.mean_absolute_error(truth, guess))
    assert math.isnan(metrics.regression(guess, torch.ones(30, 2))["R2"])

"""The fine-tuning task against formulas written out; mixing in groups that nothing else decides."""

from collections.abc import Callable

import pytest
import torch

from tubelet.data.mix import Mixing, mix
from tubelet.errors import TubeletError
from tubelet.model import Classifier
from tubelet.shapes import Batch
from tubelet.tasks.classify import Classify


def make_batch(labels: torch.Tensor | None) -> Batch:
    size = 8 if labels is None else len(labels)
    return Batch(
        views={"clip": torch.randint(0, 256, (size, 3, 4, 32, 32), dtype=torch.uint8)},
        paths=[f"{i}.mp4" for i in range(size)],
        index=torch.arange(size),
        seeds=torch.arange(size) * 1_000_003 + 5,
        labels=labels,
    )


def part(batch: Batch, rows: slice) -> Batch:
    assert batch.labels is not None
    return Batch(
        views={"clip": batch.clip[rows]},
        paths=batch.paths[rows],
        index=batch.index[rows],
        seeds=batch.seeds[rows],
        labels=batch.labels[rows],
    )


def test_cross_entropy_and_accuracy(classifier: Classifier) -> None:
    batch = make_batch(torch.tensor([0, 1, 2, 2, 1, 0, 0, 1]))
    terms = Classify(classifier.eval())(batch)
    assert batch.labels is not None
    p = classifier(batch.clip.float() / 255).softmax(-1).detach()
    expected = -sum(float(p[i, label].log()) for i, label in enumerate(batch.labels.tolist()))
    assert float(terms["loss"][0].detach()) == pytest.approx(expected, rel=1e-5)
    assert terms["loss"][1] == 8.0
    right = sum(int(p[i].argmax()) == label for i, label in enumerate(batch.labels.tolist()))
    assert float(terms["accuracy"][0]) == right


def test_mixed_labels_share_the_loss(classifier: Classifier) -> None:
    mixing = Mixing(mix_group=4)
    batch = make_batch(torch.tensor([0, 1, 2, 2, 1, 0, 0, 1]))
    assert batch.labels is not None
    task = Classify(classifier.eval(), mixing=mixing)
    loss = task(batch)["loss"][0]
    seeds = [int(batch.seeds[0]), int(batch.seeds[4])]
    clip, soft = mix(batch.clip, batch.labels, 3, mixing, seeds)
    assert not torch.equal(clip, batch.clip)
    logp = classifier(clip.float() / 255).log_softmax(-1)
    assert torch.allclose(loss, -(soft * logp).sum(), rtol=1e-5)


def test_mixing_does_not_depend_on_micro_batches(classifier: Classifier) -> None:
    batch = make_batch(torch.tensor([0, 1, 2, 2, 1, 0, 0, 1]))
    task = Classify(classifier.eval(), mixing=Mixing(mix_group=4))
    whole = task(batch)["loss"][0]
    halves = [task(part(batch, slice(at, at + 4)))["loss"][0] for at in (0, 4)]
    assert torch.allclose(whole, halves[0] + halves[1], rtol=1e-5)
    assert not torch.allclose(halves[0], Classify(classifier)(part(batch, slice(0, 4)))["loss"][0])


def test_seeds_read_before_the_copy_to_the_device_are_those_of_this_batch(
    classifier: Classifier,
) -> None:
    task = Classify(classifier.eval(), mixing=Mixing(mix_group=4))
    first, second = (make_batch(torch.tensor([0, 1, 2, 2])) for _ in range(2))
    second.seeds += 17
    alone = task(first)["loss"][0]
    task.weight(second)  # another batch's seeds are known
    assert torch.equal(task(first.to("cpu"))["loss"][0], alone)
    task.weight(first)
    assert torch.equal(task(first.to("cpu"))["loss"][0], alone)


def test_smoothing_alone_needs_no_whole_groups(classifier: Classifier) -> None:
    batch = make_batch(torch.tensor([0, 1, 2]))
    mixing = Mixing(mixup=0, cutmix=0, smoothing=0.3)
    loss = Classify(classifier.eval(), mixing=mixing)(batch)["loss"][0]
    assert batch.labels is not None
    expected = torch.nn.functional.cross_entropy(
        classifier(batch.clip.float() / 255), batch.labels, label_smoothing=0.3, reduction="sum"
    )
    assert torch.allclose(loss, expected, rtol=1e-5)


def test_multi_label(classifier: Classifier) -> None:
    labels = torch.tensor([[1.0, 0, 1], [0, 0, 1]])
    batch = make_batch(labels)
    terms = Classify(classifier.eval(), kind="multi")(batch)
    p = classifier(batch.clip.float() / 255).sigmoid()
    expected = -(labels * p.log() + (1 - labels) * (1 - p).log()).mean(1).sum()
    assert torch.allclose(terms["loss"][0], expected, rtol=1e-4)
    assert float(terms["accuracy"][0]) == pytest.approx(float(((p > 0.5) == labels).sum()) / 3)


def test_regression_is_not_mixed(classifier_of: Callable[[int], Classifier]) -> None:
    model = classifier_of(2).eval()
    batch = make_batch(torch.randn(3, 2))
    terms = Classify(model, kind="regression", mixing=Mixing())(batch)
    error = model(batch.clip.float() / 255) - batch.labels
    assert torch.allclose(terms["loss"][0], error.square().mean(1).sum())
    assert torch.allclose(terms["error"][0], error.abs().mean(1).sum())


def test_evaluate_scores_the_model_of_now(classifier: Classifier) -> None:
    assert Classify(classifier).evaluate() == {}
    seen = []
    task = Classify(classifier, evaluate=lambda model: seen.append(model) or {"top1": 50.0})
    other = torch.nn.Identity()
    task.model = other  # as the loop does when it wraps the model
    assert task.evaluate() == {"top1": 50.0}
    assert seen == [other]


def test_without_labels_it_says_so(classifier: Classifier) -> None:
    with pytest.raises(TubeletError, match="needs labels"):
        Classify(classifier)(make_batch(None))


def test_it_learns(classifier: Classifier) -> None:
    batch = make_batch(torch.tensor([0, 1, 2, 2]))
    task = Classify(classifier)
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=1e-3)
    losses = []
    for _ in range(20):
        total, weight = task(batch)["loss"]
        optimizer.zero_grad()
        (total / weight).backward()
        optimizer.step()
        losses.append(float(total.detach()) / float(weight))
    assert losses[-1] < 0.3 * losses[0]

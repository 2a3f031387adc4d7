"""The task of distillation: who sees what, who learns, and what is counted."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import classes
import pytest
import torch
from torch import Tensor

from tubelet.data.mix import Mixing, mix_clips
from tubelet.errors import TubeletError
from tubelet.methods.distil import MATCHING
from tubelet.shapes import Batch
from tubelet.tasks.distil import Distil
from tubelet.train import parallel

PLAIN = Mixing(mixup=0, cutmix=0, smoothing=0)
EIGHT = list(range(8))


def seen(task: Distil, batch: Batch) -> tuple[Tensor, Tensor]:
    """The clips that came to the student and to the teacher's network."""
    clips: list[Tensor] = []
    hooks = [
        network.register_forward_pre_hook(lambda _, args: clips.append(args[0]))
        for network in (task.model, task.teacher.module)
    ]
    task(batch)
    for hook in hooks:
        hook.remove()
    student, teacher = clips
    return student, teacher


def test_both_see_the_same_mixed_clip() -> None:
    batch = classes.batch(EIGHT)
    student, teacher = seen(classes.task(), batch)
    assert torch.equal(student, teacher)
    mixed, kept = mix_clips(batch.clip, MATCHING, [0])
    assert torch.equal(student, mixed.float() / 255)
    assert 0 < kept[0] < 1
    assert not torch.equal(mixed, batch.clip)


def test_the_teacher_sees_its_own_size() -> None:
    """A clip of one colour stays that colour."""
    task = classes.task(size=(8, 8), mixing=PLAIN)
    flat = classes.batch(EIGHT)
    flat.views["clip"] = flat.clip[..., :1, :1].expand_as(flat.clip).contiguous()
    student, teacher = seen(task, flat)
    assert student.shape[-2:] == (16, 16)
    assert teacher.shape[-2:] == (8, 8)
    torch.testing.assert_close(teacher, student[..., :8, :8])


def test_the_student_alone_learns() -> None:
    task = classes.task()
    before = {n: t.clone() for n, t in task.teacher.module.state_dict().items()}
    optimizer = torch.optim.AdamW(task.model.parameters(), lr=1e-3)
    losses: list[float] = []
    for _ in range(25):
        total, weight = task(classes.batch(EIGHT))["loss"]
        optimizer.zero_grad()
        (total / weight).backward()
        optimizer.step()
        losses.append(float(total.detach()) / float(weight))
    assert losses[-1] < 0.3 * losses[0]
    assert all(p.grad is not None for p in task.model.parameters())
    network = task.teacher.module
    assert all(p.grad is None and not p.requires_grad for p in network.parameters())
    assert all(torch.equal(t, before[n]) for n, t in network.state_dict().items())


def test_the_teacher_is_no_part_of_the_student() -> None:
    task = classes.task()
    alone = classes.classifier(6, 16)
    assert task.model.state_dict().keys() == alone.state_dict().keys()
    assert [n for n, _ in task.model.named_parameters()] == [n for n, _ in alone.named_parameters()]
    task.model.train()
    assert not task.teacher.module.training
    task.model.to(torch.device("meta"))
    assert all(p.is_meta for p in task.teacher.module.parameters())


def test_agreement_and_accuracy_are_counted() -> None:
    task = classes.task(mixing=None)
    task.model.eval()
    batch = classes.batch(EIGHT, labels=True)
    assert batch.labels is not None
    terms = task(batch)
    x = batch.clip.float() / 255
    mine, given = (net(x).argmax(-1).tolist() for net in (task.model, task.teacher.module))
    labels = batch.labels.tolist()
    assert terms["agreement"] == (sum(a == b for a, b in zip(mine, given, strict=True)), 8.0)
    assert terms["accuracy"] == (sum(a == b for a, b in zip(mine, labels, strict=True)), 8.0)
    assert "accuracy" not in task(classes.batch(EIGHT))
    same = classes.task(mixing=None)
    same.model = task.teacher.module
    assert same(batch)["agreement"][0] == 8


def test_labels_add_the_loss_of_fine_tuning() -> None:
    batch = classes.batch(EIGHT, labels=True)
    without, both = (classes.task(mixing=PLAIN, label_weight=w) for w in (0.0, 0.5))
    for task in (without, both):
        task.model.eval()
    logits = without.model(batch.clip.float() / 255).detach()
    extra = torch.nn.functional.cross_entropy(logits, batch.labels, reduction="sum")
    difference = both(batch)["loss"][0] - without(batch)["loss"][0]
    torch.testing.assert_close(difference.detach(), 0.5 * extra, rtol=1e-4, atol=1e-5)
    with pytest.raises(TubeletError, match="label_weight"):
        both(classes.batch(EIGHT))


def test_labels_change_nothing_without_a_weight() -> None:
    task = classes.task()
    one, other = (task(classes.batch(EIGHT, labels=known))["loss"][0] for known in (True, False))
    assert torch.equal(one, other)


def test_several_labels_and_numbers() -> None:
    batch = classes.batch(EIGHT)
    mixed = mix_clips(batch.clip, MATCHING, [0])[0].float() / 255
    for kind, name in (("multi", "agreement"), ("regression", "difference")):
        task = classes.task(kind=kind, temperature=1.0)
        task.model.eval()
        terms = task(batch)
        mine, given = (net(mixed).detach() for net in (task.model, task.teacher.module))
        if kind == "multi":
            loss, p = torch.nn.BCELoss(reduction="none"), given.sigmoid()
            expected = loss(mine.sigmoid(), p).mean(-1).sum()
            alike = ((mine > 0) == (given > 0)).float().mean(-1).sum()
        else:
            expected = (mine - given).square().mean(-1).sum()
            alike = (mine - given).abs().mean(-1).sum()
        torch.testing.assert_close(terms["loss"][0].detach(), expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(terms[name][0], alike)
        assert set(terms) == {"loss", name}


def test_numbers_of_a_mixed_clip_are_not_known() -> None:
    batch = classes.batch(EIGHT)
    batch.labels = torch.randn(8, 3)
    assert "error" not in classes.task(kind="regression")(batch)
    assert "error" in classes.task(kind="regression", mixing=PLAIN)(batch)


def test_bf16_lowers_the_teacher_and_the_loss_stays_float32() -> None:
    task = classes.task()
    with torch.autocast("cpu", torch.bfloat16):
        total, _ = task(classes.batch(EIGHT))["loss"]
    assert total.dtype == torch.float32
    assert task.teacher.lowered
    exact = classes.task()(classes.batch(EIGHT))["loss"][0]
    torch.testing.assert_close(total, exact, rtol=0.1, atol=0.05)


def test_gradients_do_not_depend_on_micro_batches() -> None:
    mixing = replace(MATCHING, mix_group=2)
    grads = []
    for size in (8, 4, 2):
        task = classes.task(mixing=mixing)
        for at in range(0, 8, size):
            task(classes.batch(EIGHT[at : at + size]))["loss"][0].backward()
        grads.append([p.grad for p in task.model.parameters()])
    for other in grads[1:]:
        torch.testing.assert_close(other, grads[0], rtol=1e-4, atol=1e-5)


def test_the_teacher_is_compiled_with_the_student(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[torch.nn.Module] = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: compiled.append(self))
    task = classes.task()
    parallel.wrap(task.model, parallel.Place(torch.device("cpu")), compile=True)
    networks: list[Any] = [task.model, task.teacher.module]
    wanted = [block for net in networks for block in net.backbone.blocks]
    assert len(compiled) == 4 and {*map(id, compiled)} == {*map(id, wanted)}

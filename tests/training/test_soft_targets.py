"""Learning distributions instead of answers: by hand, by autograd, and bit for bit the ordinary training."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from lorchestra.nn.packing import Item, pack
from lorchestra.training.objective import RowOutputs, cross_entropy, kl_to_targets, row_terms
from lorchestra.training.precompute import SoftTargets

INF = float("inf")


def one_hot(rows):
    """Log-probabilities that give each row's answer probability 1."""
    targets = torch.full((len(rows), max(len(row.choices) for row in rows)), -INF, dtype=torch.float64)
    for e, row in enumerate(rows):
        targets[e, row.answer] = 0.0
    return targets


def random_targets(rows, seed=5):
    scores = torch.randn(
        len(rows), max(len(row.choices) for row in rows), generator=torch.Generator().manual_seed(seed)
    )
    scores = scores.double()
    for e, row in enumerate(rows):
        scores[e, len(row.choices) :] = -INF
    return scores.log_softmax(dim=-1)


def with_targets(trainer, targets):
    trainer.rows = dataclasses.replace(trainer.rows, targets=targets)
    return trainer


def test_both_directions_by_hand():
    """p = (1/2, 1/2, absent), q = (1/4, 3/4, absent): ln 2 / 2 + ln(2/3) / 2, and ln(1/2) / 4 + 3 ln(3/2) / 4."""
    p = torch.tensor([[0.5, 0.5, 0.0]], dtype=torch.float64).log()
    q = torch.tensor([[0.25, 0.75, 0.0]], dtype=torch.float64).log()
    two, half = torch.tensor([2.0, 2 / 3, 0.5, 1.5], dtype=torch.float64).log(), 0.5
    torch.testing.assert_close(kl_to_targets(q, p, "forward"), (half * (two[0] + two[1]))[None])
    torch.testing.assert_close(kl_to_targets(q, p, "reverse"), (0.25 * two[2] + 0.75 * two[3])[None])
    assert kl_to_targets(p, p, "forward").item() == kl_to_targets(p, p, "reverse").item() == 0.0


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_gradients_of_the_logits_by_hand(direction):
    """With student q = softmax(z) and teacher p: d KL(p || q) / dz = q - p; d KL(q || p) / dz = q (ln q/p - KL)."""
    source = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 4, generator=source, dtype=torch.float64)
    logits[2, 3] = logits[4, 2] = logits[4, 3] = -INF
    teacher = torch.randn(6, 4, generator=source, dtype=torch.float64).masked_fill(logits == -INF, -INF)
    log_p = teacher.log_softmax(dim=-1)
    logits.requires_grad_(True)
    log_q = logits.log_softmax(dim=-1)
    losses = kl_to_targets(log_q, log_p, direction)
    losses.sum().backward()
    p, q = log_p.exp(), log_q.detach().exp()
    if direction == "forward":
        expected = q - p
    else:
        ratio = torch.where(q > 0, log_q.detach() - log_p, 0.0)
        expected = q * (ratio - losses.detach()[:, None])
    torch.testing.assert_close(logits.grad, expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("kind", ["letters", "texts", "trees"])
@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_losses_and_gradients_of_a_step_are_those_of_single_rows(make_trainer, kind, direction):
    """The sum of a member's objective over its rows, by autograd, in the trainer and row by row."""
    trainer = make_trainer(kind=kind, train={"batch_size": 12, "clip_norm": 0.0})
    targets = random_targets(trainer.rows.train)
    with_targets(trainer, SoftTargets(targets, direction, answers_weight=0.3))
    trainer.prepare()
    seen = {}
    trainer.optimizer.step = lambda grad, lrs, members: seen.update(grad=grad.clone())
    trainer.step()
    (report,) = trainer.callback.reports
    model = trainer.model
    for m in range(3):
        model.adapters.zero_grad()
        losses, answers = [], []
        for row in trainer.rows.train:
            log_q = model.forward(pack([Item(m, row)]))[0]
            log_p = targets[row.row, : len(row.choices)]
            first, second = (log_p, log_q) if direction == "forward" else (log_q, log_p)
            losses.append((first.exp() * (first - second)).sum())
            answers.append(-0.3 * log_q[row.answer])
        (torch.stack(losses).mean() + torch.stack(answers).mean()).backward()
        assert report.loss[m] == pytest.approx(torch.stack(losses).mean().item(), abs=1e-12)
        assert report.penalties["answers"][m] == pytest.approx(torch.stack(answers).mean().item(), abs=1e-12)
        torch.testing.assert_close(seen["grad"][m], model.adapters.grad[m], rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ["letters", "texts", "trees", "heads"])
def test_targets_that_are_the_answers_are_the_ordinary_training(make_trainer, train, kind):
    """Every loss and every parameter, bit by bit."""
    ordinary = train(make_trainer(kind=kind, dtype=torch.float32))
    trainer = make_trainer(kind=kind, dtype=torch.float32)
    learned = train(with_targets(trainer, SoftTargets(one_hot(trainer.rows.train))))
    assert [report.loss for report in learned.callback.reports] == [report.loss for report in ordinary.callback.reports]
    assert learned.callback.evaluations == ordinary.callback.evaluations
    assert torch.equal(learned.final_values(), ordinary.final_values())
    assert not torch.equal(ordinary.final_values(), make_trainer(kind=kind, dtype=torch.float32).final_values())


@pytest.mark.parametrize("kind", ["texts", "heads"])
def test_rows_need_no_answers(make_trainer, make_rows, train, kind):
    """Without answers the same training, and with a weight of the answers those of the other rows count."""
    rows = make_rows(12, kind)
    bare = [dataclasses.replace(row, answer=row.answer if row.row < 8 else None) for row in rows]
    val = make_rows(7, kind, seed=1)
    targets, runs = random_targets(rows), {}
    for name, train_rows, weight in (("all", rows, 0.0), ("bare", bare, 0.0), ("bare weighted", bare, 0.5)):
        trainer = make_trainer(kind=kind, rows=(train_rows, val), train={"epochs": 1})
        runs[name] = train(with_targets(trainer, SoftTargets(targets, "forward", weight)))
    same = torch.equal(runs["all"].final_values(), runs["bare"].final_values())
    assert same == (kind == "texts")  # heads start from the rows with answers
    assert not torch.equal(runs["bare"].final_values(), runs["bare weighted"].final_values())
    assert "answers" not in runs["bare"].callback.reports[0].penalties


def test_a_row_without_an_answer_has_no_cross_entropy():
    log_probs = torch.tensor([[0.25, 0.75], [0.5, 0.5]], dtype=torch.float64).log()
    outputs = RowOutputs([0, 0], torch.tensor([1, -1]), log_probs, target_log_probs=log_probs)
    terms = row_terms([], outputs, SoftTargets(log_probs, "reverse", 2.0))
    assert terms["loss"].tolist() == [0.0, 0.0]
    assert terms["answers"].tolist() == [2.0 * cross_entropy(log_probs[:1], torch.tensor([1])).item(), 0.0]

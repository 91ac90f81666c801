import math

import pytest
import torch

from lorchestra.nn.packing import Item, pack
from lorchestra.nn.scoring import choice_log_probs
from lorchestra.training.objective import cross_entropy, kl_divergence, kl_to_base, smoothing

_INF = float("inf")


def log_softmax(scores):
    peak = max(scores)
    total = math.log(sum(math.exp(score - peak) for score in scores)) + peak
    return [score - total for score in scores]


def test_letters_by_hand(example):
    """Ragged: two choices, then three; logits of the options' columns 4, 7, 9 alone."""
    rows = [example(0, choices=((9,), (4,))), example(1, choices=((4,), (7,), (9,)))]
    scoring = pack([Item(0, row) for row in rows]).scoring
    logits = torch.tensor([[1.0, -2.0, 0.5], [3.0, 0.0, -1.0]], dtype=torch.float64)
    log_probs = choice_log_probs(logits, scoring)
    expected = [[*log_softmax([0.5, 1.0]), -_INF], log_softmax([3.0, 0.0, -1.0])]
    torch.testing.assert_close(log_probs, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-14)


def test_texts_by_hand(example):
    """A choice scores the sum of its tokens' log-probabilities over the whole vocabulary of five."""
    row = example(0, prefix=(1,), choices=((2, 3, 4), (0,), (4, 1)))
    scoring = pack([Item(0, row)]).scoring
    logits = torch.tensor(
        [[0.1, 0.2, -0.3, 1.0, 2.0], [1.0, 0.0, 0.0, -1.0, 0.5], [0.0, 2.0, 1.0, 0.0, 0.3], [0.7, -0.7, 0.0, 0.2, 0.1]],
        dtype=torch.float64,
    )
    log_probs = [log_softmax(line) for line in logits.tolist()]
    scores = [
        log_probs[0][2] + log_probs[1][3] + log_probs[2][4],
        log_probs[0][0],
        log_probs[0][4] + log_probs[3][1],
    ]
    expected = torch.tensor([log_softmax(scores)], dtype=torch.float64)
    torch.testing.assert_close(choice_log_probs(logits, scoring), expected, rtol=0, atol=1e-14)


def test_divisors_by_hand(example):
    """Scores are divided before they are normalized over the choices; rows without divisors keep the plain sum."""
    rows = [
        example(0, prefix=(1,), choices=((2,), (0,)), divisors=(2.0, 4.0)),
        example(1, prefix=(1,), choices=((2,), (0,))),
    ]
    scoring = pack([Item(0, row) for row in rows]).scoring
    logits = torch.tensor([[0.1, 0.2, -0.3], [1.0, 0.0, 0.5]], dtype=torch.float64)
    first, second = (log_softmax(line) for line in logits.tolist())
    expected = [log_softmax([first[2] / 2, first[0] / 4]), log_softmax([second[2], second[0]])]
    torch.testing.assert_close(
        choice_log_probs(logits, scoring), torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-14
    )


def test_equal_choices_have_equal_scores(example):
    scoring = pack([Item(0, example(0, choices=((3,), (5,), (3,))))]).scoring
    log_probs = choice_log_probs(torch.tensor([[0.3, 0.9]], dtype=torch.float64), scoring)
    assert log_probs[0, 0] == log_probs[0, 2]
    assert log_probs.exp().sum().item() == pytest.approx(1.0, abs=1e-14)


def test_half_precision_logits_are_normalized_in_float32(example):
    scoring = pack([Item(0, example(0, choices=((3,), (5,))))]).scoring
    logits = torch.tensor([[10.0, 9.0]], dtype=torch.bfloat16)
    log_probs = choice_log_probs(logits, scoring)
    assert log_probs.dtype == torch.float32
    torch.testing.assert_close(log_probs, torch.tensor([log_softmax([10.0, 9.0])]), rtol=1e-6, atol=0)


def test_gradient_of_ragged_choices_is_that_of_each_row_alone(example, randn):
    rows = [example(0, prefix=(1,), choices=((2, 3), (4,))), example(1, prefix=(1,), choices=((0,), (1, 2), (3, 4)))]
    batch = pack([Item(0, row) for row in rows])
    logits = randn(len(batch.scoring.keep), 5).requires_grad_()
    log_probs = choice_log_probs(logits, batch.scoring)
    assert log_probs[0, 2] == -_INF
    (grad,) = torch.autograd.grad(cross_entropy(log_probs, torch.tensor([1, 2])).sum(), logits)
    alone = []
    start = 0
    for row, answer in zip(rows, (1, 2), strict=True):
        scoring = pack([Item(0, row)]).scoring
        piece = logits[start : start + len(scoring.keep)].detach().requires_grad_()
        start += len(scoring.keep)
        loss = cross_entropy(choice_log_probs(piece, scoring), torch.tensor([answer])).sum()
        alone.append(torch.autograd.grad(loss, piece)[0])
    torch.testing.assert_close(grad, torch.cat(alone), rtol=0, atol=1e-14)
    assert grad.isfinite().all()


def test_a_nan_row_affects_no_other_forward_or_backward(example, randn):
    """Also packed first, where padded terms of the other rows refer to it."""
    rows = [example(0, prefix=(1,), choices=((2, 3), (4,))), example(1, prefix=(1,), choices=((0,), (1,)))]
    batch = pack([Item(0, row) for row in rows])
    logits = randn(len(batch.scoring.keep), 5)
    clean = logits.clone().requires_grad_()
    logits[0] = float("nan")
    dirty = logits.requires_grad_()
    grads = []
    for values in (clean, dirty):
        losses = cross_entropy(choice_log_probs(values, batch.scoring), torch.tensor([0, 0]))
        grads.append((losses[1].detach(), torch.autograd.grad(losses.sum(), values)[0][2:]))
    assert torch.equal(grads[0][0], grads[1][0])
    assert torch.equal(grads[0][1], grads[1][1])


def test_cross_entropy_by_hand():
    log_probs = torch.tensor([[0.25, 0.75, 0.0], [0.5, 0.3, 0.2]], dtype=torch.float64).log()
    losses = cross_entropy(log_probs, torch.tensor([1, 2]))
    torch.testing.assert_close(losses, -torch.tensor([0.75, 0.2], dtype=torch.float64).log())


P, Q = [0.7, 0.2, 0.1], [0.3, 0.3, 0.4]
KL_P_Q = 0.7 * math.log(0.7 / 0.3) + 0.2 * math.log(0.2 / 0.3) + 0.1 * math.log(0.1 / 0.4)
KL_Q_P = 0.3 * math.log(0.3 / 0.7) + 0.3 * math.log(0.3 / 0.2) + 0.4 * math.log(0.4 / 0.1)


@pytest.mark.parametrize(("direction", "expected"), [("forward", KL_P_Q), ("reverse", KL_Q_P)])
def test_kl_to_base_by_hand_in_both_directions(direction, expected):
    member, base = (torch.tensor([values], dtype=torch.float64).log() for values in (P, Q))
    assert kl_to_base(member, base, direction).item() == pytest.approx(expected, abs=1e-14)
    torch_kl = torch.nn.functional.kl_div(
        *((base, member) if direction == "forward" else (member, base)), reduction="sum", log_target=True
    )
    assert kl_to_base(member, base, direction).item() == pytest.approx(torch_kl.item(), abs=1e-14)


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_kl_is_zero_with_zero_gradient_where_the_member_is_the_base(direction, randn):
    logits = randn(4, 3).requires_grad_()
    log_probs = logits.log_softmax(dim=-1)
    kl = kl_to_base(log_probs, log_probs.detach(), direction)
    (grad,) = torch.autograd.grad(kl.sum(), logits)
    torch.testing.assert_close(kl, torch.zeros_like(kl), rtol=0, atol=1e-15)
    torch.testing.assert_close(grad, torch.zeros_like(grad), rtol=0, atol=1e-15)


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_kl_with_absent_choices_equals_kl_without_them(direction, randn):
    narrow, base = randn(2, 3).requires_grad_(), randn(2, 3).log_softmax(dim=-1)
    padding = torch.full((2, 2), -_INF, dtype=torch.float64)
    plain = kl_to_base(narrow.log_softmax(dim=-1), base, direction)
    wide = kl_to_base(
        torch.cat([narrow, padding], dim=1).log_softmax(dim=-1), torch.cat([base, padding], dim=1), direction
    )
    grads = [torch.autograd.grad(kl.sum(), narrow, retain_graph=True)[0] for kl in (plain, wide)]
    torch.testing.assert_close(wide, plain, rtol=0, atol=1e-14)
    torch.testing.assert_close(grads[1], grads[0], rtol=0, atol=1e-14)
    assert grads[0].abs().max() > 1e-3


def test_kl_divergence_is_never_negative(randn):
    p, q = randn(50, 4).log_softmax(dim=-1), randn(50, 4).log_softmax(dim=-1)
    assert (kl_divergence(p, q) > 0).all()


def test_smoothing_by_hand():
    """Cross-entropy of (0.5, 0.3, 0.2) against (0.2/3, 0.2/3, 0.8 + 0.2/3); a uniform row is unchanged."""
    log_probs = torch.tensor([[0.5, 0.3, 0.2], [1 / 3, 1 / 3, 1 / 3]], dtype=torch.float64).log()
    answers = torch.tensor([2, 0])
    whole = cross_entropy(log_probs, answers) + 0.2 * smoothing(log_probs, answers)
    expected = -(0.2 / 3 * math.log(0.5) + 0.2 / 3 * math.log(0.3) + (0.8 + 0.2 / 3) * math.log(0.2))
    torch.testing.assert_close(whole, torch.tensor([expected, math.log(3)], dtype=torch.float64), rtol=0, atol=1e-14)
    assert smoothing(log_probs, answers)[0] < 0


@pytest.mark.parametrize("share", [0.0, 0.1, 0.9])
def test_smoothing_and_its_gradient_equal_torch_on_each_rows_choices(share, randn):
    """Two choices and four in one padded batch: labels are smoothed over existing choices only."""
    logits = [randn(2).requires_grad_(), randn(4).requires_grad_()]
    answers = torch.tensor([1, 2])
    padded = torch.stack([torch.cat([row, row.new_full((4 - len(row),), -_INF)]) for row in logits])
    log_probs = padded.log_softmax(dim=-1)
    losses = cross_entropy(log_probs, answers) + share * smoothing(log_probs, answers)
    wanted = torch.stack(
        [
            torch.nn.functional.cross_entropy(row[None], answer[None], label_smoothing=share)
            for row, answer in zip(logits, answers, strict=True)
        ]
    )
    torch.testing.assert_close(losses, wanted, rtol=0, atol=1e-14)
    grads = [torch.autograd.grad(loss.sum(), logits, retain_graph=True) for loss in (losses, wanted)]
    for ours, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-14)
        assert ours.abs().max() > 1e-3

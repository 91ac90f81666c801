import pytest
import torch

from lorchestra.nn.optimizer import MemberAdamW, clip_gradients

M, P = 3, 40


@pytest.fixture(name="is_B")
def columns_of_b():
    return torch.arange(P) % 5 < 2


@pytest.mark.parametrize("decays", [(0.0, 0.0, 0.0), (0.01, 0.0, 3.0), (9.0, 9.0, 9.0)])
@pytest.mark.parametrize("decays_a", [None, (0.0, 2.0, 3.0)], ids=["B only", "A, too"])
def test_equals_adamw_of_torch_for_each_member_alone(randn, is_B, decays, decays_a):
    """Twenty steps in float64: two groups in torch's, A and B with decays of their own, and a rate that changes."""
    values = randn(M, P)
    optimizer = MemberAdamW(values, is_B, decays, decays_a)
    references = []
    for m in range(M):
        A, B = values[m, ~is_B].clone().requires_grad_(), values[m, is_B].clone().requires_grad_()
        groups = [
            {"params": [A], "weight_decay": 0.0 if decays_a is None else decays_a[m]},
            {"params": [B], "weight_decay": decays[m]},
        ]
        references.append((A, B, torch.optim.AdamW(groups, lr=1.0)))
    for step in range(20):
        grad = randn(M, P) * 10.0 ** -(step % 7)
        lrs = [0.1 / (step + 1), 0.05, 0.02 * (step + 1) / 20]
        optimizer.step(grad, lrs, range(M))
        for m, (A, B, reference) in enumerate(references):
            A.grad, B.grad = grad[m, ~is_B], grad[m, is_B]
            for group in reference.param_groups:
                group["lr"] = lrs[m]
            reference.step()
    for m, (A, B, _) in enumerate(references):
        torch.testing.assert_close(values[m, ~is_B], A.detach(), rtol=0, atol=1e-12)
        torch.testing.assert_close(values[m, is_B], B.detach(), rtol=0, atol=1e-12)


def test_betas_and_eps_are_those_of_torch(randn, is_B):
    values = randn(1, P)
    parameter = values[0].clone().requires_grad_()
    ours = MemberAdamW(values, is_B, [0.0], betas=(0.8, 0.95), eps=1e-3)
    theirs = torch.optim.AdamW([parameter], lr=0.1, betas=(0.8, 0.95), eps=1e-3, weight_decay=0.0)
    for _ in range(5):
        parameter.grad = randn(P) * 1e-3
        ours.step(parameter.grad[None], [0.1], [0])
        theirs.step()
    torch.testing.assert_close(values[0], parameter.detach(), rtol=0, atol=1e-12)


def test_unlisted_members_keep_every_bit(randn, is_B):
    """Though they have gradients, moments, a rate and decay; on coming back they go on where they stood."""
    values = randn(M, P)
    optimizer = MemberAdamW(values, is_B, [1.0] * M)
    alone = values[1:2].clone()
    reference = MemberAdamW(alone, is_B, [1.0])
    grads = [randn(M, P) for _ in range(6)]
    for step, grad in enumerate(grads):
        listed = [0, 2] if step in (2, 3) else [0, 1, 2]
        before = [tensor[1].clone() for tensor in (values, optimizer.first_moment, optimizer.second_moment)]
        optimizer.step(grad, [0.1] * M, listed)
        if 1 not in listed:
            after = [tensor[1] for tensor in (values, optimizer.first_moment, optimizer.second_moment)]
            assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
        else:
            reference.step(grad[1:2], [0.1], [0])
    assert optimizer.num_steps == [6, 4, 6]
    assert torch.equal(values[1], alone[0])


def test_a_nan_gradient_of_an_unlisted_member_stays_out(randn, is_B):
    values = randn(M, P)
    expected = values.clone()
    grad = randn(M, P)
    MemberAdamW(expected, is_B, [1.0] * M).step(grad, [0.1] * M, [1, 2])
    grad[0] = float("nan")
    MemberAdamW(values, is_B, [1.0] * M).step(grad, [0.1] * M, [1, 2])
    assert torch.equal(values, expected)


@pytest.mark.parametrize("lr", [1e-3, 4e-3])
def test_decay_holds_b_at_about_one_over_lambda_whatever_the_rate(randn, is_B, lr):
    """A constant gradient drives Adam's update to 1: then B rests at 1/lambda, while A goes on without bound."""
    strength = 100.0
    values = torch.zeros(1, P, dtype=torch.float64)
    optimizer = MemberAdamW(values, is_B, [strength])
    grad = randn(1, P)
    for _ in range(500):
        optimizer.step(grad, [lr], [0])
    torch.testing.assert_close(values[0, is_B], -grad[0, is_B].sign() / strength, rtol=1e-3, atol=0)
    torch.testing.assert_close(values[0, ~is_B], -grad[0, ~is_B].sign() * lr * 500, rtol=1e-3, atol=0)


def test_decay_bounds_b_under_noisy_gradients(randn, is_B):
    strength, lr = 100.0, 2e-3
    values = randn(1, P)
    optimizer = MemberAdamW(values, is_B, [strength])
    for step in range(300):
        optimizer.step(randn(1, P) + 0.3, [lr], [0])
        if step > 100:
            assert values[0, is_B].abs().max() <= 1.05 / strength
    assert values[0, ~is_B].abs().max() > 5 / strength


def test_decay_is_exact_in_float64(is_B):
    """A zero gradient leaves decay alone: B shrinks by exactly 1 - lr * lambda."""
    values = torch.ones(1, P, dtype=torch.float64)
    MemberAdamW(values, is_B, [0.1]).step(torch.zeros(1, P, dtype=torch.float64), [0.1], [0])
    assert (values[0, is_B] == 1 - 0.1 * 0.1).all()
    assert (values[0, ~is_B] == 1.0).all()


@pytest.mark.parametrize("bound", [0.5, 3.0, 1e6])
def test_clipping_equals_torch_for_each_member_alone(randn, bound):
    grad = randn(M, P) * torch.tensor([[0.01], [1.0], [100.0]], dtype=torch.float64)
    expected = []
    for m in range(M):
        leaves = [torch.zeros(P // 2, dtype=torch.float64, requires_grad=True) for _ in range(2)]
        for leaf, piece in zip(leaves, grad[m].clone().split(P // 2), strict=True):
            leaf.grad = piece
        norm = torch.nn.utils.clip_grad_norm_(leaves, bound)
        expected.append((norm, torch.cat([leaf.grad for leaf in leaves])))
    norms = clip_gradients(grad, [bound] * M)
    for m, (norm, clipped) in enumerate(expected):
        torch.testing.assert_close(norms[m], norm, rtol=1e-13, atol=0)
        torch.testing.assert_close(grad[m], clipped, rtol=1e-13, atol=0)


def test_clipping_bounds_differ_and_zero_is_none_and_nan_stays_alone(randn):
    grad = randn(4, P)
    grad[3] = float("nan")
    before = grad.clone()
    norms = clip_gradients(grad, [0.0, 1.0, 2.0, 1.0])
    assert torch.equal(grad[0], before[0])
    assert grad[1].norm().item() == pytest.approx(1.0, rel=1e-5)
    assert grad[2].norm().item() == pytest.approx(2.0, rel=1e-5)
    assert norms[3].isnan()
    torch.testing.assert_close(norms[:3], before[:3].norm(dim=1))

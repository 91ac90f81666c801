"""The Gaussian over A: samples and their gradients, the KL divergence and its steps, and an exact posterior."""

from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from lorchestra.methods.mean_field import MeanField, kl_cycle, kl_gradients, kl_step, kl_to_prior, kl_weight
from lorchestra.nn.adapters import StackedAdapters


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def field(shapes=(("a", 7, 5), ("b", 4, 6)), rank=2, **options):
    adapters = StackedAdapters(1, rank, shapes, dtype=torch.float64, **options)
    return adapters, MeanField(adapters)


def test_samples_differ_in_a_alone():
    """By `rho^2 noise`, module by module; B and the head are the same in all samples."""
    adapters, posterior = field(head_shape=(3, 8))
    num_A = 2 * 7 + 2 * 4
    assert len(posterior.columns) == num_A
    theta, noise = randn(adapters.values.shape[1] + num_A), randn(4, num_A, seed=1)
    samples = posterior.samples(theta, noise)
    mean, rho = theta[:-num_A], theta[-num_A:]
    assert torch.equal(adapters.head(samples), adapters.head(mean).expand(4, -1, -1))
    start = 0
    for piece in adapters.slices:
        assert torch.equal(
            adapters.view(samples, piece, "B"), adapters.view(mean, piece, "B").expand(4, piece.out_features, 2)
        )
        stop = start + 2 * piece.in_features
        deviations = (rho[start:stop] ** 2 * noise[:, start:stop]).unflatten(1, (2, piece.in_features))
        expected = adapters.view(mean, piece, "A") + deviations
        torch.testing.assert_close(adapters.view(samples, piece, "A"), expected, rtol=1e-15, atol=1e-15)
        start = stop


def test_gradients_of_mean_and_rho_are_those_of_the_reparametrized_model():
    """A loss of two adapted layers, with A = mean + rho^2 noise written out, by autograd."""
    adapters, posterior = field(shapes=(("a", 7, 4), ("b", 4, 6)))
    (a, b), num_A = adapters.slices, len(posterior.columns)
    theta, noise = randn(adapters.values.shape[1] + num_A), randn(3, num_A, seed=1)
    inputs, shares = randn(3, 10, 7, seed=2), torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)

    def loss(x, A_a, B_a, A_b, B_b):
        hidden = torch.tanh(x @ A_a.T @ B_a.T)
        return torch.tanh(hidden @ A_b.T @ B_b.T).square().mean()

    # as trained: every sample's gradient by itself, times the sample's share of the rows
    values = posterior.samples(theta, noise).requires_grad_()
    views = [[adapters.view(sample, piece, which) for piece in (a, b) for which in "AB"] for sample in values]
    sum(share * loss(x, *view) for share, x, view in zip(shares, inputs, views, strict=True)).backward()
    gradient = posterior.pull(theta, noise, values.grad)

    means = [adapters.view(theta[:-num_A], piece, which).clone().requires_grad_() for piece in (a, b) for which in "AB"]
    rhos = [rho.clone().unflatten(0, (2, -1)).requires_grad_() for rho in theta[-num_A:].split([14, 8])]
    total = torch.zeros((), dtype=torch.float64)
    for share, x, one in zip(shares, inputs, noise, strict=True):
        of_a, of_b = (part.unflatten(0, (2, -1)) for part in one.split([14, 8]))
        total = total + share * loss(
            x, means[0] + rhos[0] ** 2 * of_a, means[1], means[2] + rhos[1] ** 2 * of_b, means[3]
        )
    total.backward()
    expected = torch.cat([part.grad.flatten() for part in (*means, *rhos)])
    assert expected.abs().min() > 0
    torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("prior_std", [0.2, 1.7])
def test_kl_divergence_and_its_gradients(prior_std):
    mean, rho = randn(30).requires_grad_(), randn(30, seed=1).requires_grad_()
    prior = Normal(torch.zeros_like(mean), torch.full_like(mean, prior_std))
    expected = kl_divergence(Normal(mean, rho**2), prior).sum()
    value = kl_to_prior(mean, rho, prior_std)
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=0)
    for gradient, leaf in zip(kl_gradients(mean, rho, prior_std), (mean, rho), strict=True):
        (by_autograd,) = torch.autograd.grad(expected, leaf, retain_graph=True)
        torch.testing.assert_close(gradient, by_autograd, rtol=1e-12, atol=1e-12)


def theta_of(posterior, rho, seed=0):
    """Random means, and the given numbers as rho."""
    return torch.cat([randn(posterior.num_parameters, seed=seed), torch.as_tensor(rho, dtype=torch.float64)])


def test_a_kl_step_is_gradient_descent_on_means_and_rho():
    _, posterior = field()
    theta = theta_of(posterior, 0.3 + 0.05 * randn(len(posterior.columns), seed=1))
    before = theta.clone()
    kl_step(theta, posterior, prior_std=0.2, rate=1e-4)
    grad_mean, grad_rho = kl_gradients(before[posterior.columns], posterior.rho(before), 0.2)
    torch.testing.assert_close(posterior.rho(theta), posterior.rho(before) - 1e-4 * grad_rho, rtol=1e-15, atol=0)
    expected = before[: posterior.num_parameters].clone()
    expected[posterior.columns] -= 1e-4 * grad_mean
    torch.testing.assert_close(posterior.mean(theta), expected, rtol=1e-15, atol=0)


def test_a_kl_step_ends_at_the_prior_where_it_would_pass_it():
    """Also from rho = 0, from below zero, and at a rate at which the means would change sign."""
    _, posterior = field(shapes=(("a", 5, 3),), rank=1)
    theta = theta_of(posterior, [0.0, 1e-9, -1e-9, -2.0, 3.0])
    for _ in range(2):  # the optimum is kept
        kl_step(theta, posterior, prior_std=0.25, rate=10.0)
        assert posterior.rho(theta).tolist() == [0.5, 0.5, -0.5, -0.5, 0.5]
        assert not posterior.mean(theta)[posterior.columns].any()
    assert kl_to_prior(theta[posterior.columns], posterior.rho(theta), 0.25).item() == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rate", [0.0, 1e-320, 1e-30, 1e30])
@pytest.mark.parametrize("prior_std", [1e-30, 1.0, 1e30])
def test_kl_steps_are_finite(dtype, rate, prior_std):
    _, posterior = field(shapes=(("a", 5, 3),), rank=1)
    theta = theta_of(posterior, [0.0, 1e-38, -1e-20, 1.0, 1e10]).to(dtype)
    before = theta.clone()
    kl_step(theta, posterior, prior_std, rate)
    assert theta.isfinite().all()
    assert torch.equal(theta, before) == (rate == 0)


def test_weights_double_over_a_cycle_and_sum_to_almost_one():
    weights = [kl_weight(step, 5) for step in range(10)]
    assert weights[:5] == weights[5:] == [2**i / (2**6 - 1) for i in range(1, 6)]
    assert sum(weights[:5]) == pytest.approx(62 / 63, rel=1e-12)
    assert kl_weight(3, 1) == 2 / 3
    long = [kl_weight(step, 5000) for step in range(5000)]
    assert long[0] == 0
    assert long[-1] == 0.5
    assert sum(long) == pytest.approx(1, rel=1e-12)


@pytest.mark.parametrize(
    ("num_rows", "batch_size", "gamma", "expected"),
    [
        (640, 4, 8.0, 160),  # 100 * 640^(pi / 8) / 4 = 316: at most an epoch
        (2490, 4, 8.0, 539),  # 539.04 of 623
        (40_000, 8, 8.0, 801),  # 801.9 of 5,000
        (40_000, 8, 1e9, 12),  # 100 / 8
        (40_000, 200, 1e9, 1),
        (40_000, 8, 1e-300, 5000),
        (1, 8, 8.0, 1),
    ],
)
def test_cycles(num_rows, batch_size, gamma, expected):
    assert kl_cycle(num_rows, batch_size, -(-num_rows // batch_size), gamma) == expected


def test_initial_standard_deviations():
    """rho is uniform between 0.05 / sqrt(2) and 0.05, and a module's draw does not depend on other modules."""
    _, posterior = field(shapes=(("a", 500, 5), ("b", 500, 6)))
    values = randn(posterior.num_parameters)
    theta = posterior.initial(values, 0.05, seed=3)
    assert torch.equal(posterior.mean(theta), values)
    rho = posterior.rho(theta)
    low = 0.05 / math.sqrt(2)
    assert low <= rho.min() < low + 2e-4
    assert 0.05 - 2e-4 < rho.max() <= 0.05
    # the mean of 2,000 uniform numbers: six standard errors
    assert abs(rho.mean().item() - (low + 0.05) / 2) < 6 * (0.05 - low) / math.sqrt(12 * 2000)
    _, alone = field(shapes=(("b", 500, 6),))
    other = alone.initial(randn(alone.num_parameters), 0.05, seed=3)
    assert torch.equal(alone.rho(other), rho[1000:])
    assert not torch.equal(posterior.rho(posterior.initial(values, 0.05, seed=4)), rho)


def test_draws_have_the_mean_and_variance():
    """Bounds of six standard errors: 1 / sqrt(S) of a mean in units of its std, sqrt(2 / S) of a variance."""
    _, posterior = field()
    theta = theta_of(posterior, randn(len(posterior.columns), seed=5))
    number = 4000
    noise = torch.stack([posterior.noise(7, "draw", s) for s in range(number)]).double()
    draws = posterior.samples(theta, noise)[:, posterior.columns]
    mean, std = theta[posterior.columns], posterior.rho(theta).square()
    assert ((draws.mean(dim=0) - mean).abs() < 6 * std / math.sqrt(number)).all()
    assert ((draws.var(dim=0) / std**2 - 1).abs() < 6 * math.sqrt(2 / number)).all()
    correlation = torch.corrcoef(draws.T).fill_diagonal_(0)
    assert correlation.abs().max() < 6 / math.sqrt(number)


def test_gradients_lead_to_the_exact_mean_field_posterior_of_a_linear_gaussian_model():
    """Linear regression of known noise on A: the optimum has the exact posterior's mean and the inverses of the
    diagonal of its precision as variances (Bishop, Pattern Recognition and Machine Learning, 10.1.2).

    The noise is +- sqrt(J) times each unit vector: its mean is 0 and its covariance the identity, so that the mean over
    samples is the exact expectation of a quadratic loss.
    """
    adapters, posterior = field(shapes=(("a", 4, 3),), rank=1)
    prior_std, noise_std = 0.5, 0.8
    inputs = randn(20, 4, seed=1) + randn(20, 1, seed=2)
    targets = inputs @ torch.tensor([0.4, -0.3, 0.1, 0.8], dtype=torch.float64) + noise_std * randn(20, seed=3)
    precision = inputs.T @ inputs / noise_std**2 + torch.eye(4, dtype=torch.float64) / prior_std**2
    exact_mean = torch.linalg.solve(precision, inputs.T @ targets / noise_std**2)
    exact_std = precision.diagonal().rsqrt()
    assert (precision - precision.diagonal().diag()).abs().max() > 0.1 * precision.diagonal().min()  # correlated

    noise = 2 * torch.cat([torch.eye(4), -torch.eye(4)]).double()
    theta = posterior.initial(adapters.values[0], 0.5, seed=0)
    rate = 0.5 / precision.diagonal().sum()
    for _ in range(4000):
        values = posterior.samples(theta, noise).requires_grad_()
        losses = (values[:, posterior.columns] @ inputs.T - targets).square().sum(dim=1) / (2 * noise_std**2)
        losses.mean().backward()
        gradient = posterior.pull(theta, noise, values.grad)
        of_mean, of_rho = kl_gradients(theta[posterior.columns], posterior.rho(theta), prior_std)
        gradient[posterior.columns] += of_mean
        posterior.rho(gradient).add_(of_rho)
        theta -= rate * gradient
    torch.testing.assert_close(theta[posterior.columns], exact_mean, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(posterior.rho(theta).square(), exact_std, rtol=1e-6, atol=1e-6)

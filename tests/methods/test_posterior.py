"""Gaussian posteriors against exact ones of linear-Gaussian and logistic models, and against explicit matrices."""

from __future__ import annotations

import math

import pytest
import torch

from lorchestra.methods.posterior import (
    DiagonalLaplace,
    FullLaplace,
    SwagMoments,
    best_precision,
    curvature_factor,
    log_marginal_likelihood,
)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def close(actual, expected, rtol=1e-9, atol=1e-10):
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=atol)


def covariance_of(draws, *sizes):
    """The exact covariance of draws that are linear in several standard normal noises of these sizes."""
    total = 0
    for k, size in enumerate(sizes):
        noises = [
            torch.eye(size, dtype=torch.float64) if other == k else torch.zeros(size, width, dtype=torch.float64)
            for other, width in enumerate(sizes)
        ]
        root = draws(*noises) - draws(*[torch.zeros_like(noise) for noise in noises])
        total = total + root.t() @ root
    return total


class TestSwag:
    def test_moments_are_those_of_all_iterates_and_deviations_those_of_the_last(self):
        iterates = randn(9, 4) * 3 + 100
        moments = SwagMoments(3)
        for values in iterates:
            moments.update(values)
        close(moments.mean, iterates.mean(dim=0))
        close(moments.variance, iterates.var(dim=0, correction=0))
        expected = torch.stack([iterates[k] - iterates[: k + 1].mean(dim=0) for k in (6, 7, 8)])
        close(moments.deviations, expected)

    @pytest.mark.parametrize("scale", [1.0, 0.25])
    def test_draws_have_the_papers_mean_and_covariance(self, scale):
        """Equation 1 of arXiv 1902.02476: half the diagonal and half the low-rank matrix."""
        iterates = randn(6, 5, seed=1)
        moments = SwagMoments(4)
        for values in iterates:
            moments.update(values)
        D = moments.deviations
        expected = scale * 0.5 * (torch.diag(iterates.var(dim=0, correction=0)) + D.t() @ D / 3)
        close(covariance_of(lambda p, k: moments.draws(p, k, scale), 5, 4), expected)
        without_noise = moments.draws(torch.zeros(1, 5), torch.zeros(1, 4), scale)
        close(without_noise[0], iterates.mean(dim=0))

    def test_iterates_of_a_linear_gaussian_model_give_its_posterior(self):
        """A chain whose stationary distribution is the posterior of y = x w + noise; 500 such models at once."""
        x, noise_std, step = randn(40), 0.5, 0.02
        y = x * 1.3 + noise_std * randn(500, 40, seed=1)
        precision = (x**2).sum() / noise_std**2
        least_squares = y @ x / (x**2).sum()
        source = torch.Generator().manual_seed(2)
        w, moments = least_squares.clone(), SwagMoments(200)
        gain = step / precision * 40
        for _ in range(3000):
            noise = torch.randn(500, generator=source, dtype=torch.float64)
            w = w - gain * precision * (w - least_squares) + (gain * (2 - gain * precision)).sqrt() * noise
            moments.update(w)
        std = precision**-0.5
        assert ((moments.mean - least_squares) / std).square().mean() < 0.01
        assert (moments.variance * precision).mean().item() == pytest.approx(1, abs=0.02)
        D = moments.deviations
        low_rank = D.square().sum(dim=0) / (len(D) - 1)
        assert (low_rank * precision).mean().item() == pytest.approx(1, abs=0.02)

    def test_one_iterate_has_no_covariance(self):
        moments = SwagMoments(3)
        moments.update(torch.ones(2))
        with pytest.raises(ValueError, match="a covariance needs at least two iterates, got 1"):
            moments.draws(torch.zeros(1, 2), torch.zeros(1, 1))


class TestLaplace:
    @pytest.mark.parametrize("num_rows", [3, 6, 20])
    @pytest.mark.parametrize("precision", [1e-3, 1.0, 1e4])
    def test_full_posterior_of_a_linear_gaussian_model_is_exact(self, num_rows, precision):
        """More parameters than rows, and fewer: the covariance is (X^T X / s^2 + t I)^-1."""
        X, noise_std = randn(num_rows, 6), 0.7
        posterior = FullLaplace(X / noise_std)
        expected = (X.t() @ X / noise_std**2 + precision * torch.eye(6, dtype=torch.float64)).inverse()
        covariance = covariance_of(lambda noise: posterior.draws(noise, precision), 6)
        close(covariance, expected, rtol=1e-8, atol=1e-9 / precision)

    @pytest.mark.parametrize("num_rows", [4, 12])
    def test_evidence_of_a_linear_gaussian_model_is_exact(self, num_rows):
        X, noise_std, t = randn(num_rows, 6), 0.7, 1.9
        y = randn(num_rows, seed=1)
        eye = torch.eye(num_rows, dtype=torch.float64)
        marginal = torch.distributions.MultivariateNormal(
            torch.zeros(num_rows, dtype=torch.float64), noise_std**2 * eye + X @ X.t() / t
        )
        H = X.t() @ X / noise_std**2
        mean = torch.linalg.solve(H + t * torch.eye(6, dtype=torch.float64), X.t() @ y / noise_std**2)
        fit = torch.distributions.Normal(X @ mean, noise_std).log_prob(y).sum().item()
        evidence = log_marginal_likelihood(FullLaplace(X / noise_std), fit, mean, t)
        assert evidence == pytest.approx(marginal.log_prob(y).item(), rel=1e-10)

    def test_evidence_recovers_the_prior_of_the_weights(self):
        """400 weights drawn with standard deviation 0.1, hence precision 100."""
        weights = 0.1 * randn(400)
        data = weights + 0.01 * randn(400, seed=1)
        posterior = DiagonalLaplace(torch.full((400,), 1e4, dtype=torch.float64))

        def evidence(t):
            mean = data * 1e4 / (1e4 + t)
            fit = torch.distributions.Normal(mean, 0.01).log_prob(data).sum().item()
            return log_marginal_likelihood(posterior, fit, mean, t)

        best = best_precision(evidence)
        # the evidence's maximum in closed form: the data have variance 1/t + 1e-4
        assert best == pytest.approx(1 / (data.square().mean().item() - 1e-4), rel=1e-4)
        assert best == pytest.approx(100, rel=0.2)

    def test_diagonal_posterior(self):
        curvature = randn(5).abs()
        posterior = DiagonalLaplace(curvature)
        close(covariance_of(lambda noise: posterior.draws(noise, 0.3), 5), torch.diag(1 / (curvature + 0.3)))
        assert posterior.log_determinant(0.3) == pytest.approx((curvature + 0.3).log().sum().item())

    def test_full_posterior_equals_the_diagonal_one_for_diagonal_curvature(self):
        curvature, noise = randn(5).abs(), randn(3, 5, seed=1)
        full, diagonal = FullLaplace(torch.diag(curvature.sqrt())), DiagonalLaplace(curvature)
        for precision in (1e-2, 1.0, 1e3):
            close(full.draws(noise, precision), diagonal.draws(noise, precision))
            assert full.log_determinant(precision) == pytest.approx(diagonal.log_determinant(precision))

    def test_repeated_and_zero_rows(self):
        F = torch.cat([randn(2, 5), randn(2, 5), torch.zeros(1, 5, dtype=torch.float64)])
        expected = (F.t() @ F + 0.1 * torch.eye(5, dtype=torch.float64)).inverse()
        close(covariance_of(lambda noise: FullLaplace(F).draws(noise, 0.1), 5), expected)

    @pytest.mark.parametrize("structure", ["full", "diagonal"])
    def test_changes_are_the_jacobian_times_the_draws(self, structure):
        F, J, noise = randn(4, 6), randn(3, 6, seed=1), randn(5, 6, seed=2)
        posterior = FullLaplace(F) if structure == "full" else DiagonalLaplace(F.square().sum(dim=0))
        precisions = [1e-2, 1.0, 1e3]
        expected = torch.stack([J @ posterior.draws(noise, t).t() for t in precisions])
        close(posterior.changes(J, noise, precisions), expected)

    def test_curvature_of_logistic_regression_is_its_hessian(self):
        """Weighted rows with two or three choices; all choices share the parameters."""
        X, weights = randn(7, 3, 4), torch.rand(7, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        absent = torch.zeros(7, 3, dtype=torch.bool)
        absent[::2, 2] = True
        answers = torch.tensor([0, 1, 1, 2, 0, 2, 1])

        def log_probs(theta):
            return (X @ theta).masked_fill(absent, -torch.inf).log_softmax(dim=-1)

        def loss(theta):
            return -(log_probs(theta)[range(7), answers] * weights).sum()

        theta = randn(4, seed=2)
        jacobian = torch.autograd.functional.jacobian(lambda t: log_probs(t).masked_fill(absent, 0.0), theta)
        factor = curvature_factor(log_probs(theta), jacobian, weights)
        close(factor.t() @ factor, torch.autograd.functional.hessian(loss, theta))


@pytest.mark.parametrize("peak", [1e-3, 0.7, 300.0, 1e7])
def test_best_precision(peak):
    assert best_precision(lambda t: -(math.log(t / peak) ** 2)) == pytest.approx(peak, rel=1e-6)


def test_monotonic_score_gives_a_bound():
    assert best_precision(lambda t: t, (0.1, 10.0)) == pytest.approx(10.0)
    assert best_precision(lambda t: -t, (0.1, 10.0)) == pytest.approx(0.1)

"""A mean-field Gaussian over A and its KL divergence from the prior, as in BLoB (Wang et al., arXiv 2406.11675).

A flat vector theta `[Q]` is the adapter `[P]`, with the means of A in place of A, then rho `[J]`, one number per entry
of A: the entry is distributed as `N(mean, std^2)` with `std = rho^2`. B and a classification head, if there is one, are
plain numbers. The prior of A is `N(0, prior_std^2)`.

Axes: `P` parameter, `J` entry of A, `Q` number of theta, `S` sample. Samples are functions of given standard normal
noise, and thus deterministic (the reparametrization trick).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lorchestra.nn.adapters import StackedAdapters
from lorchestra.nn.seeding import generator


class MeanField:
    """Maps theta to samples of the adapter, and gradients of the samples to the gradient of theta.

    Args:
        adapters: their slices and device.
    """

    def __init__(self, adapters: StackedAdapters) -> None:
        self.slices = adapters.slices
        self.num_parameters = adapters.values.shape[1]
        is_A = torch.zeros_like(adapters.is_B)
        for piece in adapters.slices:
            is_A[piece.start : piece.middle] = True
        self.columns = is_A.nonzero().squeeze(1)
        """The columns of the adapter that belong to A, int64 `[J]`."""

    def initial(self, values_P: Tensor, rho: float, seed: int) -> Tensor:
        """Theta `[Q]` with this adapter as the mean and rho drawn uniformly from `[rho / sqrt(2), rho]`.

        A module's draw depends on the seed and the module's name alone.

        Source: the official code, github.com/Wang-ML-Lab/bayesian-peft.
        """
        low = rho / math.sqrt(2)
        draws = [
            torch.rand(piece.middle - piece.start, generator=generator(seed, "blob rho", piece.name))
            for piece in self.slices
        ]
        return torch.cat([values_P, (low + (rho - low) * torch.cat(draws)).to(values_P)])

    def mean(self, theta_Q: Tensor) -> Tensor:
        """The adapter of the means, a view `[P]`."""
        return theta_Q[: self.num_parameters]

    def rho(self, theta_Q: Tensor) -> Tensor:
        """Roots of the standard deviations, a view `[J]`."""
        return theta_Q[self.num_parameters :]

    def noise(self, seed: int, *names: int | str) -> Tensor:
        """Standard normal noise `[J]`, a function of the seed and the names."""
        return torch.randn(len(self.columns), generator=generator(seed, "blob noise", *names))

    def samples(self, theta_Q: Tensor, noise_SJ: Tensor) -> Tensor:
        """Samples of the adapter `[S, P]`, differentiable in theta."""
        deviations_SJ = self.rho(theta_Q).square() * noise_SJ
        return self.mean(theta_Q).repeat(len(noise_SJ), 1).index_add(1, self.columns, deviations_SJ)

    def pull(self, theta_Q: Tensor, noise_SJ: Tensor, grad_SP: Tensor) -> Tensor:
        """The gradient `[Q]` of a sum of losses, one per sample, from their gradients with respect to the samples.

        Equal to autograd through `samples`: an entry's derivative is 1 by its mean and `2 rho noise` by its rho.
        """
        grad_J = (grad_SP[:, self.columns] * noise_SJ).sum(dim=0)
        return torch.cat([grad_SP.sum(dim=0), 2 * self.rho(theta_Q) * grad_J])


def kl_to_prior(mean_J: Tensor, rho_J: Tensor, prior_std: float) -> Tensor:
    """`KL(N(mean, rho^4) || N(0, prior_std^2))`, summed over entries, in nats: a float64 scalar, differentiable."""
    mean_J, std_J = mean_J.double() / prior_std, rho_J.double().square() / prior_std
    return ((std_J.square() + mean_J.square() - 1) / 2 - std_J.log()).sum()


def kl_gradients(mean_J: Tensor, rho_J: Tensor, prior_std: float) -> tuple[Tensor, Tensor]:
    """The gradients of `kl_to_prior` by mean and rho, float64 `[J]`; finite for rho = 0."""
    mean_J, rho_J = mean_J.double(), rho_J.double()
    smallest = torch.full_like(rho_J, 1e-300)
    safe_J = torch.where(rho_J.abs() < smallest, smallest, rho_J)
    return mean_J / prior_std / prior_std, 2 * rho_J**3 / prior_std / prior_std - 2 / safe_J


@torch.no_grad()
def kl_step(theta_Q: Tensor, posterior: MeanField, prior_std: float, rate: float) -> None:
    """One step of gradient descent on the KL divergence, in place.

    No number passes its optimum, 0 for a mean and `+- sqrt(prior_std)` for rho: near rho = 0 the gradient is unbounded,
    and a plain step would throw a standard deviation far above the prior's.
    """
    if rate == 0:
        return
    mean_J, rho_J = posterior.mean(theta_Q)[posterior.columns].double(), posterior.rho(theta_Q).double()
    grad_mean_J, grad_rho_J = kl_gradients(mean_J, rho_J, prior_std)
    optimum_J = torch.full_like(rho_J, math.sqrt(prior_std)).copysign(rho_J)
    mean_J = _bounded(mean_J, mean_J - rate * grad_mean_J, torch.zeros_like(mean_J))
    theta_Q[posterior.columns] = mean_J.to(theta_Q)
    posterior.rho(theta_Q).copy_(_bounded(rho_J, rho_J - rate * grad_rho_J, optimum_J))


def _bounded(before_J: Tensor, after_J: Tensor, optimum_J: Tensor) -> Tensor:
    """A step from `before` to `after`, ended at the optimum where it would pass it."""
    passed_J = (before_J < optimum_J) != (after_J < optimum_J)
    return torch.where(passed_J | (before_J == optimum_J), optimum_J, after_J)


def kl_weight(step: int, cycle: int) -> float:
    """The weight of the KL divergence in an optimizer step, counted from 0: `2^i / (2^(cycle + 1) - 1)`, i from 1.

    It doubles from step to step and starts again after each cycle, over which the weights sum to almost 1. Weights too
    small for a float are 0.

    Source: the official code. Blundell et al. (arXiv 1505.05424, section 3.4) halve it from step to step instead.
    """
    return math.ldexp(1.0, step % cycle - cycle) / (1 - math.ldexp(1.0, -cycle - 1))


def kl_cycle(num_rows: int, batch_size: int, steps_per_epoch: int, gamma: float) -> int:
    """Steps of a cycle of `kl_weight`: `100 num_rows^(pi / gamma) / batch_size`, at least 1, at most an epoch.

    So with more rows, cycles grow more slowly than epochs. The bound is not in the source: its trainings are 5,000
    steps long, and in shorter ones a cycle of several epochs would hardly begin.

    Source: the official code.
    """
    exponent = math.pi / gamma
    if exponent * math.log(num_rows) >= math.log(steps_per_epoch * batch_size):  # also where the power overflows
        return steps_per_epoch
    return min(steps_per_epoch, max(1, int(100 * num_rows**exponent / batch_size)))

"""Gaussian posteriors over a vector of parameters: SWAG from iterates, Laplace from curvature.

Axes: `P` parameter, `S` draw, `K` kept iterate or row of curvature, `G` prior precision, `J` row of a Jacobian. Draws
are linear functions of given standard normal noise, and thus deterministic.

Also the per-row gradients from which the curvature is made: each row is assigned to a separate member, so that the
members' gradients are the rows'.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from lorchestra.inference.trunk import TrunkCache
from lorchestra.models.ensemble import EnsembleModel
from lorchestra.nn.packing import Item, pack
from lorchestra.types import EncodedExample


class SwagMoments:
    """Running mean, variance and last deviations of iterates, in float64.

    Source: Maddox et al., arXiv 1902.02476, algorithm 1: a deviation is an iterate minus the mean up to and including
    it. The (biased) variance is computed by Welford's algorithm, without the cancellation in the paper's mean of
    squares minus square of the mean.

    Args:
        rank: number of last deviations to keep.
    """

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self.num_iterates = 0
        self.mean = torch.empty(0)
        self._squares_P = torch.empty(0)
        self._deviations: list[Tensor] = []

    def update(self, values_P: Tensor) -> None:
        """Add an iterate."""
        values_P = values_P.double()
        if self.num_iterates == 0:
            self.mean, self._squares_P = torch.zeros_like(values_P), torch.zeros_like(values_P)
        self.num_iterates += 1
        before_P = values_P - self.mean
        self.mean = self.mean + before_P / self.num_iterates
        after_P = values_P - self.mean
        self._squares_P = self._squares_P + before_P * after_P
        self._deviations = [*self._deviations, after_P][-self.rank :]

    @property
    def variance(self) -> Tensor:
        """The iterates' variance, `[P]`."""
        return self._squares_P / self.num_iterates

    @property
    def deviations(self) -> Tensor:
        """The last deviations, `[K, P]`."""
        return torch.stack(self._deviations)

    def draws(self, noise_SP: Tensor, noise_SK: Tensor, scale: float = 1.0) -> Tensor:
        """Draws `[S, P]` from `N(mean, scale (diag(variance) + D^T D / (K - 1)) / 2)`, D the deviations.

        Raises:
            ValueError: fewer than two iterates.
        """
        deviations_KP = self.deviations
        num_kept = len(deviations_KP)
        if num_kept < 2:
            raise ValueError(f"a covariance needs at least two iterates, got {num_kept}")
        diagonal_SP = noise_SP.double() * self.variance.sqrt()
        low_rank_SP = noise_SK.double() @ deviations_KP / math.sqrt(num_kept - 1)
        return self.mean + math.sqrt(scale / 2) * (diagonal_SP + low_rank_SP)


def curvature_factor(log_probs_BC: Tensor, gradients_BCP: Tensor, weights_B: Tensor) -> Tensor:
    """Rows F `[B C, P]` of a square root of the examples' curvature: `H = F^T F`.

    `H = sum_n w_n sum_c p_nc g_nc g_nc^T` with `g_nc` the gradient of `log p_nc`: the generalized Gauss-Newton matrix
    of a softmax's negative log-likelihood, equal to its Fisher matrix and, if logits are linear in the parameters, to
    its Hessian.

    Args:
        log_probs_BC: normalized log-probabilities, -inf for absent choices.
        gradients_BCP: gradients of the log-probabilities, zero for absent choices.
        weights_B: weights of the examples' log-likelihoods.
    """
    root_BC = (log_probs_BC.exp() * weights_B[:, None]).sqrt().to(gradients_BCP.dtype)
    return (gradients_BCP * root_BC[..., None]).flatten(0, 1)


class LaplacePosterior(Protocol):
    """`N(mean, (H + precision I)^-1)` for any precision of an isotropic Gaussian prior, as deviations from the mean."""

    @property
    def num_numbers(self) -> int:
        """Number of stored numbers."""

    def draws(self, noise_SP: Tensor, precision: float) -> Tensor:
        """Transform standard normal noise to deviations `[S, P]`."""

    def changes(self, jacobian_JP: Tensor, noise_SP: Tensor, precisions: Sequence[float]) -> Tensor:
        """Changes of linear functions of the parameters under draws: `jacobian @ draws^T`, `[G, J, S]`."""

    def log_determinant(self, precision: float) -> float:
        """`log det(H + precision I)`."""


@dataclass(frozen=True)
class DiagonalLaplace:
    """Laplace posterior with the diagonal of the curvature H."""

    curvature_P: Tensor

    @property
    def num_numbers(self) -> int:
        """P."""
        return len(self.curvature_P)

    def draws(self, noise_SP: Tensor, precision: float) -> Tensor:
        """`noise / sqrt(H + precision)`."""
        return noise_SP * (self.curvature_P + precision).rsqrt()

    def changes(self, jacobian_JP: Tensor, noise_SP: Tensor, precisions: Sequence[float]) -> Tensor:
        """`[G, J, S]`."""
        return torch.stack([jacobian_JP @ self.draws(noise_SP, precision).t() for precision in precisions])

    def log_determinant(self, precision: float) -> float:
        """Of the diagonal matrix."""
        return float((self.curvature_P.double() + precision).log().sum())


class FullLaplace:
    """Laplace posterior with the full curvature `H = F^T F` of few rows, without forming H: all matrices are K x K.

    With `F F^T = U diag(e) U^T`, `(H + t I)^(-1/2) = t^(-1/2) (I + F^T U diag(h) U^T F)` where
    `h = ((1 + e/t)^(-1/2) - 1) / e`, finite also at e = 0.

    Args:
        factor_KP: F, a square root of H.
    """

    def __init__(self, factor_KP: Tensor) -> None:
        self.factor_KP = factor_KP
        self.num_parameters = factor_KP.shape[1]
        gram_KK = sum(
            (block.double() @ block.double().t() for block in factor_KP.split(1 << 16, dim=1)),
            factor_KP.new_zeros(len(factor_KP), len(factor_KP), dtype=torch.float64),
        )
        values_K, vectors_KK = torch.linalg.eigh(gram_KK)
        self.eigenvalues_K = values_K.clamp(min=0)
        self.vectors_KK = vectors_KK.to(factor_KP.dtype)

    @property
    def num_numbers(self) -> int:
        """K P."""
        return self.factor_KP.numel()

    def draws(self, noise_SP: Tensor, precision: float) -> Tensor:
        """`(H + precision I)^(-1/2) noise`, the symmetric root."""
        seen_SK = noise_SP @ self.factor_KP.t() @ self.vectors_KK
        pulled_SP = (seen_SK * self._shrinkage(precision)) @ self.vectors_KK.t() @ self.factor_KP
        return (noise_SP + pulled_SP) / math.sqrt(precision)

    def changes(self, jacobian_JP: Tensor, noise_SP: Tensor, precisions: Sequence[float]) -> Tensor:
        """`[G, J, S]`, with the products over P shared by all precisions."""
        free_JS = jacobian_JP @ noise_SP.t()
        seen_SK = noise_SP @ self.factor_KP.t() @ self.vectors_KK
        known_JK = jacobian_JP @ self.factor_KP.t() @ self.vectors_KK
        return torch.stack(
            [(free_JS + (known_JK * self._shrinkage(t)) @ seen_SK.t()) / math.sqrt(t) for t in precisions]
        )

    def log_determinant(self, precision: float) -> float:
        """By the matrix determinant lemma: directions without curvature have the prior's precision."""
        seen = float((self.eigenvalues_K / precision).log1p().sum())
        return seen + self.num_parameters * math.log(precision)

    def _shrinkage(self, precision: float) -> Tensor:
        """h, `[K]`."""
        ratio_K = self.eigenvalues_K / precision
        safe_K = ratio_K.clamp(min=1e-12)
        small_K = torch.full_like(ratio_K, -0.5)
        h_K = torch.where(ratio_K > 1e-12, torch.expm1(-0.5 * torch.log1p(safe_K)) / safe_K, small_K) / precision
        return h_K.to(self.factor_KP.dtype)


def log_marginal_likelihood(
    posterior: LaplacePosterior, log_likelihood: float, mean_P: Tensor, precision: float
) -> float:
    """Laplace's approximation of the log evidence under the prior `N(0, I / precision)`, in nats.

    `log p(D | mean) - precision |mean|^2 / 2 + (P log precision - log det(H + precision I)) / 2`.

    Source: MacKay 1992; exact where the log-likelihood is quadratic and `mean_P` is the maximum a posteriori.
    """
    penalty = 0.5 * precision * float(mean_P.double().square().sum())
    volume = 0.5 * (len(mean_P) * math.log(precision) - posterior.log_determinant(precision))
    return log_likelihood - penalty + volume


PRECISION_BOUNDS = (1e-4, 1e8)
"""The search interval of `best_precision`."""


def best_precision(score: Callable[[float], float], bounds: tuple[float, float] = PRECISION_BOUNDS) -> float:
    """The prior precision with the highest score: the best of a logarithmic grid, refined between its neighbors.

    Returns a bound if it is the best grid point.
    """
    low, high = (math.log(bound) for bound in bounds)
    grid = [low + (high - low) * k / 60 for k in range(61)]
    best = max(range(len(grid)), key=lambda k: score(math.exp(grid[k])))
    if best in (0, len(grid) - 1):
        return math.exp(grid[best])
    left, right = grid[best - 1], grid[best + 1]
    for _ in range(60):
        third = (right - left) / 3
        if score(math.exp(left + third)) < score(math.exp(right - third)):
            left += third
        else:
            right -= third
    return math.exp((left + right) / 2)


@dataclass(frozen=True)
class RowGradients:
    """Log-probabilities of rows' choices `[B, C]` and their gradients with respect to the adapter `[B, C, P]`.

    Absent choices have log-probability -inf and gradient zero.
    """

    rows: tuple[EncodedExample, ...]
    log_probs: Tensor
    gradients: Tensor


def row_gradients(
    model: EnsembleModel,
    rows: Sequence[EncodedExample],
    token_budget: int,
    columns: Tensor,
    trunk: TrunkCache | None = None,
) -> Iterator[RowGradients]:
    """Per-row gradients in packed batches of at most M rows; one forward pass and one backward pass per choice.

    Args:
        model: an ensemble whose members all have the same adapter.
        rows: encoded examples.
        token_budget: maximum number of tokens in a packed batch.
        columns: mask of the parameters to return gradients of, bool `[P of the adapters]`.
        trunk: cached trunks of these rows; computed if None.
    """
    shared = 0 if trunk is None else trunk.shared
    adapters = model.adapters
    for group in _groups(rows, model.num_members, token_budget):
        batch = pack([Item(member, row) for member, row in enumerate(group)], model.device, shared)
        hidden = None
        if trunk is not None:
            hidden = trunk.gather(batch)
        elif model.trunk_layers > 0:
            hidden = model.forward(batch, "trunk")
        log_probs = model.forward(batch, hidden=hidden)
        by_choice = []
        for c in range(log_probs.shape[1]):
            adapters.zero_grad()
            of_choice = log_probs[:, c]
            present = of_choice.detach() > float("-inf")
            total = of_choice.where(present, of_choice.new_zeros(())).sum()
            total.backward(retain_graph=c + 1 < log_probs.shape[1])
            by_choice.append(adapters.grad[: len(group), columns].clone())
        adapters.zero_grad()
        yield RowGradients(tuple(group), log_probs.detach(), torch.stack(by_choice, dim=1))


def _groups(rows: Sequence[EncodedExample], most: int, token_budget: int) -> Iterator[list[EncodedExample]]:
    """Consecutive groups of at most `most` rows within the token budget; a longer row forms its group alone."""
    group: list[EncodedExample] = []
    tokens = 0
    for row in rows:
        if group and (len(group) == most or tokens + row.num_tokens > token_budget):
            yield group
            group, tokens = [], 0
        group.append(row)
        tokens += row.num_tokens
    if group:
        yield group

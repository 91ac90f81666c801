"""When a member has failed: one definition for all trainings, with the same result on every processor.

Divergence need not produce NaN: with the same adapters, the kernels of one processor return NaN and those of another an
ordinary loss. So the definition uses bounds. A member has failed when

- a term of its objective or its gradient norm is not finite, or the square of the norm (taken by the optimizer) would
  overflow;
- after an optimizer step, one of its parameters is not finite or above `PARAMETER_BOUND` in magnitude. An adapter adds
  sums of products of three numbers (from B, A and its input), which the next norm squares: while each is below the
  sixth root of the largest float32, the square does not overflow;
- its mean training loss over a whole epoch is above `LOSS_FACTOR` times its loss in the first step and above
  `LOSS_FACTOR` times `ln(choices)`, the loss of guessing;
- its validation NLL is not finite.

The bounds are those of float32 even for members trained in float64, since saved adapters are loaded in float32.

A high validation NLL is not a failure: that of an over-fitted member may rise without bound (see the paper's figures)
while its training loss falls towards zero. A mean training loss of ten times the loss of guessing is not explained by
the noise of a high learning rate: at 0.1, a hundred times too high, members reached up to 4.7 times that loss in their
first epoch and recovered. At ten times, a member assigns the right answers a probability of `choices ** -10` (geometric
mean), although answering every row with the label frequencies is never worse than guessing. A single bad step does not
reach such a mean, unless the epoch has no other.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

_LARGEST = torch.finfo(torch.float32).max

GRADIENT_BOUND = _LARGEST ** (1 / 2)
"""Largest gradient norm, about 1.8e19."""
PARAMETER_BOUND = _LARGEST ** (1 / 6)
"""Largest magnitude of an adapter's parameter, about 2.6e6."""
LOSS_FACTOR = 10.0
"""Bound of an epoch's mean training loss, in multiples of the loss of the first step and of guessing."""


def step_failure(terms: Mapping[str, float], grad_norm: float) -> str | None:
    """Describe what is wrong with a step's terms (in nats, including `loss`) or its gradient norm; None if nothing is.

    Check before the optimizer step, so that a failed member is not updated, with the norm before clipping.
    """
    if all(map(math.isfinite, terms.values())) and gradient_failure(grad_norm) is None:
        return None
    penalties = [f"{name} {value:g}, " for name, value in terms.items() if name != "loss" and not math.isfinite(value)]
    return f"loss {terms['loss']:g}, {''.join(penalties)}gradient norm {grad_norm:g}"


def gradient_failure(grad_norm: float) -> str | None:
    """Describe what is wrong with a gradient norm; None if nothing is."""
    return None if grad_norm <= GRADIENT_BOUND else f"gradient norm {grad_norm:g}"


def parameter_failures(values_MP: Tensor) -> dict[int, str]:
    """Members with parameters out of bounds, with a description.

    Costs one norm per member: no parameter exceeds its member's norm, so the largest is computed only if the norm is
    out of bounds.
    """
    norms = values_MP.detach().norm(dim=1).tolist()
    largest = {m: values_MP[m].abs().max().item() for m, norm in enumerate(norms) if not norm <= PARAMETER_BOUND}
    return {
        m: f"largest parameter {value:g}, bound {PARAMETER_BOUND:.2g}"
        for m, value in largest.items()
        if not value <= PARAMETER_BOUND  # NaN too
    }


def epoch_failure(mean_loss: float, first_loss: float, log_choices: float) -> str | None:
    """Describe what is wrong with a mean training loss over a whole epoch; None if nothing is.

    Args:
        mean_loss: mean over the epoch's steps, in nats.
        first_loss: loss of the member's first step.
        log_choices: the loss of guessing: the mean of `ln(choices)` over its training rows.
    """
    if mean_loss <= LOSS_FACTOR * max(first_loss, log_choices):
        return None
    return (
        f"mean training loss {mean_loss:.3g} over an epoch, more than {LOSS_FACTOR:g} times that of the first step"
        f" ({first_loss:.3g}) and of guessing ({log_choices:.3g})"
    )


def validation_failure(nll: float) -> str | None:
    """Describe what is wrong with a validation NLL; None if it is finite: a high one may be due to over-fitting."""
    return None if math.isfinite(nll) else f"validation NLL {nll:g}"

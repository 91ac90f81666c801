"""When a member has failed: one definition for all trainings, and the same on every processor.

Numbers gone wild need not be NaN: with the same adapters one processor's kernels give NaN and another's a loss like any
other. So nothing here asks whether a kernel gave up. A member has failed when

- a term of its objective or its gradient norm is not finite, or the square of that norm, which the optimizer takes,
  would not be;
- after an optimizer step, one of its parameters is not finite, or beyond `PARAMETER_BOUND`. What an adapter adds is a
  sum of products of three numbers (of B, of A, of its input), and the next norm squares it: as long as each of them is
  within the sixth root of the largest number, so is that square;
- its mean training loss over a whole epoch is above `LOSS_FACTOR` times its loss in the first step, and above as many
  times `ln(choices)`, the loss of guessing;
- its validation NLL is not finite.

The bounds are float32's, also for members trained in float64: saved adapters are for others, who read them in float32.

The loss is that of the rows a member trains on, never of validation rows. An over-fitted member's validation NLL may
rise without bound (the paper's figures show it), while its training loss falls towards zero. Nor is an epoch's mean of
ten times the loss of guessing the noise of a rate that is too high: at a rate of 0.1, a hundred times too high, members
had up to 4.7 times that loss in their first epoch and recovered. At ten times, a member gives the answers it sees a
probability of choices ** -10 (their geometric mean), while the labels' frequencies, as an answer to every row, would
never be worse than guessing. One bad step does not make such a mean, unless it is an epoch's only one.
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
"""How many times the loss of the first step and of guessing an epoch's mean training loss may be."""


def step_failure(terms: Mapping[str, float], grad_norm: float) -> str | None:
    """What is wrong with a step's terms (in nats; `loss` among them) and its gradient norm; None if nothing.

    To be asked before the optimizer step, so that a failed member is not moved; the norm is that before clipping.
    """
    if all(map(math.isfinite, terms.values())) and gradient_failure(grad_norm) is None:
        return None
    penalties = [f"{name} {value:g}, " for name, value in terms.items() if name != "loss" and not math.isfinite(value)]
    return f"loss {terms['loss']:g}, {''.join(penalties)}gradient norm {grad_norm:g}"


def gradient_failure(grad_norm: float) -> str | None:
    """What is wrong with a gradient norm alone; None if nothing."""
    return None if grad_norm <= GRADIENT_BOUND else f"gradient norm {grad_norm:g}"


def parameter_failures(values_MP: Tensor) -> dict[int, str]:
    """Members with parameters out of bounds, and what is wrong with these.

    At the cost of a norm: no parameter is beyond its member's norm, so that the largest one is looked for only where
    that is out of bounds.
    """
    norms = values_MP.detach().norm(dim=1).tolist()
    largest = {m: values_MP[m].abs().max().item() for m, norm in enumerate(norms) if not norm <= PARAMETER_BOUND}
    return {
        m: f"largest parameter {value:g}, bound {PARAMETER_BOUND:.2g}"
        for m, value in largest.items()
        if not value <= PARAMETER_BOUND  # NaN too
    }


def epoch_failure(mean_loss: float, first_loss: float, log_choices: float) -> str | None:
    """What is wrong with a mean training loss over a whole epoch, in nats; None if nothing.

    Args:
        mean_loss: over the epoch's steps.
        first_loss: of the member's first step.
        log_choices: the loss of guessing, the mean of `ln(choices)` over its training rows.
    """
    if mean_loss <= LOSS_FACTOR * max(first_loss, log_choices):
        return None
    return (
        f"mean training loss {mean_loss:.3g} over an epoch, more than {LOSS_FACTOR:g} times that of the first step"
        f" ({first_loss:.3g}) and of guessing ({log_choices:.3g})"
    )


def validation_failure(nll: float) -> str | None:
    """What is wrong with a validation NLL; None if nothing: however high, it may be an over-fitted member's."""
    return None if math.isfinite(nll) else f"validation NLL {nll:g}"

"""From scores of choices to each member's loss."""

from __future__ import annotations

import torch
from torch import Tensor

from lorchestra.core.scoring import Scoring


def choice_log_probs(logits_KU: Tensor, scoring: Scoring) -> Tensor:
    """Normalized log-probabilities of each row's choices, `[B, C]`, -inf past a row's number of choices.

    Args:
        logits_KU: the head's output at the kept positions; U is the option ids, or the whole vocabulary where choices
            have several tokens.
        scoring: which output scores which choice.
    """
    wide = logits_KU.to(torch.promote_types(logits_KU.dtype, torch.float32))
    if scoring.option_ids is None:
        wide = wide.log_softmax(dim=-1)
    terms = wide.flatten()[scoring.term_rows * wide.shape[1] + scoring.term_columns]
    scores = terms.where(scoring.term_mask, terms.new_zeros(())).sum(dim=-1)
    if scoring.divisors is not None:
        scores = scores / scoring.divisors.to(scores.dtype)
    present = scoring.term_mask.any(dim=-1)
    return scores.masked_fill(~present, float("-inf")).log_softmax(dim=-1)


def cross_entropy(log_probs_BC: Tensor, answers_B: Tensor) -> Tensor:
    """`-log p(answer)` of each row, in nats, `[B]`."""
    return -log_probs_BC.gather(1, answers_B[:, None]).squeeze(1)


def smoothing(log_probs_BC: Tensor, answers_B: Tensor) -> Tensor:
    """How much more a row costs against the even distribution over its own choices than against its answer, `[B]`.

    `(-1/C sum_c log p(c)) - (-log p(answer))`, in nats: cross-entropy plus epsilon times this is the cross-entropy with
    labels smoothed by epsilon (Szegedy et al., arXiv 1512.00567). Negative where the answer is less likely than most.
    """
    present = log_probs_BC > float("-inf")
    total = log_probs_BC.where(present, log_probs_BC.new_zeros(())).sum(dim=-1)
    return -total / present.sum(dim=-1) - cross_entropy(log_probs_BC, answers_B)


def kl_divergence(log_p_BC: Tensor, log_q_BC: Tensor) -> Tensor:
    """`KL(p || q)` of each row, in nats, `[B]`; absent choices (-inf in both) count nothing."""
    present = log_p_BC > float("-inf")
    zero = log_p_BC.new_zeros(())
    difference = log_p_BC.where(present, zero) - log_q_BC.where(present, zero)
    return (log_p_BC.exp() * difference).where(present, zero).sum(dim=-1)


def kl_to_base(log_probs_BC: Tensor, base_log_probs_BC: Tensor, direction: str) -> Tensor:
    """The paper's function-space penalty: forward KL(member || base), reverse KL(base || member).

    Over the options, `[B, C]`, or over the vocabulary, `[B, V]`.
    """
    if direction == "forward":
        return kl_divergence(log_probs_BC, base_log_probs_BC)
    return kl_divergence(base_log_probs_BC, log_probs_BC)

"""The members' objectives: row terms and parameter terms.

A row term depends on the outputs of a row under its member and under the base; a parameter term depends on the member's
parameters. A member's objective is the weighted mean of its row terms over a step's rows, plus its parameter terms. The
members' settings give the strength of each term, and each is logged under its name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lorchestra.nn.adapters import StackedAdapters, decay_products
from lorchestra.nn.packing import PackedBatch
from lorchestra.nn.scoring import choice_log_probs, normalize
from lorchestra.training.members import MemberSettings
from lorchestra.training.precompute import Precomputed, SoftTargets


def cross_entropy(log_probs_BC: Tensor, answers_B: Tensor) -> Tensor:
    """`-log p(answer)` per row, in nats, `[B]`."""
    return -log_probs_BC.gather(1, answers_B[:, None]).squeeze(1)


def smoothing(log_probs_BC: Tensor, answers_B: Tensor) -> Tensor:
    """Cross-entropy against a uniform distribution over the row's choices minus that against its answer, `[B]`.

    `(-1/C sum_c log p(c)) - (-log p(answer))`, in nats. The cross-entropy plus epsilon times this is the cross-entropy
    with labels smoothed by epsilon (Szegedy et al., arXiv 1512.00567). Negative where the answer is unlikely.
    """
    present = log_probs_BC > float("-inf")
    total = log_probs_BC.where(present, log_probs_BC.new_zeros(())).sum(dim=-1)
    return -total / present.sum(dim=-1) - cross_entropy(log_probs_BC, answers_B)


def kl_divergence(log_p_BC: Tensor, log_q_BC: Tensor) -> Tensor:
    """`KL(p || q)` per row, in nats, `[B]`; absent choices (-inf in both) are ignored."""
    present = log_p_BC > float("-inf")
    zero = log_p_BC.new_zeros(())
    difference = log_p_BC.where(present, zero) - log_q_BC.where(present, zero)
    return (log_p_BC.exp() * difference).where(present, zero).sum(dim=-1)


def kl_to_targets(log_probs_BC: Tensor, target_log_probs_BC: Tensor, direction: str) -> Tensor:
    """The loss of distillation per row, in nats, `[B]`.

    Forward is KL(target || member), reverse KL(member || target). With targets of probability 1 for the answers,
    forward is the cross-entropy, bit by bit.
    """
    if direction == "forward":
        return kl_divergence(target_log_probs_BC, log_probs_BC)
    return kl_divergence(log_probs_BC, target_log_probs_BC)


def kl_to_base(log_probs_BC: Tensor, base_log_probs_BC: Tensor, direction: str) -> Tensor:
    """The paper's function-space penalty, over choices `[B, C]` or vocabulary `[B, V]`.

    Forward is KL(member || base), reverse KL(base || member).
    """
    if direction == "forward":
        return kl_divergence(log_probs_BC, base_log_probs_BC)
    return kl_divergence(base_log_probs_BC, log_probs_BC)


@dataclass(frozen=True)
class RowOutputs:
    """Outputs of a packed micro-batch, the inputs of the row terms."""

    members: Sequence[int]
    """Each row's member."""
    answers: Tensor
    """int64 `[B]`; -1 where a row has none, which only rows with targets may lack."""
    log_probs: Tensor
    """Log-probabilities of the choices, `[B, C]`."""
    base_log_probs: Tensor | None = None
    """The same under the base, `[B, C]`; None where no member needs them."""
    vocabulary_rows: Sequence[int] = ()
    """Indices of the rows whose distribution over the vocabulary is needed."""
    vocabulary: tuple[Tensor, Tensor] | None = None
    """For these rows, log-probabilities of the answer's first token under the member and the base, both `[.., V]`."""
    target_log_probs: Tensor | None = None
    """Log-probabilities of the choices that the members learn instead of the answers, `[B, C]`."""


def vocabulary_rows(batch: PackedBatch, settings: Sequence[MemberSettings]) -> list[int]:
    """Indices of the batch's items whose member has a KL term over the vocabulary."""
    regularizers = [settings[item.member].regularize for item in batch.items]
    return [b for b, reg in enumerate(regularizers) if reg.kl_beta > 0 and reg.kl_over == "vocabulary"]


def read_outputs(
    batch: PackedBatch,
    outputs: Tensor,
    settings: Sequence[MemberSettings],
    precomputed: Precomputed,
    targets: SoftTargets | None = None,
) -> RowOutputs:
    """Collect the inputs of the row terms from a forward pass.

    Args:
        batch: the packed items.
        outputs: logits over the vocabulary if there are `vocabulary_rows`, else the choices' log-probabilities.
        settings: one per member.
        precomputed: outputs of the base.
        targets: what the members learn instead of the answers.
    """
    rows, vocabulary = vocabulary_rows(batch, settings), None
    if rows:
        assert precomputed.vocabulary is not None
        scoring = batch.scoring
        options = outputs if scoring.option_ids is None else outputs[:, scoring.option_ids]
        log_probs = choice_log_probs(options, scoring)
        vocabulary = (
            normalize(outputs[scoring.prefix_rows[rows]]),
            precomputed.vocabulary.log_probs(batch, [batch.items[b].example.row for b in rows]),
        )
    else:
        log_probs = outputs
    answers = [item.example.answer for item in batch.items]

    def of_items(log_probs_EC: Tensor | None) -> Tensor | None:
        """The items' rows of log-probabilities of the training rows."""
        if log_probs_EC is None:
            return None
        return log_probs_EC[[item.example.row for item in batch.items], : log_probs.shape[1]].to(log_probs)

    return RowOutputs(
        members=[item.member for item in batch.items],
        answers=torch.tensor([-1 if answer is None else answer for answer in answers], device=log_probs.device),
        log_probs=log_probs,
        base_log_probs=of_items(precomputed.base_log_probs),
        vocabulary_rows=rows,
        vocabulary=vocabulary,
        target_log_probs=None if targets is None else of_items(targets.log_probs_EC),
    )


def row_terms(
    settings: Sequence[MemberSettings], outputs: RowOutputs, targets: SoftTargets | None = None
) -> dict[str, Tensor]:
    """The row terms by name, each `[B]` and including its strength: `loss`, and the penalties.

    The loss is the cross-entropy of the answers, or the KL divergence to or from the targets, to which `answers` then
    adds the weighted cross-entropy. A term that no member has is absent.
    """
    if targets is None:
        terms = {"loss": cross_entropy(outputs.log_probs, outputs.answers)}
    else:
        assert outputs.target_log_probs is not None
        terms = {"loss": kl_to_targets(outputs.log_probs, outputs.target_log_probs, targets.direction)}
        if targets.answers_weight > 0:
            terms["answers"] = targets.answers_weight * _known_cross_entropy(outputs)
    if any(member.regularize.kl_beta > 0 for member in settings):
        terms["kl_to_base"] = _kl_terms(settings, outputs)
    if any(member.regularize.label_smoothing > 0 for member in settings):
        strengths = outputs.log_probs.new_tensor([settings[m].regularize.label_smoothing for m in outputs.members])
        terms["label_smoothing"] = strengths * smoothing(outputs.log_probs, outputs.answers)
    return terms


def _known_cross_entropy(outputs: RowOutputs) -> Tensor:
    """The cross-entropy of the rows that have an answer, 0 for the others, `[B]`."""
    losses_B = cross_entropy(outputs.log_probs, outputs.answers.clamp(min=0))
    return losses_B.where(outputs.answers >= 0, losses_B.new_zeros(()))


def _kl_terms(settings: Sequence[MemberSettings], outputs: RowOutputs) -> Tensor:
    regularizers = [settings[m].regularize for m in outputs.members]
    kinds = [(reg.kl_over, reg.kl_direction) if reg.kl_beta > 0 else None for reg in regularizers]
    total = torch.zeros_like(outputs.log_probs[:, 0])
    for over, direction in sorted({kind for kind in kinds if kind is not None}):
        rows = [b for b, kind in enumerate(kinds) if kind == (over, direction)]
        index = torch.tensor(rows, device=total.device)
        if over == "options":
            assert outputs.base_log_probs is not None
            pair = outputs.log_probs[index], outputs.base_log_probs[index]
        else:
            assert outputs.vocabulary is not None
            within = torch.tensor([outputs.vocabulary_rows.index(b) for b in rows], device=total.device)
            pair = outputs.vocabulary[0][within], outputs.vocabulary[1][within]
        betas = total.new_tensor([regularizers[b].kl_beta for b in rows])
        total = total.index_add(0, index, betas * kl_to_base(*pair, direction))
    return total


def add_parameter_terms(adapters: StackedAdapters, settings: Sequence[MemberSettings]) -> dict[str, Tensor]:
    """Add the gradients of the parameter terms to `adapters.grad`; returns the terms, float64 `[M]`."""
    strengths = [member.regularize.weight_decay_ba for member in settings]
    if not any(strengths):
        return {}
    return {"weight_decay_ba": decay_products(adapters, strengths, [member.adapter.scaling for member in settings])}


def decay_penalties(adapters: StackedAdapters, settings: Sequence[MemberSettings]) -> dict[str, Tensor]:
    """`0.5 * strength * squared norm` for each decoupled decay, float64 `[M]`; only logged, never differentiated."""
    terms = {}
    for name, columns in {"weight_decay_a": ~adapters.is_B, "weight_decay_b": adapters.is_B}.items():
        strengths = [getattr(member.regularize, name) for member in settings]
        if any(strengths):
            # one member at a time, to avoid a copy of all members' parameters
            squares = torch.stack([(values * columns).square().sum() for values in adapters.values]).double()
            terms[name] = 0.5 * squares.new_tensor(strengths) * squares
    return terms

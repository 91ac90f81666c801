"""The members' objectives: what a training step reads of a forward pass, the terms made of it, and their names.

A row term is a function of a row's outputs under its member and under the base, a parameter term one of the member's
parameters. A member's objective is the weighted mean of its row terms over a step's rows, plus its parameter terms. The
members' settings choose and weigh the terms; each is logged under its name.
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
from lorchestra.training.precompute import Precomputed


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


@dataclass(frozen=True)
class RowOutputs:
    """Outputs of a packed micro-batch, per row."""

    members: Sequence[int]
    """The row's member."""
    answers: Tensor
    """int64 `[B]`."""
    log_probs: Tensor
    """Of the choices, `[B, C]`."""
    base_log_probs: Tensor | None = None
    """The base's, `[B, C]`; None where no member needs them."""
    vocabulary_rows: Sequence[int] = ()
    """Indices of the rows whose distribution over the vocabulary is needed."""
    vocabulary: tuple[Tensor, Tensor] | None = None
    """Of these rows, the member's and the base's log-probabilities where the answer begins, both `[.., V]`."""


def vocabulary_rows(batch: PackedBatch, settings: Sequence[MemberSettings]) -> list[int]:
    """Indices in the batch of the items whose member has a KL term over the vocabulary."""
    chosen = [settings[item.member].regularize for item in batch.items]
    return [b for b, one in enumerate(chosen) if one.kl_beta > 0 and one.kl_over == "vocabulary"]


def read_outputs(
    batch: PackedBatch, outputs: Tensor, settings: Sequence[MemberSettings], precomputed: Precomputed
) -> RowOutputs:
    """What the terms are functions of, from a forward pass.

    Args:
        batch: the packed items.
        outputs: logits over the vocabulary where there are `vocabulary_rows`, else the choices' log-probabilities.
        settings: the members' settings.
        precomputed: the base's answers.
    """
    rows, both = vocabulary_rows(batch, settings), None
    if rows:
        assert precomputed.vocabulary is not None
        scoring = batch.scoring
        options = outputs if scoring.option_ids is None else outputs[:, scoring.option_ids]
        log_probs = choice_log_probs(options, scoring)
        both = (
            normalize(outputs[scoring.term_rows[rows, 0, 0]]),
            precomputed.vocabulary.log_probs(batch, [batch.items[b].example.row for b in rows]),
        )
    else:
        log_probs = outputs
    base = precomputed.base_log_probs
    return RowOutputs(
        members=[item.member for item in batch.items],
        answers=torch.tensor([item.example.answer for item in batch.items], device=log_probs.device),
        log_probs=log_probs,
        base_log_probs=None
        if base is None
        else base[[item.example.row for item in batch.items], : log_probs.shape[1]].to(log_probs.dtype),
        vocabulary_rows=rows,
        vocabulary=both,
    )


def row_terms(settings: Sequence[MemberSettings], outputs: RowOutputs) -> dict[str, Tensor]:
    """Each term by row, `[B]`, with its strength: `loss` is the cross-entropy, the others are penalties.

    A term that no member's settings ask for is left out.
    """
    terms = {"loss": cross_entropy(outputs.log_probs, outputs.answers)}
    if any(own.regularize.kl_beta > 0 for own in settings):
        terms["kl_to_base"] = _kl_terms(settings, outputs)
    if any(own.regularize.label_smoothing > 0 for own in settings):
        shares = outputs.log_probs.new_tensor([settings[m].regularize.label_smoothing for m in outputs.members])
        terms["label_smoothing"] = shares * smoothing(outputs.log_probs, outputs.answers)
    return terms


def _kl_terms(settings: Sequence[MemberSettings], outputs: RowOutputs) -> Tensor:
    chosen = [settings[m].regularize for m in outputs.members]
    total = torch.zeros_like(outputs.log_probs[:, 0])
    for over, direction in sorted({(own.kl_over, own.kl_direction) for own in chosen if own.kl_beta > 0}):
        places = [
            b
            for b, own in enumerate(chosen)
            if own.kl_beta > 0 and (own.kl_over, own.kl_direction) == (over, direction)
        ]
        index = torch.tensor(places, device=total.device)
        if over == "options":
            assert outputs.base_log_probs is not None
            pair = outputs.log_probs[index], outputs.base_log_probs[index]
        else:
            assert outputs.vocabulary is not None
            found = torch.tensor([outputs.vocabulary_rows.index(b) for b in places], device=total.device)
            pair = outputs.vocabulary[0][found], outputs.vocabulary[1][found]
        betas = total.new_tensor([chosen[b].kl_beta for b in places])
        total = total.index_add(0, index, betas * kl_to_base(*pair, direction))
    return total


def add_parameter_terms(adapters: StackedAdapters, settings: Sequence[MemberSettings]) -> dict[str, Tensor]:
    """Add the gradients of the terms that depend on parameters alone; returns the terms, float64 `[M]`."""
    strengths = [own.regularize.weight_decay_ba for own in settings]
    if not any(strengths):
        return {}
    return {"weight_decay_ba": decay_products(adapters, strengths, [own.adapter.scaling for own in settings])}


def decay_penalties(adapters: StackedAdapters, settings: Sequence[MemberSettings]) -> dict[str, Tensor]:
    """What decoupled decay pulls down, `0.5 * strength * squared norm`, float64 `[M]`; for the log, never derived."""
    terms = {}
    for name, columns in {"weight_decay_a": ~adapters.is_B, "weight_decay_b": adapters.is_B}.items():
        strengths = [getattr(own.regularize, name) for own in settings]
        if any(strengths):
            # one member after the other: no copy of all members' parameters
            squares = torch.stack([(values * columns).square().sum() for values in adapters.values]).double()
            terms[name] = 0.5 * squares.new_tensor(strengths) * squares
    return terms

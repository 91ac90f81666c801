"""From scores of choices to each member's loss.

What a training step needs of a packed micro-batch: the members' outputs, and the base's beside them.

The terms of the members' objectives, composed by each member's own settings; each has a name and is logged under it.

A row term is a function of a row's outputs under its member and under the base, a parameter term one of the member's
parameters. A member's objective is the weighted mean of its row terms over a step's rows, plus its parameter terms.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lorchestra.errors import ConfigError
from lorchestra.inference.trunk import TrunkCache
from lorchestra.models.ensemble import EnsembleModel
from lorchestra.models.patching import text_config
from lorchestra.nn.adapters import StackedAdapters, decay_products
from lorchestra.nn.packing import BASE, Item, PackedBatch, forward_budget, pack, plan_micro_batches
from lorchestra.training.members import MemberSettings
from lorchestra.training.precompute import Precomputed
from lorchestra.types import EncodedExample


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
    """What a packed micro-batch gave, row by row."""

    members: Sequence[int]
    """Whose row it is."""
    answers: Tensor
    """int64 `[B]`."""
    log_probs: Tensor
    """Of the choices, `[B, C]`."""
    base_log_probs: Tensor | None = None
    """The base's, `[B, C]`; None where no member needs them."""
    vocabulary_rows: Sequence[int] = ()
    """Places of the rows whose distribution over the vocabulary is needed."""
    vocabulary: tuple[Tensor, Tensor] | None = None
    """Of these rows, the member's and the base's log-probabilities where the answer begins, both `[.., V]`."""


class BaseVocabulary:
    """The base's distribution over the vocabulary where each training row's answer begins.

    Kept as what the output head is given, `[E, D]` in the base's number format and in the machine's memory, and turned
    into log-probabilities in each step by the head alone: exact, at a fraction D / V of what the log-probabilities of
    all rows would take, and without another pass through the layers.

    Args:
        model: the ensemble.
        rows: training rows.
        token_budget: of training; passes are of `forward_budget`.
        trunk: the rows' cached trunks, if there are any.
        shared: first tokens that all rows share, where no trunk is cached.
        progress: called with the number of rows done.

    Raises:
        ConfigError: there is no room for it.
    """

    def __init__(
        self,
        model: EnsembleModel,
        rows: Sequence[EncodedExample],
        token_budget: int,
        trunk: TrunkCache | None,
        shared: int,
        progress: Callable[[int], None],
    ) -> None:
        self.model = model
        self._place = {row.row: e for e, row in enumerate(rows)}
        width, dtype = text_config(model.model).hidden_size, next(model.model.parameters()).dtype
        try:
            self._states = torch.empty(len(rows), width, dtype=dtype)
        except (RuntimeError, MemoryError) as error:
            gigabytes = len(rows) * width * dtype.itemsize / 1e9
            raise ConfigError(
                f"regularize.kl_over: vocabulary takes {gigabytes:.1f} GB of memory for {len(rows)} training rows,"
                " which are not there; take regularize.kl_over: options, or fewer rows"
            ) from error
        done = 0
        room = forward_budget(token_budget, model.device)
        for items in plan_micro_batches([Item(BASE, row) for row in rows], room, shared):
            batch = pack(items, model.device, shared)
            states = model.base_states(batch, None if trunk is None else trunk.gather(batch))
            self._states[done : done + len(items)] = states.cpu()
            done += len(items)
            progress(done)

    def log_probs(self, batch: PackedBatch, places: Sequence[int]) -> Tensor:
        """Of the batch's rows at these places, `[len(places), V]`."""
        wanted = [self._place[batch.items[b].example.row] for b in places]
        return self.model.vocabulary_log_probs(batch, self._states[wanted].to(self.model.device))


def compute_outputs(
    model: EnsembleModel,
    batch: PackedBatch,
    settings: Sequence[MemberSettings],
    precomputed: Precomputed,
    vocabulary: BaseVocabulary | None,
) -> RowOutputs:
    """One forward pass, with all that the members' terms are functions of."""
    hidden = None if precomputed.train is None else precomputed.train.gather(batch)
    members = [item.member for item in batch.items]
    chosen = [settings[m].regularize for m in members]
    places = [b for b, own in enumerate(chosen) if own.kl_beta > 0 and own.kl_over == "vocabulary"]
    both = None
    if places:
        assert vocabulary is not None
        log_probs, mine = model.with_vocabulary(batch, hidden, places)
        both = mine, vocabulary.log_probs(batch, places)
    else:
        log_probs = model.log_probs(batch, hidden)
    base = precomputed.base_log_probs
    return RowOutputs(
        members=members,
        answers=torch.tensor([item.example.answer for item in batch.items], device=log_probs.device),
        log_probs=log_probs,
        base_log_probs=None
        if base is None
        else base[[item.example.row for item in batch.items], : log_probs.shape[1]].to(log_probs.dtype),
        vocabulary_rows=places,
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

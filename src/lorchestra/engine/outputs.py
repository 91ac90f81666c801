"""What a training step needs of a packed micro-batch: the members' outputs, and the base's beside them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lorchestra.core.layout import BASE
from lorchestra.core.packing import Item, PackedBatch, forward_budget, pack, plan_micro_batches
from lorchestra.engine.frozen import Frozen
from lorchestra.engine.members import MemberSettings
from lorchestra.engine.trunk import TrunkCache
from lorchestra.errors import ConfigError
from lorchestra.models.ensemble import EnsembleModel
from lorchestra.models.surgery import text_config
from lorchestra.types import EncodedExample


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
    frozen: Frozen,
    vocabulary: BaseVocabulary | None,
) -> RowOutputs:
    """One forward pass, with all that the members' terms are functions of."""
    hidden = None if frozen.train is None else frozen.train.gather(batch)
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
    base = frozen.base_log_probs
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

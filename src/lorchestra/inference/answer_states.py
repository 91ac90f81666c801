"""Hidden states at answer positions, read in the passes that predict the answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lorchestra.inference.predict import NO_STATES, MemberPass, PrefixReuse, predict_early, predict_rows
from lorchestra.inference.state_cache import CachedState
from lorchestra.metrics.early_exit import StopRule
from lorchestra.metrics.information import InformationHead
from lorchestra.models.ensemble import EnsembleModel
from lorchestra.nn.packing import BASE
from lorchestra.types import EncodedExample


def predict_with_states(
    model: EnsembleModel,
    rows: Sequence[EncodedExample],
    passes: Sequence[MemberPass],
    token_budget: int,
    progress: Callable[[int], None] | None = None,
    prefix_reuse: PrefixReuse | None = None,
    states: Mapping[int, CachedState] = NO_STATES,
) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
    """What `predict_rows` returns, `[len(passes), E, C]`, and the inputs of the output head, `[len(passes), E, D]`.

    These are at the last token of each row's prefix, whose output predicts the answer's first token: the one position
    that every kind of scoring has, and that no choice has changed.
    """
    head_states = np.zeros((len(passes), len(rows), model.hidden_size), dtype=np.float32)
    flat = head_states.reshape(-1, model.hidden_size)

    def keep(indices: Sequence[int], values: Tensor) -> None:
        flat[indices] = values.float().cpu().numpy()

    log_probs = predict_rows(model, rows, passes, token_budget, None, progress, prefix_reuse, states, keep)
    return log_probs, head_states


def predict_with_information(
    head: InformationHead | None,
    model: EnsembleModel,
    rows: Sequence[EncodedExample],
    passes: Sequence[MemberPass],
    token_budget: int,
    progress: Callable[[int], None] | None = None,
    prefix_reuse: PrefixReuse | None = None,
    states: Mapping[int, CachedState] = NO_STATES,
) -> tuple[NDArray[np.float64], NDArray[np.float64] | None]:
    """What `predict_rows` returns, and the rows' mutual information as `head` predicts it, `[E]`.

    The latter is None without a head, and where the passes are not one of the only member, beside any of the base.
    """
    of_members = [index for index, one in enumerate(passes) if one.member != BASE]
    if head is None or [passes[index] for index in of_members] != [MemberPass(0)]:
        return predict_rows(model, rows, passes, token_budget, None, progress, prefix_reuse, states), None
    log_probs, head_states = predict_with_states(model, rows, passes, token_budget, progress, prefix_reuse, states)
    (index,) = of_members
    return log_probs, head.predict(head_states[index], log_probs[index])


def predict_early_with_information(
    head: InformationHead | None,
    model: EnsembleModel,
    rows: Sequence[EncodedExample],
    rule: StopRule,
    token_budget: int,
    progress: Callable[[int], None] | None = None,
    prefix_reuse: PrefixReuse | None = None,
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.float64] | None]:
    """What `predict_early` returns, and the mutual information of a run with a head, whose member answers every row."""
    if head is None:
        return *predict_early(model, rows, rule, token_budget, progress, prefix_reuse), None
    log_probs, information_E = predict_with_information(
        head, model, rows, [MemberPass(0)], token_budget, progress, prefix_reuse
    )
    return log_probs, np.ones(len(rows), dtype=np.int64), information_E

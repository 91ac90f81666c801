"""Results that are constant during training, computed once: trunks and outputs of the base."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from lorchestra.distributed import ALONE, Group
from lorchestra.errors import CheckpointError, ConfigError
from lorchestra.inference.packed import run_packed
from lorchestra.inference.predict import member_passes, predict_rows
from lorchestra.inference.trunk import TrunkCache, TrunkFiles, trunk_bytes, trunk_dtype
from lorchestra.models.ensemble import EnsembleModel
from lorchestra.models.loading import dtype_name
from lorchestra.nn.packing import BASE, Item, PackedBatch, forward_budget, shareable_prefix
from lorchestra.nn.scoring import normalize
from lorchestra.training.callbacks import Callback, progress
from lorchestra.types import EncodedExample

logger = logging.getLogger(__name__)

_COMPARED_ROWS = 16


@dataclass(frozen=True)
class SoftTargets:
    """Distributions that the members learn instead of the answers, as in distillation.

    Source: Hinton et al., arXiv 1503.02531, without its temperature: the distributions are calibrated already.
    """

    log_probs_EC: Tensor
    """Log-probabilities of the training rows' choices, by `EncodedExample.row`; -inf past a row's choices."""
    direction: Literal["forward", "reverse"] = "forward"
    """forward: KL(target || member); reverse: KL(member || target)."""
    answers_weight: float = 0.0
    """Weight of the cross-entropy of the answers, of the rows that have one."""


@dataclass(frozen=True)
class TrainingRows:
    """The encoded training and validation examples of a run."""

    train: Sequence[EncodedExample]
    val: Sequence[EncodedExample]
    weights: Sequence[float] | None = None
    """One per training row, with mean 1; None for equal weights."""
    targets: SoftTargets | None = None
    """What the members learn instead of the answers, which training rows then may lack."""


@dataclass(frozen=True)
class Precomputed:
    """Trunks of the training and validation rows, and outputs of the base; None where not needed."""

    train: TrunkCache | None = None
    val: TrunkCache | None = None
    base_log_probs: Tensor | None = None
    """The base's log-probabilities of the choices of the training rows, `[E, C]`."""
    vocabulary: BaseVocabulary | None = None


class BaseVocabulary:
    """The base's distribution over the vocabulary for the first token of each training row's answer.

    Only the input of the head is stored, `[E, D]` in the base's number format on the CPU; each step computes the
    log-probabilities from it, with the head alone. This is exact, runs no layers and takes a fraction D / V of the
    memory of stored log-probabilities.

    Args:
        model: the ensemble.
        rows: training rows.
        token_budget: most tokens in a training step's micro-batch; see `forward_budget`.
        trunk: cached trunks of the rows, if any.
        shared: number of first tokens that all rows share.
        progress: called with the number of rows done.

    Raises:
        ConfigError: there is not enough memory.
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
        self._index = {row.row: e for e, row in enumerate(rows)}
        try:
            self._states = torch.empty(len(rows), model.hidden_size, dtype=model.dtype)
        except (RuntimeError, MemoryError) as error:
            gigabytes = len(rows) * model.hidden_size * model.dtype.itemsize / 1e9
            raise ConfigError(
                f"regularize.kl_over: vocabulary needs {gigabytes:.1f} GB of memory for {len(rows)} training rows,"
                " which are not available; use regularize.kl_over: options, or fewer rows"
            ) from error
        for indices, states in base_head_states(model, rows, token_budget, trunk, shared, progress):
            self._states[indices] = states.cpu()

    def log_probs(self, batch: PackedBatch, rows: Sequence[int]) -> Tensor:
        """Log-probabilities of the training rows with these row indices, `[len(rows), V]`; any `batch` will do."""
        states = self._states[[self._index[row] for row in rows]].to(self.model.device)
        return normalize(self.model.forward(batch, "logits", head_states=states))


@torch.no_grad()
def base_head_states(
    model: EnsembleModel,
    rows: Sequence[EncodedExample],
    token_budget: int,
    trunk: TrunkCache | None,
    shared: int,
    progress: Callable[[int], None],
) -> Iterator[tuple[list[int], Tensor]]:
    """Yield the base's inputs of the output head at the answer position, `[B, D]`, with the indices of their rows.

    See `BaseVocabulary` for the arguments.
    """
    items, done = [Item(BASE, row, None, e) for e, row in enumerate(rows)], 0
    budget = forward_budget(token_budget, model.device)
    for batch, states in run_packed(model, items, budget, "head_states", shared=shared, trunk=trunk):
        yield [item.index for item in batch.items], states[batch.scoring.prefix_rows]
        done += len(batch.items)
        progress(done)


def precompute(
    model: EnsembleModel,
    rows: TrainingRows,
    token_budget: int,
    *,
    shared: int,
    with_base: bool,
    with_vocabulary: bool = False,
    files: TrunkFiles | None,
    callback: Callback,
    group: Group = ALONE,
) -> Precomputed:
    """Compute trunks if the lower layers are not adapted, and the outputs of the base that KL terms need.

    Args:
        model: the ensemble.
        rows: training and validation rows.
        token_budget: most tokens in a training step's micro-batch; see `forward_budget`.
        shared: number of first tokens that the training rows share in training steps.
        with_base: whether the base's log-probabilities of the choices are needed.
        with_vocabulary: whether its distributions over the vocabulary are needed.
        files: where trunks go that are too large for memory; None keeps them in memory.
        callback: receives progress; may request a stop.
        group: the processes of the training, which all call this: they share the trunks' computation. Each computes all
            outputs of the base for itself.

    Raises:
        ConfigError: a hidden state is out of the range of `adapt.trunk_dtype`.
    """
    train = val = base_log_probs = None
    if model.trunk_layers > 0:
        val_shared = shareable_prefix(rows.val, dropout=False)
        train = _trunk(model, rows.train, token_budget, shared, "training", files, callback, group)
        val = _trunk(model, rows.val, token_budget, val_shared, "validation", files, callback, group)
        if val is not None and files is not None and model.adapt.trunk_dtype != "auto":
            _report_change(model, rows.val[:_COMPARED_ROWS], val, token_budget, files)
    report = progress(callback, "base, training rows", len(rows.train))
    if with_base:
        (log_probs_EC,) = predict_rows(model, rows.train, member_passes([BASE]), token_budget, train, report)
        base_log_probs = torch.from_numpy(log_probs_EC).to(model.adapters.values)
    vocabulary = None
    if with_vocabulary:
        vocabulary = BaseVocabulary(model, rows.train, token_budget, train, shared, report)
    return Precomputed(train, val, base_log_probs, vocabulary)


def _trunk(
    model: EnsembleModel,
    rows: Sequence[EncodedExample],
    token_budget: int,
    shared: int,
    name: str,
    files: TrunkFiles | None,
    callback: Callback,
    group: Group,
) -> TrunkCache | None:
    """The trunks of a split; None if the disk is full, and its rows then run through all layers in every step."""
    file, dtype = None, trunk_dtype(model)
    if files is not None and trunk_bytes(model, rows, shared, dtype) > files.memory_bytes:
        formats = dtype_name(dtype) if dtype == model.dtype else f"{dtype_name(dtype)} of {dtype_name(model.dtype)}"
        settings = (model.trunk_layers, token_budget, shared, torch.get_num_threads(), formats)
        file = files.file(name, rows, settings)
    report = progress(callback, f"lower layers, {name} rows", len(rows))
    try:
        return TrunkCache(model, rows, token_budget, report, shared, file, dtype, group=group)
    except CheckpointError as error:
        if files is not None:
            logger.info(f"{error} Training continues without the cache: all layers are computed in every step.")
        return None


def trunk_change(model: EnsembleModel, rows: Sequence[EncodedExample], trunk: TrunkCache, token_budget: int) -> float:
    """Largest change of the base's log-probabilities, in nats, due to the number format of `trunk`."""
    exact_trunk = TrunkCache(model, rows, token_budget, shared=trunk.shared)
    log_probs, exact = (
        predict_rows(model, rows, member_passes([BASE]), token_budget, cache) for cache in (trunk, exact_trunk)
    )
    present = np.isfinite(exact)
    return float(np.abs(log_probs[present] - exact[present]).max())


def _report_change(
    model: EnsembleModel, rows: Sequence[EncodedExample], trunk: TrunkCache, token_budget: int, files: TrunkFiles
) -> None:
    name, change = dtype_name(trunk_dtype(model)), trunk_change(model, rows, trunk, token_budget)
    logger.info(
        f"hidden states kept in {name}: the base's log-probabilities of {len(rows)} validation rows change by at most"
        f" {change:.2g}"
    )
    files.log("trunk_dtype", dtype=name, rows=len(rows), max_change=change)

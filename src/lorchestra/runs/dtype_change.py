"""What a base in bfloat16 changes: some validation rows are predicted on the same base in float32 too."""

from __future__ import annotations

import dataclasses
import gc
import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from lorchestra.config.adapt import BaseConfig
from lorchestra.errors import CheckpointError
from lorchestra.inference.pipeline import Pipeline
from lorchestra.inference.predict import member_passes
from lorchestra.metrics.predictive import mixture_log_probs
from lorchestra.metrics.scores import nll
from lorchestra.models.ensemble import EnsembleModel
from lorchestra.models.loading import load_base
from lorchestra.models.number_format import with_dtype
from lorchestra.models.quantized import stored_bytes
from lorchestra.planning.memory import free_bytes
from lorchestra.runs.calibration import finishing_progress
from lorchestra.training.callbacks import Callback
from lorchestra.types import Example, Predictions

logger = logging.getLogger(__name__)

_MOST_ROWS, _FEWEST_ROWS = 50, 8
_SHARE_OF_TOKENS = 0.03
"""Tokens that are predicted twice, as a share of those trained: a twentieth of the training's time, or less."""
_SHARE_OF_MEMORY = 0.25
_MOST_BYTES = 2e9
"""Largest base in float32 that is loaded for this."""


@dataclass(frozen=True)
class DtypeChange:
    """Differences of the mixture on a base in bfloat16 to that on the same base in float32; NLLs in nats."""

    rows: int
    mean_change: float
    """Mean absolute difference of log-probabilities, over rows and choices."""
    max_change: float
    changed_answers: int
    nll: float
    nll_float32: float

    def sentence(self) -> str:
        """For people."""
        return (
            f"the base in bfloat16 instead of float32: on {self.rows} validation rows the ensemble's log-probabilities"
            f" change by {self.mean_change:.2g} on average, at most {self.max_change:.2g}; {self.changed_answers}"
            f" answers change; NLL {self.nll:.4f} instead of {self.nll_float32:.4f}"
        )


def compare_predictions(half: Predictions, full: Predictions) -> DtypeChange:
    """Compare predictions of the same answered rows by the same members on a base in bfloat16 and in float32."""
    half_EC, full_EC = (mixture_log_probs(one.log_probs_MEC) for one in (half, full))
    present = np.isfinite(full_EC)
    changes = np.abs(half_EC[present] - full_EC[present])
    return DtypeChange(
        rows=len(full_EC),
        mean_change=float(changes.mean()),
        max_change=float(changes.max()),
        changed_answers=int((half_EC.argmax(axis=1) != full_EC.argmax(axis=1)).sum()),
        nll=nll(half_EC, half.labels),
        nll_float32=nll(full_EC, full.labels),
    )


def measure_dtype_change(
    pipeline: Pipeline,
    base: BaseConfig,
    rows: Sequence[Example],
    members: Sequence[int],
    trained_tokens: int,
    callback: Callback,
) -> DtypeChange | None:
    """Compare a trained ensemble with itself on the base in float32, where that costs little.

    None on CUDA, in other formats than bfloat16, with few answered rows, where the base in float32 is large or takes
    more than a quarter of the free memory, and after a training that is short next to eight rows.

    Args:
        pipeline: with the members' final values.
        base: the run's settings of the base.
        rows: validation rows.
        members: indices of those that did not fail.
        trained_tokens: tokens of the training.
        callback: reports progress; when it requests a stop, and not to finish, `Interrupted` is raised.
    """
    model = pipeline.model
    if model.device.type != "cpu" or model.dtype != torch.bfloat16:
        return None
    answered = [row for row in rows if row.answer is not None][:_MOST_ROWS]
    chosen = answered[: _affordable(pipeline, answered, len(members), trained_tokens)]
    float32_bytes = stored_bytes(model.model, torch.float32)
    free = free_bytes(model.device)
    fits = free is None or float32_bytes <= _SHARE_OF_MEMORY * free
    if len(chosen) < _FEWEST_ROWS or float32_bytes > _MOST_BYTES or not fits:
        return None
    report = finishing_progress(callback, "validation rows, base in float32", len(chosen))
    passes = member_passes(members)
    try:
        in_float32 = _in_float32(pipeline, base)
    except CheckpointError as error:  # it has been moved or changed since the training started
        logger.info(f"not compared with the base in float32: {error}")
        return None
    full = in_float32.predict(chosen, passes, "val", progress=report)
    del in_float32
    gc.collect()  # frees the second base
    return compare_predictions(pipeline.predict(chosen, passes, "val"), full)


def _affordable(pipeline: Pipeline, rows: Sequence[Example], num_members: int, trained_tokens: int) -> int:
    """How many first rows have at most the share of the tokens, each counted for every member."""
    totals = np.cumsum([num_members * row.num_tokens for row in pipeline.encode(rows).rows])
    return int((totals <= _SHARE_OF_TOKENS * trained_tokens).sum())


def _in_float32(pipeline: Pipeline, base: BaseConfig) -> Pipeline:
    """The same members on the same base, loaded in float32."""
    loaded, model = load_base(with_dtype(base, "float32")), pipeline.model
    if loaded.digest != pipeline.base.digest:
        raise CheckpointError(f"base.name {base.name!r}: its weights have changed since the training started")
    num_labels = None if model.head is None else model.adapters.heads[0].shape[0]
    copy = EnsembleModel(loaded.model, model.adapt, 0, model.adapter_settings, num_labels)
    with torch.no_grad():
        copy.adapters.values.copy_(model.adapters.values)
    return dataclasses.replace(pipeline, base=loaded, model=copy)

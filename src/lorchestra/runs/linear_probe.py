"""Fit a run's linear probe after its members are trained, and choose its weight on the validation rows."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence

import numpy as np

from lorchestra.inference.features import middle_layers
from lorchestra.inference.linear_probe import text_states
from lorchestra.inference.pipeline import Pipeline
from lorchestra.inference.predict import member_passes
from lorchestra.methods.frozen import MAX_BYTES, states_bytes
from lorchestra.metrics.linear_probe import LinearProbe, choose_weight
from lorchestra.metrics.predictive import FloatArray, IntArray
from lorchestra.runs.calibration import finishing_progress
from lorchestra.store.linear_probe import write_linear_probe
from lorchestra.store.run import Run
from lorchestra.training.callbacks import Callback
from lorchestra.training.linear import Rows
from lorchestra.training.linear_probe import fit_linear_probe
from lorchestra.types import Example, Task

logger = logging.getLogger(__name__)


def add_linear_probe(
    run: Run, pipeline: Pipeline, task: Task, members: Sequence[int], callback: Callback
) -> str | None:
    """Fit a probe, choose its weight, write it and put it into the pipeline; returns the file's checksum.

    None, with the reason logged, where the rows have no labels, or the probe does not lower the validation NLL.

    Args:
        run: the run directory.
        pipeline: with the members' final values.
        task: training and validation rows.
        members: indices of those that did not fail.
        callback: reports progress; when it requests a stop, and not to finish, `Interrupted` is raised.
    """
    probe, reason = _fitted(pipeline, task, members, callback)
    run.append_event("linear_probe", weight=0.0 if probe is None else probe.weight, reason=reason)
    logger.info(f"linear probe: {reason}")
    if probe is None:
        return None
    pipeline.linear_probe = probe
    return write_linear_probe(run.linear_probe, probe)


def _fitted(
    pipeline: Pipeline, task: Task, members: Sequence[int], callback: Callback
) -> tuple[LinearProbe | None, str]:
    """The probe with its weight, and a sentence about it; None where it is not used."""
    splits = {name: _answered(pipeline, task.splits[name]) for name in ("train", "val")}
    if task.labels is None or any(row.asked is not None for row in splits["train"]):
        return None, "not used: it needs texts with labels, without typed questions"
    if not splits["train"] or not splits["val"]:
        return None, "not used: there are no training or no validation rows with answers"
    layers = middle_layers(pipeline.model.num_layers)
    size = states_bytes(len(splits["train"]), len(layers) * pipeline.model.hidden_size)
    if size > MAX_BYTES:
        return None, f"not used: the states of the training rows take {size / 1e9:.1f} GB, over {MAX_BYTES / 1e9:.0f}"
    train, val = (_states(pipeline, name, rows, layers, callback) for name, rows in splits.items())
    probe = fit_linear_probe(Rows(*train), Rows(*val), len(task.labels), layers)
    if probe is None:
        return None, "not used: the training rows have a single label"
    report = finishing_progress(callback, "linear probe, members on val", len(splits["val"]))
    predictions = pipeline.predict(splits["val"], member_passes(members), "val", progress=report)
    weight, mixed, alone = choose_weight(predictions.log_probs_MEC, probe.log_probs(val[0]), predictions.labels)
    figures = f"validation NLL {mixed:.3f} against {alone:.3f} by the members alone, each with a temperature"
    if weight == 0:
        return None, f"not used: none of the weights tried lowers the validation NLL ({alone:.3f} with a temperature)"
    return dataclasses.replace(probe, weight=weight), f"mixed in with weight {weight:g}: {figures}"


def _answered(pipeline: Pipeline, rows: Sequence[Example]) -> list[Example]:
    """Rows with an answer that are not dropped for their length."""
    answered = [row for row in rows if row.answer is not None]
    return [answered[index] for index in pipeline.kept(answered)]


def _states(
    pipeline: Pipeline, name: str, examples: Sequence[Example], layers: Sequence[int], callback: Callback
) -> tuple[FloatArray, IntArray]:
    """The states and labels of rows."""
    report = finishing_progress(callback, f"linear probe, states of {name}", len(examples))
    budgets = pipeline.max_length, pipeline.token_budget
    states = text_states(pipeline.model, pipeline.tokens, *budgets, examples, layers, report)
    return states, np.array([row.answer for row in examples], dtype=np.int64)

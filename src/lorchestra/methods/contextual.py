"""Contextual calibration on top of any method (Zhao et al., arXiv 2102.09690).

The prediction for a content-free input measures the model's bias; each choice's probability is divided by its
probability there and the quotients are normalized: `q(c|x) ~ p(c|x) / p(c|"N/A")`. This is the paper's
`W = diag(p_cf)^-1, b = 0` without its softmax of the quotients, which has the same argmax but flattens every
distribution. Every member, draw or pass is calibrated separately.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lorchestra.errors import ConfigError
from lorchestra.methods.contract import Fitted, MethodContext, Progress
from lorchestra.metrics.predictive import mixture_log_probs
from lorchestra.questions import Question
from lorchestra.types import Example, Predictions

RARE = 1e-3
"""Content-free probabilities of labels or letters below this are noted: dividing by them is extreme."""


@dataclass(frozen=True)
class Config:
    """The content-free inputs."""

    texts: tuple[str, ...] = ("N/A", "[MASK]", "-")
    """Content-free inputs, whose predictions are averaged (the paper: N/A, [MASK] and the empty string)."""


def wrap(context: MethodContext, fitted: Fitted, config: Config) -> Fitted:
    """Calibrate at prediction time; nothing is fitted.

    All rows with the same number of choices share a calibration, if choices are labels or letters, and so do the rows
    of a typed question. Other choices that vary by row and are not scored by letters are calibrated per row, by their
    probabilities after an empty question.

    Raises:
        ConfigError: no texts are given. In prediction: no row has a question to leave out; a content-free input is
            longer than `data.max_length`; or a choice has probability 0 there.
    """
    if not config.texts or not all(text.strip() for text in config.texts):
        raise ConfigError(f"contextual.texts: {config.texts!r} must be one or more non-blank texts")
    started = time.perf_counter()
    per_row = context.labels is None and context.config.data.scoring != "letter" and not context.questions

    def predict(examples: Sequence[Example], split: str, progress: Progress | None = None) -> Predictions:
        if not any(row.question.strip() for row in examples):
            raise ConfigError("contextual: the rows have no question; leave contextual calibration out")
        plain = fitted.predict(examples, split, progress)
        asked = {row.asked.name: row.asked for row in examples if row.asked is not None}
        names = plain.questions or (None,) * plain.num_examples
        keep = per_row or context.labels is not None or bool(asked)
        keys = [
            (options if keep else ("N/A",) * len(options), None if name is None else asked[name])
            for options, name in zip(plain.options, names, strict=True)
        ]
        bias = _biases(fitted, config.texts, sorted(dict.fromkeys(keys), key=lambda key: key[0]))
        if not per_row:
            for (options, _), bias_MC in bias.items():
                _note_extremes(result, options, bias_MC)
        shift = np.full_like(plain.log_probs_MEC, 0.0)
        for e, key in enumerate(keys):
            shift[:, e, : len(key[0])] = bias[key]
        return dataclasses.replace(plain, log_probs_MEC=_divided(plain.log_probs_MEC, shift))

    factor = 1 + len(config.texts) if per_row else 1
    cost = dataclasses.replace(
        fitted.cost,
        fit_s=fitted.cost.fit_s + time.perf_counter() - started,
        predict_base_passes=fitted.cost.predict_base_passes * factor,
    )
    result = Fitted(predict, cost, fitted.chosen, list(fitted.notes))
    return result


def _note_extremes(result: Fitted, key: tuple[str, ...], bias_MC: NDArray[np.float64]) -> None:
    """Note choices with tiny content-free probabilities: the calibration then outweighs the row."""
    least_C = bias_MC.min(axis=0)
    for choice, least in zip(key, least_C, strict=True):
        if least < np.log(RARE):
            result.note(
                f"contextual calibration divides the probability of {choice!r} by its content-free probability,"
                f" {np.exp(least):.1g}, which may dominate the answers"
            )


Key = tuple[tuple[str, ...], Question | None]
"""Choices, and the typed question that they answer, if there is one."""


def _biases(fitted: Fitted, texts: Sequence[str], keys: Sequence[Key]) -> dict[Key, NDArray[np.float64]]:
    """Content-free log-probabilities `[M, C]` of each key's choices, averaged over texts."""
    inputs = [
        Example(f"{t}-{k}", text, choices, None, asked=asked)
        for k, (choices, asked) in enumerate(keys)
        for t, text in enumerate(texts)
    ]
    predictions = fitted.predict(inputs, "content_free")
    if predictions.num_examples < len(inputs):
        raise ConfigError(
            f"contextual: {len(inputs) - predictions.num_examples} content-free inputs are longer than data.max_length;"
            " raise it"
        )
    per_key = np.split(predictions.log_probs_MEC, len(keys), axis=1)
    biases = {
        key: mixture_log_probs(block.swapaxes(0, 1))[:, : len(key[0])] for key, block in zip(keys, per_key, strict=True)
    }
    for (choices, _), bias_MC in biases.items():
        for choice in np.flatnonzero(np.isneginf(bias_MC).any(axis=0)):
            raise ConfigError(
                f"contextual: the content-free probability of choice {choices[choice]!r} is 0, so it cannot be divided"
                " by; set other contextual.texts, or leave contextual calibration out"
            )
    return biases


def _divided(log_probs_MEC: NDArray[np.float64], bias_MEC: NDArray[np.float64]) -> NDArray[np.float64]:
    """`p / bias`, normalized, as log-probabilities; absent choices remain -inf."""
    scores = log_probs_MEC - bias_MEC
    top = scores.max(axis=-1, keepdims=True)
    return np.asarray(scores - top - np.log(np.exp(scores - top).sum(axis=-1, keepdims=True)))

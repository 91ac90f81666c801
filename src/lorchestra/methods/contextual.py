"""Contextual calibration on top of any method (Zhao et al., arXiv 2102.09690).

What the model answers to an input without content says how it leans; each probability is divided by what its choice
gets there, and the quotients are normalized: `q(c|x) ~ p(c|x) / p(c|"N/A")`. That is the paper's `W = diag(p_cf)^-1,
b = 0` and has the same most probable choice; the paper's softmax of the quotients, which flattens every distribution
whatever the data say, is not taken. Every member, draw or pass is calibrated by its own answers.
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
from lorchestra.types import Example, Predictions

RARE = 1e-3
"""Probabilities of labels or letters below it, given no content, are noted: a quotient by them is extreme."""


@dataclass(frozen=True)
class Config:
    """What stands for no content."""

    texts: tuple[str, ...] = ("N/A", "[MASK]", "-")
    """Inputs without content; their answers are averaged (the paper: N/A, [MASK] and the empty string)."""


def wrap(context: MethodContext, fitted: Fitted, config: Config) -> Fitted:
    """Nothing is fitted: a row's calibration is asked for when it is predicted.

    With labels, and with letters, all rows of one number of choices share it; where rows bring choices of their own and
    these are scored as texts, every row has its own, with its choices after an empty question.

    Raises:
        ConfigError: no texts are given. In prediction: no row has a question, so that leaving it out changes nothing;
            an input without content is longer than `data.max_length`; or a choice has no probability there.
    """
    if not config.texts or not all(text.strip() for text in config.texts):
        raise ConfigError(f"contextual.texts: {config.texts!r} must be one or more texts that are not blank")
    started = time.perf_counter()
    own_choices = context.labels is None and context.config.data.scoring == "text"

    def predict(examples: Sequence[Example], split: str, progress: Progress | None = None) -> Predictions:
        if not any(row.question.strip() for row in examples):
            raise ConfigError("contextual: the rows have no question, so that there is no content to leave out")
        plain = fitted.predict(examples, split, progress)
        keys = [options if own_choices or context.labels else ("N/A",) * len(options) for options in plain.options]
        bias = _biases(fitted, config.texts, sorted(set(keys)))
        if not own_choices:
            for key, bias_MC in bias.items():
                _note_extremes(result, key, bias_MC)
        shift = np.full_like(plain.log_probs_MEC, 0.0)
        for e, key in enumerate(keys):
            shift[:, e, : len(key)] = bias[key]
        return dataclasses.replace(plain, log_probs_MEC=_divided(plain.log_probs_MEC, shift))

    factor = 1 + len(config.texts) if own_choices else 1
    cost = dataclasses.replace(
        fitted.cost,
        fit_s=fitted.cost.fit_s + time.perf_counter() - started,
        predict_base_passes=fitted.cost.predict_base_passes * factor,
    )
    result = Fitted(predict, cost, fitted.chosen, list(fitted.notes))
    return result


def _note_extremes(result: Fitted, key: tuple[str, ...], bias_MC: NDArray[np.float64]) -> None:
    """Note choices that inputs without content all but exclude: the calibration then decides, and not the row."""
    least_C = bias_MC.min(axis=0)
    for choice, least in zip(key, least_C, strict=True):
        if least < np.log(RARE):
            result.note(
                f"contextual calibration divides the probability of {choice!r} by {np.exp(least):.1g}, which is what"
                " inputs without content leave it: answers may follow from that alone"
            )


def _biases(
    fitted: Fitted, texts: Sequence[str], choices: Sequence[tuple[str, ...]]
) -> dict[tuple[str, ...], NDArray[np.float64]]:
    """Log-probabilities `[M, C]` of each tuple of choices after an input without content, the mean over texts."""
    asked = [Example(f"{t}-{k}", text, key, None) for k, key in enumerate(choices) for t, text in enumerate(texts)]
    found = fitted.predict(asked, "content_free")
    if found.num_examples < len(asked):
        raise ConfigError(
            f"contextual: {len(asked) - found.num_examples} inputs without content are longer than data.max_length;"
            " raise it"
        )
    per_key = np.split(found.log_probs_MEC, len(choices), axis=1)
    biases = {
        key: mixture_log_probs(block.swapaxes(0, 1))[:, : len(key)] for key, block in zip(choices, per_key, strict=True)
    }
    for key, bias_MC in biases.items():
        for choice in np.flatnonzero(np.isneginf(bias_MC).any(axis=0)):
            raise ConfigError(
                f"contextual: inputs without content leave the choice {key[choice]!r} a probability of 0, by which"
                " nothing can be divided; set other contextual.texts, or leave contextual calibration out"
            )
    return biases


def _divided(log_probs_MEC: NDArray[np.float64], bias_MEC: NDArray[np.float64]) -> NDArray[np.float64]:
    """`p / bias`, normalized, as log-probabilities; absent choices stay at -inf."""
    scores = log_probs_MEC - bias_MEC
    top = scores.max(axis=-1, keepdims=True)
    return np.asarray(scores - top - np.log(np.exp(scores - top).sum(axis=-1, keepdims=True)))

"""Prediction sets that contain the answer with a chosen probability: split conformal prediction. NumPy only.

The conformal score of a choice says how badly it fits. Sets hold the choices whose score is at most a quantile of the
scores of the right answers on calibration rows. With n calibration rows and one new row, all exchangeable, the set
misses the answer with probability at most alpha; where scores have no ties, the coverage is at most 1/(n + 1) above
1 - alpha. This is an average over calibration rows and new rows; it says nothing about a single row.

| method | score of choice j, the k_j-th most probable; S_j is the probability of those before it |
|---|---|
| `lac` | 1 - p_j: the smallest sets on average; they may be empty |
| `aps` | S_j + (1 - u) p_j with u uniform in [0, 1): sets grow with the difficulty of the row |
| `raps` | the same plus penalty * max(k_j - free_ranks, 0): long tails of improbable choices are cut |

Per class, the quantile of each choice comes from the rows with that answer, and the coverage holds for each class.

Axes: `E` example, `C` choice. Rows may have different numbers of choices, with -inf past them; a choice of -inf is in
no set.

Sources: arXiv 1609.00451 (LAC), 2006.02544 (APS), 2009.14193 (RAPS), 1306.0913 (per class). MAPIE 1.6 is the reference
in the tests.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lorchestra.metrics.predictive import FloatArray, IntArray, check_labels
from lorchestra.types import Json, plain_values

Method = Literal["lac", "aps", "raps"]
METHODS: tuple[Method, ...] = ("lac", "aps", "raps")

ROUNDING = 1e-8
"""A score this far above the quantile counts as equal, as in MAPIE: sums of probabilities are rounded."""

PENALTIES = (0.001, 0.01, 0.1, 0.2, 0.5)
"""Penalties that `choose_penalty` tries: those of the RAPS paper."""

BoolArray = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class ConformalSets:
    """Fitted prediction sets; all fields are plain numbers.

    Attributes:
        method: of `METHODS`.
        alpha: highest share of rows whose set misses the answer.
        quantiles: one, or one per class; infinite where rows are too few, so that every choice is in the set.
        num_rows: calibration rows behind each quantile.
        penalty: of `raps`, per rank beyond `free_ranks`.
        free_ranks: of `raps`, ranks without a penalty.
    """

    method: Method
    alpha: float
    quantiles: tuple[float, ...]
    num_rows: tuple[int, ...]
    penalty: float = 0.0
    free_ranks: int = 1

    @property
    def by_class(self) -> bool:
        """Whether the coverage holds for each class."""
        return len(self.quantiles) > 1

    def sets(self, log_probs_EC: FloatArray, uniforms_E: FloatArray | None = None) -> BoolArray:
        """Which choices are in each row's set, bool `[E, C]`.

        Args:
            log_probs_EC: calibrated as those of the calibration rows, -inf past a row's choices.
            uniforms_E: for `aps` and `raps`, uniform draws in [0, 1) that make the coverage exact. Without them,
                choices are added until the score of the last one reaches the quantile: a row's set is always the same,
                is not empty, and covers a little more.

        Raises:
            ValueError: a log-probability is NaN, or the number of classes or draws does not match.
        """
        num_rows, num_choices = _check_shape(log_probs_EC)
        if self.by_class and len(self.quantiles) != num_choices:
            raise ValueError(f"{num_choices} choices for {len(self.quantiles)} classes")
        if self.method == "lac" or uniforms_E is not None:
            scores_EC = conformal_scores(log_probs_EC, self.method, uniforms_E, self.penalty, self.free_ranks)
        else:
            # the whole score, with u = 0, of the choice one rank before, whose penalty is one rank lower
            ones_E = np.ones(num_rows)
            scores_EC = conformal_scores(log_probs_EC, self.method, ones_E, self.penalty, self.free_ranks + 1)
        return np.asarray((scores_EC <= np.array(self.quantiles) + ROUNDING) & ~np.isneginf(log_probs_EC))

    def to_dict(self) -> Json:
        """The fields, as JSON holds them: an infinite quantile is None."""
        fields: Json = plain_values(asdict(self))
        return fields

    @classmethod
    def from_dict(cls, values: Json) -> ConformalSets:
        """Read what `to_dict` returned."""
        quantiles = tuple(math.inf if value is None else value for value in values["quantiles"])
        return cls(**{**values, "quantiles": quantiles, "num_rows": tuple(values["num_rows"])})


def fit_conformal(
    log_probs_EC: FloatArray,
    labels_E: IntArray,
    alpha: float,
    method: Method = "lac",
    *,
    uniforms_E: FloatArray | None = None,
    by_class: bool = False,
    penalty: float = 0.0,
    free_ranks: int = 1,
) -> ConformalSets:
    """Fit prediction sets on calibration rows that neither trained nor fitted anything.

    Args:
        log_probs_EC: calibrated, -inf past a row's choices.
        labels_E: answers.
        alpha: highest share of rows whose set misses the answer, in (0, 1).
        method: of `METHODS`.
        uniforms_E: for `aps` and `raps`, uniform draws in [0, 1), independent of the rows.
        by_class: one quantile per class; only where an index means the same in all rows.
        penalty: of `raps`, per rank beyond `free_ranks`.
        free_ranks: of `raps`.

    Raises:
        ValueError: alpha is outside (0, 1), a setting is out of range, draws are missing, or a label is unknown or out
            of range.
    """
    if not 0 < alpha < 1:
        raise ValueError(f"alpha is {alpha}, not in (0, 1)")
    labels_E = check_labels(log_probs_EC, labels_E)
    scores_EC = conformal_scores(log_probs_EC, method, uniforms_E, penalty, free_ranks)
    scores_E = scores_EC[np.arange(len(labels_E)), labels_E]
    groups = [scores_E[labels_E == c] for c in range(log_probs_EC.shape[1])] if by_class else [scores_E]
    return ConformalSets(
        method=method,
        alpha=alpha,
        quantiles=tuple(conformal_quantile(group_E, alpha) for group_E in groups),
        num_rows=tuple(len(group_E) for group_E in groups),
        penalty=float(penalty),
        free_ranks=int(free_ranks),
    )


def conformal_scores(
    log_probs_EC: FloatArray,
    method: Method,
    uniforms_E: FloatArray | None = None,
    penalty: float = 0.0,
    free_ranks: int = 1,
) -> FloatArray:
    """The score of each choice, `[E, C]`; of equally probable choices the first ranks higher.

    Raises:
        ValueError: a log-probability is NaN, a setting is out of range, or draws are missing or outside [0, 1].
    """
    num_rows, num_choices = _check_shape(log_probs_EC)
    if method not in METHODS:
        raise ValueError(f"method is {method!r}, not one of {', '.join(METHODS)}")
    probs_EC = np.exp(log_probs_EC)
    if method == "lac":
        return np.asarray(1.0 - probs_EC)
    if not (math.isfinite(penalty) and penalty >= 0 and free_ranks >= 0):
        raise ValueError(f"penalty is {penalty} and free_ranks {free_ranks}, not both at least 0")
    if uniforms_E is None or np.shape(uniforms_E) != (num_rows,) or not ((uniforms_E >= 0) & (uniforms_E <= 1)).all():
        raise ValueError(f"{method} needs a uniform draw in [0, 1) for each of {num_rows} rows")
    order_EC = np.argsort(-probs_EC, axis=1, kind="stable")
    sorted_EC = np.take_along_axis(probs_EC, order_EC, axis=1)
    before_EC = np.cumsum(sorted_EC, axis=1) - sorted_EC
    values_EC = before_EC + (1.0 - uniforms_E[:, None]) * sorted_EC
    if method == "raps":
        values_EC += penalty * np.maximum(np.arange(1, num_choices + 1) - free_ranks, 0)
    scores_EC = np.empty_like(probs_EC)
    np.put_along_axis(scores_EC, order_EC, values_EC, axis=1)
    return scores_EC


def conformal_quantile(scores_E: FloatArray, alpha: float) -> float:
    """The ceil((n + 1) (1 - alpha))-th smallest of n scores; infinite where n is smaller than that."""
    # a product such as 19.000000000000004 must not become 20
    rank = math.ceil((len(scores_E) + 1) * (1 - alpha) - 1e-9)
    return math.inf if rank > len(scores_E) else float(np.sort(scores_E)[rank - 1])


def fewest_rows_for_sets(alpha: float) -> int:
    """Fewest rows whose quantile is finite: with fewer, sets hold every choice."""
    return math.ceil(1 / alpha - 1 - 1e-9)


def choose_penalty(log_probs_EC: FloatArray, labels_E: IntArray, alpha: float) -> tuple[float, int]:
    """Penalty and free ranks of `raps`, from rows other than those that calibrate.

    `free_ranks` is the quantile of the right answers' ranks: sets of this size would cover. The penalty is the one of
    `PENALTIES` with the smallest sets on these rows, the first of equals.

    Raises:
        ValueError: as `fit_conformal`.
    """
    labels_E = check_labels(log_probs_EC, labels_E)
    order_EC = np.argsort(-log_probs_EC, axis=1, kind="stable")
    ranks_E = (order_EC == labels_E[:, None]).argmax(axis=1) + 1.0
    free_ranks = int(min(conformal_quantile(ranks_E, alpha), log_probs_EC.shape[1]))
    middle_E = np.full(len(labels_E), 0.5)

    def mean_size(penalty: float) -> float:
        fitted = fit_conformal(
            log_probs_EC, labels_E, alpha, "raps", uniforms_E=middle_E, penalty=penalty, free_ranks=free_ranks
        )
        return float(fitted.sets(log_probs_EC, middle_E).sum(axis=1).mean())

    return min(PENALTIES, key=mean_size), free_ranks


def explain_set(options: Sequence[str], alpha: float) -> str:
    """A set in words: one answer, several, or none."""
    rule = f"over all rows, the set has the right answer in at least {100 * (1 - alpha):.4g} %"
    if not options:
        return f"no answer fits as well as right ones usually do: leave it to a person ({rule})"
    if len(options) == 1:
        return f"only {options[0]!r} fits ({rule})"
    *first, last = (repr(option) for option in options)
    return f"{', '.join(first)} and {last} fit ({rule})"


def _check_shape(log_probs_EC: FloatArray) -> tuple[int, int]:
    if log_probs_EC.ndim != 2:
        raise ValueError(f"log_probs has shape {log_probs_EC.shape}, not [E, C]")
    if np.isnan(log_probs_EC).any():
        raise ValueError(f"log_probs has NaN in row {np.flatnonzero(np.isnan(log_probs_EC).any(axis=-1))[0]}")
    return log_probs_EC.shape[0], log_probs_EC.shape[1]

"""Calibration of the pooled mixture on validation rows, chosen by cross-validation.

Pure NumPy functions of log-probabilities `[E, C]` and labels `[E]`; SciPy fits all but the temperature. Axes: `E`
example, `C` choice. The kinds, from plain to rich:

- temperature: softmax(log p / T), one T (`metrics.temperature`).
- vector: softmax(w_c log p_c + b_c), a scale and a bias per class, for one label set; it may change predictions.
- isotonic: the top probability becomes a non-decreasing function of itself, the others keep their proportions. The top
  choice stays the top choice.

Source: Guo et al., arXiv 1706.04599, for temperature and vector scaling; Zadrozny and Elkan, KDD 2002, for isotonic
regression.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Literal, Protocol

import numpy as np

from lorchestra.metrics.predictive import (
    TEMPERATURE_RANGE,
    FloatArray,
    IntArray,
    apply_temperature,
    check_labels,
    log_softmax,
    mixture_log_probs,
)
from lorchestra.metrics.temperature import regularized_temperature
from lorchestra.types import Json

Kind = Literal["none", "temperature", "vector", "isotonic"]
CalibrationSetting = Literal["auto", "temperature", "vector", "isotonic", "none"]

LEAST_ROWS_PER_CLASS = 20
"""Validation rows of every class from which on `auto` tries vector scaling."""
LEAST_ROWS_ISOTONIC = 200
"""Validation rows from which on `auto` tries isotonic regression."""
SCALE_STD, BIAS_STD = 0.5, 1.0
"""Standard deviations of the priors of vector scaling: of w_c T around 1, and of b_c around 0."""

_SCALE_RANGE = (1e-2, 1e2)
_LEAVE_ONE_OUT, _NUM_FOLDS = 20, 10
"""Up to the first number of rows each is a fold; more rows are divided into the second number of folds."""
_SEED = 0
_ABOVE = 1 + 1e-9
"""Factor by which the top probability stays above the next one."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """How the mixture's probabilities are calibrated, and what that rests on.

    Attributes:
        kind: "none" where nothing was fitted: the probabilities are the mixture's, and not calibrated. A temperature of
            1 means that validation rows were asked, and changes nothing.
        reason: why this kind, or why none.
        num_rows: validation rows that it was chosen and fitted on.
        temperature: T.
        scale, bias: w and b of vector scaling, by class `[C]`; w > 0.
        confidences, accuracies: knots of the isotonic function, linear between them and constant outside.
        nll_before, nll_after: mean NLL of these rows in nats: of the mixture, and cross-validated with this kind. Rows
            whose answer has probability zero are left out.
    """

    kind: Kind
    reason: str
    num_rows: int = 0
    temperature: float | None = None
    scale: tuple[float, ...] = ()
    bias: tuple[float, ...] = ()
    confidences: tuple[float, ...] = ()
    accuracies: tuple[float, ...] = ()
    nll_before: float | None = None
    nll_after: float | None = None

    @property
    def is_calibrated(self) -> bool:
        """Whether validation rows decided the probabilities, be it for T = 1."""
        return self.kind != "none"

    @property
    def is_identity(self) -> bool:
        """Whether probabilities stay as they are, to the last bit."""
        return self.kind == "none" or self.temperature == 1

    @property
    def keeps_predictions(self) -> bool:
        """Whether the most probable choice of every row stays the same."""
        return self.kind != "vector"

    def apply(self, log_probs_EC: FloatArray) -> FloatArray:
        """Calibrated log-probabilities of the mixture, `[E, C]` to `[E, C]`; -inf stays -inf.

        Raises:
            ValueError: vector scaling of another number of classes.
        """
        if self.is_identity:
            return log_probs_EC
        if self.temperature is not None:
            return apply_temperature(log_probs_EC, self.temperature)
        if self.kind == "isotonic":
            return _with_top(log_probs_EC, np.interp(np.exp(log_probs_EC.max(axis=1)), *self._knots()))
        if log_probs_EC.shape[1] != len(self.scale):
            raise ValueError(f"the calibration is of {len(self.scale)} classes, the rows have {log_probs_EC.shape[1]}")
        return log_softmax(log_probs_EC * np.array(self.scale) + np.array(self.bias))

    def _knots(self) -> tuple[FloatArray, FloatArray]:
        return np.array(self.confidences), np.array(self.accuracies)

    def sentence(self) -> str:
        """What was chosen and why, for people."""
        if self.kind == "none":
            return f"Probabilities are not calibrated: {self.reason}."
        names = {"vector": "Vector scaling", "isotonic": "Isotonic regression of the top probability"}
        T = self.temperature
        name = names[self.kind] if T is None else "Temperature 1 (no change)" if T == 1 else f"Temperature {T:.2f}"
        text = f"{name} from {self.num_rows:,} validation rows"
        if T == 1 or self.nll_before is None or self.nll_after is None:
            return f"{text}: {self.reason}."
        more = f" ({self.reason})" if T is None else ""
        return f"{text}: cross-validated NLL {self.nll_before:.3f} -> {self.nll_after:.3f}{more}."

    def to_dict(self) -> Json:
        """The calibration as JSON has it, without what the kind does not have."""
        return {name: value for name, value in asdict(self).items() if value not in (None, ())}

    @classmethod
    def from_dict(cls, values: Json) -> Calibration:
        """The inverse of `to_dict`; `store.calibration_record` checks what comes from a file."""
        fields: Json = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
        return cls(**fields)


RAW = Calibration("none", "the mixture was asked for as it is")
"""No calibration, because none was wanted."""


class Calibrates(Protocol):
    """A calibration of rows: the same for all, or one for each typed question."""

    @property
    def is_calibrated(self) -> bool:
        """Whether validation rows decided the probabilities."""
        ...

    @property
    def is_identity(self) -> bool:
        """Whether probabilities stay as they are, to the last bit."""
        ...

    def apply(self, log_probs_EC: FloatArray) -> FloatArray:
        """Calibrated log-probabilities of the mixture, `[E, C]` to `[E, C]`."""
        ...


def pooled(log_probs_MEC: FloatArray, calibration: Calibrates | None) -> FloatArray:
    """The calibrated mixture of the members, `[M, E, C]` to `[E, C]`; without a calibration, the mixture."""
    mixture_EC = mixture_log_probs(log_probs_MEC)
    return mixture_EC if calibration is None else calibration.apply(mixture_EC)


def fit_calibration(
    log_probs_EC: FloatArray,
    labels_E: IntArray,
    options: Sequence[tuple[str, ...]],
    setting: CalibrationSetting = "auto",
) -> Calibration:
    """Choose and fit a calibration of the mixture on validation rows.

    Candidates are compared by their cross-validated NLL on these rows, each fold predicted by a fit on the others. A
    temperature is kept where it is below that of T = 1. With "auto", vector scaling (from 20 rows of every class) and
    isotonic regression (from 200 rows) replace it where they are lower by more than one standard error of the paired
    difference. A kind that is named is kept where it is lower than T = 1, whatever the number of rows.

    Args:
        log_probs_EC: of the mixture, normalized.
        labels_E: answers; rows with -1 (unknown) are left out.
        options: each row's choices; if they are the same in all rows, an index is a class.
        setting: a kind, or "auto".

    Raises:
        ValueError: a label is out of range, or a log-probability is NaN.
    """
    if setting == "none":
        return Calibration("none", "train.calibration is none")
    known = np.flatnonzero(np.asarray(labels_E) != -1)
    if not len(known):
        return Calibration(
            "none", "there are no validation rows" if not len(labels_E) else "no validation row has an answer"
        )
    log_probs_EC, options = log_probs_EC[known], [options[e] for e in known.tolist()]
    labels_E = check_labels(log_probs_EC, np.asarray(labels_E)[known])
    fit = regularized_temperature(log_probs_EC, labels_E, options)
    if fit.T is None:
        return Calibration("none", str(fit.reason), fit.num_rows)
    usable_E = np.isfinite(log_probs_EC[np.arange(len(labels_E)), labels_E])
    if usable_E.sum() < 2:
        return Calibration("none", "one validation row cannot be cross-validated", fit.num_rows)
    rows = _Rows(
        log_probs_EC[usable_E], labels_E[usable_E], [o for o, usable in zip(options, usable_E, strict=True) if usable]
    )
    return replace(_choose(rows, setting), num_rows=len(known))


@dataclass(frozen=True)
class _Rows:
    """Rows whose answers have a positive probability."""

    log_probs_EC: FloatArray
    labels_E: IntArray
    options: Sequence[tuple[str, ...]]

    def __len__(self) -> int:
        return len(self.labels_E)

    def take(self, chosen: IntArray) -> _Rows:
        return _Rows(self.log_probs_EC[chosen], self.labels_E[chosen], [self.options[e] for e in chosen.tolist()])

    def nll(self, calibration: Calibration | None) -> FloatArray:
        """NLL of each row in nats, `[E]`."""
        log_probs_EC = self.log_probs_EC if calibration is None else calibration.apply(self.log_probs_EC)
        return np.asarray(-log_probs_EC[np.arange(len(self)), self.labels_E])


def _choose(rows: _Rows, setting: CalibrationSetting) -> Calibration:
    raw_E = rows.nll(None)
    before = float(raw_E.mean())
    one = Calibration("temperature", "", temperature=1.0, nll_before=before, nll_after=before)
    if setting == "auto":
        names: tuple[str, ...] = ("temperature", *_rich_candidates(rows))
    else:
        names = (setting,)
    if "vector" in names and len(set(rows.options)) != 1:
        return replace(one, reason="vector scaling needs the same choices in all rows")
    losses = {name: _cross_validated(_FITS[name], rows) for name in names}
    first = names[0]
    if losses[first].mean() < before:
        best, best_E, reason = first, losses[first], "lower than with T = 1"
    else:
        named = {"temperature": "a fitted one", "vector": "vector scaling", "isotonic": "isotonic regression"}[first]
        change = f"{before:.3f} -> {losses[first].mean():.3f}"
        best, best_E, reason = "", raw_E, f"{named} would not lower the cross-validated NLL ({change})"
    plain = "clearly lower than with T = 1" if not best else f"with one temperature: {best_E.mean():.3f}"
    clear = {name: losses[name] for name in names[1:] if _is_clearly_lower(losses[name], best_E)}
    if clear:
        best = min(clear, key=lambda name: float(clear[name].mean()))
        best_E, reason = clear[best], plain
    if not best:
        return replace(one, reason=reason)
    return replace(_FITS[best](rows), reason=reason, nll_before=before, nll_after=float(best_E.mean()))


def _rich_candidates(rows: _Rows) -> list[str]:
    """The kinds besides the temperature for which there are enough rows."""
    names = []
    if len(set(rows.options)) == 1:
        counts_C = np.bincount(rows.labels_E, minlength=len(rows.options[0]))
        names += ["vector"] if counts_C.min() >= LEAST_ROWS_PER_CLASS else []
    return [*names, *(["isotonic"] if len(rows) >= LEAST_ROWS_ISOTONIC else [])]


def _is_clearly_lower(losses_E: FloatArray, reference_E: FloatArray) -> bool:
    """Whether a mean loss is lower by more than one standard error of the paired difference."""
    gain_E = reference_E - losses_E
    return bool(gain_E.mean() > gain_E.std(ddof=1) / np.sqrt(len(gain_E)))


def _cross_validated(fit: Callable[[_Rows], Calibration], rows: _Rows) -> FloatArray:
    """NLL of each row, `[E]`, under the fit on the rows of all other folds."""
    folds_E = _folds(rows.labels_E)
    losses_E = np.empty(len(rows))
    for fold in range(int(folds_E.max()) + 1):
        held = np.flatnonzero(folds_E == fold)
        losses_E[held] = rows.take(held).nll(fit(rows.take(np.flatnonzero(folds_E != fold))))
    return losses_E


def _folds(labels_E: IntArray) -> IntArray:
    """The fold of each row, `[E]`: answers are spread evenly over the folds; the draw is always the same."""
    number = len(labels_E)
    order = np.lexsort((np.random.default_rng(_SEED).permutation(number), labels_E))
    folds_E = np.empty(number, dtype=np.int64)
    folds_E[order] = np.arange(number) % (number if number <= _LEAVE_ONE_OUT else _NUM_FOLDS)
    return folds_E


def _fit_temperature(rows: _Rows) -> Calibration:
    """T = 1 where the rows of a fold have one answer only."""
    T = regularized_temperature(rows.log_probs_EC, rows.labels_E, rows.options).T
    return Calibration("temperature", "", temperature=1.0 if T is None else T)


def _fit_vector(rows: _Rows) -> Calibration:
    """The minimum of the summed NLL plus the priors' penalties, which is convex in scales and biases."""
    from scipy.optimize import minimize  # takes a moment to import; only fits need it

    scores_EC = rows.log_probs_EC / (_fit_temperature(rows).temperature or 1.0)
    num_rows, num_classes = scores_EC.shape
    finite_EC = np.where(np.isneginf(scores_EC), 0.0, scores_EC)
    is_answer_EC = np.zeros(scores_EC.shape)
    is_answer_EC[np.arange(num_rows), rows.labels_E] = 1.0

    def value_and_gradient(parameters: FloatArray) -> tuple[float, FloatArray]:
        scale_C, bias_C = parameters[:num_classes], parameters[num_classes:]
        log_probs_EC = log_softmax(scores_EC * scale_C + bias_C)
        off_EC = np.exp(log_probs_EC) - is_answer_EC
        penalty = ((scale_C - 1) ** 2).sum() / (2 * SCALE_STD**2) + (bias_C**2).sum() / (2 * BIAS_STD**2)
        slope_of_scale = (off_EC * finite_EC).sum(axis=0) + (scale_C - 1) / SCALE_STD**2
        value = penalty - log_probs_EC[np.arange(num_rows), rows.labels_E].sum()
        return float(value), np.concatenate([slope_of_scale, off_EC.sum(axis=0) + bias_C / BIAS_STD**2])

    start = np.concatenate([np.ones(num_classes), np.zeros(num_classes)])
    bounds = [_SCALE_RANGE] * num_classes + [(None, None)] * num_classes
    options = {"maxiter": 1000, "ftol": 1e-14, "gtol": 1e-9}
    found = minimize(value_and_gradient, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options).x
    scale_C = found[:num_classes] / (_fit_temperature(rows).temperature or 1.0)
    return Calibration("vector", "", scale=tuple(scale_C.tolist()), bias=tuple(found[num_classes:].tolist()))


def _fit_isotonic(rows: _Rows) -> Calibration:
    """Pooled adjacent violators of (top probability, right or wrong), away from 0 and 1 by one row in n + 2."""
    from scipy.optimize import isotonic_regression  # takes a moment to import; only fits need it

    confidence_E = np.exp(rows.log_probs_EC.max(axis=1))
    right_E = (rows.log_probs_EC.argmax(axis=1) == rows.labels_E).astype(np.float64)
    values, index_E, counts = np.unique(confidence_E, return_inverse=True, return_counts=True)
    share = np.bincount(index_E, weights=right_E) / counts
    result = isotonic_regression(share, weights=counts)
    ends = np.unique(np.concatenate([result.blocks[:-1], result.blocks[1:] - 1]))
    least = 1 / (len(rows) + 2)
    accuracies = np.clip(result.x[ends], least, 1 - least)
    return Calibration("isotonic", "", confidences=tuple(values[ends].tolist()), accuracies=tuple(accuracies.tolist()))


_FITS: Mapping[str, Callable[[_Rows], Calibration]] = {
    "temperature": _fit_temperature,
    "vector": _fit_vector,
    "isotonic": _fit_isotonic,
}


def _with_top(log_probs_EC: FloatArray, top_E: FloatArray) -> FloatArray:
    """The distributions with other top probabilities and the other choices in proportion.

    A top probability that would fall below the next choice's ends just above it. Rows with one possible choice stay.
    """
    top_index = log_probs_EC.argmax(axis=1)[:, None]
    others_EC = log_probs_EC.copy()
    np.put_along_axis(others_EC, top_index, -np.inf, axis=1)
    several = np.isfinite(others_EC.max(axis=1))
    result_EC = log_probs_EC.copy()
    if not several.any():
        return result_EC
    others_EC, top_index, top_E = others_EC[several], top_index[several], top_E[several]
    shares_EC = log_softmax(others_EC)
    next_E = np.exp(shares_EC.max(axis=1))
    top_E = np.maximum(top_E, _ABOVE * next_E / (1 + next_E))
    changed_EC = shares_EC + np.log1p(-top_E)[:, None]
    np.put_along_axis(changed_EC, top_index, np.log(top_E)[:, None], axis=1)
    result_EC[several] = changed_EC
    return result_EC


def fault_of(calibration: Calibration) -> str | None:
    """What makes parameters unusable, as a clause; None if they can be applied."""
    parameters = {
        "temperature": () if calibration.temperature is None else (calibration.temperature,),
        "scale": calibration.scale,
        "bias": calibration.bias,
        "confidences": calibration.confidences,
        "accuracies": calibration.accuracies,
    }
    wanted = {"temperature": ("temperature",), "vector": ("scale", "bias"), "isotonic": ("confidences", "accuracies")}
    names = wanted.get(calibration.kind, ())
    for name, values in parameters.items():
        if bool(values) != (name in names):
            return f"kind is {calibration.kind}, which has {'a' if name in names else 'no'} {name}"
        if not np.isfinite(values).all():
            return f"{name} is not finite"
    if len({len(parameters[name]) for name in names}) > 1:
        return f"{' and '.join(names)} have different lengths"
    least, most = TEMPERATURE_RANGE
    if calibration.temperature is not None and not least <= calibration.temperature <= most:
        return f"temperature is {calibration.temperature}, not in [{least:g}, {most:g}]"
    if min(calibration.scale, default=1.0) <= 0:
        return "scale has a number that is not above 0"
    knots = calibration._knots()
    if (np.diff(knots[0]) <= 0).any() or (np.diff(knots[1]) < 0).any():
        return "confidences or accuracies do not ascend"
    if any(((values <= 0) | (values > 1 + 1e-9)).any() for values in knots) or (knots[1] >= 1).any():
        return "confidences or accuracies are not probabilities"
    return None

"""Calibrations of the mixture: known answers, what cross-validation chooses, and what rows cannot decide."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.optimize import minimize
from sklearn.isotonic import IsotonicRegression

from lorchestra.metrics.calibrator import (
    BIAS_STD,
    SCALE_STD,
    Calibration,
    fault_of,
    fit_calibration,
    pooled,
)
from lorchestra.metrics.predictive import apply_temperature, log_softmax, mixture_log_probs
from lorchestra.metrics.temperature import regularized_temperature

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


def drawn(
    rows: int, temperature: float = 1.0, seed: int = 0, classes: int = 4, shift: tuple[float, ...] = (0.0,)
) -> tuple[FloatArray, IntArray, list[tuple[str, ...]]]:
    """Answers that follow a true distribution, and its scores, sharpened by `temperature` and shifted."""
    generator = np.random.default_rng(seed)
    scores = 2 * generator.normal(size=(rows, classes))
    below = np.exp(log_softmax(scores)).cumsum(axis=1) < generator.random((rows, 1))
    labels = np.minimum(below.sum(axis=1), classes - 1)
    return log_softmax(temperature * scores + np.array(shift)), labels, [tuple("abcd"[:classes])] * rows


def steps(rows: int, seed: int = 0) -> tuple[FloatArray, IntArray, list[tuple[str, ...]]]:
    """Two classes whose top probability is right in 52 % of the rows below 0.8, and in 95 % above."""
    generator = np.random.default_rng(seed)
    top, first = generator.uniform(0.5, 1, rows), generator.integers(2, size=rows)
    right = generator.random(rows) < np.where(top < 0.8, 0.52, 0.95)
    probs = np.where(np.arange(2) == first[:, None], top[:, None], 1 - top[:, None])
    return np.log(probs), np.where(right, first, 1 - first), [("no", "yes")] * rows


def nll(log_probs: FloatArray, labels: IntArray) -> float:
    return float(-log_probs[np.arange(len(labels)), labels].mean())


def test_a_temperature_that_helps_is_that_of_all_rows() -> None:
    log_probs, labels, options = drawn(300, temperature=2.5)
    calibration = fit_calibration(log_probs, labels, options)
    fit = regularized_temperature(log_probs, labels, options)
    assert (calibration.kind, calibration.num_rows) == ("temperature", 300)
    assert calibration.temperature == fit.T
    assert pytest.approx(2.5, rel=0.2) == fit.T
    np.testing.assert_array_equal(calibration.apply(log_probs), apply_temperature(log_probs, fit.T))
    assert calibration.nll_before == pytest.approx(nll(log_probs, labels))
    assert calibration.nll_after < calibration.nll_before - 0.1
    low, high = f"{calibration.nll_after:.3f}", f"{calibration.nll_before:.3f}"
    text = f"Temperature {fit.T:.2f} from 300 validation rows: cross-validated NLL {high} -> {low}."
    assert calibration.sentence() == text


def test_few_rows_leave_one_out() -> None:
    log_probs, labels, options = drawn(12, temperature=4.0, seed=3)
    losses = []
    for row in range(12):
        others = np.arange(12) != row
        fit = regularized_temperature(log_probs[others], labels[others], options[:11])
        losses.append(nll(apply_temperature(log_probs[[row]], fit.T), labels[[row]]))
    calibration = fit_calibration(log_probs, labels, options)
    assert np.mean(losses) < nll(log_probs, labels)
    assert calibration.nll_after == pytest.approx(np.mean(losses), abs=1e-12)


def test_without_a_gain_nothing_changes() -> None:
    log_probs, labels, options = drawn(60, temperature=1.0, seed=60)
    calibration = fit_calibration(log_probs, labels, options)
    assert (calibration.kind, calibration.temperature, calibration.is_calibrated) == ("temperature", 1.0, True)
    assert regularized_temperature(log_probs, labels, options).T != 1.0
    np.testing.assert_array_equal(calibration.apply(log_probs), log_probs)
    before = f"{nll(log_probs, labels):.3f}"
    assert calibration.sentence().startswith(
        "Temperature 1 (no change) from 60 validation rows: a fitted one would not lower the cross-validated NLL"
        f" ({before} -> "
    )
    assert calibration.nll_after == calibration.nll_before


def test_rows_that_cannot_judge_give_a_reason() -> None:
    log_probs, labels, options = drawn(12)
    none = fit_calibration(log_probs[:0], labels[:0], [])
    assert (none.kind, none.reason, none.num_rows) == ("none", "there are no validation rows", 0)
    unknown = fit_calibration(log_probs, np.full(12, -1), options)
    assert unknown.reason == "no validation row has an answer"
    one = fit_calibration(log_probs, np.zeros(12, dtype=np.int64), options)
    assert one.reason == "all of the 12 validation rows have the answer 'a', which says nothing of the others"
    assert (one.is_calibrated, one.num_rows) == (False, 12)
    single = fit_calibration(log_probs[:1], labels[:1], [("a", "b", "c", str(4))])
    assert single.kind == "none"
    off = fit_calibration(log_probs, labels, options, "none")
    assert off.sentence() == "Probabilities are not calibrated: train.calibration is none."
    for calibration in (none, unknown, one, single, off):
        assert calibration.apply(log_probs) is log_probs
    with pytest.raises(ValueError, match=r"label 7 .* is not in 0\.\.3"):
        fit_calibration(log_probs, np.full(12, 7), options)


def test_rows_without_an_answer_do_not_count() -> None:
    log_probs, labels, options = drawn(300, temperature=2.5)
    more = np.concatenate([log_probs, log_probs[:20]]), np.concatenate([labels, np.full(20, -1)])
    assert fit_calibration(*more, [*options, *options[:20]]) == fit_calibration(log_probs, labels, options)


def test_an_answer_of_probability_zero_counts_at_no_temperature() -> None:
    log_probs, labels, options = drawn(300, temperature=2.5)
    hopeless = log_probs.copy()
    hopeless[0, labels[0]] = -np.inf
    hopeless[0] = log_softmax(hopeless[[0]])[0]
    calibration = fit_calibration(hopeless, labels, options)
    assert calibration.num_rows == 300
    assert calibration.nll_before == pytest.approx(nll(hopeless[1:], labels[1:]))
    assert calibration.apply(hopeless)[0, labels[0]] == -np.inf


def test_vector_scaling_minimizes_nll_plus_the_priors_penalties() -> None:
    log_probs, labels, options = drawn(120, temperature=2.0, classes=3, shift=(1.5, 0.0, -1.0))
    calibration = fit_calibration(log_probs, labels, options, "vector")
    T = regularized_temperature(log_probs, labels, options).T
    assert T is not None

    def penalized(parameters: FloatArray) -> float:
        scale, bias = parameters[:3], parameters[3:]
        penalty = ((scale * T - 1) ** 2).sum() / (2 * SCALE_STD**2) + (bias**2).sum() / (2 * BIAS_STD**2)
        return 120 * nll(log_softmax(log_probs * scale + bias), labels) + penalty

    fitted = np.array([*calibration.scale, *calibration.bias])
    best = minimize(penalized, np.array([1 / T] * 3 + [0.0] * 3), method="BFGS", options={"gtol": 1e-7})
    np.testing.assert_allclose(fitted, best.x, atol=1e-4)
    assert calibration.nll_after < calibration.nll_before


def test_auto_takes_vector_scaling_where_classes_are_shifted() -> None:
    shift = (2.0, -1.0, 0.0, 0.0)
    rows = drawn(1000, temperature=1.5, seed=3, shift=shift)
    calibration = fit_calibration(*rows)
    assert calibration.kind == "vector"
    assert calibration.keeps_predictions is False
    one = fit_calibration(*rows, "temperature")
    assert calibration.nll_after < one.nll_after
    assert f"(with one temperature: {one.nll_after:.3f})" in calibration.sentence()
    # the truth: scores / 1.5, and biases that undo the shift, up to a constant
    bias = np.array(calibration.bias) - np.mean(calibration.bias)
    np.testing.assert_allclose(bias, -(np.array(shift) - np.mean(shift)) / 1.5, atol=0.35)
    np.testing.assert_allclose(calibration.scale, 1 / 1.5, atol=0.15)
    new, labels, _ = drawn(4000, temperature=1.5, seed=4, shift=shift)
    true, _, _ = drawn(4000, seed=4)
    assert nll(calibration.apply(new), labels) == pytest.approx(nll(true, labels), abs=0.02)


@pytest.mark.parametrize(("rare", "kind"), [(19, "temperature"), (20, "vector")])
def test_vector_scaling_needs_twenty_rows_of_every_class(rare: int, kind: str) -> None:
    log_probs, labels, _ = drawn(2000, seed=1, classes=2, shift=(-3.0, 0.0))
    kept = np.concatenate([np.flatnonzero(labels == 0)[:150], np.flatnonzero(labels == 1)[:rare]])
    calibration = fit_calibration(log_probs[kept], labels[kept], [("no", "yes")] * len(kept))
    assert calibration.kind == kind


def test_vector_scaling_needs_the_same_choices_in_all_rows() -> None:
    log_probs, labels, options = drawn(1000, temperature=1.5, seed=3, shift=(2.0, -1.0, 0.0, 0.0))
    options[0] = ("a", "b", "c", "e")
    assert fit_calibration(log_probs, labels, options).kind != "vector"
    named = fit_calibration(log_probs, labels, options, "vector")
    assert (named.temperature, named.reason) == (1.0, "vector scaling needs the same choices in all rows")


def test_isotonic_regression_is_scikit_learns() -> None:
    log_probs, labels, options = steps(400)
    calibration = fit_calibration(log_probs, labels, options, "isotonic")
    top, right = np.exp(log_probs.max(axis=1)), log_probs.argmax(axis=1) == labels
    model = IsotonicRegression(y_min=1 / 402, y_max=401 / 402, out_of_bounds="clip").fit(top, right)
    grid = np.linspace(0.8, 1, 50)
    rows = np.log(np.stack([grid, 1 - grid + 1e-300], axis=1))
    np.testing.assert_allclose(np.exp(calibration.apply(rows)[:, 0]), model.predict(grid), atol=1e-9)


def test_auto_takes_isotonic_regression_from_two_hundred_rows() -> None:
    calibration = fit_calibration(*steps(2000))
    assert calibration.kind == "isotonic"
    for rows, kind in ((199, "temperature"), (200, "isotonic")):
        log_probs, labels, _ = steps(rows)
        # choices that differ by row leave vector scaling out
        assert fit_calibration(log_probs, labels, [("no", f"yes {row}") for row in range(rows)]).kind == kind
    log_probs, _, _ = steps(4000, seed=9)
    result = np.exp(calibration.apply(log_probs).max(axis=1))
    top = np.exp(log_probs.max(axis=1))
    assert result[top < 0.78].mean() == pytest.approx(0.52, abs=0.03)
    assert result[top > 0.82].mean() == pytest.approx(0.95, abs=0.03)


def test_a_richer_kind_must_be_clearly_better() -> None:
    """On rows that one temperature calibrates, none of the richer ones is."""
    kinds = [fit_calibration(*drawn(600, temperature=2.0, seed=seed)).kind for seed in range(6)]
    assert kinds.count("temperature") >= 5


def test_isotonic_keeps_order_and_proportions() -> None:
    knots = {"confidences": (0.3, 0.6, 0.9), "accuracies": (0.2, 0.5, 0.95)}
    calibration = Calibration("isotonic", "by hand", **knots)
    probs = np.array([[0.6, 0.3, 0.1, 0.0], [0.4, 0.3, 0.3, 0.0], [0.2, 0.75, 0.05, 0.0], [1.0, 0.0, 0.0, 0.0]])
    with np.errstate(divide="ignore"):
        log_probs = np.log(probs)
    result = np.exp(calibration.apply(log_probs))
    np.testing.assert_allclose(result[0], [0.5, 0.375, 0.125, 0.0], atol=1e-12)
    # 0.3 at a top of 0.4 would fall below the two others, which have 0.35: it ends just above them
    np.testing.assert_allclose(result[1], [1 / 3, 1 / 3, 1 / 3, 0.0], atol=1e-8)
    assert result[1].argmax() == 0
    assert result[1, 0] > result[1, 1]
    np.testing.assert_allclose(result[2], [0.22, 0.725, 0.055, 0.0], atol=1e-12)
    np.testing.assert_array_equal(result[3], probs[3])


def test_one_choice_stays_certain() -> None:
    for calibration in (
        Calibration("temperature", "", temperature=3.0),
        Calibration("isotonic", "", confidences=(0.5,), accuracies=(0.7,)),
    ):
        np.testing.assert_allclose(calibration.apply(np.array([[0.0, -np.inf]])), [[0.0, -np.inf]], atol=1e-12)


def test_pooling_comes_before_the_calibration() -> None:
    first, second = drawn(50, seed=1)[0], drawn(50, seed=2)[0]
    members = np.stack([first, second])
    calibration = Calibration("temperature", "", temperature=2.0)
    np.testing.assert_array_equal(pooled(members, calibration), apply_temperature(mixture_log_probs(members), 2.0))
    np.testing.assert_array_equal(pooled(members, None), mixture_log_probs(members))


def test_json_and_back() -> None:
    for calibration in (
        fit_calibration(*drawn(300, temperature=2.5)),
        fit_calibration(*drawn(1000, temperature=1.5, seed=3, shift=(2.0, -1.0, 0.0, 0.0))),
        fit_calibration(*steps(2000)),
        Calibration("none", "no reason"),
    ):
        assert Calibration.from_dict(calibration.to_dict()) == calibration
        assert fault_of(calibration) is None


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"temperature": None}, "kind is temperature, which has a temperature"),
        ({"temperature": 0.0}, "temperature is 0.0, not in"),
        ({"temperature": 1e9}, "temperature is 1000000000.0, not in"),
        ({"scale": (1.0,)}, "kind is temperature, which has no scale"),
        ({"kind": "none"}, "kind is none, which has no temperature"),
        ({"kind": "vector", "temperature": None, "scale": (1.0, 2.0), "bias": (0.0,)}, "different lengths"),
        ({"kind": "vector", "temperature": None, "scale": (1.0, -2.0), "bias": (0.0, 0.0)}, "not above 0"),
        ({"kind": "isotonic", "temperature": None, "confidences": (0.5, 0.4), "accuracies": (0.5, 0.6)}, "ascend"),
        ({"kind": "isotonic", "temperature": None, "confidences": (0.5, 0.6), "accuracies": (0.5, 1.0)}, "probabil"),
    ],
)
def test_parameters_that_cannot_be_applied(change: dict[str, object], fault: str) -> None:
    good = Calibration("temperature", "by hand", temperature=2.0)
    assert fault_of(good) is None
    assert fault in str(fault_of(replace(good, **change)))


def test_vector_scaling_of_other_classes_is_refused() -> None:
    calibration = Calibration("vector", "", scale=(1.0, 1.0), bias=(0.0, 0.0))
    with pytest.raises(ValueError, match="the calibration is of 2 classes, the rows have 4"):
        calibration.apply(drawn(3)[0])

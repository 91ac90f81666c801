"""Prediction sets: their coverage, and the same sets as MAPIE's and crepes' on the same scores."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from crepes import ConformalClassifier
from hypothesis import given, settings
from hypothesis import strategies as st
from mapie.classification import SplitConformalClassifier
from mapie.conformity_scores import RAPSConformityScore
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.model_selection import StratifiedShuffleSplit

from lorchestra.metrics.conformal import (
    METHODS,
    PENALTIES,
    ConformalSets,
    choose_penalty,
    conformal_quantile,
    conformal_scores,
    explain_set,
    fewest_rows_for_sets,
    fit_conformal,
)

FloatArray = NDArray[np.float64]


def draw_rows(
    generator: np.random.Generator, rows: int, choices: int = 6, ragged: bool = False, factor: float = 1.5
) -> tuple[FloatArray, NDArray[np.int64]]:
    """Log-probabilities, too confident by a factor, and answers drawn from the true ones."""
    num_choices = generator.integers(2, choices + 1, size=rows) if ragged else np.full(rows, choices)
    scores = np.where(np.arange(choices) < num_choices[:, None], generator.normal(size=(rows, choices)), -np.inf)
    probs = np.exp(scores)
    below = (probs / probs.sum(axis=1, keepdims=True)).cumsum(axis=1) < generator.random((rows, 1))
    scores = factor * scores
    log_probs = scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))
    return log_probs, np.minimum(below.sum(axis=1), num_choices - 1)


def covered(sets: NDArray[np.bool_], labels: NDArray[np.int64]) -> NDArray[np.bool_]:
    return sets[np.arange(len(labels)), labels]


@pytest.mark.parametrize("ragged", [False, True], ids=["same choices", "ragged"])
@pytest.mark.parametrize(("method", "penalty"), [("lac", 0.0), ("aps", 0.0), ("raps", 0.05), ("raps", 0.5)])
def test_the_coverage_is_exact(method: str, penalty: float, ragged: bool) -> None:
    """2,000 times 95 rows: sets cover with probability 87 / 96, and without draws with at least that."""
    generator, alpha, rows, new = np.random.default_rng(0), 0.1, 95, 20
    exact, always = [], []
    for _ in range(2000):
        log_probs, labels = draw_rows(generator, rows + new, ragged=ragged)
        uniforms = generator.random(rows + new)
        fitted = fit_conformal(
            log_probs[:rows], labels[:rows], alpha, method, uniforms_E=uniforms[:rows], penalty=penalty, free_ranks=1
        )
        exact.append(covered(fitted.sets(log_probs[rows:], uniforms[rows:]), labels[rows:]).mean())
        always.append(covered(fitted.sets(log_probs[rows:]), labels[rows:]).mean())
    error = np.std(exact) / math.sqrt(len(exact))
    assert abs(np.mean(exact) - 87 / 96) < 4 * error
    assert 1 - alpha - 4 * error < np.mean(exact) < 1 - alpha + 1 / (rows + 1) + 4 * error
    assert np.mean(always) >= np.mean(exact)


def test_ties_cover_at_least() -> None:
    """Probabilities on a coarse grid: many equal scores."""
    generator, hits = np.random.default_rng(1), []
    for _ in range(1000):
        labels = generator.integers(0, 3, size=70)
        votes = generator.multinomial(4, [0.6, 0.2, 0.2], size=70)
        probs = np.take_along_axis(votes, (np.arange(3) - labels[:, None]) % 3, axis=1) / 4
        with np.errstate(divide="ignore"):
            log_probs = np.log(np.maximum(probs, 1e-9))
        sets = fit_conformal(log_probs[:50], labels[:50], 0.2).sets(log_probs[50:])
        hits.append(covered(sets, labels[50:]).mean())
    assert np.mean(hits) > 0.8 - 4 * np.std(hits) / math.sqrt(len(hits))


@pytest.mark.parametrize("method", METHODS)
def test_each_class_is_covered(method: str) -> None:
    generator, alpha, rows = np.random.default_rng(2), 0.2, 300
    hits = np.zeros(4)
    totals = np.zeros(4)
    marginal = np.zeros(4)
    for _ in range(500):
        log_probs, labels = draw_rows(generator, 2 * rows, choices=4)
        log_probs[:, 0] -= 1.0  # the first class is underestimated
        log_probs -= np.log(np.exp(log_probs).sum(axis=1, keepdims=True))
        uniforms = generator.random(2 * rows)
        old, new = slice(rows), slice(rows, None)
        for by_class, counts in ((True, hits), (False, marginal)):
            fitted = fit_conformal(
                log_probs[old], labels[old], alpha, method, uniforms_E=uniforms[old], by_class=by_class
            )
            sets = fitted.sets(log_probs[new], uniforms[new])
            counts += np.bincount(labels[new], weights=covered(sets, labels[new]), minlength=4)
        totals += np.bincount(labels[new], minlength=4)
    assert ((1 - alpha - 0.01 < hits / totals) & (hits / totals < 1 - alpha + 0.03)).all()
    assert marginal[0] / totals[0] < 1 - alpha - 0.03


@settings(max_examples=200, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from(METHODS),
    st.sampled_from([0.05, 0.2, 0.6]),
    st.floats(0, 1),
    st.integers(0, 4),
)
def test_sets_are_prefixes_and_draws_only_shrink_them(
    seed: int, method: str, alpha: float, penalty: float, free_ranks: int
) -> None:
    generator = np.random.default_rng(seed)
    log_probs, labels = draw_rows(generator, 60, ragged=True)
    uniforms = generator.random(60)
    fitted = fit_conformal(
        log_probs[:40],
        labels[:40],
        alpha,
        method,
        uniforms_E=uniforms[:40],
        penalty=penalty,
        free_ranks=free_ranks,
    )
    whole, drawn = fitted.sets(log_probs[40:]), fitted.sets(log_probs[40:], uniforms[40:])
    assert not (whole | drawn)[np.isneginf(log_probs[40:])].any()
    assert (whole | ~drawn).all()
    order = np.argsort(-log_probs[40:], axis=1, kind="stable")
    for sets in (whole, drawn):
        ranked = np.take_along_axis(sets, order, axis=1)
        assert (ranked[:, :-1] | ~ranked[:, 1:]).all()
    if method != "lac":
        assert whole.any(axis=1).all()
    again = ConformalSets.from_dict(json.loads(json.dumps(fitted.to_dict())))
    assert again == fitted


class Lookup(ClassifierMixin, BaseEstimator):
    """A fitted classifier whose inputs are row numbers of a table of probabilities."""

    def __init__(self, table: FloatArray | None = None) -> None:
        self.table = table
        self.classes_ = None if table is None else np.arange(table.shape[1])

    def fit(self, X: FloatArray, y: FloatArray) -> Lookup:
        return self

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def predict_proba(self, X: FloatArray) -> FloatArray:
        return self.table[X[:, 0].astype(int)]

    def predict(self, X: FloatArray) -> NDArray[np.int64]:
        return self.predict_proba(X).argmax(axis=1)


def mapie_sets(
    log_probs: FloatArray, labels: NDArray[np.int64], rows: int, alpha: float, score: object, last: object
) -> tuple[NDArray[np.bool_], SplitConformalClassifier]:
    """MAPIE's sets of the rows after the first `rows`, which calibrate."""
    index = np.arange(len(labels))[:, None].astype(float)
    model = SplitConformalClassifier(
        Lookup(np.exp(log_probs)), confidence_level=1 - alpha, conformity_score=score, prefit=True, random_state=7
    )
    model.conformalize(index[:rows], labels[:rows])
    parameters = {} if score == "lac" else {"include_last_label": last}
    return model.predict_set(index[rows:], conformity_score_params=parameters)[1][:, :, 0], model


def uniforms_of_mapie(number: int) -> FloatArray:
    """MAPIE draws anew from the same seed for scores and for sets."""
    return np.random.RandomState(7).uniform(size=number)


@pytest.mark.parametrize("alpha", [0.02, 0.1, 0.37])
@pytest.mark.parametrize("rows", [60, 200, 333])
def test_lac_sets_are_mapies(rows: int, alpha: float) -> None:
    log_probs, labels = draw_rows(np.random.default_rng(rows), rows + 400)
    theirs, _ = mapie_sets(log_probs, labels, rows, alpha, "lac", None)
    mine = fit_conformal(log_probs[:rows], labels[:rows], alpha).sets(log_probs[rows:])
    np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize("last", [True, "randomized"])
@pytest.mark.parametrize("alpha", [0.02, 0.1, 0.37])
@pytest.mark.parametrize("rows", [60, 200, 333])
def test_aps_sets_are_mapies(rows: int, alpha: float, last: object) -> None:
    log_probs, labels = draw_rows(np.random.default_rng(rows), rows + 400)
    theirs, _ = mapie_sets(log_probs, labels, rows, alpha, "aps", last)
    fitted = fit_conformal(log_probs[:rows], labels[:rows], alpha, "aps", uniforms_E=uniforms_of_mapie(rows))
    uniforms = uniforms_of_mapie(400) if last == "randomized" else None
    np.testing.assert_array_equal(fitted.sets(log_probs[rows:], uniforms), theirs)


@pytest.mark.parametrize("last", [True, "randomized"])
@pytest.mark.parametrize("alpha", [0.1, 0.3])
def test_raps_sets_are_mapies(alpha: float, last: object) -> None:
    """Penalty and free ranks are MAPIE's, which it fits on a part of the calibration rows.

    MAPIE's rule for dropping the last choice is that of the paper while that choice is at most one rank beyond the free
    ones; further out it divides by another number. These rows are left out here: that our rule is exact there too is
    what `test_the_coverage_is_exact` shows.
    """
    rows = 400
    log_probs, labels = draw_rows(np.random.default_rng(5), rows + 500, choices=8)
    theirs, model = mapie_sets(log_probs, labels, rows, alpha, RAPSConformityScore(), last)
    score = model._mapie_classifier.conformity_score_function_
    split = StratifiedShuffleSplit(n_splits=1, test_size=score.size_raps, random_state=7)
    kept, _ = next(split.split(np.zeros(rows), labels[:rows]))
    fitted = fit_conformal(
        log_probs[kept],
        labels[kept],
        alpha,
        "raps",
        uniforms_E=uniforms_of_mapie(len(kept)),
        penalty=float(np.ravel(score.lambda_star)[0]),
        free_ranks=int(np.ravel(score.k_star)[0]),
    )
    assert fitted.quantiles[0] == pytest.approx(float(np.ravel(score.quantiles_)[0]))
    if last is True:
        np.testing.assert_array_equal(fitted.sets(log_probs[rows:]), theirs)
        return
    near = fitted.sets(log_probs[rows:]).sum(axis=1) <= fitted.free_ranks + 1
    assert near.sum() > 100
    mine = fitted.sets(log_probs[rows:], uniforms_of_mapie(500))
    np.testing.assert_array_equal(mine[near], theirs[near])


@pytest.mark.parametrize("by_class", [False, True])
def test_lac_sets_are_crepes(by_class: bool) -> None:
    log_probs, labels = draw_rows(np.random.default_rng(3), 900, choices=4)
    log_probs = np.round(log_probs, 1)  # ties
    scores = 1 - np.exp(log_probs)
    theirs = ConformalClassifier()
    right = scores[np.arange(400), labels[:400]]
    for alpha in (0.03, 0.1, 0.35):
        theirs.fit(right, bins=labels[:400] if by_class else None)
        sets = np.stack(
            [
                theirs.predict_p(scores[400:, c], bins=np.full(500, c) if by_class else None, smoothing=False) > alpha
                for c in range(4)
            ],
            axis=1,
        )
        mine = fit_conformal(log_probs[:400], labels[:400], alpha, by_class=by_class).sets(log_probs[400:])
        np.testing.assert_array_equal(mine, sets)


def test_scores_by_hand() -> None:
    with np.errstate(divide="ignore"):
        log_probs = np.log([[0.2, 0.5, 0.3, 0.0], [0.5, 0.5, 0.0, 0.0]])
    np.testing.assert_allclose(conformal_scores(log_probs, "lac")[0], [0.8, 0.5, 0.7, 1.0])
    half = np.full(2, 0.5)
    # the first of equals ranks higher
    np.testing.assert_allclose(conformal_scores(log_probs, "aps", half), [[0.9, 0.25, 0.65, 1], [0.25, 0.75, 1, 1]])
    np.testing.assert_allclose(
        conformal_scores(log_probs, "raps", half, 0.1, 1), [[1.1, 0.25, 0.75, 1.3], [0.25, 0.85, 1.2, 1.3]]
    )


def test_quantiles_by_hand() -> None:
    scores = np.arange(1, 20) / 20
    # the 18th of 19: ceil(20 x 0.9)
    assert conformal_quantile(scores, 0.1) == 18 / 20
    assert conformal_quantile(scores, 0.05) == 19 / 20
    assert conformal_quantile(scores, 0.049) == math.inf
    assert conformal_quantile(np.zeros(0), 0.5) == math.inf


@pytest.mark.parametrize("alpha", [0.5, 0.1, 0.05, 0.01, 0.3])
def test_with_fewer_rows_sets_hold_everything(alpha: float) -> None:
    fewest = fewest_rows_for_sets(alpha)
    assert math.isfinite(conformal_quantile(np.zeros(fewest), alpha))
    assert math.isinf(conformal_quantile(np.zeros(fewest - 1), alpha))
    log_probs, labels = draw_rows(np.random.default_rng(4), max(fewest - 1, 1), ragged=True)
    if fewest > 1:
        np.testing.assert_array_equal(fit_conformal(log_probs, labels, alpha).sets(log_probs), np.isfinite(log_probs))


def test_a_class_without_rows_is_in_every_set() -> None:
    log_probs, labels = draw_rows(np.random.default_rng(6), 100, choices=3)
    fitted = fit_conformal(log_probs, labels % 2, 0.2, by_class=True)
    assert (fitted.num_rows[2], fitted.quantiles[2]) == (0, math.inf)
    assert fitted.sets(log_probs)[:, 2].all()
    with pytest.raises(ValueError, match="2 choices for 3 classes"):
        fitted.sets(log_probs[:, :2])


def test_all_right_and_certain() -> None:
    log_probs = np.tile([0.0, -np.inf], (100, 1))
    for method in METHODS:
        fitted = fit_conformal(log_probs, np.zeros(100, dtype=int), 0.1, method, uniforms_E=np.full(100, 0.5))
        np.testing.assert_array_equal(fitted.sets(log_probs), np.tile([True, False], (100, 1)))


def test_the_penalty_makes_sets_small() -> None:
    generator = np.random.default_rng(7)
    log_probs, labels = draw_rows(generator, 3000, choices=20, factor=1.0)
    tune, fit, new = slice(1000), slice(1000, 2000), slice(2000, None)
    penalty, free_ranks = choose_penalty(log_probs[tune], labels[tune], 0.1)
    assert penalty in PENALTIES
    assert 1 <= free_ranks <= 20
    uniforms = generator.random(3000)
    sizes = {}
    for method in ("aps", "raps"):
        fitted = fit_conformal(
            log_probs[fit],
            labels[fit],
            0.1,
            method,
            uniforms_E=uniforms[fit],
            penalty=penalty,
            free_ranks=free_ranks,
        )
        sets = fitted.sets(log_probs[new], uniforms[new])
        assert 0.86 < covered(sets, labels[new]).mean() < 0.94
        sizes[method] = sets.sum(axis=1).mean()
    assert sizes["raps"] < sizes["aps"]


def test_sets_in_words() -> None:
    assert explain_set(["a"], 0.1) == "only 'a' fits (over all rows, the set has the right answer in at least 90 %)"
    assert explain_set(["a", "b", "c"], 0.05).startswith("'a', 'b' and 'c' fit (over all rows")
    assert explain_set([], 0.1).startswith("no answer fits as well as right ones usually do: leave it to a person")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"alpha": 0.0}, r"alpha is 0.0, not in \(0, 1\)"),
        ({"alpha": 1.0}, r"alpha is 1.0, not in \(0, 1\)"),
        ({"alpha": math.nan}, r"alpha is nan, not in \(0, 1\)"),
        ({"method": "top"}, "method is 'top', not one of lac, aps, raps"),
        ({"method": "aps"}, "aps needs a uniform draw"),
        ({"method": "aps", "uniforms_E": np.full(5, 2.0)}, "aps needs a uniform draw"),
        ({"method": "raps", "uniforms_E": np.ones(5), "penalty": -1.0}, "penalty is -1.0"),
        ({"labels_E": np.array([0, 1, 2, 0, -1])}, r"label -1 \(unknown answer\)"),
        ({"labels_E": np.array([0, 1, 2, 0, 6])}, "label 6 in row 4"),
        ({"log_probs_EC": np.full((5, 6), np.nan)}, "log_probs has NaN in row 0"),
        ({"log_probs_EC": np.zeros((0, 6)), "labels_E": np.zeros(0)}, "there are no rows"),
    ],
)
def test_refused_input(arguments: dict[str, object], message: str) -> None:
    log_probs, labels = draw_rows(np.random.default_rng(8), 5)
    with pytest.raises(ValueError, match=message):
        fit_conformal(**({"log_probs_EC": log_probs, "labels_E": labels, "alpha": 0.2} | arguments))

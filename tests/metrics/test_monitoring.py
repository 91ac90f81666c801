"""Profiles of rows, and the verdict on two of them."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from lorchestra.metrics.calibrator import Calibration
from lorchestra.metrics.monitoring import (
    ANSWERS,
    ERRORS,
    LOSSES,
    NUMBERS,
    AutomatedErrors,
    Profile,
    compare,
    profile,
)
from lorchestra.types import Predictions


def predictions(number=200, seed=0, sharpness=3.0, shift=0.0, labeled=True):
    draw = np.random.default_rng(seed)
    scores = draw.normal(size=(1, number, 3)) * sharpness + 0.3 * draw.normal(size=(4, number, 3))
    scores[..., 0] += shift
    log_probs = scores - np.log(np.exp(scores).sum(axis=-1, keepdims=True))
    probs = np.exp(log_probs).mean(axis=0)
    labels = np.array([draw.choice(3, p=p / p.sum()) for p in probs]) if labeled else np.full(number, -1)
    texts = tuple("x" * int(n) for n in draw.integers(10, 60, size=number))
    ids = tuple(map(str, range(number)))
    return Predictions(log_probs, labels, ids, (("a", "b", "c"),) * number, "task", "new", texts)


def profile_of(source="rows", **settings):
    drawn = predictions(**settings)
    return profile(drawn, None, [len(text) // 4 + 1 for text in drawn.texts], source)


def test_the_numbers_of_rows():
    log_probs = np.log(np.array([[[0.5, 0.5], [0.9, 0.1]], [[0.9, 0.1], [0.9, 0.1]]]))
    rows = Predictions(log_probs, np.array([1, -1]), ("0", "1"), (("a", "b"),) * 2, "t", "new", ("abcd", "ab"))
    result = profile(rows, None, [2, 0], "file")
    assert result.num_rows == 2
    assert result.numbers["max_prob"] == pytest.approx((0.7, 0.9))
    assert result.numbers["entropy"][1] == pytest.approx(-0.9 * math.log(0.9) - 0.1 * math.log(0.1))
    assert result.numbers["mutual_information"][1] == 0.0
    assert result.numbers["characters_per_token"] == (2.0, 2.0)
    assert result.predicted == (2, 0)
    assert result.losses == pytest.approx((-math.log(0.3),))
    scaled = profile(rows, Calibration("temperature", "", 2, temperature=1e6), [2, 0], "file")
    assert scaled.numbers["max_prob"] == pytest.approx((0.5, 0.5), abs=1e-3)
    assert Profile.from_dict(json.loads(json.dumps(result.to_dict()))).num_rows == 2


def test_choices_that_differ_by_row_have_no_counts():
    rows = predictions(number=4)
    varied = Predictions(
        rows.log_probs_MEC, rows.labels, rows.ids, (("a", "b", "c"), *(("d", "e", "f"),) * 3), "t", "new", rows.texts
    )
    assert profile(varied, None, [1] * 4, "rows").predicted == ()


def test_rows_of_the_same_kind_do_not_ring():
    alarms = 0
    for seed in range(40):
        result = compare(profile_of(seed=seed), profile_of(seed=1000 + seed), false_alarm=0.1)
        assert set(result.p_values) == {*NUMBERS.values(), ANSWERS, LOSSES}
        alarms += result.is_alarm
    assert alarms <= 10  # of 40 at a level of 0.06; 11 or more once in 50,000


def test_a_shift_rings_and_says_what_changed():
    result = compare(profile_of("old"), profile_of("new", seed=1, shift=3.0))
    assert result.is_alarm
    assert ANSWERS in result.reasons
    assert result.sentence().startswith("Alarm: ")
    assert "200 rows of new and 200 of old" in result.sentence()
    assert result.to_dict()["alarm"] is True
    json.dumps(result.to_dict())


def test_without_labels_only_distributions_are_compared():
    result = compare(profile_of(), profile_of(seed=1, labeled=False))
    assert LOSSES not in result.p_values


def test_labels_that_no_longer_fit_ring_where_distributions_do_not():
    drawn = predictions(seed=1)
    wrong = Predictions(
        drawn.log_probs_MEC, (drawn.labels + 1) % 3, drawn.ids, drawn.options, "task", "new", drawn.texts
    )
    tokens = [len(text) // 4 + 1 for text in drawn.texts]
    result = compare(profile_of(), profile(wrong, None, tokens, "new"))
    assert result.reasons == (LOSSES,)
    result = compare(profile_of(), profile_of(seed=1), automated=AutomatedErrors(20, 100, 0.05))
    assert result.reasons == (ERRORS,)
    assert not compare(profile_of(), profile_of(seed=1), automated=AutomatedErrors(5, 100, 0.05)).is_alarm


def test_a_small_but_significant_change_is_told_and_does_not_ring():
    result = compare(profile_of(number=20_000), profile_of(number=20_000, seed=1, sharpness=3.2, labeled=False))
    assert result.significant
    assert not result.is_alarm
    assert "but little" in result.sentence()


def test_later_looks_are_stricter():
    one, ten = (compare(profile_of(), profile_of(seed=1), look=look) for look in (1, 10))
    assert ten.level == pytest.approx(one.level / 100)

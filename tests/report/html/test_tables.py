"""Tables and headline, on entries with hand-written numbers."""

from __future__ import annotations

from typing import Any

import pytest

from lorchestra.metrics.calibrator import Calibration
from lorchestra.metrics.table import Metric
from lorchestra.report.html import tables

BETTER = {"accuracy": [0.01, 0.03], "nll": [-0.2, -0.1], "ece": [-0.05, -0.01], "brier": [-0.1, -0.05]}
WORSE = {key: [-high, -low] for key, (low, high) in BETTER.items()}
UNCLEAR = {key: [-0.1, 0.1] for key in BETTER}
MIXED = BETTER | {"brier": WORSE["brier"]}


def scores(**changes: Any) -> dict[str, Any]:
    return {
        "accuracy": 0.8,
        "nll": 0.5,
        "ece": 0.04,
        "signed_gap": -0.0001,
        "brier": 0.3,
        "aurc": 0.1,
        "automated_5": 0.4,
    } | changes


def make_entry(mean: Any = UNCLEAR, best: Any = UNCLEAR, scaled: Any = UNCLEAR, **changes: Any) -> dict[str, Any]:
    return {
        "task": "toy",
        "split": "test",
        "num_members": 3,
        "num_examples": 200,
        "ensemble": scores(),
        "member_mean": scores(accuracy=0.78, nll=0.62, std={"accuracy": 0.011, "nll": None}),
        "best_member": {"index": 1, **scores(nll=None)},
        "majority": {"index": None, "reason": "no training labels were given"},
        "mean_of_logits": scores(intervals={}, ensemble_minus=UNCLEAR),
        "temperature": {"T": 1.5, **scores(), "best_member": {"T": 2.0, **scores(), "ensemble_minus": scaled}},
        "baselines": {"base_few_shot": scores(accuracy=0.5, ensemble_minus=BETTER)},
        "intervals": {
            "level": 0.95,
            "ensemble": {"accuracy": [0.75, 0.85]},
            "ensemble_minus_member_mean": mean,
            "ensemble_minus_best_member": best,
        },
    } | changes


@pytest.mark.parametrize(
    ("intervals", "tone", "sentence"),
    [
        (
            (BETTER, BETTER, BETTER),
            "yes",
            "is clearly better in accuracy than the mean member, and clearly better in accuracy, NLL and"
            " Brier score than the member best on validation and the best member, temperature-scaled.",
        ),
        (
            (BETTER, UNCLEAR, UNCLEAR),
            "partly",
            "clearly better in accuracy than the mean member, and not clearly different from the",
        ),
        ((UNCLEAR, UNCLEAR, UNCLEAR), "unclear", "is not clearly different from the mean member, the member best on"),
        (
            (UNCLEAR, WORSE, WORSE),
            "no",
            "clearly worse in accuracy, NLL and Brier score than the member best on",
        ),
        (
            (BETTER, MIXED, UNCLEAR),
            "mixed",
            "better in accuracy and NLL but worse in Brier score than the member",
        ),
        (
            (BETTER, WORSE, UNCLEAR),
            "mixed",
            "than the member best on validation, and not clearly different from the best member, temperature-scaled.",
        ),
    ],
)
def test_the_headline_says_what_the_intervals_allow(intervals, tone, sentence):
    entry = make_entry(*intervals)
    entry["best_member"] |= {"nll": 0.6}
    result = tables.headline(entry)
    assert result[0] == tone
    assert sentence in result[1]


def test_what_convexity_guarantees_is_no_evidence():
    """Against the mean member only NLL and Brier are better: that is no evidence."""
    guaranteed = UNCLEAR | {"nll": BETTER["nll"], "brier": BETTER["brier"]}
    assert tables.headline(make_entry(mean=guaranteed))[0] == "unclear"
    mean, best = tables.references(make_entry(mean=guaranteed, best=guaranteed))[:2]
    assert [cell.guaranteed for cell in mean.cells] == [False, True, False, False, True]
    assert not any(cell.guaranteed for cell in best.cells)


def test_what_calibration_gains_over_raw_methods_is_no_evidence():
    """NLL and Brier score of a calibrated ensemble count against methods with a temperature only."""
    gained = UNCLEAR | {"nll": BETTER["nll"], "brier": BETTER["brier"]}
    calibration = Calibration("temperature", "lower", 80, temperature=2.0).to_dict()

    def headline(mean=UNCLEAR, best=UNCLEAR, scaled=UNCLEAR):
        return tables.headline(make_entry(mean, best, scaled) | {"calibration": calibration})[0]

    assert headline(mean=gained, best=gained) == "unclear"
    assert headline(scaled=gained) == "partly"
    assert headline(BETTER, BETTER, gained) == "yes"
    mean = tables.references(make_entry(mean=gained) | {"calibration": calibration})[0]
    assert not any(cell.guaranteed for cell in mean.cells)


def test_nothing_is_judged_without_members_or_intervals():
    assert tables.headline(make_entry(num_members=1)) == (
        "none",
        "There is one member only, so there is no ensemble to judge.",
    )
    bare = make_entry(intervals={"level": 0.95}, temperature=None)
    assert tables.headline(bare)[0] == "none"
    assert "evaluate.resamples" in tables.headline(bare)[1]


def test_references_are_in_order_with_signs_and_judgement():
    rows = tables.references(make_entry(mean=BETTER))
    assert [row.key for row in rows] == [
        "member_mean",
        "best_member",
        "best_member_scaled",
        "ensemble_scaled",
        "mean_of_logits",
        "base_few_shot",
    ]
    accuracy, nll, ece, *_ = rows[0].cells
    assert (accuracy.value, accuracy.interval, accuracy.judged) == ("+2.0", "+1.0 to +3.0", "better")
    assert (nll.value, nll.interval) == ("−0.120", "−0.200 to −0.100")  # noqa: RUF001
    assert (ece.value, ece.interval, ece.judged, ece.ends) == ("0.0", "", "unknown", None)
    assert accuracy.ends == pytest.approx((1.0, 2.0, 3.0))


def test_an_infinite_nll_is_not_compared():
    cell = tables.references(make_entry())[1].cells[1]
    assert (cell.value, cell.judged, cell.ends) == ("not defined", "unknown", None)
    (best,) = [row for row in tables.method_rows(make_entry()) if row.key == "best_member"]
    assert best.cells[1].value == "∞"


def test_method_rows_hold_value_spread_and_interval():
    rows = {row.key: row for row in tables.method_rows(make_entry())}
    assert list(rows) == [
        "base_few_shot",
        "member_mean",
        "best_member",
        "best_member_scaled",
        "mean_of_logits",
        "ensemble",
        "ensemble_scaled",
    ]
    assert rows["member_mean"].cells[0] == tables.Cell("78.0", "± 1.1", "")
    assert rows["ensemble"].cells[0] == tables.Cell("80.0", "", "75.0 to 85.0")
    assert rows["ensemble"].cells[3].value == "40.0"
    assert rows["ensemble"].cells[4].value == "0.0"  # a gap of -0.01 points has no sign
    assert (rows["ensemble_scaled"].name, rows["ensemble_scaled"].indent) == ("+ temperature (T = 1.50)", True)
    assert rows["best_member_scaled"].name == "+ temperature (T = 2.00)"


def test_a_single_member_is_listed_once():
    rows = tables.method_rows(make_entry(num_members=1))
    assert [(row.key, row.name) for row in rows][1:] == [
        ("member_mean", "one LoRA"),
        ("best_member_scaled", "+ temperature (T = 2.00)"),
    ]
    assert tables.references(make_entry(num_members=1)) == []


def test_number_and_count_are_written_shortly():
    metric = Metric("x", "X", "x", "%", digits=1, signed=True)
    assert [tables.number(metric, value) for value in (0.012, -0.012, -0.0001, None)] == ["+1.2", "−1.2", "0.0", "∞"]  # noqa: RUF001
    counts = (None, 0, 672, 9999, 12_345, 461_000, 2_500_000, 7e9)
    assert [tables.count(value) for value in counts] == ["–", "0", "672", "9,999", "12.3 k", "461 k", "2.5 M", "7 G"]  # noqa: RUF001

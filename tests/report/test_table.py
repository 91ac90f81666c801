"""Tables at a terminal's width, and a verdict that claims no more than the intervals support."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from rich.table import Table

from lorchestra.metrics.calibrator import Calibration
from lorchestra.metrics.early_exit import ExitRule, evaluate_early_exit
from lorchestra.metrics.evaluation import evaluate_predictions, ood_scores
from lorchestra.report.table import early_exit_text, evaluation_table, ood_table, verdict
from lorchestra.types import Predictions


def make_predictions(members: int = 3, seed: int = 0, scale: float = 2.0, signal: float = 1.2) -> Predictions:
    generator = np.random.default_rng(seed)
    labels = generator.integers(4, size=100)
    shared = generator.normal(size=(100, 4))
    shared[np.arange(100), labels] += signal
    scores = scale * (shared + generator.normal(size=(members, 100, 4)))
    log_probs = scores - np.log(np.exp(scores).sum(axis=-1, keepdims=True))
    ids = tuple(str(row) for row in range(100))
    return Predictions(log_probs, labels, ids, (("a", "b", "c", "d"),) * 100, task="[red]toy", split="test")


def full_entry(**changes: Any) -> dict[str, Any]:
    baselines = {
        "mc_dropout": make_predictions(seed=0),
        "base_few_shot": make_predictions(members=1, seed=0, scale=0.5),
        "base_zero_shot": make_predictions(members=1, seed=0, scale=0.3),
        "wide": make_predictions(members=1, seed=0, scale=1),
    }
    settings: dict[str, Any] = {
        "validation": make_predictions(seed=1),
        "train_labels": [0, 1, 2, 2],
        "baselines": baselines,
        "temperature": True,
        "resamples": 100,
    }
    entry = evaluate_predictions(make_predictions(), **(settings | changes))
    loaded: dict[str, Any] = json.loads(json.dumps(entry))
    return loaded


def render(table: Table, width: int = 100) -> list[str]:
    console = Console(width=width, file=io.StringIO(), color_system=None)
    console.print(table)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    return [line.rstrip() for line in text.splitlines()]


def names_in(lines: list[str]) -> list[str]:
    """The first column of the lines that start a row."""
    body = lines[next(index for index, line in enumerate(lines) if line.startswith("──")) + 1 :]
    body = body[: next(index for index, line in enumerate(body) if line.startswith("In brackets"))]
    return [line[:22].rstrip() for line in body if line[:1].strip() or line.startswith("  +")]


def test_a_calibrated_ensemble_has_two_rows_and_a_sentence() -> None:
    calibration = Calibration("temperature", "lower", 80, temperature=2.5, nll_before=0.8, nll_after=0.7)
    lines = render(evaluation_table(full_entry(calibration=calibration)))
    assert names_in(lines)[-2:] == ["ensemble, raw", "ensemble"]
    assert "one LoRA (best on val)" in names_in(lines)
    sentence = "Ensemble calibrated: Temperature 2.50 from 80 validation rows: cross-validated NLL 0.800 -> 0.700."
    assert sentence in " ".join(lines)
    unchanged = Calibration("temperature", "no [/b] gain [red]", 80, temperature=1.0, nll_before=0.8, nll_after=0.8)
    lines = render(evaluation_table(full_entry(calibration=unchanged)))
    assert names_in(lines)[-2:] == ["mean of logits", "ensemble"]
    assert "Temperature 1 (no change) from 80 validation rows: no [/b] gain [red]." in " ".join(lines)


def test_the_verdict_of_a_calibrated_ensemble_claims_no_gain_by_convexity() -> None:
    calibration = Calibration("temperature", "lower", 80, temperature=2.5, nll_before=0.8, nll_after=0.7)
    text = verdict(full_entry(calibration=calibration))
    assert "guaranteed by convexity" not in text
    assert "differences in NLL and Brier include what calibration gains" in text
    assert "Against that member after temperature scaling" in text
    alone = verdict(evaluate_predictions(make_predictions(members=1), calibration=calibration, resamples=0))
    assert "the ensemble is that member, calibrated." in alone


def test_every_method_has_its_row_in_order() -> None:
    assert names_in(render(evaluation_table(full_entry()))) == [
        "majority",
        "base, zero-shot",
        "base, few-shot",
        "wide",
        "one LoRA (mean of 3)",
        "  + temperature",
        "one LoRA (best on val)",
        "  + temperature",
        "MC dropout",
        "mean of logits",
        "ensemble",
        "  + temperature",
    ]


def test_early_exit_in_a_sentence() -> None:
    predictions = make_predictions()
    entry = full_entry()
    entry["early_exit"] = evaluate_early_exit(predictions.log_probs_MEC, predictions.labels, ExitRule())
    early = entry["early_exit"]
    two, three = early["histogram"][1:]
    assert 0 < two < 100
    assert early_exit_text(entry) == (
        f"With early exit (exact) a row uses {2 + three / 100:.2f} of 3 members on average (2: {two:.1f} %, 3:"
        f" {three:.1f} %); 100.0 % of rows have the answer of all members; accuracy"
        f" {100 * entry['ensemble']['accuracy']:.1f} %, NLL {early['nll']:.3f}."
    )
    entry["early_exit"]["nll"] = None
    assert early_exit_text(entry).endswith("NLL inf.")


def test_methods_that_are_missing_have_no_row() -> None:
    entry = full_entry(validation=None, train_labels=None, baselines=None, temperature=False)
    assert names_in(render(evaluation_table(entry))) == ["one LoRA (mean of 3)", "mean of logits", "ensemble"]


def test_a_cell_holds_value_spread_and_interval() -> None:
    entry = full_entry()
    lines = render(evaluation_table(entry))
    row = next(index for index, line in enumerate(lines) if line.startswith("one LoRA (mean"))
    mean, (low, high) = entry["member_mean"], entry["intervals"]["member_mean"]["nll"]
    assert f"{mean['nll']:.3f} ±{mean['std']['nll']:.3f}" in lines[row]
    assert f"{100 * mean['accuracy']:.1f} ±{100 * mean['std']['accuracy']:.1f}" in lines[row]
    assert f"{100 * mean['automated_5']:.1f} ±{100 * mean['std']['automated_5']:.1f}" in lines[row]
    assert f"[{low:.3f},{high:.3f}]" in lines[row + 1]


def test_the_ece_is_above_its_interval_and_the_calibrated_ece() -> None:
    entry = full_entry()
    lines = render(evaluation_table(entry))
    row = next(index for index, line in enumerate(lines) if line.startswith("ensemble"))
    intervals = entry["intervals"]["ensemble"]
    low, high = (100 * end for end in intervals["ece"])
    assert f"[{low:.1f},{high:.1f}]" in lines[row + 1]
    mean, (low, high) = 100 * intervals["ece_if_calibrated"]["mean"], intervals["ece_if_calibrated"]["interval"]
    assert lines[row + 2].split() == [f"({mean:.1f}:", f"{100 * low:.1f}-{100 * high:.1f})"]
    assert "In parentheses: ECE of a perfectly calibrated model" in " ".join(lines)


def test_an_ece_interval_of_an_earlier_version_is_not_shown() -> None:
    """It holds percentiles of bootstrap draws, which do not cover; the missing reference identifies it."""
    entry = full_entry()
    entry["intervals"]["ensemble"]["ece"] = [0.4321, 0.4567]
    assert "[43.2,45.7]" in "".join(render(evaluation_table(entry)))
    del entry["intervals"]["ensemble"]["ece_if_calibrated"]
    assert "[43.2,45.7]" not in "".join(render(evaluation_table(entry)))


def test_the_verdict_says_whether_the_ece_is_more_than_a_calibrated_model_would_show() -> None:
    entry = small_entry(CLEAR, UNCLEAR, (0.01, [-0.01, 0.03]))
    reference = {"mean": 0.03, "interval": [0.012, 0.051]}
    entry["intervals"]["ensemble"] |= {"ece_if_calibrated": reference, "ece": [0.0, 0.06]}
    assert verdict(entry).endswith(
        "Its ECE of 5.0 % is no evidence of miscalibration: a perfectly calibrated model would show 1.2 to 5.1 % on as"
        " many rows."
    )
    reference["interval"] = [0.012, 0.049]
    assert verdict(entry).endswith(
        "Its ECE of 5.0 % is more than a perfectly calibrated model would show on as many rows (1.2 to 4.9 %)."
    )


def test_the_verdict_starts_with_the_notes() -> None:
    entry = small_entry(CLEAR, UNCLEAR, (0.01, [-0.01, 0.03])) | {"notes": ["These rows trained the members."]}
    assert verdict(entry).startswith("These rows trained the members. Against the mean of its 5 members, ")
    nothing = dict.fromkeys(CLEAR)
    few = small_entry(nothing, nothing, (0.01, [-0.01, 0.03])) | {"num_examples": 3, "notes": ["No intervals."]}
    assert verdict(few) == "No intervals. So no difference from another method can be judged."


def test_numbers_are_aligned() -> None:
    lines = render(evaluation_table(full_entry()))
    positions = set()
    for line in lines:
        if line.startswith(("majority", "base", "ensemble", "one LoRA")):
            positions.add(
                tuple(index for index, sign in enumerate(line) if sign == "." and "±" not in line[index - 4 : index])
            )
    assert len({position for position in positions if len(position) == 5}) == 1


@pytest.mark.parametrize(("width", "kind"), [(100, "easy"), (100, "hard"), (80, "easy")])
def test_tables_fit_and_cut_nothing(width: int, kind: str) -> None:
    entry = full_entry()
    entry["ood"] = {"a_long_name_of_a_set/in_some_folder.jsonl": ood_scores(make_predictions(), make_predictions())}
    if kind == "hard":  # wide numbers: all right, NLL of two digits, a member with an infinite one
        entry["intervals"]["ensemble"] |= {
            "accuracy": [0.985, 1.0],
            "nll": [10.5, 11.75],
            "signed_gap": [-0.255, -0.111],
        }
        entry["member_mean"]["nll"] = None
        entry["intervals"]["member_mean"]["nll"] = [12.125, None]
    ood = ood_table(entry)
    assert ood is not None
    for table in (evaluation_table(entry), ood):
        lines = render(table, width)
        assert max(map(len, lines)) <= width
        assert "…" not in "".join(lines)
    text = "".join(render(evaluation_table(entry), width))
    assert "[red]toy test (examples: 100, members: 3)" in text
    if kind == "hard":
        assert "[12.125,inf]" in text
        assert "[98.5,100.0]" in text


def test_ood_rows_show_the_three_scores() -> None:
    entry = full_entry()
    assert ood_table(entry) is None
    ood = make_predictions(seed=5, signal=0.0)
    entry["ood"] = {"far": ood_scores(make_predictions(), ood)}
    scores = entry["ood"]["far"]
    table = ood_table(entry)
    assert table is not None
    lines = render(table)
    ensemble = next(line for line in lines if line.startswith("far"))
    for name in ("max_prob", "entropy", "mutual_information"):
        assert f"{scores['auroc'][name]:.3f}" in ensemble
    assert f"{100 * scores['mean_confidence']['ood']:.1f}" in ensemble
    single = next(line for line in lines if line.startswith("100 rows"))
    assert f"{scores['member_mean']['auroc']['entropy']:.3f} ±" in single
    assert f" {scores['auroc']['mutual_information']:.3f}" not in single


def test_the_distance_has_a_column_where_it_was_measured() -> None:
    entry = full_entry()
    entry["ood"] = {name: ood_scores(make_predictions(), make_predictions(seed=5)) for name in ("far", "near")}
    table = ood_table(entry)
    assert table is not None
    assert "Distance" not in "\n".join(render(table))
    entry["ood"]["far"]["auroc"]["distance"] = 0.987
    table = ood_table(entry)
    assert table is not None
    lines = render(table)
    assert "Distance: from the training rows, by the hidden states" in "\n".join(lines)
    far, near = (next(line for line in lines if line.startswith(name)).split() for name in ("far", "near"))
    assert (far[5], near[5]) == ("0.987", "-")


def small_entry(mean: dict[str, Any], best: dict[str, Any] | None, gap: tuple[float, list[float]]) -> dict[str, Any]:
    """An entry with only what a verdict reads: ensemble minus mean and minus best member, and the signed gap.

    The point values are the same in every case, so that a verdict from point values instead of intervals fails.
    """
    ensemble = {"accuracy": 0.80, "nll": 0.500, "ece": 0.050, "brier": 0.3, "signed_gap": gap[0]}
    single = {"accuracy": 0.75, "nll": 0.600, "ece": 0.020, "brier": 0.3}
    intervals: dict[str, Any] = {"ensemble": {"signed_gap": gap[1]}, "ensemble_minus_member_mean": mean, "level": 0.95}
    entry = {"task": "toy", "split": "test", "num_members": 5, "num_examples": 200, "intervals": intervals}
    entry |= {"ensemble": ensemble, "member_mean": single}
    if best is not None:
        intervals["ensemble_minus_best_member"] = best
        entry["best_member"] = single
    return entry


# Entries of earlier versions have differences of ECEs, with intervals that do not cover: verdicts ignore them.
CLEAR = {"accuracy": [0.01, 0.09], "nll": [-0.2, -0.05], "ece": [0.01, 0.05], "brier": [-0.1, 0.1]}
UNCLEAR = {"accuracy": [-0.01, 0.09], "nll": [-0.2, 0.05], "ece": [0.0, 0.05], "brier": [-0.1, 0.1]}


def test_the_verdict_says_better_and_worse_where_intervals_exclude_zero() -> None:
    text = verdict(small_entry(CLEAR, UNCLEAR, (0.01, [-0.01, 0.03])))
    assert text == (
        "Against the mean of its 5 members, the ensemble is better in accuracy (+5.0 points; +1.0 to +9.0) and NLL "
        "(-0.100; -0.200 to -0.050) and shows no clear difference in "
        "Brier score (differences with their 95 % intervals); the gain over the mean member in NLL and Brier is "
        "guaranteed by convexity. "
        "Against the best member on validation, it shows no clear difference in accuracy, NLL and Brier score."
    )


def test_the_verdict_names_the_direction_of_each_metric() -> None:
    worse = {"accuracy": [-0.09, -0.01], "nll": [0.05, 0.2], "brier": [0.1, 0.2]}
    text = verdict(small_entry(UNCLEAR, worse, (0.0, [-0.1, 0.1])))
    assert "the ensemble shows no clear difference in accuracy, NLL and Brier score" in text
    assert "it is worse in accuracy (+5.0 points; " in text
    assert ", NLL (-0.100; +0.050 to +0.200) and Brier score (+0.000; +0.100 to +0.200)" in text


def test_what_rounds_to_nothing_is_no_difference() -> None:
    """Rounding in float64, and intervals of which both ends are shown as 0."""
    tiny = {"accuracy": [-5.6e-17, 0.0], "nll": [1e-5, 4e-4], "ece": [-3e-4, -1e-4], "brier": [1e-12, 2e-12]}
    assert "it shows no clear difference in accuracy, NLL and Brier score" in verdict(
        small_entry(CLEAR, tiny, (0.0, [-0.1, 0.1]))
    )
    tiny |= {"nll": [1e-5, 6e-4]}
    assert "it is worse in NLL (-0.100; +0.000 to +0.001)" in verdict(small_entry(CLEAR, tiny, (0.0, [-0.1, 0.1])))


def test_the_verdict_warns_of_few_rows_and_of_an_ensemble_that_a_constant_answer_equals() -> None:
    entry = small_entry(CLEAR, None, (0.0, [-0.1, 0.1]))
    assert "rows" not in verdict(entry)
    assert verdict(entry | {"num_examples": 99}).endswith(
        "This is based on 99 rows, which can only show large differences."
    )
    majority = {"accuracy": 0.78, "ensemble_minus": {"accuracy": [-0.01, 0.05]}}
    assert "It is not clearly more accurate than always giving the majority answer (+2.0 points; -1.0 to +5.0)." in (
        verdict(entry | {"majority": majority})
    )
    better = majority | {"ensemble_minus": {"accuracy": [0.01, 0.05]}}
    assert "majority" not in verdict(entry | {"majority": better})


def test_the_verdict_says_under_confident_only_where_the_gap_is_clear() -> None:
    under = verdict(small_entry(CLEAR, None, (-0.042, [-0.06, -0.02])))
    assert "under-confident: its mean confidence is 4.2 points below its accuracy" in under
    assert "best member" not in under
    assert "over-confident" in verdict(small_entry(CLEAR, None, (0.042, [0.02, 0.06])))
    assert "-confident" not in verdict(small_entry(CLEAR, None, (-0.042, [-0.09, 0.001])))


def test_the_verdict_without_anything_to_compare() -> None:
    assert "one member only" in verdict(full_entry(resamples=0) | {"num_members": 1})
    assert "No bootstrap intervals" in verdict(full_entry(resamples=0))
    few = small_entry(CLEAR | {"nll": None}, None, (0.0, [-0.1, 0.1]))
    assert "cannot be judged in NLL (too few right or wrong rows)" in verdict(few)
    few["member_mean"] = few["member_mean"] | {"nll": None}
    assert "cannot be compared in NLL (an answer got probability zero)" in verdict(few)


def test_the_verdict_of_a_real_entry_uses_its_intervals() -> None:
    entry = full_entry()
    assert max(entry["intervals"]["ensemble_minus_member_mean"]["nll"]) < 0
    text = verdict(entry)
    low, high = entry["intervals"]["ensemble_minus_member_mean"]["nll"]
    nll = entry["ensemble"]["nll"] - entry["member_mean"]["nll"]
    assert f"NLL ({nll:+.3f}; {low:+.3f} to {high:+.3f})" in text
    assert "guaranteed by convexity" in text
    assert "after temperature scaling" in text

"""The table of compared methods in the terminal, on hand-written numbers."""

from __future__ import annotations

import io

from rich.console import Console

from lorchestra.report.comparisons import methods_table

COST = {
    "fit_base_passes": 3.14159,
    "predict_base_passes": 1.8,
    "tokens": 123456,
    "fit_s": 65.4,
    "peak_bytes": 1.5e9,
    "parameters": 2304,
}


def lines(results):
    out = io.StringIO()
    Console(file=out, width=100).print(methods_table(results))
    return [line.rstrip() for line in out.getvalue().splitlines()]


def method(name, **more):
    scores = {"accuracy": 0.7654, "nll": 0.4321, "ece": 0.0456}
    return {"name": name, "cost": COST, "entry": {"ensemble": scores}} | more


def test_metrics_intervals_and_cost():
    differences = {"accuracy": [-0.01, 0.125], "nll": [-0.5, 0.25], "ece": [None, 0.01], "brier": [0, 0]}
    shown = lines([method("lora_ensemble"), method("one_lora+temperature", ensemble_minus=differences)])
    assert shown[2].split() == ["lora_ensemble", "76.5", "0.432", "4.6", "3.14", "123", "k", "65", "1.50", "2,304"]
    assert shown[3].split() == ["1.80"]
    assert shown[4].split()[0] == "one_lora"
    assert shown[5].split() == ["+temperature", "[-1.0,+12.5]", "[-0.500,+0.250]", "1.80"]
    assert max(map(len, shown)) <= 100


def test_the_calibrated_ece_is_next_to_the_ece_and_notes_are_below():
    calibrated = method("one_lora", notes=["T is [red]uncertain"])
    calibrated["entry"]["intervals"] = {"ensemble": {"ece_if_calibrated": {"mean": 0.031, "interval": [0.012, 0.05]}}}
    shown = lines([calibrated])
    assert shown[3].split() == ["(3.1:", "1.2-5.0)", "1.80"]
    assert shown[-1].strip() == "one_lora: T is [red]uncertain."
    assert max(map(len, shown)) <= 100


def test_infinite_nll_and_methods_left_out():
    infinite = method("zero_shot")
    infinite["entry"] = {"ensemble": {"accuracy": 1.0, "nll": None, "ece": 0.0}}
    shown = lines([infinite, {"name": "swag", "summary": "", "left_out": "it cannot"}])
    assert shown[2].split()[:4] == ["zero_shot", "100.0", "inf", "0.0"]
    assert shown[4].split() == ["swag", "left", "out"]

"""The rows of the page's tables: what was measured, as text with units, and what the intervals allow to say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lorchestra.metrics.table import DECISIVE, ON_PAGE, WITH_DIRECTION, Metric
from lorchestra.report.html.source import ReportRun
from lorchestra.report.html.svg import MINUS, NO_VALUE
from lorchestra.report.table import (
    BASELINES,
    ROUNDING,
    Control,
    calibrated,
    judged,
    listed,
    methods,
    reference_text,
    shown_interval,
)

Entry = Mapping[str, Any]

MEMBERS = ("member_mean", "best_member", "best_member_scaled")
"""References that are made of the ensemble's own members, and that it is judged by."""


@dataclass(frozen=True, slots=True)
class Difference:
    """The ensemble minus a reference in one metric: `judged` is better, worse, unclear or unknown."""

    value: str
    interval: str
    judged: str
    guaranteed: bool
    ends: tuple[float, float, float] | None
    """Low end, value, high end in the unit shown, for the picture; None where the interval is not known."""


@dataclass(frozen=True, slots=True)
class Reference:
    """What the ensemble is compared with, and the differences in the order of `WITH_DIRECTION`."""

    key: str
    name: str
    cells: tuple[Difference, ...]


def references(entry: Entry, controls: Sequence[Control] = ()) -> list[Reference]:
    """The ensemble against each method that it has paired intervals with; none for a single member."""
    if entry["num_members"] < 2:
        return []
    main, scaled = entry["intervals"], entry.get("temperature") or {}
    candidates = [
        ("member_mean", "the mean member", entry["member_mean"], main.get("ensemble_minus_member_mean")),
        ("best_member", "the member best on validation", entry["best_member"], main.get("ensemble_minus_best_member")),
        ("best_member_scaled", "the best member, temperature-scaled", *_own(scaled.get("best_member"))),
        *((control.key, control.name, control.values, control.ensemble_minus) for control in controls),
        ("ensemble_scaled", "the ensemble, temperature-scaled", *_own(scaled)),
        ("mean_of_logits", "the mean of logits", *_own(entry.get("mean_of_logits"))),
    ]
    order = ["mc_dropout", "base_few_shot", "base_zero_shot"]
    baselines = entry.get("baselines") or {}
    for name in sorted(baselines, key=lambda name: (order.index(name) if name in order else len(order), name)):
        candidates.append((name, BASELINES.get(name, name), *_own(baselines[name])))
    candidates.append(("majority", "the majority answer", *_own(entry.get("majority"))))
    found = []
    for key, name, values, intervals in candidates:
        if values and "accuracy" in values:
            cells = tuple(difference(m, entry["ensemble"], values, intervals or {}, key) for m in WITH_DIRECTION)
            found.append(Reference(key, name, cells))
    return found


def _own(values: Entry | None) -> tuple[Entry | None, Entry | None]:
    """Metrics of a method, and its paired intervals."""
    return values, (values or {}).get("ensemble_minus")


def number(metric: Metric, value: float | None, signed: bool | None = None) -> str:
    """A metric or (signed) difference in its unit, with a typographic minus and no sign where it rounds to 0.

    Of the metrics that are shown only the NLL can be null, which means infinite.
    """
    text = metric.number(value, "∞", signed=signed)
    return text.lstrip("+-") if value is not None and float(text) == 0 else text.replace("-", MINUS)


def difference(metric: Metric, ensemble: Entry, other: Entry, intervals: Entry, key: str = "") -> Difference:
    """The ensemble minus another in one metric; it counts only where its interval leaves out 0."""
    guaranteed = key == "member_mean" and metric.convex
    mine, theirs = ensemble[metric.key], other.get(metric.key)
    ends = intervals.get(metric.key) if metric in DECISIVE else None
    if mine is None or theirs is None:
        return Difference("not defined", "", "unknown", guaranteed, None)
    value = mine - theirs
    if ends is None or None in ends:
        return Difference(number(metric, value, True), "", "unknown", guaranteed, None)
    shown = " to ".join(number(metric, end, True) for end in ends)
    low, middle, high = (metric.factor * end if abs(end) > ROUNDING else 0.0 for end in (ends[0], value, ends[1]))
    return Difference(number(metric, value, True), shown, judged(metric, ends), guaranteed, (low, middle, high))


def headline(entry: Entry, controls: Sequence[Control] = ()) -> tuple[str, str]:
    """Did the ensemble help? One of yes, partly, unclear, mixed, no, none; and a sentence.

    Against the mean member only accuracy counts: in NLL and Brier convexity grants the gain, and differences of ECEs
    have no interval. `controls` count as the members do. Rows most of which trained the members judge nothing.
    """
    if entry["num_members"] < 2:
        return "none", "There is one member only, so there is no ensemble to judge."
    if 2 * (entry.get("seen") or {}).get("train", 0) > entry["num_examples"]:
        return "none", "It cannot be judged on rows that trained its members."
    judging = {*MEMBERS, *(control.key for control in controls)}
    alike: dict[tuple[tuple[str, ...], tuple[str, ...]], list[str]] = {}
    for reference in references(entry, controls):
        cells = [
            (metric.name, cell)
            for metric, cell in zip(WITH_DIRECTION, reference.cells, strict=True)
            if metric in DECISIVE
        ]
        counted = [(name, cell.judged) for name, cell in cells if not cell.guaranteed and cell.judged != "unknown"]
        if reference.key not in judging or not counted:
            continue
        better, worse = (tuple(name for name, found in counted if found == word) for word in ("better", "worse"))
        alike.setdefault((better, worse), []).append(reference.name)
    if not alike:
        if entry["intervals"].get("ensemble"):
            return "none", f"It cannot be judged on {entry['num_examples']} rows."
        return "none", "It cannot be judged: the evaluation has no bootstrap intervals (evaluate.resamples)."
    good, bad = any(better for better, _ in alike), any(worse for _, worse in alike)
    if good and bad:
        tone = "mixed"
    elif good:
        tone = "partly" if ((), ()) in alike else "yes"
    else:
        tone = "no" if bad else "unclear"
    order = sorted(alike, key=lambda found: (not found[0], not found[1]))  # first what it is better than, then worse
    return tone, f"The ensemble is {listed([_comparison(*found, alike[found]) for found in order], ', and ')}."


def _comparison(better: Sequence[str], worse: Sequence[str], names: Sequence[str]) -> str:
    """In which metrics it is better and worse than what has these names."""
    if better and worse:
        return f"better in {listed(better)} but worse in {listed(worse)} than {listed(names)}"
    if better or worse:
        return f"clearly {'better' if better else 'worse'} in {listed(better or worse)} than {listed(names)}"
    return f"not clearly different from {listed(names)}"


@dataclass(frozen=True, slots=True)
class Cell:
    """A number with its spread over members, its interval, and what it would be if calibrated; empty where absent."""

    value: str
    spread: str = ""
    interval: str = ""
    reference: str = ""


@dataclass(frozen=True, slots=True)
class MethodRow:
    """One method; `indent` marks what belongs to the row above."""

    key: str
    name: str
    cells: tuple[Cell, ...]
    indent: bool = False
    cost: tuple[str, ...] = ()


def method_rows(entry: Entry, metrics: Sequence[Metric] = ON_PAGE) -> list[MethodRow]:
    """All methods with `metrics`; a single member stands there once, and not as its own ensemble."""
    rows = []
    scaled = entry.get("temperature") or {}
    temperatures = {"ensemble_scaled": scaled, "best_member_scaled": scaled.get("best_member") or {}}
    alone = entry["num_members"] == 1
    for method in methods(entry):
        if alone and method.key in ("best_member", "mean_of_logits", "ensemble", "ensemble_scaled"):
            continue
        name = "one LoRA" if alone and method.key == "member_mean" else method.name.strip()
        if (temperature := temperatures.get(method.key, {}).get("T")) is not None:
            name = f"{name} (T = {temperature:.2f})"
        cells = tuple(metric_cell(metric, method.values, method.intervals) for metric in metrics)
        rows.append(MethodRow(method.key, name, cells, indent=method.name.startswith(" ")))
    return rows


def metric_cell(metric: Metric, values: Entry, intervals: Entry) -> Cell:
    """One metric of one method."""
    if metric.key not in values:
        return Cell(NO_VALUE)
    spread, ends = (values.get("std") or {}).get(metric.key), shown_interval(metric.key, intervals)
    reference = calibrated(intervals) if metric.key == "ece" else None
    return Cell(
        number(metric, values[metric.key]),
        "" if spread is None else f"± {metric.number(spread, signed=False)}",
        "" if ends is None else " to ".join(number(metric, end) for end in ends),
        "" if reference is None else reference_text(metric, reference, " to "),
    )


COST_COLUMNS = ("Base passes", "Tokens", "Seconds", "Parameters", "Passes per answer")


def comparison_rows(runs: Sequence[ReportRun]) -> list[tuple[ReportRun, list[MethodRow]]]:
    """The methods of each run with what they cost; baselines that are the same in all runs stand with the first."""
    groups = []
    seen: set[tuple[str, tuple[str, ...]]] = set()
    for run in runs:
        rows = []
        for row in method_rows(run.entry, WITH_DIRECTION):
            mark = (row.key, tuple(cell.value for cell in row.cells))
            if row.key in ("majority", "base_zero_shot", "base_few_shot"):
                if mark in seen:
                    continue
                seen.add(mark)
            rows.append(MethodRow(row.key, row.name, row.cells, row.indent, method_cost(run, row.key)))
        groups.append((run, rows))
    return groups


def method_cost(run: ReportRun, key: str) -> tuple[str, ...]:
    """What a method took, in the order of `COST_COLUMNS`; NO_VALUE where it was not measured by itself."""
    cost, number = run.cost, run.predictions.num_members
    trained = run.record["num_members"]
    if key == "majority":
        return ("0", "0", "0", "0", "0")
    if key.startswith("base_"):
        return ("0", "0", "0", "0", "1")
    if trained > 1 and key in ("member_mean", "mc_dropout"):
        tokens = cost.get("tokens")
        share = None if tokens is None else tokens / trained
        return (NO_VALUE, count(share), NO_VALUE, count(run.parameters), str(number if key == "mc_dropout" else 1))
    parameters = None if run.parameters is None else trained * run.parameters
    passes = str(1 if key.startswith("best_member") else number)
    return (
        _number(cost.get("base_passes"), "{:.1f}"),
        count(cost.get("tokens")),
        _number(cost.get("train_s"), "{:.0f}"),
        count(parameters),
        passes,
    )


def cost_rows(run: ReportRun) -> list[tuple[str, str, str]]:
    """What the training took: name, value with unit, and what it means."""
    cost, trained = run.cost, run.record["num_members"]
    peak = cost.get("peak_bytes")
    one, total = run.parameters, None if run.parameters is None else run.parameters * trained
    work = "forward work of training, in passes of the whole base over the training rows"
    return [
        ("Time", _number(cost.get("train_s"), "{:.0f} s"), "optimizer steps alone, of all members together"),
        ("Tokens", count(cost.get("tokens")), "trained on, over all members and epochs"),
        ("Speed", _number(cost.get("tokens_per_s"), "{:,.0f} tokens/s"), "of all members together"),
        ("Base passes", _number(cost.get("base_passes"), "{:.1f}"), work),
        ("Peak memory", NO_VALUE if peak is None else f"{peak / 2**30:.2f} GiB", "of the process, base included"),
        ("Trained parameters", count(total), f"{count(one)} a member" if trained > 1 else "one member"),
    ]


def count(number: float | None) -> str:
    """A count in thousands or millions."""
    if number is None:
        return NO_VALUE
    for least, unit, name in ((1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if number >= least:
            return f"{number / unit:.3g} {name}"
    return f"{number:,.0f}"


def _number(value: float | None, form: str) -> str:
    return NO_VALUE if value is None else form.format(value)

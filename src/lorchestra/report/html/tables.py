"""The rows of the page's tables: numbers as text with units, and what their intervals say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lorchestra.metrics.result import Evaluation, MethodScores, finite_ends
from lorchestra.metrics.table import DECISIVE, ON_PAGE, WITH_DIRECTION, Metric
from lorchestra.report.differences import ROUNDING, Method, judged
from lorchestra.report.html.source import ReportRun
from lorchestra.report.html.svg import MINUS, NO_VALUE
from lorchestra.report.table import BASELINES, WITHOUT_ADAPTERS, Entry, listed, methods, reference_text

MEMBERS = ("member_mean", "member_mean_scaled", "best_member", "best_member_scaled")
"""References that are made of the ensemble's members; the headline judges by them."""


UNCALIBRATED = ("member_mean", "best_member")
"""Those that stay as they are where the ensemble is calibrated."""


@dataclass(frozen=True, slots=True)
class Difference:
    """The ensemble minus a reference in one metric: `judged` is better, worse, unclear or unknown."""

    value: str
    interval: str
    judged: str
    guaranteed: bool
    ends: tuple[float, float, float] | None
    """Low end, value, high end in the unit shown, for the glyph; None where the interval is unknown."""


@dataclass(frozen=True, slots=True)
class Reference:
    """What the ensemble is compared with, and the differences in the order of the metrics."""

    key: str
    name: str
    cells: tuple[Difference, ...]


def references(
    entry: Entry, controls: Sequence[Method] = (), metrics: Sequence[Metric] = WITH_DIRECTION
) -> list[Reference]:
    """The ensemble against each method with which it has paired intervals; none for a single member."""
    evaluation = Evaluation.of(entry)
    if evaluation.num_members < 2:
        return []
    baselines = evaluation.baselines
    order = ["mc_dropout", "frozen", "tfidf", "base_few_shot", "base_zero_shot"]
    names = sorted(baselines, key=lambda name: (order.index(name) if name in order else len(order), name))
    candidates = [
        ("member_mean", "the mean member", evaluation.member_mean),
        ("member_mean_scaled", "the mean member, temperature-scaled", evaluation.member_mean_scaled),
        ("best_member", "the member best on validation", evaluation.best_member),
        ("best_member_scaled", "the best member, temperature-scaled", evaluation.best_member_scaled),
        *((control.key, control.name, control.scores) for control in controls),
        ("ensemble_raw", "the ensemble, raw", evaluation.ensemble_raw),
        ("ensemble_scaled", "the ensemble, temperature-scaled", evaluation.ensemble_scaled),
        ("mean_of_logits", "the mean of logits", evaluation.mean_of_logits),
        *((name, BASELINES.get(name, name), baselines[name]) for name in names),
        ("majority", "the majority answer", evaluation.majority),
    ]
    # the mixture's NLL is at most the mean of its members', but only before a calibration
    convex = () if evaluation.is_calibrated else ("member_mean",)
    return [
        Reference(key, name, tuple(difference(m, evaluation.ensemble, scores, key in convex) for m in metrics))
        for key, name, scores in candidates
        if scores is not None and scores.metrics
    ]


def number(metric: Metric, value: float | None, signed: bool | None = None) -> str:
    """A metric or (signed) difference in its unit, with a typographic minus and no sign where it rounds to 0.

    Of the metrics that are shown only the NLL can be null, which means infinite.
    """
    text = metric.number(value, "∞", signed=signed)
    return text.lstrip("+-") if value is not None and float(text) == 0 else text.replace("-", MINUS)


def shown(metric: Metric, scores: MethodScores) -> str:
    """A metric of a method in its unit; NO_VALUE where it is missing."""
    return number(metric, scores.metrics[metric.key]) if metric.key in scores.metrics else NO_VALUE


def present(metrics: Sequence[Metric], entries: Sequence[Evaluation]) -> tuple[Metric, ...]:
    """The metrics that an evaluation has; those of earlier versions lack some."""
    return tuple(metric for metric in metrics if any(metric.key in entry.ensemble.metrics for entry in entries))


def difference(metric: Metric, ensemble: MethodScores, other: MethodScores, convex: bool = False) -> Difference:
    """The ensemble minus another in one metric; it counts only where its interval excludes 0.

    `convex` says that a gain is guaranteed in the metrics that are.
    """
    guaranteed = convex and metric.convex
    if metric.key not in {*ensemble.metrics} & {*other.metrics}:
        return Difference(NO_VALUE, "", "unknown", guaranteed, None)
    value = ensemble.minus(other, metric.key)
    if value is None:
        return Difference("not defined", "", "unknown", guaranteed, None)
    ends = finite_ends(other.ensemble_minus.get(metric.key)) if metric.difference is not None else None
    if ends is None:
        return Difference(number(metric, value, True), "", "unknown", guaranteed, None)
    spread = " to ".join(number(metric, end, True) for end in ends)
    low, middle, high = (metric.factor * end if abs(end) > ROUNDING else 0.0 for end in (ends[0], value, ends[1]))
    return Difference(number(metric, value, True), spread, judged(metric, ends), guaranteed, (low, middle, high))


def headline(entry: Entry, controls: Sequence[Method] = ()) -> tuple[str, str]:
    """Did the ensemble help? One of yes, partly, unclear, mixed, no, none; and a sentence.

    Against the mean member only accuracy counts: in NLL and Brier the gain is guaranteed by convexity, and differences
    of ECEs have no interval. Where the ensemble is calibrated, that holds for all members that are not. `controls`
    count as the members do. Rows most of which trained the members judge nothing.
    """
    evaluation = Evaluation.of(entry)
    if evaluation.num_members < 2:
        return "none", "There is one member only, so there is no ensemble to judge."
    if 2 * (evaluation.seen or {}).get("train", 0) > evaluation.num_examples:
        return "none", "It cannot be judged on rows that trained its members."
    groups = _by_result(evaluation, controls)
    if not groups:
        if evaluation.ensemble.intervals:
            return "none", f"It cannot be judged on {evaluation.num_examples} rows."
        return "none", "It cannot be judged: the evaluation has no bootstrap intervals (evaluate.resamples)."
    good, bad = any(better for better, _ in groups), any(worse for _, worse in groups)
    if good and bad:
        tone = "mixed"
    elif good:
        tone = "partly" if ((), ()) in groups else "yes"
    else:
        tone = "no" if bad else "unclear"
    order = sorted(groups, key=lambda result: (not result[0], not result[1]))  # first better, then worse
    return tone, f"The ensemble is {listed([_comparison(*result, groups[result]) for result in order], ', and ')}."


_Result = tuple[tuple[str, ...], tuple[str, ...]]
"""Names of the metrics in which the ensemble is better, and of those in which it is worse."""


def _by_result(evaluation: Evaluation, controls: Sequence[Method]) -> dict[_Result, list[str]]:
    """The names of the references that count, grouped by the same result."""
    compared = {control.key for control in controls}
    judging = {*MEMBERS, *compared}
    groups: dict[_Result, list[str]] = {}
    for reference in references(evaluation, controls):
        # what the calibration of one side gains is no gain of the ensemble
        is_raw = reference.key in UNCALIBRATED or (reference.key in compared and "+temperature" not in reference.key)
        unfair = ("nll", "brier") if evaluation.is_calibrated and is_raw else ()
        counted = [
            (metric.name, cell.judged)
            for metric, cell in zip(WITH_DIRECTION, reference.cells, strict=True)
            if metric in DECISIVE and cell.judged != "unknown" and not (cell.guaranteed or metric.key in unfair)
        ]
        if reference.key in judging and counted:
            better, worse = (tuple(name for name, result in counted if result == word) for word in ("better", "worse"))
            groups.setdefault((better, worse), []).append(reference.name)
    return groups


def _comparison(better: Sequence[str], worse: Sequence[str], names: Sequence[str]) -> str:
    """In which metrics the ensemble is better and worse than the methods of these names."""
    if better and worse:
        return f"better in {listed(better)} but worse in {listed(worse)} than {listed(names)}"
    if better or worse:
        return f"clearly {'better' if better else 'worse'} in {listed(better or worse)} than {listed(names)}"
    return f"not clearly different from {listed(names)}"


@dataclass(frozen=True, slots=True)
class Cell:
    """A number with its spread over members, its interval, and its value if calibrated; empty where missing."""

    value: str
    spread: str = ""
    interval: str = ""
    reference: str = ""


@dataclass(frozen=True, slots=True)
class MethodRow:
    """One method; `indent` marks a variant of the row above."""

    key: str
    name: str
    cells: tuple[Cell, ...]
    indent: bool = False
    cost: tuple[str, ...] = ()


def method_rows(entry: Entry, metrics: Sequence[Metric] = ON_PAGE) -> list[MethodRow]:
    """All methods with `metrics`; a single member has one row, and none as its ensemble."""
    evaluation = Evaluation.of(entry)
    rows = []
    alone = evaluation.num_members == 1
    for method in methods(evaluation):
        name = method.name.strip()
        if alone and method.key == "ensemble" and evaluation.ensemble_raw is not None:
            name = "one LoRA, calibrated"
        elif alone and method.key in _OF_SEVERAL:
            continue
        elif alone and method.key == "member_mean":
            name = "one LoRA"
        if method.scores.temperature is not None:
            name = f"{name} (T = {method.scores.temperature:.2f})"
        cells = tuple(metric_cell(metric, method.scores) for metric in metrics)
        rows.append(MethodRow(method.key, name, cells, indent=method.name.startswith(" ")))
    return rows


def metric_cell(metric: Metric, scores: MethodScores) -> Cell:
    """One metric of one method."""
    spread, ends = scores.std.get(metric.key), scores.interval(metric.key)
    reference = scores.ece_if_calibrated if metric.key == "ece" else None
    return Cell(
        shown(metric, scores),
        "" if spread is None else f"± {metric.number(spread, signed=False)}",
        "" if ends is None else " to ".join(number(metric, end) for end in ends),
        "" if reference is None else reference_text(reference, " to "),
    )


_OF_SEVERAL = ("best_member", "mean_of_logits", "ensemble", "ensemble_raw", "ensemble_scaled")
COST_COLUMNS = ("Base passes", "Tokens", "Seconds", "Parameters", "Passes per answer")


def comparison_rows(runs: Sequence[ReportRun]) -> list[tuple[ReportRun, list[MethodRow]]]:
    """The methods of each run with their cost; baselines that are the same in all runs are listed with the first."""
    groups = []
    seen: set[tuple[str, tuple[str, ...]]] = set()
    for run in runs:
        rows = []
        for row in method_rows(run.entry, WITH_DIRECTION):
            mark = (row.key, tuple(cell.value for cell in row.cells))
            if row.key in ("majority", "base_zero_shot", "base_few_shot", *WITHOUT_ADAPTERS):
                if mark in seen:
                    continue
                seen.add(mark)
            rows.append(MethodRow(row.key, row.name, row.cells, row.indent, method_cost(run, row.key)))
        groups.append((run, rows))
    return groups


def method_cost(run: ReportRun, key: str) -> tuple[str, ...]:
    """The cost of a method, in the order of `COST_COLUMNS`; NO_VALUE where it was not measured separately."""
    cost, num_members = run.cost, run.predictions.num_members
    trained = run.record["num_members"]
    if key == "majority":
        return ("0", "0", "0", "0", "0")
    if key.startswith("base_"):
        return ("0", "0", "0", "0", "1")
    if key in WITHOUT_ADAPTERS:
        seconds = (run.entry.seconds or {}).get(key)
        return (NO_VALUE, "0", _number(seconds, "{:.0f}"), NO_VALUE, "0" if key == "tfidf" else NO_VALUE)
    if trained > 1 and key in ("member_mean", "mc_dropout"):
        tokens = cost.get("tokens")
        share = None if tokens is None else tokens / trained
        return (NO_VALUE, count(share), NO_VALUE, count(run.parameters), str(num_members if key == "mc_dropout" else 1))
    parameters = None if run.parameters is None else trained * run.parameters
    passes = str(1 if key.startswith("best_member") else num_members)
    return (
        _number(cost.get("base_passes"), "{:.1f}"),
        count(cost.get("tokens")),
        _number(cost.get("train_s"), "{:.0f}"),
        count(parameters),
        passes,
    )


def cost_rows(run: ReportRun) -> list[tuple[str, str, str]]:
    """The cost of the training: name, value with unit, meaning."""
    cost, trained = run.cost, run.record["num_members"]
    peak = cost.get("peak_bytes")
    one, total = run.parameters, None if run.parameters is None else run.parameters * trained
    work = "forward work of training, in passes of the whole base over the training rows"
    return [
        ("Time", _number(cost.get("train_s"), "{:.0f} s"), "optimizer steps only, of all members together"),
        ("Tokens", count(cost.get("tokens")), "trained on, over all members and epochs"),
        ("Speed", _number(cost.get("tokens_per_s"), "{:,.0f} tokens/s"), "of all members together"),
        ("Base passes", _number(cost.get("base_passes"), "{:.1f}"), work),
        ("Peak memory", NO_VALUE if peak is None else f"{peak / 2**30:.2f} GiB", "of the process, base included"),
        ("Trained parameters", count(total), f"{count(one)} per member" if trained > 1 else "one member"),
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

"""An evaluation entry of `metrics.json` as tables for the terminal, and as a verdict in plain words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from lorchestra.metrics.table import BY_KEY, DECISIVE, IN_TABLES, Metric
from lorchestra.report.fitted_table import FittedTable

Entry = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Method:
    """A row of the table: key (of the entry, or of a baseline), name, metrics, and intervals by metric."""

    key: str
    name: str
    values: Entry
    intervals: Entry


@dataclass(frozen=True, slots=True)
class Control:
    """A method from elsewhere that the verdict compares the ensemble with: key, name, metrics, paired intervals."""

    key: str
    name: str
    values: Entry
    ensemble_minus: Entry


BASELINES = {"base_zero_shot": "base, zero-shot", "base_few_shot": "base, few-shot", "mc_dropout": "MC dropout"}
ROUNDING = 1e-9
"""Differences up to this come of rounding in float64."""
_FEW_ROWS = 100


def evaluation_table(entry: Entry) -> FittedTable:
    """One row per method, one column per metric; each cell holds the value and below it its interval.

    Below the ECE also stands what perfectly calibrated confidences like the method's would show on as many rows: mean
    and range. Fits 100 columns. Methods that the entry lacks, or that have a "reason" instead of metrics, have no row.
    Behind the values of the mean member stands its standard deviation over members.
    """
    level = f"{100 * entry['intervals']['level']:g} %"
    found = list(methods(entry))
    caption = f"In brackets: {level} interval. Gap: mean confidence - accuracy. ±: spread of members."
    if any(calibrated(method.intervals) for method in found):
        caption += f" In parentheses: ECE of a perfectly calibrated model on as many rows, mean and {level} range."
    table = Table(
        title=_title(entry),
        caption=caption,
        box=SIMPLE_HEAD,
        title_justify="left",
        caption_justify="left",
        show_edge=False,
        padding=(0, 1, 0, 0),
    )
    table.add_column("Method", overflow="fold")
    for metric in IN_TABLES:
        table.add_column(metric.heading, no_wrap=True)
    widths = [max(len(_value(metric, method.values)) for method in found) for metric in IN_TABLES]
    for method in found:
        style = "bold" if method.key == "ensemble" else ""
        cells = [
            _cell(metric, method.values, method.intervals, width, style)
            for metric, width in zip(IN_TABLES, widths, strict=True)
        ]
        table.add_row(Text(method.name, style=style), *cells)
    return FittedTable(table)


def ood_table(entry: Entry) -> FittedTable | None:
    """AUROC of telling OOD rows apart by three scores, for the ensemble and the mean of its members.

    None if the entry has no "ood".
    """
    sets: Mapping[str, Any] = entry.get("ood") or {}
    if not sets:
        return None
    table = Table(
        title=Text(f"Out of distribution, against {entry['task']} {entry['split']}: AUROC (0.5 is chance)"),
        caption="One LoRA: mean of members ± their spread. Confidence: mean, % (in-distribution / OOD).",
        box=SIMPLE_HEAD,
        title_justify="left",
        caption_justify="left",
        show_edge=False,
        padding=(0, 1, 0, 0),
    )
    table.add_column("OOD set", min_width=14, overflow="fold")
    for title in ("Method", "Max prob.", "Entropy", "Mutual inf.", "Confidence"):
        table.add_column(title, no_wrap=True)
    for name, scores in sets.items():
        single = scores["member_mean"]
        pairs = zip(_aurocs(scores["auroc"], {}), _aurocs(single["auroc"], single["std"]), strict=True)
        table.add_row(
            Text(f"{name}\n{scores['num_examples']['ood']} rows"),
            "ensemble\none LoRA",
            *("\n".join(pair) for pair in pairs),
            f"{_confidences(scores)}\n{_confidences(single)}",
        )
    return FittedTable(table, num_names=2)


def verdict(entry: Entry, controls: Sequence[Control] = ()) -> str:
    """What the paired intervals allow to say of the ensemble, in plain sentences.

    A difference counts only where its interval leaves out 0. `controls` are methods of equal compute and the like, on
    the same rows.
    """
    intervals = entry["intervals"]
    sentences, judging = list(entry.get("notes") or ()), True
    if entry["num_members"] == 1:
        sentences.append("There is one member only, so the ensemble is that member.")
    elif "ensemble_minus_member_mean" not in intervals:
        sentences.append("No bootstrap intervals were computed, so no difference can be judged.")
    elif not (judging := any(intervals["ensemble_minus_member_mean"].values())):
        sentences.append("So no difference from another method can be judged.")
    else:
        against_mean = _judge(entry, entry["member_mean"], intervals["ensemble_minus_member_mean"])
        sentences.append(
            f"Against the mean of its {entry['num_members']} members, the ensemble {against_mean} (differences with"
            f" their {100 * intervals['level']:g} % intervals); the gain over the mean member in NLL and Brier is"
            " guaranteed by convexity."
        )
        if "ensemble_minus_best_member" in intervals:
            against_best = _judge(entry, entry["best_member"], intervals["ensemble_minus_best_member"])
            sentences.append(f"Against the best member on validation, it {against_best}.")
        scaled = (entry.get("temperature") or {}).get("best_member") or {}
        if scaled.get("ensemble_minus"):
            against_scaled = _judge(entry, scaled, scaled["ensemble_minus"])
            sentences.append(f"Against that member after temperature scaling, it {against_scaled}.")
        for control in controls:
            sentences.append(f"Against {control.name}, it {_judge(entry, control.values, control.ensemble_minus)}.")
        if (than_majority := _than_majority(entry)) is not None:
            sentences.append(than_majority)
    gap, gap_interval = entry["ensemble"]["signed_gap"], intervals.get("ensemble", {}).get("signed_gap")
    if gap_interval is not None and not covers_zero(gap_interval):
        side, where = ("under", "below") if gap < 0 else ("over", "above")
        distance = f"{abs(100 * gap):.1f} points {where} its accuracy"
        sentences.append(f"The ensemble is {side}-confident: its mean confidence lies {distance}.")
    if (calibration := _calibration(entry)) is not None:
        sentences.append(calibration)
    if judging and entry["num_examples"] < _FEW_ROWS:
        sentences.append(f"All this is of {entry['num_examples']} rows, which can show large differences only.")
    return " ".join(sentences)


def early_exit_text(entry: Entry) -> str:
    """What asking members one after the other would save and change, of an entry that has "early_exit"."""
    early = entry["early_exit"]
    rows = entry["num_examples"]
    shares = ", ".join(f"{k}: {100 * n / rows:.1f} %" for k, n in enumerate(early["histogram"], start=1) if n)
    accuracy, nll = (BY_KEY[key].number(early[key], absent="inf") for key in ("accuracy", "nll"))
    return (
        f"With early exit ({early['rule']}) a row asks {early['mean_members']:.2f} of {entry['num_members']} members on"
        f" average ({shares}); {100 * early['agreement']:.1f} % of rows have the answer of all members; accuracy"
        f" {accuracy} %, NLL {nll}."
    )


def _calibration(entry: Entry) -> str | None:
    """How the ensemble's ECE compares with what calibrated confidences would show on these rows."""
    intervals = entry["intervals"].get("ensemble") or {}
    reference = calibrated(intervals)
    if reference is None or reference["interval"] is None or intervals.get("ece") is None:
        return None
    metric = BY_KEY["ece"]
    value, (low, high) = entry["ensemble"]["ece"], reference["interval"]
    shown = f"{metric.number(low)} to {metric.number(high)} %"
    subject = f"Its ECE of {metric.number(value)} %"
    if value > high + ROUNDING:
        return f"{subject} is more than a perfectly calibrated model would show on as many rows ({shown})."
    return (
        f"{subject} is no evidence of miscalibration: a perfectly calibrated model would show {shown} on as many rows."
    )


def _title(entry: Entry) -> Text:
    return Text(
        f"{entry['task']} {entry['split']} (examples: {entry['num_examples']}, members: {entry['num_members']})"
    )


def methods(entry: Entry) -> Iterator[Method]:
    """Each method that has metrics, in the order of the table."""
    main = entry["intervals"]
    scaled = entry.get("temperature") or {}
    baselines = dict(entry.get("baselines") or {})
    after = {name: baselines.pop(name) for name in ("mc_dropout",) if name in baselines}
    before = {name: baselines[name] for name in sorted(baselines, key=_baseline_order)}
    candidates = [
        ("majority", "majority", entry.get("majority")),
        *((name, BASELINES.get(name, name), values) for name, values in before.items()),
        ("member_mean", f"one LoRA (mean of {entry['num_members']})", entry.get("member_mean")),
        ("best_member", "one LoRA (best on val)", entry.get("best_member")),
        ("best_member_scaled", "  + temperature", scaled.get("best_member")),
        *((name, BASELINES[name], values) for name, values in after.items()),
        ("mean_of_logits", "mean of logits", entry.get("mean_of_logits")),
        ("ensemble", "ensemble", entry["ensemble"]),
        ("ensemble_scaled", "  + temperature", scaled),
    ]
    for key, name, values in candidates:
        if values and "accuracy" in values:
            yield Method(key, name, values, main.get(key) or values.get("intervals") or {})


def _baseline_order(name: str) -> tuple[int, str]:
    known = list(BASELINES)
    return (known.index(name) if name in known else len(known), name)


def _value(metric: Metric, values: Entry) -> str:
    # Of these metrics only the NLL can be null: an answer of probability zero makes it infinite.
    return metric.number(values[metric.key], absent="inf")


def _cell(metric: Metric, values: Entry, intervals: Entry, width: int, style: str) -> Text:
    text = Text(f"{_value(metric, values):>{width}}", style=style)
    spread = values.get("std", {}).get(metric.key)
    if spread is not None:
        text.append(f" ±{metric.number(spread, signed=False)}", style="dim")
    if (ends := shown_interval(metric.key, intervals)) is not None:
        low, high = (metric.number(end, absent="inf") for end in ends)
        text.append(f"\n[{low},{high}]", style="dim")
    if metric.key == "ece" and (reference := calibrated(intervals)) is not None:
        text.append(f"\n{reference_text(metric, reference)}", style="dim")
    return text


def calibrated(intervals: Entry) -> Entry | None:
    """What perfectly calibrated confidences would show as ECE: `mean` and `interval`; None in entries without it."""
    found: Entry | None = intervals.get("ece_if_calibrated")
    return found


def reference_text(metric: Metric, reference: Entry, between: str = "-") -> str:
    """That as a text: (3.9: 1.8-6.4)."""
    ends = reference["interval"]
    spread = "" if ends is None else f": {between.join(metric.number(end) for end in ends)}"
    return f"({metric.number(reference['mean'])}{spread})"


def shown_interval(key: str, intervals: Entry) -> Sequence[float | None] | None:
    """The interval of a metric; None where there is none.

    Entries of earlier versions have percentile intervals of the ECE, which do not cover; what it would be if calibrated
    is missing there, and so they are known.
    """
    if key == "ece" and calibrated(intervals) is None:
        return None
    ends: Sequence[float | None] | None = intervals.get(key)
    return ends


def _aurocs(aurocs: Entry, std: Entry) -> list[str]:
    cells = []
    for name in ("max_prob", "entropy", "mutual_information"):
        value, spread = aurocs.get(name), std.get(name)
        cells.append("-" if value is None else f"{value:.3f}" + ("" if spread is None else f" ±{spread:.3f}"))
    return cells


def _confidences(scores: Entry) -> str:
    return " / ".join(f"{100 * scores['mean_confidence'][side]:.1f}" for side in ("in_dist", "ood"))


def covers_zero(ends: Sequence[float]) -> bool:
    """Whether an interval of a difference says that there may be none."""
    return ends[0] <= ROUNDING and ends[1] >= -ROUNDING


def judged(metric: Metric, ends: Sequence[float]) -> str:
    """What an interval of the ensemble minus another says: better, worse or unclear.

    Where both ends round to 0 in the digits that are shown, no one could read a difference from them.
    """
    if covers_zero(ends) or all(float(metric.number(end)) == 0 for end in ends):
        return "unclear"
    return "better" if ends[0] * metric.direction > 0 else "worse"


def _judge(entry: Entry, other: Entry, differences: Entry) -> str:
    """A predicate ("is better in ... and shows no clear difference in ...") from the intervals of ensemble - other."""
    relations = {"better": "is better in", "worse": "is worse in", "unclear": "shows no clear difference in"}
    groups: dict[str, list[str]] = {word: [] for word in relations}
    undefined, too_few = [], []
    for metric in DECISIVE:
        key, name = metric.key, metric.name
        ends = differences.get(key)
        if entry["ensemble"][key] is None or other.get(key) is None or (ends is not None and None in ends):
            undefined.append(name)
            continue
        if ends is None:
            too_few.append(name)
            continue
        word = judged(metric, ends)
        size = f" ({_difference(metric, entry['ensemble'][key] - other[key], ends)})"
        groups[word].append(name if word == "unclear" else name + size)
    parts = [f"{relations[word]} {listed(names)}" for word, names in groups.items() if names]
    if undefined:
        parts.append(f"cannot be compared in {listed(undefined)} (an answer got probability zero)")
    if too_few:
        parts.append(f"cannot be judged in {listed(too_few)} (too few right or wrong rows)")
    return listed(parts)


def _difference(metric: Metric, value: float, ends: Sequence[float]) -> str:
    """A difference with its interval: +5.0 points; +1.0 to +9.0."""
    shown, low, high = (metric.number(number, signed=True) for number in (value, *ends))
    return f"{shown}{' points' if metric.unit == '%' else ''}; {low} to {high}"


def _than_majority(entry: Entry) -> str | None:
    """A sentence where the ensemble is not clearly more accurate than one constant answer."""
    other = entry.get("majority") or {}
    ends = (other.get("ensemble_minus") or {}).get("accuracy")
    accuracy = BY_KEY["accuracy"]
    if ends is None or judged(accuracy, ends) == "better":
        return None
    size = _difference(accuracy, entry["ensemble"]["accuracy"] - other["accuracy"], ends)
    return f"It is not clearly more accurate than always giving the majority answer ({size})."


def listed(names: Sequence[str], last: str = " and ") -> str:
    """Names as in a sentence: a, b and c."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])}{last}{names[-1]}"

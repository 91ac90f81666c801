"""The figures of one run, each a pure function of its predictions and metrics."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lorchestra.metrics import predictive
from lorchestra.metrics.density import kernel_density
from lorchestra.metrics.predictive import FloatArray
from lorchestra.metrics.scores import NUM_BINS, RowScores, score_rows
from lorchestra.metrics.table import BY_KEY
from lorchestra.report.differences import ROUNDING
from lorchestra.report.figure import MAX_MEMBER_LINES, pool, reliability
from lorchestra.report.html.measures import abstain, thin
from lorchestra.report.html.source import ReportRun
from lorchestra.report.html.svg import Axis, Figure, Key, Panel, percent, plain

ONE, ENSEMBLE, BASE = "one", "ens", "base"
"""Colors by meaning, in every figure: vermilion, blue and green of the Okabe-Ito palette."""

SLIDER_STEPS = 200
"""Steps of the slider, each 0.005 of confidence."""

DENSITY_POINTS = 160
"""Points of a density curve."""

MAX_POINTS = 500
"""Points of a line; more would not be visible."""

FEW_SHOT, ZERO_SHOT = "base_few_shot", "base_zero_shot"


def single_name(run: ReportRun) -> str:
    """What "one LoRA" means in the figures."""
    return "one LoRA (members pooled)" if run.predictions.num_members > 1 else "one LoRA (the only member)"


def _scores(run: ReportRun) -> tuple[list[RowScores], RowScores]:
    """Row scores of each member, and of the ensemble."""
    predictions = run.predictions
    members = [score_rows(log_probs_EC, predictions.labels) for log_probs_EC in predictions.log_probs_MEC]
    return members, score_rows(run.mixture(predictions), predictions.labels)


def reliability_figure(run: ReportRun) -> Figure:
    """Accuracy by confidence, of one LoRA and of the ensemble, and below it the share of rows in each bin."""
    members, ensemble = _scores(run)
    several = len(members) > 1
    curves = [(single_name(run), pool(members), ONE, "dash", "square"), ("ensemble", ensemble, ENSEMBLE, "", "circle")]
    curves = curves if several else [(single_name(run), ensemble, ONE, "dash", "square")]
    diagram = Panel(
        Axis(0, 1, "", percent),
        Axis(0, 1, "accuracy (share right)", percent),
        "Reliability diagram: accuracy by confidence; on the dotted diagonal, confidence equals accuracy.",
        height=350,
        bottom=28,
    )
    diagram.line([0, 1], [0, 1], "muted", "dot")
    if several and len(members) <= MAX_MEMBER_LINES:
        for index, rows in zip(run.members, members, strict=True):
            confidence, accuracy, share = reliability(rows)
            diagram.line(confidence[share > 0], accuracy[share > 0], ONE, "thin", f"member {index}")
    shares = Panel(
        Axis(0, 1, "confidence (largest probability)", percent),
        Axis(0, _round_up(max(reliability(rows)[2].max() for _, rows, *_ in curves)), "rows", percent, 4),
        f"Share of rows in each of {NUM_BINS} bins of confidence.",
        height=170,
    )
    width = 0.84 / NUM_BINS / len(curves)
    for position, (name, rows, color, style, marker) in enumerate(curves):
        confidence, accuracy, share = reliability(rows)
        diagram.line(confidence[share > 0], accuracy[share > 0], color, style)
        for k in np.flatnonzero(share):
            count = round(float(share[k]) * len(rows.labels))
            diagram.point(
                confidence[k],
                accuracy[k],
                color,
                marker,
                f"{name}: {percent(round(confidence[k], 3))} confident, {percent(round(accuracy[k], 3))} right"
                f" ({count} rows)",
            )
            left = k / NUM_BINS + 0.08 / NUM_BINS + position * width
            shares.bar(left, left + width, share[k], color, f"{name}: {percent(round(float(share[k]), 3))} of rows")
    keys = [Key(name, color, style, marker) for name, _, color, style, marker in curves]
    if several and len(members) <= MAX_MEMBER_LINES:
        keys.append(Key("each member", ONE, "thin"))
    keys.append(Key("confidence = accuracy", "muted", "dot"))
    return Figure(
        "Can its confidence be trusted?",
        [f'<div class="stack">{diagram.svg()}{shares.svg()}</div>'],
        f"Reliability over {NUM_BINS} bins (lo, hi] of confidence; bins without rows have no point. Points below the"
        " diagonal are over-confident. Bins with few rows say little: the bars show the share of rows in each.",
        keys,
    )


def wrong_figure(run: ReportRun) -> Figure:
    """Density of the confidence of wrong predictions.

    Source: arXiv 2310.00035, Fig. 1.
    """
    members, ensemble = _scores(run)
    curves = [(single_name(run), pool(members) if len(members) > 1 else ensemble, ONE, "dash")]
    if len(members) > 1:
        curves.append(("ensemble", ensemble, ENSEMBLE, ""))
    if (base := run.baselines.get(FEW_SHOT) or run.baselines.get(ZERO_SHOT)) is not None:
        name = "base, few-shot" if FEW_SHOT in run.baselines else "base, zero-shot"
        rows = score_rows(predictive.mixture_log_probs(base.log_probs_MEC), base.labels)
        curves.insert(0, (name, rows, BASE, "dot2"))
    low = 1.0 / max(int(run.predictions.num_choices.max()), 1)
    grid = np.linspace(low, 1.0, DENSITY_POINTS)
    drawn, keys = [], []
    for name, rows, color, style in curves:
        wrong = rows.confidence[rows.correct == 0]
        note = f"{len(wrong)} wrong of {len(rows.labels)}"
        note += f", mean confidence {percent(round(float(wrong.mean()), 3))}" if len(wrong) else ""
        keys.append(Key(f"{name}: {note}", color, style))
        if len(wrong):
            drawn.append((grid, kernel_density(wrong, grid, low, 1.0), color, style, float(wrong.mean())))
    top = max((float(ys.max()) for _, ys, *_ in drawn), default=1.0)
    panel = Panel(
        Axis(low, 1, "confidence of wrong predictions", percent),
        Axis(0, 1.08 * top, "density (per unit of confidence)", plain, 5),
        "Density of the confidence of wrong predictions. " + "; ".join(key.name for key in keys),
        height=360,
    )
    for xs, ys, color, style, mean in drawn:
        panel.area(xs, ys, color)
        panel.line(xs, ys, color, style)
        panel.line([mean, mean], [0, 0.05 * top], color, "heavy")
    if not drawn:
        panel.text((1 + low) / 2, 0.5, "no wrong predictions", anchor="middle")
    return Figure(
        "How sure is it when it is wrong?",
        [panel.svg()],
        "Kernel density of the confidence of wrong predictions, each curve with area 1; the tick marks its mean. Mass"
        " on the right is confident error. The curves start at the least possible confidence, one over the number of"
        " choices.",
        keys,
    )


def risk_figure(run: ReportRun, probe: str) -> tuple[Figure, dict[str, object]]:
    """Error rate among the answered rows by their share, and the data with which the slider moves `probe` on it.

    The data are the numbers of rows answered, and of wrong ones among these, at thresholds in equal steps from 0 to 1.
    """
    predictions, entry = run.predictions, run.entry
    mixture = run.mixture(predictions)
    several = predictions.num_members > 1
    curves: list[tuple[FloatArray, Key]] = []
    if several and (best := entry.best_member.index) is not None:
        curves.append((predictions.log_probs_MEC[best], Key("one LoRA (best on validation)", ONE, "dash")))
    curves.append((mixture, Key("ensemble", ENSEMBLE) if several else Key(single_name(run), ONE, "dash")))
    lines = [(*predictive.risk_coverage(rows, predictions.labels), key) for rows, key in curves]
    top = _round_up(max(float(risk.max()) for _, risk, _ in lines) or 0.01)
    panel = Panel(
        Axis(0, 1, "coverage (share of rows answered)", percent),
        Axis(0, top, "risk (share of answers wrong)", percent),
        "Risk against coverage: the error rate among the most confident rows, as more are answered.",
        height=340,
    )
    for coverage, risk, key in lines:
        kept = thin(len(coverage), MAX_POINTS)
        panel.line(coverage[kept], risk[kept], key.color, key.style)
    panel.parts.append(
        f'<g class="c-ens probe" id="{probe}" hidden=""><path class="line thin"/><circle class="ring" r="6"/></g>'
    )
    points = abstain(mixture, predictions.labels, [k / SLIDER_STEPS for k in range(SLIDER_STEPS + 1)])
    data = {
        "rows": predictions.num_examples,
        "answered": [point.answered for point in points],
        "wrong": [point.wrong for point in points],
        "left": panel.px(0),
        "right": panel.px(1),
        "floor": panel.py(0),
        "top": panel.py(top),
        "most": top,
    }
    caption = (
        "Rows are answered from the most confident on; the others go to a person. Lower is better. Area under the curve"
        f" (AURC): {BY_KEY['aurc'].number(entry.ensemble.metrics['aurc'])}."
    )
    return Figure("What if it may abstain?", [panel.svg()], caption, [key for *_, key in lines]), data


def _round_up(value: float) -> float:
    """The next of 1, 1.5, 2, 3, 4, 5, 6, 8, 10 times a power of ten, at most 1: the upper end of an axis of shares."""
    power = 10.0 ** np.floor(np.log10(max(value, 1e-6)))
    step = next(step for step in (1, 1.5, 2, 3, 4, 5, 6, 8, 10) if step * power >= value - 1e-12)
    return float(min(1.0, step * power))


def padded_range(values: Sequence[float | None], most: float = np.inf) -> tuple[float, float]:
    """Ends of an axis that holds all finite values with some room, within 0 and `most` (a share is at most 1)."""
    finite = [value for value in values if value is not None and np.isfinite(value)]
    if not finite:
        return 0.0, 1.0
    low, high = min(finite), max(finite)
    width = high - low if high - low > ROUNDING else 0.0
    room = 0.06 * width or 0.05 * abs(high) or 0.05
    return max(0.0, low - room), min(most, high + room)

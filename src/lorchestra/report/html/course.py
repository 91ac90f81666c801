"""Figures of a run: training by epoch, from one LoRA to the ensemble, differences between members, OOD scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape

import numpy as np

from lorchestra.metrics.diversity import agreement, symmetric_kl
from lorchestra.metrics.predictive import FloatArray
from lorchestra.metrics.result import MethodScores
from lorchestra.metrics.scores import nll
from lorchestra.report.figure import MAX_MEMBER_LINES
from lorchestra.report.html.figures import ENSEMBLE, MAX_POINTS, ONE, padded_range
from lorchestra.report.html.measures import History, history, moving_mean, ood_scores_by_name, thin
from lorchestra.report.html.source import ReportRun
from lorchestra.report.html.svg import Axis, Figure, Key, Panel, percent, plain

RUN_COLORS = ("ens", "one", "base", "purple", "orange", "sky", "ink")
"""Colors of runs in a common figure, from the Okabe-Ito palette; with more runs they repeat, and labels differ."""

_SCORES = {
    "max_prob": "confidence (max. probability)",
    "entropy": "entropy (nats)",
    "mutual_information": "mutual information (nats)",
}
_MAX_NUMBERS = 10
"""With more members, the cells of a matrix are too small for numbers."""


def training_figure(run: ReportRun) -> Figure | None:
    """Validation NLL and accuracy and training loss by epoch and member; None without events.

    Source: arXiv 2310.00035, Fig. 3, for the kind of figure.
    """
    course = history(run.events)
    if course is None:
        return None
    epochs = course.epochs
    several = run.predictions.num_members > 1
    ensemble = _kept_ensemble(run) if several else None
    panels = [
        _by_epoch("validation NLL (nats)", epochs, course.val_nll, course, ensemble and ensemble[0], plain, run),
        _by_epoch("validation accuracy", epochs, course.val_accuracy, course, ensemble and ensemble[1], percent, run),
    ]
    window = max(1, len(course.losses) // 25)
    loss_SM = np.stack([moving_mean(column, window) for column in zip(*course.losses, strict=True)], axis=1)
    panels.append(_by_epoch("training loss (nats)", course.step_epochs, loss_SM.tolist(), course, None, plain, run))
    keys = [Key("mean of members", ONE, "dash")] if several else []
    if not several or loss_SM.shape[1] <= MAX_MEMBER_LINES:
        keys.append(Key("each member", ONE, "thin"))
    keys.append(Key("kept adapter", ONE, "", "ring", line=False))
    if ensemble:
        keys.append(Key("ensemble of the kept adapters", ENSEMBLE, ""))
    return Figure(
        "How training went",
        [panel.svg() for panel in panels],
        f"Validation once per epoch. Training loss: {_loss(run)} of each member's batch"
        + (f", smoothed over the last {window} steps." if window > 1 else ".")
        + (" Rings: the step whose adapter was kept." if run.config.train.keep == "best" else "")
        + ("" if run.search is None else f" Searched before: {'; '.join(run.search.sentences())}."),
        keys,
        "three",
    )


def _kept_ensemble(run: ReportRun) -> tuple[float, float] | None:
    """Validation NLL and accuracy of the ensemble of the saved members."""
    rows = run.validation
    if rows is None or (rows.labels < 0).any():
        return None
    mixture = run.mixture(rows)
    return nll(mixture, rows.labels), float((mixture.argmax(axis=-1) == rows.labels).mean())


def _loss(run: ReportRun) -> str:
    return "cross-entropy" if run.distillation is None else "KL divergence to or from the ensemble"


def _by_epoch(
    label: str,
    xs: FloatArray,
    rows: Sequence[Sequence[float | None]],
    course: History,
    level: float | None,
    text: Callable[[float], str],
    run: ReportRun,
) -> Panel:
    """One panel: a thin line per member, their mean, rings at the kept adapters, and the ensemble's level."""
    values = np.array([[np.nan if value is None else value for value in row] for row in rows], dtype=np.float64)
    kept = thin(len(values), MAX_POINTS)
    last = float(max(course.step_epochs[-1], course.epochs[-1]))
    finite = [float(value) for value in values.ravel()] + ([level] if level is not None else [])
    panel = Panel(
        Axis(0, last, "epoch"),
        Axis(*padded_range(finite, 1.0 if text is percent else np.inf), label, text, 6),
        f"{label} by epoch, one line per member",
        width=380,
        height=300,
        left=62,
    )
    num_members = values.shape[1]
    if num_members <= MAX_MEMBER_LINES:
        for m in range(num_members):
            panel.line(xs[kept], values[kept, m], ONE, "thin" if num_members > 1 else "", f"member {m}")
    if num_members > 1:
        finite_S = np.isfinite(values).sum(axis=1)
        mean = np.where(finite_S == num_members, np.nansum(values, axis=1) / np.maximum(finite_S, 1), np.nan)
        panel.line(xs[kept], mean[kept], ONE, "dash heavy", "mean of members")
    if level is not None and np.isfinite(level):
        shown = percent(round(level, 3)) if text is percent else f"{level:.3f}"
        panel.line([0, last], [level, level], ENSEMBLE, "", f"ensemble of the kept adapters: {shown}")
    if len(xs) == len(course.epochs):
        for m, member in enumerate(run.record["members"]):
            best = (member.get("best_step") or 0) / course.steps_per_epoch
            for index in np.flatnonzero(np.isclose(xs, best))[:1]:
                if m < num_members and np.isfinite(values[index, m]):
                    panel.point(float(xs[index]), values[index, m], ONE, "ring", f"member {m}: {values[index, m]:.3f}")
    return panel


def arrow_figure(runs: Sequence[ReportRun]) -> Figure | None:
    """Accuracy and ECE of one LoRA and of the ensemble, an arrow per run; None with one member only.

    Source: arXiv 2310.00035, Fig. 2.
    """
    runs = [run for run in runs if run.predictions.num_members > 1]
    if not runs:
        return None
    alone = len(runs) == 1
    xs, ys = [], []
    for run in runs:
        shown = [run.entry.ensemble, run.entry.member_mean, *(run.entry.members if alone else ())]
        xs += [scores.metrics["accuracy"] for scores in shown]
        ys += [scores.metrics["ece"] for scores in shown]
    panel = Panel(
        Axis(*padded_range(xs, 1.0), "accuracy", percent, 6),
        Axis(*padded_range(ys, 1.0), "ECE", percent, 6),
        "Arrows from one LoRA to the ensemble; further right is more accurate, lower is better calibrated.",
        height=360,
    )
    keys = []
    for position, run in enumerate(runs):
        color = ENSEMBLE if alone else RUN_COLORS[position % len(RUN_COLORS)]
        one, many = _accuracy_and_ece(run.entry.member_mean), _accuracy_and_ece(run.entry.ensemble)
        if alone:
            for index, member in zip(run.members, run.entry.members, strict=False):
                panel.point(*_accuracy_and_ece(member), ONE, "ring", f"member {index}", 3.5)
        start = ONE if alone else color
        tip = f"{run.name}: accuracy {100 * one[0]:.1f} to {100 * many[0]:.1f} %, ECE"
        tip += f" {100 * one[1]:.1f} to {100 * many[1]:.1f} %"
        panel.arrow(one, many, color, tip)
        panel.point(*one, start, "square", tip, 4)
        if not alone:
            keys.append(Key(run.name, color, "heavy"))
            panel.text(*many, str(position + 1), color, "start", 7, 4)
    if alone:
        keys = [
            Key("one LoRA (mean of members)", ONE, "", "square", line=False),
            Key("each member", ONE, "", "ring", line=False),
            Key("to the ensemble", ENSEMBLE, "heavy"),
        ]
    else:
        keys = [Key(f"{number} {key.name}", key.color, key.style) for number, key in enumerate(keys, start=1)]
    return Figure(
        "From one LoRA to the ensemble",
        [panel.svg()],
        "Each arrow starts at the mean over members of their accuracy and ECE and ends at the ensemble. Lower right is"
        " better in both. The intervals are in the table: an arrow within them may be chance.",
        keys,
    )


def _accuracy_and_ece(scores: MethodScores) -> tuple[float, float]:
    return scores.value("accuracy"), scores.value("ece")


def ood_figure(run: ReportRun) -> Figure | None:
    """Histograms of the three scores, in distribution and of each OOD set; None without OOD sets."""
    if not run.ood:
        return None
    inside = ood_scores_by_name(run.predictions, run.mixture(run.predictions))
    panels = []
    scores = [name for name in _SCORES if name != "mutual_information" or run.has_information]
    evaluated = run.entry.ood or {}
    for name, predictions in run.ood.items():
        outside = ood_scores_by_name(predictions, run.mixture(predictions))
        for score in scores:
            value = evaluated[name].auroc.get(score)
            shown = "not defined" if value is None else f"{value:.3f}"
            title = f"{name}: AUROC {shown}"
            svg = _histograms(inside[score], outside[score], _SCORES[score], title)
            panels.append(f'<div><p class="panel-title"><bdi>{escape(title)}</bdi></p>{svg}</div>')
    return Figure(
        "In distribution or not?",
        panels,
        "Share of rows by score of the ensemble. AUROC counts OOD rows as positives and takes low confidence, high"
        " entropy, high mutual information as the sign; 0.5 is chance, and below it the OOD rows look more familiar"
        " than the test rows. With two choices, confidence and entropy rank rows in the same order.",
        [Key(f"{run.entry.task}, {run.entry.split} rows", ENSEMBLE), Key("OOD", "orange", "dash")],
        "small",
    )


def _histograms(inside: FloatArray, outside: FloatArray, label: str, title: str) -> str:
    low, high = float(min(inside.min(), outside.min())), float(max(inside.max(), outside.max()))
    low, high = (low, high) if high - low > 1e-9 else (low - 0.5, high + 0.5)
    edges = np.linspace(low, high, 21)
    shares = [np.histogram(values, edges)[0] / len(values) for values in (inside, outside)]
    panel = Panel(
        Axis(low, high, label, percent if label == _SCORES["max_prob"] else plain, 5),
        Axis(0, 1.08 * float(max(share.max() for share in shares)), "share of rows", percent, 4),
        f"{label}, {title}",
        width=340,
        height=200,
        left=58,
    )
    panel.steps(edges, shares[0], ENSEMBLE)
    panel.steps(edges, shares[1], "orange", "dash")
    return panel.svg()


def matrix_figure(run: ReportRun) -> Figure | None:
    """Agreement and divergence of each pair of members; None with one member only."""
    if run.predictions.num_members < 2:
        return None
    log_probs_MEC = run.predictions.log_probs_MEC
    same, divergence = agreement(log_probs_MEC), symmetric_kl(log_probs_MEC)
    pairs = ~np.eye(len(same), dtype=bool)
    means = float(same[pairs].mean()), float(divergence[pairs].mean())
    labels = [str(m) for m in run.members]
    panels = []
    for title, values, text, dark in (
        (f"same answer, share of rows (mean {100 * means[0]:.1f} %)", same, lambda v: f"{100 * v:.0f}", 1 - same),
        (f"divergence, nats (mean {means[1]:.3f})", divergence, lambda v: f"{v:.2f}", divergence),
    ):
        panels.append(
            f'<div><p class="panel-title">{title}</p>{_matrix(values, dark, pairs, labels, text, title)}</div>'
        )
    return Figure(
        "Do the members differ?",
        panels,
        "Rows and columns are members. Left: share of rows on which two of them give the same answer, in percent."
        " Right: mean over rows of the symmetric KL divergence of their predictive distributions. Color runs from no"
        " difference to the largest difference of each matrix. An ensemble of members that agree everywhere cannot gain"
        " anything.",
        size="small",
    )


def _matrix(
    values: FloatArray,
    dark: FloatArray,
    pairs: FloatArray,
    labels: Sequence[str],
    text: Callable[[float], str],
    title: str,
) -> str:
    """A heat map with one row and one column per member; the diagonal is left out."""
    number = len(values)
    cell = 300 / number
    finite = dark[pairs & np.isfinite(dark)]
    high = (float(finite.max()) if len(finite) else 0.0) or 1.0
    parts = []
    for a in range(number):
        middle = 30 + (a + 0.5) * cell
        parts.append(f'<text class="tick" x="{middle:.1f}" y="20" text-anchor="middle">{labels[a]}</text>')
        parts.append(f'<text class="tick" x="22" y="{middle + 4:.1f}" text-anchor="end">{labels[a]}</text>')
        for b in range(number):
            x, y = 30 + b * cell, 30 + a * cell
            if a == b:
                parts.append(
                    f'<rect class="empty" x="{x:.1f}" y="{y:.1f}" width="{cell - 2:.1f}" height="{cell - 2:.1f}"/>'
                )
                continue
            share = 1.0 if not np.isfinite(dark[a, b]) else dark[a, b] / high
            shown = text(values[a, b]) if np.isfinite(values[a, b]) else "∞"
            parts.append(
                f'<g class="c-ens"><rect class="cell" x="{x:.1f}" y="{y:.1f}" width="{cell - 2:.1f}"'
                f' height="{cell - 2:.1f}" fill-opacity="{0.08 + 0.47 * share:.3f}"><title>members {labels[a]} and'
                f" {labels[b]}: {shown}</title></rect></g>"
            )
            if number <= _MAX_NUMBERS:
                parts.append(
                    f'<text class="note c-ink" x="{x + cell / 2 - 1:.1f}" y="{y + cell / 2 + 4:.1f}"'
                    f' text-anchor="middle">{shown}</text>'
                )
    return f'<svg viewBox="0 0 332 332" role="img" aria-label="{escape(title)}">{"".join(parts)}</svg>'

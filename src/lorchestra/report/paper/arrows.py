"""Fig. 2 and the sweep of regularizers: from one LoRA to the ensemble in accuracy and calibration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lorchestra.report.paper.page import MARKERS, PALETTE, Page, new_figure
from lorchestra.report.paper.runs import StudyRun, ensemble_metrics, single_metrics

_NAMES = {
    "regularize.weight_decay_b": "decay on B",
    "regularize.weight_decay_a": "decay on A",
    "regularize.weight_decay_ba": "decay on BA",
    "regularize.kl_beta": "KL to the base",
    "regularize.label_smoothing": "label smoothing",
    "adapt.dropout": "dropout",
}


def kind_and_strength(settings: Mapping[str, Any]) -> tuple[str, float]:
    """Which regularizer a point has, and how strong: `("none", 0)` where it has none."""
    on = {field: float(value) for field, value in settings.items() if field in _NAMES and value}
    if not on:
        return "none", 0.0
    parts = []
    for field in on:
        name = _NAMES[field]
        if field == "regularize.kl_beta" and settings.get("regularize.kl_direction") == "reverse":
            name = "reverse " + name
        parts.append(name)
    return " + ".join(parts), max(on.values())


def draw_arrows(runs: Sequence[StudyRun]) -> Page:
    """Arrows from the mean member to the ensemble; color by regularizer, opacity by strength."""
    figure = new_figure(7.4, 5)
    axes = figure.add_subplot()
    rows, better = [], 0
    groups: dict[str, list[StudyRun]] = {}
    for run in runs:
        groups.setdefault(kind_and_strength(run.settings)[0], []).append(run)
    for (kind, members), color, marker in zip(groups.items(), PALETTE * 2, MARKERS * 2, strict=False):
        members = sorted(members, key=lambda run: kind_and_strength(run.settings)[1])
        for place, run in enumerate(members):
            start, end = single_metrics(run.test), ensemble_metrics(run.test)
            alpha = 0.35 + 0.65 * (place + 1) / len(members)
            x, y = ([100 * one[name] for one in (start, end)] for name in ("accuracy", "ece"))
            axes.annotate(
                "",
                (x[1], y[1]),
                (x[0], y[0]),
                arrowprops={"arrowstyle": "->", "color": color, "alpha": alpha, "lw": 1.8},
            )
            strongest = place == len(members) - 1
            axes.plot(x[:1], y[:1], marker, color=color, alpha=alpha, markersize=5, label=kind if strongest else None)
            axes.plot(x[1:], y[1:], alpha=0)  # arrows alone do not widen the axes
            strength = kind_and_strength(run.settings)[1]
            rows.append([kind, strength, *(f"{value / 100:.5f}" for value in (x[0], y[0], x[1], y[1]))])
            better += x[1] >= x[0] and y[1] <= y[0]
    axes.set(
        xlabel="accuracy (%)",
        ylabel="expected calibration error (%), lower is better",
        title=f"From one LoRA (mean of members) to the ensemble: {runs[0].test.task}",
    )
    axes.margins(0.08)
    axes.legend(frameon=False, fontsize="small", title="regularizer (fainter: weaker)", title_fontsize="small")
    header = ["regularizer", "strength", "single_accuracy", "single_ece", "ensemble_accuracy", "ensemble_ece"]
    return Page(
        figure, header, rows, f"{better} of {len(rows)} arrows point to no less accuracy and no more calibration error."
    )


def draw_strengths(runs: Sequence[StudyRun]) -> Page:
    """Accuracy, NLL and ECE of the ensemble by regularizer and strength, beside no regularizer."""
    figure = new_figure(10, 4)
    panels = figure.subplots(1, 3)
    rows = []
    found = [(*kind_and_strength(run.settings), single_metrics(run.test), ensemble_metrics(run.test)) for run in runs]
    for kind, strength, single, ensemble in found:
        for name, values in (("one LoRA", single), ("ensemble", ensemble)):
            rows.append([kind, strength, name, *(f"{values[key]:.5f}" for key in ("accuracy", "nll", "ece"))])
    kinds = list(dict.fromkeys(kind for kind, *_ in found if kind != "none"))
    plain = next((ensemble for kind, _, _, ensemble in found if kind == "none"), None)
    for axes, key, title in zip(panels, ("accuracy", "nll", "ece"), ("accuracy", "NLL (nats)", "ECE"), strict=True):
        if plain is not None:
            axes.axhline(plain[key], color="0.5", linestyle=":", label="none")
        for kind, color, marker in zip(kinds, PALETTE * 2, MARKERS * 2, strict=False):
            points = sorted((strength, ensemble[key]) for name, strength, _, ensemble in found if name == kind)
            axes.plot(*zip(*points, strict=True), marker=marker, color=color, label=kind)
        axes.set(xscale="log", xlabel="strength", title=f"{title} of the ensemble")
    panels[0].legend(frameon=False, fontsize="x-small")
    best = min(found, key=lambda one: one[3]["nll"])
    sentence = f"Lowest NLL of the ensemble: {best[3]['nll']:.3f} with {best[0]}" + (
        f" at {best[1]:g}" if best[1] else ""
    )
    none = "" if plain is None else f"; without a regularizer {plain['nll']:.3f}"
    return Page(figure, ["regularizer", "strength", "method", "accuracy", "nll", "ece"], rows, f"{sentence}{none}.")

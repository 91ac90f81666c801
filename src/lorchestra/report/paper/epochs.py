"""Fig. 3: accuracy, NLL and ECE by epoch, with and without weight decay, one LoRA and the ensemble."""

from __future__ import annotations

from collections.abc import Sequence

from lorchestra.report.paper.arrows import kind_and_strength
from lorchestra.report.paper.page import PALETTE, Page, new_figure
from lorchestra.report.paper.runs import StudyRun, ensemble_metrics, single_metrics

METRICS = {"accuracy": "accuracy", "nll": "NLL (nats)", "ece": "ECE"}


def draw_epochs(runs: Sequence[StudyRun]) -> Page:
    """One line a point and method; needs predictions after each epoch."""
    figure = new_figure(10, 4)
    panels = figure.subplots(1, 3)
    rows, ends = [], {}
    for run, color in zip(runs, PALETTE, strict=False):
        kind, strength = kind_and_strength(run.settings)
        label = "no regularizer" if kind == "none" else f"{kind} {strength:g}"
        for method, measure, style in (("one LoRA", single_metrics, "--"), ("ensemble", ensemble_metrics, "-")):
            found = [measure(predictions) for predictions in run.epochs]
            epochs = range(1, len(found) + 1)
            for axes, key in zip(panels, METRICS, strict=True):
                axes.plot(epochs, [one[key] for one in found], style, color=color, label=f"{method}, {label}")
            rows += [
                [label, method, epoch, *(f"{one[key]:.5f}" for key in METRICS)]
                for epoch, one in zip(epochs, found, strict=True)
            ]
            ends[label, method] = found
    for axes, title in zip(panels, METRICS.values(), strict=True):
        axes.set(xlabel="epoch", title=f"{title} on test rows")
        axes.xaxis.get_major_locator().set_params(integer=True)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=2, frameon=False)
    parts = [
        f"{method} ({label}) NLL {min(one['nll'] for one in found):.3f} at best, {found[-1]['nll']:.3f} at the end,"
        f" ECE {found[0]['ece']:.3f} to {found[-1]['ece']:.3f}"
        for (label, method), found in ends.items()
    ]
    return Page(figure, ["regularizer", "method", "epoch", *METRICS], rows, "; ".join(parts) + ".")

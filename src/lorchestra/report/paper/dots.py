"""Methods beside each other: a dot and a 95 % interval a method and metric. Fig. 4, the OOD figures, the baselines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lorchestra.core.metrics import all_metrics, bootstrap, interval, score_rows
from lorchestra.core.predictive import FloatArray, IntArray, mixture_log_probs
from lorchestra.report.paper.arrows import kind_and_strength
from lorchestra.report.paper.page import MARKERS, PALETTE, Page, new_figure
from lorchestra.report.paper.runs import StudyRun, single_metrics

_METRICS = {"accuracy": "accuracy", "nll": "NLL (nats)", "ece": "ECE"}
_SCORES = {"max_prob": "largest probability", "entropy": "entropy", "mutual_information": "mutual information"}


def draw_passes(runs: Sequence[StudyRun]) -> Page:
    """Fig. 4: the ensemble, MC dropout with as many passes, and one LoRA, all trained with the same dropout."""
    run = runs[0]
    dropout = run.baseline("mc_dropout")
    assert dropout is not None
    number = run.test.num_members
    mixtures = {
        f"MC dropout of one LoRA, {dropout.num_members} passes": mixture_log_probs(dropout.log_probs_MEC),
        "the same LoRA, dropout off": run.test.log_probs_MEC[0],
        f"ensemble of {number}": mixture_log_probs(run.test.log_probs_MEC),
    }
    intervals = _intervals(mixtures, run.test.labels)
    points = {}
    for name, log_probs in mixtures.items():
        found = all_metrics(log_probs, run.test.labels)
        points[name] = {key: (found[key], *intervals[name][key]) for key in _METRICS}
    single = single_metrics(run.test)
    nlls = {name: values["nll"][0] for name, values in points.items()}
    said = ", ".join(f"{name} {nll:.3f}" for name, nll in nlls.items())
    sentence = f"NLL: {said}; the mean over the members, each alone, {single['nll']:.3f}."
    return _dot_page(points, f"{run.test.task}: members against MC dropout", sentence)


def draw_baselines(results: Sequence[Mapping[str, Any]]) -> Page:
    """Methods at equal budget: metrics with intervals against base passes of training and prediction.

    Args:
        results: see `experiments.compare.compare_methods`.
    """
    points = {}
    for one in results:
        entry, values = one["entry"]["ensemble"], one["entry"]["intervals"].get("ensemble", {})
        points[one["name"]] = {key: (entry[key], *(values.get(key) or (entry[key], entry[key]))) for key in _METRICS}
    cost = {
        one["name"]: f"{one['cost']['fit_base_passes']:.1f} + {one['cost']['predict_base_passes']:.1f}"
        for one in results
    }
    best = min(results, key=lambda one: one["entry"]["ensemble"]["nll"])
    sentence = f"Lowest NLL: {best['name']}, {best['entry']['ensemble']['nll']:.3f}."
    return _dot_page(
        points, "methods at equal budget; right: base passes of training + of one prediction", sentence, cost
    )


def draw_ood(runs: Sequence[StudyRun]) -> Page:
    """Fig. 5: AUROC of telling rows of other tasks apart, by score, one LoRA and the ensemble."""
    names = list(runs[0].entry["ood"])
    figure = new_figure(1.5 + 3.1 * len(names), 4.2)
    panels = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    rows = []
    for axes, name in zip(panels, names, strict=True):
        for place, run in enumerate(runs):
            kind, strength = kind_and_strength(run.settings)
            label = "no regularizer" if kind == "none" else f"{kind} {strength:g}"
            found = run.entry["ood"][name]
            for method, values, marker in (("one LoRA", found["member_mean"], "s"), ("ensemble", found, "o")):
                x = [index + 0.16 * place for index, score in enumerate(_SCORES) if score in values["auroc"]]
                y = [values["auroc"][score] for score in _SCORES if score in values["auroc"]]
                axes.plot(
                    x,
                    y,
                    marker,
                    color=PALETTE[place % len(PALETTE)],
                    label=f"{method}, {label}",
                    markersize=6,
                    markerfacecolor="none" if marker == "s" else None,
                )
                rows += [
                    [name, label, method, score, f"{values['auroc'][score]:.5f}"]
                    for score in values["auroc"]
                    if score in _SCORES
                ]
        axes.axhline(0.5, color="0.5", linestyle=":")
        axes.set(title=name, ylim=(0, 1))
        axes.set_xticks(range(len(_SCORES)), [text.replace(" ", "\n") for text in _SCORES.values()], fontsize="small")
    panels[0].set_ylabel("AUROC: rows unlike the training rows told apart")
    figure.legend(
        *panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=2, frameon=False, fontsize="small"
    )
    best = max((row for row in rows if row[2] == "ensemble"), key=lambda row: float(row[4]))
    worst = min((row for row in rows if row[2] == "ensemble"), key=lambda row: float(row[4]))
    sentence = (
        f"AUROC of the ensemble from {float(worst[4]):.2f} ({worst[3]}, {worst[0]}) to {float(best[4]):.2f} ({best[3]},"
        f" {best[0]}); 0.5 is chance."
    )
    return Page(figure, ["ood", "regularizer", "method", "score", "auroc"], rows, sentence)


def _intervals(mixtures: Mapping[str, FloatArray], labels: IntArray) -> dict[str, dict[str, list[float]]]:
    draws = bootstrap({name: score_rows(log_probs, labels) for name, log_probs in mixtures.items()}, 1000, 0)
    return {name: {key: interval(draws[name][key]) or [float("nan")] * 2 for key in _METRICS} for name in mixtures}


def _dot_page(
    points: Mapping[str, Mapping[str, tuple[float, ...]]],
    title: str,
    sentence: str,
    notes: Mapping[str, str] | None = None,
) -> Page:
    figure = new_figure(10, 1.6 + 0.36 * len(points))
    panels = figure.subplots(1, len(_METRICS), sharey=True)
    order = list(points)[::-1]
    for axes, (key, text) in zip(panels, _METRICS.items(), strict=True):
        for y, name in enumerate(order):
            value, low, high = points[name][key]
            color = PALETTE[0] if "ensemble" in name else PALETTE[1]
            axes.plot([low, high], [y, y], color=color, linewidth=1.5)
            axes.plot(value, y, MARKERS[0], color=color)
        axes.set(title=text, ylim=(-0.6, len(order) - 0.4))
        axes.grid(axis="x", color="0.9")
    panels[0].set_yticks(range(len(order)), order, fontsize="small")
    if notes:
        right = panels[-1].twinx()
        right.set(ylim=panels[-1].get_ylim())
        right.set_yticks(range(len(order)), [notes[name] for name in order], fontsize="x-small")
    figure.suptitle(title)
    rows = [[name, *(f"{number:.5f}" for key in _METRICS for number in values[key])] for name, values in points.items()]
    header = ["method", *(f"{key}{end}" for key in _METRICS for end in ("", "_low", "_high"))]
    return Page(figure, header, rows, sentence)

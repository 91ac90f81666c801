"""Ablations: where diversity comes from, how many members, which rank, what it costs."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from lorchestra.core.diversity import pairwise_correlation, pairwise_kl, update_cosine
from lorchestra.core.metrics import all_metrics
from lorchestra.core.predictive import disagreement, mixture_log_probs
from lorchestra.report.paper.page import ENSEMBLE, MARKERS, PALETTE, SINGLE, Page, new_figure
from lorchestra.report.paper.runs import StudyRun, ensemble_metrics, single_metrics

_SUBSETS = 50
"""Random subsets of each size that the ablation of members averages over; all of them where there are fewer."""
_DIVERSITY = {
    "disagreement": "disagreement",
    "pairwise_kl": "mean pairwise KL (nats)",
    "correlation": "correlation of probabilities",
    "update_cosine": "cosine of updates BA",
    "nll_gain": "NLL: one LoRA - ensemble",
}


def diversity(run: StudyRun) -> dict[str, float]:
    """Measures of a run's diversity, and the NLL gained over the mean member (never below 0, by convexity)."""
    log_probs = run.test.log_probs_MEC
    return {
        "disagreement": float(disagreement(log_probs).mean()),
        "pairwise_kl": pairwise_kl(log_probs),
        "correlation": pairwise_correlation(log_probs),
        "update_cosine": update_cosine(run.updates()),
        "nll_gain": single_metrics(run.test)["nll"] - ensemble_metrics(run.test)["nll"],
    }


def randomness_of(settings: Mapping[str, Any]) -> str:
    """What makes a point's members different."""
    same = settings.get("adapt.same_init"), settings.get("adapt.same_order")
    kind = {(None, None): "both", (True, None): "shuffling only", (None, True): "initialization only"}[
        tuple(value or None for value in same)  # type: ignore[index]
    ]
    decay = settings.get("regularize.weight_decay_b")
    return f"{kind}, decay on B {decay:g}" if decay else kind


def start_of(settings: Mapping[str, Any]) -> str:
    """How a point's A and B start."""
    how = settings.get("adapt.init_lora_weights", True)
    return "uniform" if how is True else str(how)


def draw_diversity(runs: Sequence[StudyRun], name_of: Callable[[Mapping[str, Any]], str]) -> Page:
    """Measures of diversity and the gain in NLL, a row of dots a point."""
    found = {name_of(run.settings): diversity(run) for run in runs}
    figure = new_figure(12, 1.5 + 0.4 * len(found))
    panels = figure.subplots(1, len(_DIVERSITY), sharey=True)
    order = list(found)[::-1]
    for axes, (key, title) in zip(panels, _DIVERSITY.items(), strict=True):
        for y, name in enumerate(order):
            axes.plot(found[name][key], y, "o", color=ENSEMBLE)
        axes.set_title(title, fontsize="small")
        axes.grid(axis="x", color="0.9")
        axes.margins(x=0.15)
        axes.tick_params(axis="x", labelsize="x-small")
    panels[0].set_yticks(range(len(order)), order, fontsize="small")
    panels[0].set_ylim(-0.6, len(order) - 0.4)
    most = max(found, key=lambda name: found[name]["nll_gain"])
    rows = [[name, *(f"{values[key]:.6f}" for key in _DIVERSITY)] for name, values in found.items()]
    gains = ", ".join(f"{name} {values['nll_gain']:.4f}" for name, values in found.items())
    return Page(
        figure, ["point", *_DIVERSITY], rows, f"NLL gained over the mean member is largest with {most}: {gains} nats."
    )


def draw_members(runs: Sequence[StudyRun]) -> Page:
    """Metrics by the number of members: mean and spread over random subsets of one training's members."""
    run = runs[0]
    total = run.test.num_members
    draw = random.Random(0)
    figure = new_figure(10, 3.8)
    panels = figure.subplots(1, 3)
    rows: list[list[Any]] = []
    for size in range(1, total + 1):
        every = list(itertools.islice(itertools.combinations(range(total), size), 5000))
        subsets = (
            every if len(every) <= _SUBSETS else [sorted(draw.sample(range(total), size)) for _ in range(_SUBSETS)]
        )
        found = [
            all_metrics(mixture_log_probs(run.test.log_probs_MEC[list(subset)]), run.test.labels) for subset in subsets
        ]
        values = {key: [one[key] for one in found] for key in ("accuracy", "nll", "ece")}
        rows.append(
            [size, len(subsets), *(f"{number:.5f}" for v in values.values() for number in (np.mean(v), np.std(v)))]
        )
    for axes, (place, title) in zip(panels, ((2, "accuracy"), (4, "NLL (nats)"), (6, "ECE")), strict=True):
        mean, spread = (np.array([float(row[place + k]) for row in rows]) for k in (0, 1))
        sizes = np.arange(1, total + 1)
        axes.plot(sizes, mean, "o-", color=ENSEMBLE)
        axes.fill_between(sizes, mean - spread, mean + spread, color=ENSEMBLE, alpha=0.2, linewidth=0)
        axes.set(xlabel="members", title=title)
        axes.xaxis.get_major_locator().set_params(integer=True)
    figure.suptitle(f"{run.test.task}: members of one training of {total}; band: standard deviation over subsets")
    some = rows[min(total, max(2, total // 4)) - 1]
    first, last = float(rows[0][4]), float(rows[-1][4])
    share = 100 * (first - float(some[4])) / (first - last) if first != last else float("nan")
    header = ["members", "subsets", *(f"{key}{end}" for key in ("accuracy", "nll", "ece") for end in ("", "_sd"))]
    sentence = (
        f"NLL falls from {first:.3f} with one member to {last:.3f} with {total}; {share:.0f} % of that with {some[0]}."
    )
    return Page(figure, header, rows, sentence)


def draw_by_number(runs: Sequence[StudyRun], field: str, name: str) -> Page:
    """Quality and cost by a setting that is a number, such as the rank or the number of members."""
    keys = {"accuracy": "accuracy", "nll": "NLL (nats)", "ece": "ECE"}
    figure = new_figure(12, 3.8)
    panels = figure.subplots(1, 5)
    x = [run.settings[field] for run in runs]
    singles, ensembles = [single_metrics(run.test) for run in runs], [ensemble_metrics(run.test) for run in runs]
    for axes, (key, title) in zip(panels, keys.items(), strict=False):
        axes.plot(x, [one[key] for one in singles], "s--", color=SINGLE, label="one LoRA (mean of members)")
        axes.plot(x, [one[key] for one in ensembles], "o-", color=ENSEMBLE, label="ensemble")
        axes.set_title(title)
    panels[3].plot(x, [run.cost["train_s"] for run in runs], MARKERS[0] + "-", color=PALETTE[2])
    panels[3].set_title("training (s)")
    panels[4].plot(x, [run.cost["peak_bytes"] / 1e9 for run in runs], MARKERS[0] + "-", color=PALETTE[2])
    panels[4].set_title("peak memory (GB)")
    for axes in panels:
        axes.set_xscale("log", base=2)
        axes.set_xticks(x, [f"{value:g}" for value in x], fontsize="small")
        axes.minorticks_off()
        axes.set_xlabel(name)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=2, frameon=False)
    cost = ("train_s", "tokens", "base_passes", "peak_bytes")
    rows = [
        [value, *(f"{one[key]:.5f}" for one in (single, ensemble) for key in keys), *(run.cost[k] for k in cost)]
        for value, single, ensemble, run in zip(x, singles, ensembles, runs, strict=True)
    ]
    header = [name, *(f"{who}_{key}" for who in ("single", "ensemble") for key in keys), *cost]
    best = min(range(len(runs)), key=lambda i: ensembles[i]["nll"])
    sentence = (
        f"Lowest NLL of the ensemble: {ensembles[best]['nll']:.3f} at {name} {x[best]:g}"
        f" ({runs[best].cost['train_s']:.0f} s of training, {runs[best].cost['base_passes']:.1f} base passes)."
    )
    return Page(figure, header, rows, sentence)

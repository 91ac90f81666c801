"""Fig. 1: how sure are the few-shot base, one LoRA and the regularized ensemble where they are wrong?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lorchestra.core.metrics import score_rows
from lorchestra.core.predictive import FloatArray, mixture_log_probs
from lorchestra.report.paper.page import BASE, ENSEMBLE, SINGLE, Page, new_figure
from lorchestra.report.paper.runs import StudyRun
from lorchestra.types import Predictions


def draw_confidence(runs: Sequence[StudyRun]) -> Page:
    """Kernel densities of the confidence of wrong predictions.

    Args:
        runs: without and with regularization, in this order.
    """
    plain, strong = runs[0], runs[-1]
    base = plain.baseline("base_few_shot") or plain.baseline("base_zero_shot")
    assert base is not None
    kind = "few-shot base" if plain.baseline("base_few_shot") is not None else "zero-shot base"
    wrong = {
        kind: (_wrong(base.log_probs_MEC, base), BASE, ":"),
        "one LoRA (members pooled)": (_wrong(plain.test.log_probs_MEC, plain.test), SINGLE, "--"),
        "ensemble, strong decay on B": (
            _wrong(mixture_log_probs(strong.test.log_probs_MEC)[None], strong.test),
            ENSEMBLE,
            "-",
        ),
    }
    figure = new_figure(7, 4.4)
    axes = figure.add_subplot()
    grid = np.linspace(0, 1, 201)
    rows = []
    for name, (confidence, color, style) in wrong.items():
        density = reflected_density(confidence, grid)
        label = f"{name}: {len(confidence)} wrong, mean {confidence.mean():.2f}" if len(confidence) else f"{name}: none"
        axes.plot(grid, density, color=color, linestyle=style, linewidth=2, label=label)
        rows += [[name, f"{x:.3f}", f"{y:.5f}"] for x, y in zip(grid, density, strict=True)]
    axes.set(
        xlim=(0, 1),
        ylim=(0, None),
        xlabel="confidence (largest probability) of wrong predictions",
        ylabel="density",
        title=f"How sure when wrong? {plain.test.task}, {plain.test.num_examples} test rows",
    )
    axes.legend(frameon=False, fontsize="small")
    means = {name: confidence.mean() if len(confidence) else float("nan") for name, (confidence, _, _) in wrong.items()}
    said = ", ".join(f"{name} {mean:.2f}" for name, mean in means.items())
    return Page(figure, ["method", "confidence", "density"], rows, f"Mean confidence of wrong predictions: {said}.")


def _wrong(log_probs_MEC: FloatArray, predictions: Predictions) -> FloatArray:
    scores = [score_rows(log_probs_EC, predictions.labels) for log_probs_EC in log_probs_MEC]
    return np.concatenate([np.minimum(one.confidence[one.correct == 0], 1.0) for one in scores])


def reflected_density(values: FloatArray, grid: FloatArray) -> FloatArray:
    """A Gaussian kernel density on [0, 1] (Scott's bandwidth), reflected at both ends, so that it integrates to 1."""
    from matplotlib.mlab import GaussianKDE

    if len(values) < 2 or np.ptp(values) == 0:
        return np.full(len(grid), np.nan)
    kernel = GaussianKDE(values)
    found: FloatArray = kernel(grid) + kernel(-grid) + kernel(2 - grid)
    return found

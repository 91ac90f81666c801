"""All figures by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from lorchestra.report.paper.ablations import (
    draw_by_number,
    draw_diversity,
    draw_members,
    randomness_of,
    start_of,
)
from lorchestra.report.paper.arrows import draw_arrows, draw_strengths
from lorchestra.report.paper.confidence import draw_confidence
from lorchestra.report.paper.dots import draw_ood, draw_passes
from lorchestra.report.paper.epochs import draw_epochs
from lorchestra.report.paper.page import Page
from lorchestra.report.paper.runs import StudyRun

DRAW: dict[str, Callable[[Sequence[StudyRun]], Page]] = {
    "fig1": draw_confidence,
    "fig2": draw_arrows,
    "fig3": draw_epochs,
    "fig4": draw_passes,
    "fig5": draw_ood,
    "ablation-randomness": partial(draw_diversity, name_of=randomness_of),
    "ablation-members": draw_members,
    "ablation-rank": partial(draw_by_number, field="adapt.r", name="rank"),
    "ablation-init": partial(draw_diversity, name_of=start_of),
    "regularizers": draw_strengths,
    "ood": draw_ood,
    "cost": partial(draw_by_number, field="adapt.members", name="members"),
}
"""Figures that are drawn from runs; `baselines` is drawn from a comparison of methods."""

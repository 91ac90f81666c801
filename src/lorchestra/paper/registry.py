"""The figures by name."""

from __future__ import annotations

from lorchestra.paper.baselines import BASELINES, PASSES
from lorchestra.paper.confidence import CONFIDENCE
from lorchestra.paper.curves import COST, EPOCHS, MEMBERS, RANK
from lorchestra.paper.diversity import DIVERSITY, INIT, RANDOMNESS
from lorchestra.paper.page import PaperFigure
from lorchestra.paper.regularizers import ARROWS, STRENGTHS
from lorchestra.paper.shift import OOD, SHIFT

FIGURES: dict[str, PaperFigure] = {
    "fig1": CONFIDENCE,
    "fig2": ARROWS,
    "fig3": EPOCHS,
    "fig4": PASSES,
    "fig5": SHIFT,
    "ablation-randomness": RANDOMNESS,
    "ablation-members": MEMBERS,
    "ablation-rank": RANK,
    "ablation-init": INIT,
    "regularizers": STRENGTHS,
    "diversity": DIVERSITY,
    "ood": OOD,
    "cost": COST,
    "baselines": BASELINES,
}
"""Each has a recipe of the same name in `recipes/paper`."""

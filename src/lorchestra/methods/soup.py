"""Weight averages of the ensemble's members: one adapter, one pass (model soups, arXiv 2203.05482).

The mean of the members' updates `B_m A_m` is not the update of the mean A and the mean B. `average: product` takes the
first: `(1/M) sum_m B_m A_m = [B_1 .. B_M] [A_1; ..; A_M] / M`, exactly, as one adapter of rank M r. `average: factors`
takes the second, of rank r; it is what averaging LoRA files parameter by parameter gives, and holds products
`B_m A_n` of different members, whose A's point different ways unless they started alike (`adapt.same_init`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lorchestra.inference.predict import member_passes
from lorchestra.methods.contract import Fitted, Meter, MethodContext
from lorchestra.methods.training import changed, packed_predictor, train_members
from lorchestra.nn.adapters import StackedAdapters
from lorchestra.planning.estimate import prediction_base_passes, training_base_passes


@dataclass(frozen=True)
class Config:
    """Which average."""

    average: Literal["product", "factors"] = "product"
    """product: the mean of B A, one adapter of rank M r; factors: the mean A and the mean B, of rank r."""


def fit(context: MethodContext, config: Config) -> Fitted:
    """Train the ensemble and average those of its members that did not fail.

    Raises:
        TrainingError: every member failed.
    """
    meter = Meter()
    training, members = train_members(context, meter, context.config)
    fit_base_passes, tokens = training_base_passes(training.trainer), training.trainer.state.tokens
    adapters, adapt = training.pipeline.model.adapters, context.config.adapt
    wide = adapt.stored_r * len(members)
    pipeline = training.pipeline
    if config.average == "factors":
        averaged = adapters.values[members].mean(dim=0)
    else:
        averaged = product_average(adapters, members)
        # scaling is lora_alpha over the rank, or its root: it must stay what it was for the members
        grown = math.sqrt(wide / adapt.r) if adapt.use_rslora else wide // adapt.r
        shape = {"members": 1, "r": wide, "lora_alpha": adapt.lora_alpha * grown, "init_lora_weights": True}
        del training, pipeline, adapters  # the members' base, before another one is loaded
        pipeline = meter.open(context, changed(context.config, adapt=shape))
    with torch.no_grad():
        pipeline.model.adapters.values[0].copy_(averaged)
    cost = meter.cost(
        fit_base_passes=fit_base_passes,
        tokens=tokens,
        parameters=len(averaged),
        predict_base_passes=prediction_base_passes(pipeline.model, 1),
    )
    return Fitted(packed_predictor(pipeline, member_passes([0])), cost)


def product_average(adapters: StackedAdapters, members: Sequence[int]) -> Tensor:
    """The adapter of rank `len(members) R` whose B A is the mean of the members', as a row of a bank of that rank."""
    pieces = []
    for piece in adapters.slices:
        A = adapters.view(adapters.values[members], piece, "A")
        B = adapters.view(adapters.values[members], piece, "B") / len(members)
        pieces += [A.flatten(0, 1).flatten(), B.movedim(0, 1).flatten(1).flatten()]
    return torch.cat(pieces)

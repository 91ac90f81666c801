"""Weight averages of the ensemble's members: one adapter, one pass (model soups, arXiv 2203.05482).

The mean of the members' updates `B_m A_m` differs from the update of mean A and mean B. `average: product` is exactly
the former, `(1/M) sum_m B_m A_m = [B_1 .. B_M] [A_1; ..; A_M] / M`, as one adapter of rank M r. `average: factors` is
the latter, of rank r, as from averaging LoRA files parameter by parameter; it contains products `B_m A_n` of different
members, whose A point in different directions unless they share their initialization (`adapt.same_init`).
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
    """The kind of average."""

    average: Literal["product", "factors"] = "product"
    """product: mean of B A, one adapter of rank M r; factors: mean A and mean B, of rank r."""


def fit(context: MethodContext, config: Config) -> Fitted:
    """Train the ensemble and average the members that did not fail.

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
        # scaling is lora_alpha over the rank, or its root: it must be the members'
        growth = math.sqrt(wide / adapt.r) if adapt.use_rslora else wide // adapt.r
        shape = {"members": 1, "r": wide, "lora_alpha": adapt.lora_alpha * growth, "init_lora_weights": True}
        del training, pipeline, adapters  # free the members' base before another one is loaded
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
    """The flat adapter of rank `len(members) R` whose B A, and head if there is one, is the mean of the members'."""
    pieces = []
    for piece in adapters.slices:
        A = adapters.view(adapters.values[members], piece, "A")
        B = adapters.view(adapters.values[members], piece, "B") / len(members)
        pieces += [A.flatten(0, 1).flatten(), B.movedim(0, 1).flatten(1).flatten()]
    if adapters.head_shape is not None:
        pieces.append(adapters.head(adapters.values[members]).mean(dim=0).flatten())
    return torch.cat(pieces)

"""The base alone, zero-shot."""

from __future__ import annotations

from dataclasses import dataclass

from lorchestra.inference.predict import MemberPass
from lorchestra.methods.contract import Fitted, Meter, MethodContext
from lorchestra.methods.training import changed, packed_predictor
from lorchestra.nn.packing import BASE


@dataclass(frozen=True)
class Config:
    """No settings."""


def fit(context: MethodContext, config: Config) -> Fitted:
    """Load the base."""
    meter = Meter()
    pipeline = meter.open(context, changed(context.config, adapt={"members": 1}))
    return Fitted(packed_predictor(pipeline, [MemberPass(BASE)]), meter.cost(predict_base_passes=1.0))

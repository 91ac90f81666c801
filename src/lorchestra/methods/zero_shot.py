"""The base alone, zero-shot: the reference that needs no training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lorchestra.inference.pipeline import Pipeline
from lorchestra.inference.predict import MemberPass
from lorchestra.methods.contract import Fitted, Meter, MethodContext
from lorchestra.methods.training import changed, packed_predictor
from lorchestra.nn.packing import BASE
from lorchestra.types import Example, Predictions


@dataclass(frozen=True)
class Config:
    """Nothing to set."""


def fit(context: MethodContext, config: Config) -> Fitted:
    """Load the base."""
    meter = Meter()
    pipeline = meter.open(context, changed(context.config, adapt={"members": 1}))
    return Fitted(packed_predictor(pipeline, [MemberPass(BASE)]), meter.cost(predict_base_passes=1.0))


def predict(
    pipeline: Pipeline, examples: Sequence[Example], split: str, progress: Callable[[int], None] | None = None
) -> Predictions:
    """The base's predictions, one pass."""
    return pipeline.predict(examples, [MemberPass(BASE)], split, progress=progress)

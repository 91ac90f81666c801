"""The base alone, zero-shot: the reference that needs no training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lorchestra.inference.pipeline import Session
from lorchestra.inference.predict import Pass
from lorchestra.methods.contract import Fitted, Meter, Setting
from lorchestra.methods.training import changed, packed_predictor
from lorchestra.nn.packing import BASE
from lorchestra.types import Example, Predictions


@dataclass(frozen=True)
class Config:
    """Nothing to set."""


def fit(setting: Setting, config: Config) -> Fitted:
    """Load the base."""
    meter = Meter()
    session = meter.open(setting, changed(setting.config, adapt={"members": 1}))
    return Fitted(packed_predictor(session, [Pass(BASE)]), meter.cost(predict_base_passes=1.0))


def predict(
    session: Session, examples: Sequence[Example], split: str, progress: Callable[[int], None] | None = None
) -> Predictions:
    """The base's predictions, one pass."""
    return session.predict(examples, [Pass(BASE)], split, progress=progress)

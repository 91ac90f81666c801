"""MC dropout of one LoRA: dropout kept on at test time, as many passes as there are members (arXiv 1506.02142)."""

from __future__ import annotations

from dataclasses import dataclass

from lorchestra.core.seeding import derive_seed
from lorchestra.engine.cost import prediction_base_passes, training_base_passes
from lorchestra.engine.predict import Pass
from lorchestra.errors import ConfigError
from lorchestra.methods.contract import Fitted, Meter, Setting
from lorchestra.methods.training import changed, packed_predictor, train_members


@dataclass(frozen=True)
class Config:
    """The rate of dropout."""

    dropout: float | None = None
    """Dropout on the adapter's input, in training and in prediction; None takes `adapt.dropout`."""


def fit(setting: Setting, config: Config) -> Fitted:
    """Train one LoRA with dropout.

    Raises:
        ConfigError: the rate is 0: all passes would be the same.
        TrainingError: it failed.
    """
    rate = setting.config.adapt.dropout if config.dropout is None else config.dropout
    if rate == 0:
        raise ConfigError(
            "mc_dropout: the dropout rate is 0, so that all passes would be the same; give it a rate of its"
            " own (mc_dropout:dropout=0.1 as a method's name), or set adapt.dropout for all methods"
        )
    meter = Meter()
    training, _ = train_members(setting, meter, changed(setting.config, adapt={"members": 1, "dropout": rate}))
    model = training.session.model
    cost = meter.cost(
        fit_base_passes=training_base_passes(training.trainer),
        tokens=training.trainer.state.tokens,
        parameters=model.bank.values.shape[1],
        predict_base_passes=prediction_base_passes(model, setting.members),
    )
    return Fitted(packed_predictor(training.session, dropout_passes(0, setting.members, setting.seed)), cost)


def dropout_passes(member: int, number: int, seed: int) -> list[Pass]:
    """Passes of one member, each with dropout masks of its own."""
    return [Pass(member, derive_seed(seed, "mc_dropout", draw)) for draw in range(number)]

"""MC dropout: dropout at test time, with one LoRA or several members (arXiv 1506.02142).

By default one LoRA makes as many passes as the ensemble has members. With `members` above 1 the passes are distributed
over several LoRAs, which combines both sources of diversity at the same number of passes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lorchestra.errors import ConfigError
from lorchestra.inference.predict import MemberPass
from lorchestra.methods.contract import MAX_DRAWS, Fitted, Meter, MethodContext
from lorchestra.methods.training import changed, packed_predictor, train_members
from lorchestra.nn.seeding import derive_seed
from lorchestra.planning.estimate import prediction_base_passes, training_base_passes


@dataclass(frozen=True)
class Config:
    """Dropout rate, number of LoRAs, and their total number of passes."""

    dropout: float | None = None
    """Dropout on the adapter's input in training and prediction; None is `adapt.dropout`."""
    members: int | None = 1
    """LoRAs trained with dropout, each with its initialization and data order; None is M."""
    passes: int | None = None
    """Total passes of a prediction, distributed evenly over members; None is M."""


def fit(context: MethodContext, config: Config) -> Fitted:
    """Train with dropout; failed members are left out with their passes.

    Raises:
        ConfigError: the rate is 0, or passes are not a multiple of members.
        TrainingError: every member failed.
    """
    rate = context.config.adapt.dropout if config.dropout is None else config.dropout
    if rate == 0:
        raise ConfigError(
            "mc_dropout: the dropout rate is 0, so all passes would be the same; set a rate for it"
            " (mc_dropout:dropout=0.1 as a method's name), or adapt.dropout for all methods"
        )
    number = context.members if config.members is None else config.members
    each = _passes_per_member(number, context.members if config.passes is None else config.passes)
    meter = Meter()
    adapt = {"members": number, "dropout": rate}
    training, members = train_members(context, meter, changed(context.config, adapt=adapt))
    model = training.pipeline.model
    passes = dropout_passes(members, each * len(members), context.seed)
    cost = meter.cost(
        fit_base_passes=training_base_passes(training.trainer),
        tokens=training.trainer.state.tokens,
        parameters=len(members) * model.adapters.values.shape[1],
        predict_base_passes=prediction_base_passes(model, len(passes)),
    )
    return Fitted(packed_predictor(training.pipeline, passes), cost)


def dropout_passes(members: Sequence[int], number: int, seed: int) -> list[MemberPass]:
    """`number` passes that cycle through the members, each with different dropout masks."""
    return [MemberPass(members[draw % len(members)], derive_seed(seed, "mc_dropout", draw)) for draw in range(number)]


def _passes_per_member(members: int, passes: int) -> int:
    if members < 1:
        raise ConfigError(f"mc_dropout.members: {members} is less than 1")
    if passes > MAX_DRAWS:
        raise ConfigError(f"mc_dropout.passes: {passes} is more than {MAX_DRAWS:,}")
    if passes < 1 or passes % members:
        raise ConfigError(
            f"mc_dropout.passes: {passes} is not a multiple of its {members} members; use {members}, {2 * members} or"
            f" more (mc_dropout:members={members}:passes={2 * members} as a method's name)"
        )
    return passes // members

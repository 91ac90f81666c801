"""MC dropout: dropout kept on at test time, of one LoRA or of several members (arXiv 1506.02142).

By default one LoRA has as many passes as there are members in the ensemble. With `members` above 1 the passes are
spread over as many LoRAs, so that both sources of diversity can be had at the same number of passes.
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
    """The rate of dropout, how many LoRAs have it, and how many passes they have together."""

    dropout: float | None = None
    """Dropout on the adapter's input, in training and in prediction; None takes `adapt.dropout`."""
    members: int | None = 1
    """LoRAs that are trained with it, each with a draw and a data order of its own; None is M."""
    passes: int | None = None
    """Passes of a prediction, of all members together and of each as many; None is M, as the ensemble has."""


def fit(context: MethodContext, config: Config) -> Fitted:
    """Train with dropout; members that fail are left out with their passes.

    Raises:
        ConfigError: the rate is 0, so that all passes would be the same, or passes are no multiple of members.
        TrainingError: every member failed.
    """
    rate = context.config.adapt.dropout if config.dropout is None else config.dropout
    if rate == 0:
        raise ConfigError(
            "mc_dropout: the dropout rate is 0, so that all passes would be the same; give it a rate of its"
            " own (mc_dropout:dropout=0.1 as a method's name), or set adapt.dropout for all methods"
        )
    number = context.members if config.members is None else config.members
    each = _passes_of_each(number, context.members if config.passes is None else config.passes)
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
    """Passes of some members in turn, each with dropout masks of its own."""
    return [MemberPass(members[draw % len(members)], derive_seed(seed, "mc_dropout", draw)) for draw in range(number)]


def _passes_of_each(members: int, passes: int) -> int:
    if members < 1:
        raise ConfigError(f"mc_dropout.members: {members} is less than 1")
    if passes > MAX_DRAWS:
        raise ConfigError(f"mc_dropout.passes: {passes} is more than {MAX_DRAWS:,}")
    if passes < 1 or passes % members:
        raise ConfigError(
            f"mc_dropout.passes: {passes} is no multiple of its {members} members, each of which has as many; give it"
            f" {members}, {2 * members} or more (mc_dropout:members={members}:passes={2 * members} as a method's name)"
        )
    return passes // members

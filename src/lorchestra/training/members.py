"""Settings that members of one packed pass need not share: what makes a sweep, or several ensembles, a single pass."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from lorchestra.config.run import RegularizeConfig, RunConfig, TrainConfig, check_init, check_training
from lorchestra.errors import ConfigError
from lorchestra.models.init import AdapterSettings, make_adapter_settings, member_seed
from lorchestra.nn.seeding import generator


@dataclass(frozen=True)
class MemberSettings:
    """All that is one member's own.

    Members share the base, the adapted modules, the rows that are there to be seen, the validation rows, the batch size
    and the number of steps; two members with the same settings are the same member.
    """

    adapter: AdapterSettings
    """Shape and start; an `EnsembleModel` is made with those of its members."""
    order_seed: int
    """Where its permutation of each epoch's rows starts from."""
    dropout_seed: int
    """Where its dropout masks start from."""
    lr: float
    """Peak learning rate."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """How the learning rate falls after the warm-up."""
    warmup: float = 0.06
    """Share of all steps in which the learning rate rises from zero, in [0, 1)."""
    clip_norm: float = 1.0
    """Largest gradient norm; 0 turns clipping off."""
    patience: int = 0
    """Evaluations in a row without a better validation NLL after which it stops; 0 never stops early."""
    regularize: RegularizeConfig = dataclasses.field(default_factory=RegularizeConfig)
    """Its regularizers."""
    rows: tuple[int, ...] | None = None
    """Places of the training rows that it sees once an epoch, repeats included; None for all (see `bootstrap`)."""


def member_settings(
    config: RunConfig, num_rows: int, adapters: Sequence[AdapterSettings] | None = None
) -> tuple[MemberSettings, ...]:
    """The settings of an ensemble's M members, which differ by their seeds and what is drawn from them alone.

    Settings of several configurations, one after the other, are several ensembles in one pass.

    Args:
        config: the ensemble's.
        num_rows: the number of training rows.
        adapters: the members' adapters, as a model has them; by default those that `config` gives.
    """
    adapt, train = config.adapt, config.train
    return tuple(
        MemberSettings(
            adapter=adapter,
            order_seed=member_seed(train.seed, 0 if adapt.order == "same" else m),
            dropout_seed=member_seed(train.seed, m),
            lr=train.lr,
            schedule=train.schedule,
            warmup=train.warmup,
            clip_norm=train.clip_norm,
            patience=train.patience,
            regularize=config.regularize,
            rows=bootstrap(num_rows, member_seed(train.seed, m)) if adapt.order == "bootstrap" else None,
        )
        for m, adapter in enumerate(make_adapter_settings(adapt, train.seed) if adapters is None else adapters)
    )


def bootstrap(num_rows: int, *names: int | str) -> tuple[int, ...]:
    """As many places as there are rows, drawn with replacement (bagging: Breiman, 1996), a function of `names` alone.

    The draw is ascending: the order in which a member sees its rows is drawn from its `order_seed`.
    """
    source = generator(*names, "bootstrap")
    return tuple(torch.randint(num_rows, (num_rows,), generator=source).sort().values.tolist())


def check_members(train: TrainConfig, settings: Sequence[MemberSettings], num_rows: int) -> None:
    """Refuse members' settings that cannot work, alone or together in one pass.

    Args:
        train: what the members share.
        settings: what each has of its own; its adapter is checked by the `EnsembleModel`.
        num_rows: the number of training rows.

    Raises:
        ConfigError: names the member, the field and its value.
    """
    numbers = set()
    for m, own in enumerate(settings):
        mine = dataclasses.replace(
            train,
            lr=own.lr,
            schedule=own.schedule,
            warmup=own.warmup,
            clip_norm=own.clip_norm,
            patience=own.patience,
        )
        try:
            check_training(mine, own.regularize)
            check_init(own.adapter.init_lora_weights, own.regularize)
        except ConfigError as error:
            raise ConfigError(f"member {m}: {error}") from error
        places = range(num_rows) if own.rows is None else own.rows
        outside = [place for place in places if not 0 <= place < num_rows]
        if outside:
            raise ConfigError(f"member {m}: rows: {outside[0]} is no place of a training row; there are {num_rows}")
        numbers.add(steps_per_epoch(train.batch_size, len(places)))
    if len(numbers) > 1 or 0 in numbers:
        raise ConfigError(
            f"rows: members of one pass take the same number of steps in an epoch, and these take"
            f" {', '.join(map(str, sorted(numbers)))}; give each the same number of rows, one or more"
        )


def steps_per_epoch(batch_size: int, num_rows: int) -> int:
    """Optimizer steps in which a member sees its rows once; the last may have fewer rows."""
    return -(-num_rows // batch_size)

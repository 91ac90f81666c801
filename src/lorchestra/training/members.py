"""Per-member settings: members that differ in them, as the points of a sweep do, train in one packed pass."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from lorchestra.config.run import RegularizeConfig, RunConfig, TrainConfig, check_init, check_training
from lorchestra.errors import ConfigError
from lorchestra.models.init import AdapterSettings, make_adapter_settings, member_seed
from lorchestra.nn.seeding import generator, permutation


@dataclass(frozen=True)
class MemberSettings:
    """The settings of one member: everything in which members of one packed pass may differ.

    The members of an ensemble differ only by seeds and what is drawn from them; `member_settings` makes their settings
    from a `RunConfig`. Members always share the base, the adapted modules, the training and validation rows, the batch
    size and the number of steps. Members with equal settings get equal parameters.
    """

    adapter: AdapterSettings
    """Rank, scaling, dropout and initialization of its adapter, the same as in the `EnsembleModel`."""
    order_seed: int
    """Seed of its permutations of the training rows, one per epoch."""
    dropout_seed: int
    """Seed of its dropout masks."""
    lr: float
    """Peak learning rate."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """Decay of the learning rate after the warm-up."""
    warmup: float = 0.06
    """Fraction of all steps in which the learning rate rises from zero, in [0, 1)."""
    clip_norm: float = 1.0
    """Largest gradient norm; 0 turns clipping off."""
    patience: int = 0
    """Consecutive evaluations without a better validation NLL after which it stops; 0 never stops early."""
    regularize: RegularizeConfig = dataclasses.field(default_factory=RegularizeConfig)
    """Its regularizers."""
    rows: tuple[int, ...] | None = None
    """Indices of its training rows, each used once per epoch and possibly repeated (see `bootstrap` and
    `all_but_one_fold`); None for all."""


def member_settings(
    config: RunConfig,
    num_rows: int,
    adapters: Sequence[AdapterSettings] | None = None,
    *,
    unit_sizes: Sequence[int] | None = None,
) -> tuple[MemberSettings, ...]:
    """Settings of the M members of an ensemble, which differ only by their seeds and what is drawn from them.

    The settings of several configurations, concatenated, train several ensembles in one pass.

    Args:
        config: configuration of the ensemble.
        num_rows: number of training rows.
        adapters: adapter settings of a model's members; by default made from `config`.
        unit_sizes: numbers of consecutive rows that stay together (see `sampler.units_of`); by default, each is alone.

    Raises:
        ConfigError: fewer units than folds.
    """
    adapt, train = config.adapt, config.train
    adapters = make_adapter_settings(adapt, train.seed) if adapters is None else adapters
    sizes = [1] * num_rows if unit_sizes is None else unit_sizes

    def rows(m: int) -> tuple[int, ...] | None:
        if adapt.order == "bootstrap":
            return bootstrap(num_rows, member_seed(train.seed, m))
        if adapt.order == "folds" and len(adapters) > 1:
            return all_but_one_fold(sizes, m, len(adapters), train.seed)
        return None

    return tuple(
        MemberSettings(
            adapter=adapter,
            order_seed=member_seed(train.seed, 0 if adapt.order == "same" else m),
            dropout_seed=member_seed(train.seed, m),
            lr=train.peak_lr,
            schedule=train.schedule,
            warmup=train.warmup,
            clip_norm=train.clip_norm,
            patience=train.patience,
            regularize=config.regularize,
            rows=rows(m),
        )
        for m, adapter in enumerate(adapters)
    )


def bootstrap(num_rows: int, *names: int | str) -> tuple[int, ...]:
    """Draw `num_rows` row indices with replacement (bagging: Breiman, 1996), a function of `names` alone.

    They are ascending: the order in which a member sees its rows depends on its `order_seed`.
    """
    source = generator(*names, "bootstrap")
    return tuple(torch.randint(num_rows, (num_rows,), generator=source).sort().values.tolist())


def all_but_one_fold(unit_sizes: Sequence[int], fold: int, num_folds: int, *names: int | str) -> tuple[int, ...]:
    """Ascending indices of the rows outside one of `num_folds` disjoint folds, which are a function of `names`.

    A fold has `len(unit_sizes) // num_folds` units; the remaining ones are in no fold, so that members have equally
    many units, and thus steps. Rows of one unit are in one fold.

    Raises:
        ConfigError: fewer units than folds.
    """
    size = len(unit_sizes) // num_folds
    if size == 0:
        raise ConfigError(
            f"adapt.order: folds needs a training row for each of {num_folds} members (typed questions about one state"
            f" count as one), but there are {len(unit_sizes)}; use fewer members, or another order"
        )
    left_out = set(permutation(len(unit_sizes), *names, "folds")[fold * size : (fold + 1) * size])
    ends = itertools.accumulate(unit_sizes)
    units = [range(end - size, end) for end, size in zip(ends, unit_sizes, strict=True)]
    return tuple(row for u, unit in enumerate(units) if u not in left_out for row in unit)


def check_members(train: TrainConfig, settings: Sequence[MemberSettings], num_rows: int) -> None:
    """Refuse member settings that are invalid.

    Args:
        train: the shared settings.
        settings: one per member; the adapters are checked by the `EnsembleModel`.
        num_rows: number of training rows.

    Raises:
        ConfigError: names the member, the field and its value.
    """
    for m, member in enumerate(settings):
        member_train = dataclasses.replace(
            train,
            lr=member.lr,
            schedule=member.schedule,
            warmup=member.warmup,
            clip_norm=member.clip_norm,
            patience=member.patience,
        )
        try:
            check_training(member_train, member.regularize)
            check_init(member.adapter.init_lora_weights, member.regularize)
        except ConfigError as error:
            raise ConfigError(f"member {m}: {error}") from error
        indices = range(num_rows) if member.rows is None else member.rows
        outside = [index for index in indices if not 0 <= index < num_rows]
        if outside:
            raise ConfigError(f"member {m}: rows: {outside[0]} is not the index of one of the {num_rows} training rows")


def steps_per_epoch(batch_size: int, num_rows: int) -> int:
    """Number of optimizer steps in which a member sees its rows once; the last may have fewer rows."""
    return -(-num_rows // batch_size)

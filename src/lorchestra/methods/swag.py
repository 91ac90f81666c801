"""SWAG on the adapter: a Gaussian fitted to the iterates of one LoRA at a constant rate (arXiv 1902.02476)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lorchestra.errors import ConfigError
from lorchestra.methods.contract import Fitted, Meter, MethodContext
from lorchestra.methods.posterior import SwagMoments
from lorchestra.methods.training import (
    check_rate,
    fitted_members,
    of_one_lora,
    only_first_members,
    start_training,
    train_steps,
)
from lorchestra.nn.schedules import Schedule, ThenConstant
from lorchestra.nn.seeding import generator
from lorchestra.training.members import MemberSettings
from lorchestra.training.trainer import member_schedules


@dataclass(frozen=True)
class Config:
    """Collection of iterates, and the Gaussian fitted to them."""

    start: float = 0.5
    """Share of the steps, in [0, 1), after which the rate is constant and iterates are collected."""
    lr_factor: float = 0.5
    """The constant rate, as a multiple of `train.lr`."""
    iterates: int = 20
    """Iterates to collect, evenly spaced over the remaining steps; at most one per step."""
    rank: int = 10
    """Number of last iterates that form the low-rank part of the covariance."""
    scale: float = 1.0
    """Factor on the covariance; with 0, all draws are the mean of the iterates (SWA)."""


def fit(context: MethodContext, config: Config) -> Fitted:
    """Train one LoRA with the budget of one member and draw M adapters; validation rows are not used.

    Raises:
        ConfigError: a setting out of range, or too few steps for a covariance.
        TrainingError: training failed.
    """
    _check(config)
    check_rate(context, config.lr_factor, "swag.lr_factor")
    meter = Meter()
    level = context.config.train.peak_lr * config.lr_factor

    def make_schedules(settings: Sequence[MemberSettings], num_steps: int) -> list[Schedule]:
        first = int(config.start * num_steps)
        return [
            ThenConstant(one.peak, one.num_steps, one.kind, one.warmup, start=first, level=level)
            for one in member_schedules(settings, num_steps)
        ]

    training = start_training(context, meter, of_one_lora(context.config), make_schedules=make_schedules)
    only_first_members(training)
    trainer = training.trainer
    first = int(config.start * trainer.num_steps)
    steps = _collected(first, trainer.num_steps, config.iterates)
    if len(steps) < 2:
        raise ConfigError(
            f"swag: {trainer.num_steps - first} optimizer steps after swag.start {config.start} are too few for a"
            " covariance; increase train.epochs or lower swag.start"
        )
    moments = SwagMoments(config.rank)

    def after_step(step: int) -> None:
        if step in steps:
            moments.update(training.values[0])

    train_steps(context, training, after_step)
    source = generator(context.seed, "swag")
    device = training.values.device
    num_parameters, num_kept = training.values.shape[1], len(moments.deviations)
    noise_SP = torch.randn(context.members, num_parameters, generator=source, dtype=torch.float64)
    noise_SK = torch.randn(context.members, num_kept, generator=source, dtype=torch.float64)
    with torch.no_grad():
        training.values.copy_(moments.draws(noise_SP.to(device), noise_SK.to(device), config.scale))
    return fitted_members(training, meter, range(context.members), (2 + num_kept) * num_parameters)


def _check(config: Config) -> None:
    if not 0 <= config.start < 1:
        raise ConfigError(f"swag.start: {config.start} is not in [0, 1)")
    if not 0 <= config.scale < math.inf:
        raise ConfigError(f"swag.scale: {config.scale} must be finite and at least 0")
    for name, value in {"iterates": config.iterates, "rank": config.rank}.items():
        if value < 2:
            raise ConfigError(f"swag.{name}: {value} is less than 2, the minimum for a covariance")


def _collected(first: int, num_steps: int, number: int) -> set[int]:
    """The steps after which iterates are collected: `number` evenly spaced ones after `first`, including the last."""
    remaining = num_steps - first
    number = min(number, remaining)
    return {first + remaining * (k + 1) // number for k in range(number)}

"""The base alone, with answered training rows before every question; one draw a choice of shots."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from lorchestra.data.splits import draw_stratified
from lorchestra.errors import ConfigError
from lorchestra.inference.pipeline import Pipeline
from lorchestra.inference.predict import MemberPass
from lorchestra.methods.contract import MAX_DRAWS, Fitted, Meter, MethodContext, Progress
from lorchestra.methods.training import changed
from lorchestra.nn.packing import BASE
from lorchestra.nn.seeding import derive_seed, permutation
from lorchestra.types import Example, Predictions


@dataclass(frozen=True)
class Config:
    """How many shots, and how many draws of them."""

    num_shots: int = 4
    """Training rows put before each question."""
    draws: int = 3
    """Draws of the shots; the result holds one pass of the base a draw."""


def fit(context: MethodContext, config: Config) -> Fitted:
    """Load the base; the shots are drawn by the setting's seed.

    Raises:
        ConfigError: no shots or no draws are asked for, or more shots than there are rows. In prediction: rows do not
            fit in behind the shots, or no training row is left to show.
    """
    for name, value in {"num_shots": config.num_shots, "draws": config.draws}.items():
        if value < 1:
            raise ConfigError(f"few_shot.{name}: {value} is less than 1; zero_shot shows no rows")
    if config.draws > MAX_DRAWS:
        raise ConfigError(f"few_shot.draws: {config.draws} is more than {MAX_DRAWS:,}")
    if config.num_shots > len(context.train):
        raise ConfigError(f"few_shot.num_shots: {config.num_shots} is more than the {len(context.train)} training rows")
    meter = Meter()
    pipeline = meter.open(context, changed(context.config, adapt={"members": 1}))

    def predict_draws(examples: Sequence[Example], split: str, progress: Progress | None = None) -> Predictions:
        shown = unasked(context.train, examples)
        if not shown:
            raise ConfigError("few_shot: every training row is among the rows asked, so none can be shown")
        found = []
        num_rows = len(pipeline.encode(examples).kept)
        for draw in range(config.draws):
            seed = derive_seed(context.seed, "few_shot", draw)
            found.append(predict(pipeline, examples, split, shown, config.num_shots, seed, progress))
            fewer = num_rows - found[-1].num_examples
            if fewer:
                raise ConfigError(
                    f"few_shot.num_shots: with {config.num_shots} rows before them, {fewer} of {len(examples)} rows"
                    f" have more than {pipeline.max_length} tokens; take fewer shots"
                )
        return dataclasses.replace(found[0], log_probs_MEC=np.concatenate([one.log_probs_MEC for one in found]))

    return Fitted(predict_draws, meter.cost(predict_base_passes=float(config.draws)))


def predict(
    pipeline: Pipeline,
    examples: Sequence[Example],
    split: str,
    train: Sequence[Example],
    num_shots: int,
    seed: int,
    progress: Callable[[int], None] | None = None,
) -> Predictions:
    """The base's predictions with `num_shots` answered training rows, drawn by the seed, before every question."""
    return pipeline.predict(
        examples, [MemberPass(BASE)], split, shots=draw_shots(train, num_shots, seed), progress=progress
    )


def unasked(train: Sequence[Example], examples: Sequence[Example]) -> list[Example]:
    """The training rows that are not among the examples: a row must not be shown with its answer before it is asked."""
    asked = {(row.question, row.choices) for row in examples}
    return [row for row in train if (row.question, row.choices) not in asked]


def draw_shots(train: Sequence[Example], num_shots: int, seed: int) -> list[Example]:
    """The training rows shown: drawn by the seed, with the answers as even as their number allows.

    Shots that all have one answer teach a small model to repeat it.
    """
    shots = draw_stratified(train, num_shots, seed, "few_shot")
    return [shots[i] for i in permutation(len(shots), seed, "few_shot_order")]

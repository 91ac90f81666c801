"""The base alone, few-shot: answered training rows precede every question; each draw shows other rows."""

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
    """Numbers of shots and of draws."""

    num_shots: int = 4
    """Training rows shown before each question."""
    draws: int = 3
    """Draws of the shots; predictions hold one pass of the base per draw."""


def fit(context: MethodContext, config: Config) -> Fitted:
    """Load the base; the seed determines the shots.

    Raises:
        ConfigError: the questions are typed; shots or draws below 1, or more shots than training rows. In prediction:
            rows are too long with the shots, or no training row remains to show.
    """
    if context.questions:
        raise ConfigError("few_shot: typed questions are asked without examples; zero_shot asks the base alone")
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
        candidates = excluding(context.train, examples)
        if not candidates:
            raise ConfigError("few_shot: every training row is among the predicted rows, so none can be shown")
        draws = []
        num_rows = len(pipeline.encode(examples).kept)
        for draw in range(config.draws):
            seed = derive_seed(context.seed, "few_shot", draw)
            draws.append(predict(pipeline, examples, split, candidates, config.num_shots, seed, progress))
            too_long = num_rows - draws[-1].num_examples
            if too_long:
                raise ConfigError(
                    f"few_shot.num_shots: with {config.num_shots} shots, {too_long} of {len(examples)} rows have more"
                    f" than {pipeline.max_length} tokens; use fewer shots"
                )
        return dataclasses.replace(draws[0], log_probs_MEC=np.concatenate([draw.log_probs_MEC for draw in draws]))

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
    """The base's predictions with `num_shots` answered training rows before every question, drawn with `seed`."""
    return pipeline.predict(
        examples, [MemberPass(BASE)], split, shots=draw_shots(train, num_shots, seed), progress=progress
    )


def excluding(train: Sequence[Example], examples: Sequence[Example]) -> list[Example]:
    """The training rows that are not among the examples, whose answers must not be shown."""
    predicted = {(row.question, row.choices) for row in examples}
    return [row for row in train if (row.question, row.choices) not in predicted]


def draw_shots(train: Sequence[Example], num_shots: int, seed: int) -> list[Example]:
    """Random training rows with answers as balanced as their number allows.

    Small models repeat the answer if all shots have the same one.
    """
    shots = draw_stratified(train, num_shots, seed, "few_shot")
    return [shots[i] for i in permutation(len(shots), seed, "few_shot_order")]

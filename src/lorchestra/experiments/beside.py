"""What stands beside an ensemble in its evaluation, and the evaluation as it is kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lorchestra.core.evaluation import evaluate_predictions
from lorchestra.core.seeding import derive_seed
from lorchestra.engine.config import EvaluateConfig, RunConfig
from lorchestra.engine.session import Session
from lorchestra.methods import few_shot, mc_dropout
from lorchestra.store.predictions import save_predictions
from lorchestra.types import Example, Predictions

Progress = Callable[[str, int, int], None]
"""Called with what is being computed, rows done and rows in all."""


def few_shot_base(
    session: Session,
    config: RunConfig,
    examples: Sequence[Example],
    split: str,
    train: Sequence[Example],
    progress: Progress,
) -> dict[str, Predictions]:
    """Predictions of the few-shot base by its name, where the configuration asks for it and rows are left to show."""
    number = config.evaluate.few_shot
    shown = few_shot.unasked(train, examples)
    if number > 0 and not shown:
        session.say("base_few_shot is left out: every training row is among the evaluated ones")
    if number == 0 or not shown:
        return {}
    seed = derive_seed(config.train.seed, "shots")

    def tell(done: int) -> None:
        progress(f"base, few-shot on {split}", done, len(examples))

    return {"base_few_shot": few_shot.predict(session, examples, split, shown, number, seed, tell)}


def mc_dropout_of(
    session: Session,
    config: RunConfig,
    examples: Sequence[Example],
    split: str,
    progress: Progress,
    *,
    member: int = 0,
    passes: int,
) -> dict[str, Predictions]:
    """Predictions of one member under dropout by their name, where the configuration asks for them and has dropout."""
    if not config.evaluate.mc_dropout or config.adapt.dropout == 0:
        return {}
    found = session.predict(
        examples,
        mc_dropout.dropout_passes([member], passes, config.train.seed),
        split,
        progress=lambda done: progress(f"MC dropout on {split}", done, len(examples)),
    )
    return {"mc_dropout": found}


def comparable(
    baselines: Mapping[str, Predictions], predictions: Predictions, session: Session
) -> dict[str, Predictions]:
    """The baselines that answered the same rows; of the others the session tells."""
    for name, found in baselines.items():
        if found.ids != predictions.ids:
            fewer = predictions.num_examples - found.num_examples
            session.say(
                f"{name} is left out: with its longer prompts {fewer} of {predictions.num_examples} rows have more than"
                f" {session.max_length} tokens; lower evaluate.few_shot to have it"
            )
    return {name: found for name, found in baselines.items() if found.ids == predictions.ids}


def score(
    predictions: Predictions,
    validation: Predictions,
    baselines: Mapping[str, Predictions],
    train: Sequence[Example],
    settings: EvaluateConfig,
    seed: int,
) -> dict[str, Any]:
    """An entry of `metrics.json`; see `core.evaluation`."""
    return evaluate_predictions(
        predictions,
        validation=validation,
        train_labels=[row.answer for row in train if row.answer is not None],
        baselines=baselines,
        temperature=settings.temperature,
        resamples=settings.resamples,
        seed=seed,
    )


def save_all(folder: Path, predictions: Sequence[Predictions], baselines: Mapping[str, Predictions]) -> None:
    """Save what was predicted under its task and split, and baselines under their names behind these."""
    for found in predictions:
        save_predictions(folder, found)
    for name, found in baselines.items():
        save_predictions(folder, found, f"{found.task}.{found.split}.{name}")

"""The baselines of an ensemble's evaluation, and the evaluation as `metrics.json` has it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lorchestra.config.run import EvaluateConfig, RunConfig
from lorchestra.data.splits import num_shared
from lorchestra.inference.pipeline import Pipeline
from lorchestra.methods import few_shot, mc_dropout
from lorchestra.metrics.evaluation import evaluate_predictions
from lorchestra.nn.seeding import derive_seed
from lorchestra.store.evaluations import Entry
from lorchestra.store.run import Run
from lorchestra.training.callbacks import Callback, progress
from lorchestra.types import Example, Predictions


def few_shot_base(
    pipeline: Pipeline,
    config: RunConfig,
    examples: Sequence[Example],
    split: str,
    train: Sequence[Example] | None,
    callback: Callback,
) -> dict[str, Predictions | str]:
    """Predictions of the few-shot base, or why there are none, by its name; empty if the configuration disables it."""
    number = config.evaluate.few_shot
    if number == 0:
        return {}
    if train is None:
        return {"base_few_shot": "the training rows are not available"}
    pool = few_shot.excluding(train, examples)
    if not pool:
        return {"base_few_shot": "every training row is among the evaluated ones"}
    if not pipeline.template.shows_shots:
        return {"base_few_shot": "the base's chat template writes longer conversations by no simple rule"}
    seed = derive_seed(config.train.seed, "shots")
    report = progress(callback, f"base, few-shot on {split}", len(examples))
    return {"base_few_shot": few_shot.predict(pipeline, examples, split, pool, number, seed, report)}


def mc_dropout_of(
    pipeline: Pipeline,
    config: RunConfig,
    examples: Sequence[Example],
    split: str,
    callback: Callback,
    *,
    member: int = 0,
    passes: int,
) -> dict[str, Predictions]:
    """Predictions of one member under dropout, by their name; empty if they are disabled or there is no dropout."""
    if not config.evaluate.mc_dropout or config.adapt.dropout == 0:
        return {}
    dropout_passes = mc_dropout.dropout_passes([member], passes, config.train.seed)
    report = progress(callback, f"MC dropout on {split}", len(examples))
    return {"mc_dropout": pipeline.predict(examples, dropout_passes, split, progress=report)}


def comparable(
    baselines: Mapping[str, Predictions | str], predictions: Predictions, pipeline: Pipeline
) -> tuple[dict[str, Predictions], dict[str, str]]:
    """The baselines that answered the same rows, and the reasons of the others, by name."""
    kept: dict[str, Predictions] = {}
    left_out: dict[str, str] = {}
    for name, baseline in baselines.items():
        if isinstance(baseline, str):
            left_out[name] = baseline
        elif baseline.ids != predictions.ids:
            fewer = predictions.num_examples - baseline.num_examples
            left_out[name] = (
                f"with its longer prompts {fewer} of {predictions.num_examples} rows have more than"
                f" {pipeline.max_length} tokens; lower evaluate.few_shot"
            )
        else:
            kept[name] = baseline
    return kept, left_out


def score(
    predictions: Predictions,
    validation: Predictions | None,
    baselines: Mapping[str, Predictions],
    left_out: Mapping[str, str],
    examples: Sequence[Example],
    splits: Mapping[str, Sequence[Example]],
    settings: EvaluateConfig,
    seed: int,
) -> Entry:
    """An entry of `metrics.json`: see `metrics.evaluation`.

    It also has `left_out`, the missing baselines with the reason, and `seen`: how many of the evaluated `examples` are,
    by their content, among the run's "train" and "val" `splits`; its notes start with the consequences.
    """
    entry = evaluate_predictions(
        predictions,
        validation=validation,
        train_labels=[row.answer for row in splits.get("train", ()) if row.answer is not None] or None,
        baselines=baselines,
        temperature=settings.temperature,
        resamples=settings.resamples,
        seed=seed,
    )
    seen = {name: num_shared(examples, splits.get(name, ())) for name in ("train", "val")}
    notes = [*_seen_notes(seen, len(examples)), *entry["notes"]]
    return entry | {"notes": notes, "seen": seen, "left_out": dict(left_out)}


def _seen_notes(seen: Mapping[str, int], num_rows: int) -> list[str]:
    """Notes on evaluated rows that trained the members, or selected their checkpoints."""
    notes = []
    if trained := seen["train"]:
        which = "These rows" if trained == num_rows else f"{trained} of these {num_rows} rows"
        notes.append(
            f"{which} trained the members: on them, the numbers say how well the members remember, not how well they"
            " answer new rows."
        )
    if chosen := seen["val"]:
        which = "These rows" if chosen == num_rows else f"{chosen} of these {num_rows} rows"
        notes.append(
            f"{which} are validation rows, on which the kept adapters, the best member and temperatures were chosen:"
            " they look better than new rows would."
        )
    return notes


def save_all(run: Run, predictions: Sequence[Predictions], baselines: Mapping[str, Predictions]) -> None:
    """Save predictions under their task and split, and baselines also under their names."""
    for one in predictions:
        run.save_predictions(one)
    for name, baseline in baselines.items():
        run.save_predictions(baseline, name)

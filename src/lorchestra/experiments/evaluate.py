"""Evaluate a finished run: the ensemble beside what one would use without it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lorchestra.core.evaluation import evaluate_predictions, ood_scores
from lorchestra.core.seeding import derive_seed
from lorchestra.errors import ConfigError, DataError, did_you_mean
from lorchestra.experiments.load import TrainedEnsemble
from lorchestra.experiments.rows import check_unchanged, read_rows
from lorchestra.methods import mc_dropout, prompting
from lorchestra.store.atomic import atomic_write_json
from lorchestra.store.predictions import save_predictions
from lorchestra.store.run_dir import RunDir, read_json
from lorchestra.types import Example, Predictions

Progress = Callable[[str, int, int], None]


def evaluate_run(
    trained: TrainedEnsemble,
    *,
    data: str | Path | None = None,
    split: str = "test",
    ood: Sequence[str | Path] = (),
    progress: Progress = lambda what, done, total: None,
) -> dict[str, Any]:
    """Evaluate on a split of the run's own rows, or on another file; saves predictions and `metrics.json`.

    Args:
        trained: the run.
        data: a file with labelled rows; without it, the run's own rows of `split`.
        split: train, val or test; with `data`, only a name.
        ood: files with rows unlike the training rows; their labels are ignored.
        progress: called with what is being computed, rows done and rows in all.

    Returns:
        The entry written into `metrics.json`.

    Raises:
        ConfigError: an unknown split, or a run of rows that came from Python.
        DataError: the rows cannot be used, or have changed since the run.
    """
    if trained.config.data.train is None:
        raise ConfigError(
            f"{trained.run.root}: trained on rows that came from Python and were not kept; evaluate it there, by the"
            " classifier's score or from its predictions"
        )
    rows = read_rows(trained.config.data, trained.config.train.seed)
    check_unchanged(rows, trained.run.splits)
    if data is not None:
        examples: Sequence[Example] = trained.read(data, require_answer=True)
        split = Path(data).name.split(".")[0]
    elif split in rows.task.splits:
        examples = rows.task.splits[split]
    else:
        raise ConfigError(f"--split {split}: no such split; {did_you_mean(split, rows.task.splits)}")
    predictions = _predict(trained, examples, split, progress)
    validation = (
        predictions if split == "val" and data is None else _predict(trained, rows.task.splits["val"], "val", progress)
    )
    settings = trained.config.evaluate
    train = rows.task.splits["train"]
    baselines = _baselines(trained, examples, split, train, progress)
    for name in [name for name, found in baselines.items() if found.ids != predictions.ids]:
        fewer = predictions.num_examples - baselines.pop(name).num_examples
        trained.session.say(
            f"{name} is left out: with its longer prompts {fewer} of {predictions.num_examples} rows have more than"
            f" {trained.session.max_length} tokens; lower evaluate.few_shot to have it"
        )
    entry = evaluate_predictions(
        predictions,
        validation=validation,
        train_labels=[row.answer for row in train if row.answer is not None],
        baselines=baselines,
        temperature=settings.temperature,
        resamples=settings.resamples,
        seed=trained.config.train.seed,
    )
    folder = trained.run.predictions
    for found in (predictions, validation):
        save_predictions(folder, found)
    for name, found in baselines.items():
        save_predictions(folder, found, f"{found.task}.{found.split}.{name}")
    entry["ood"] = {}
    for path in ood:
        name = Path(path).name.split(".")[0]
        if name in entry["ood"]:
            raise DataError(f"--ood {path}: another file is named {name} too; rename one")
        unlike = trained.read(path, require_answer=False, ignore_answers=True)
        found = _predict(trained, unlike, f"ood_{name}", progress)
        save_predictions(folder, found)
        entry["ood"][name] = ood_scores(predictions, found)
    _write_metrics(trained.run, trained.record, entry)
    return entry


def _predict(trained: TrainedEnsemble, examples: Sequence[Example], split: str, progress: Progress) -> Predictions:
    def tell(done: int) -> None:
        progress(f"ensemble on {split}", done, len(examples))

    return trained.session.predict_members(examples, split, tell)


def _baselines(
    trained: TrainedEnsemble, examples: Sequence[Example], split: str, train: Sequence[Example], progress: Progress
) -> dict[str, Predictions]:
    """Predictions of what stands beside the ensemble, by name."""
    session, settings, seed = trained.session, trained.config.evaluate, trained.config.train.seed

    def tell(what: str) -> Callable[[int], None]:
        return lambda done: progress(f"{what} on {split}", done, len(examples))

    found = {"base_zero_shot": prompting.zero_shot(session, examples, split, tell("base, zero-shot"))}
    if settings.few_shot > 0:
        shots = derive_seed(seed, "shots")
        found["base_few_shot"] = prompting.few_shot(
            session, examples, split, train, settings.few_shot, shots, tell("base, few-shot")
        )
    if settings.mc_dropout and trained.config.adapt.dropout > 0:
        found["mc_dropout"] = mc_dropout.predict(session, examples, split, seed, progress=tell("MC dropout"))
    return found


def _write_metrics(run: RunDir, record: dict[str, Any], entry: dict[str, Any]) -> None:
    """Put the entry into `metrics.json`, in place of an older one of the same task and split."""
    metrics = read_json(run.metrics) if run.metrics.exists() else {"evaluations": []}
    others = [e for e in metrics["evaluations"] if (e["task"], e["split"]) != (entry["task"], entry["split"])]
    atomic_write_json(run.metrics, {"evaluations": [*others, entry], "cost": record["cost"]})

"""The source of a page: the files of finished and evaluated runs, read and checked against each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from lorchestra.config.run import RunConfig
from lorchestra.errors import CheckpointError, DataError, did_you_mean
from lorchestra.metrics.calibrator import Calibrates, pooled
from lorchestra.metrics.decisions import Decisions
from lorchestra.metrics.evaluation import evaluate
from lorchestra.metrics.predictive import FloatArray
from lorchestra.metrics.question_scores import calibration_of
from lorchestra.metrics.result import Evaluation
from lorchestra.metrics.scores import accuracy
from lorchestra.questions import Question
from lorchestra.store.distill_record import DistillRecord
from lorchestra.store.ensemble_record import EnsembleRecord
from lorchestra.store.predictions import load_predictions
from lorchestra.store.run import Run
from lorchestra.store.safe_paths import inside
from lorchestra.store.schema import FILE_NAME, read_json
from lorchestra.store.search_record import SearchRecord
from lorchestra.types import Json, Predictions


@dataclass(frozen=True)
class ReportRun:
    """One run, and the evaluation of it that the page shows.

    Attributes:
        run: its directory.
        record: `ensemble.json`.
        cost: what its training took.
        entry: the evaluation.
        others: the run's other evaluations.
        predictions: the members' predictions of the evaluated rows.
        validation: their predictions of the validation rows, if saved.
        members: numbers of the members that did not fail, in the order of the predictions.
        parameters: trainable parameters of one member; None without its adapter file.
        search: what the search of learning rate and epochs tried, if there was one.
        questions: its typed questions; none in other runs.
        decisions: certified thresholds and prediction sets, by question; that of a run without typed questions is "".
        distillation: which ensemble taught its only member; None if none did.
    """

    run: Run
    name: str
    record: Json
    config: RunConfig
    environment: Json
    cost: Json
    entry: Evaluation
    others: tuple[Evaluation, ...]
    predictions: Predictions
    validation: Predictions | None
    baselines: Mapping[str, Predictions]
    ood: Mapping[str, Predictions]
    events: tuple[Json, ...]
    members: tuple[int, ...]
    parameters: int | None
    search: SearchRecord | None
    questions: tuple[Question, ...] = ()
    decisions: Mapping[str, Decisions] = field(default_factory=dict)
    distillation: DistillRecord | None = None

    @property
    def predicted_information(self) -> bool:
        """Whether mutual information is predicted by a distilled run, instead of computed from members."""
        return self.predictions.predicted_information is not None

    @property
    def has_information(self) -> bool:
        """Whether rows differ in mutual information, which one member alone does not have."""
        return self.predicted_information or self.predictions.num_members > 1

    def mixture(self, predictions: Predictions) -> FloatArray:
        """The ensemble's log-probabilities, `[E, C]`, calibrated as in the evaluation.

        Raises:
            CheckpointError: the evaluation's calibration does not fit these rows.
        """
        return mixture_of(predictions, calibration_of(self.entry, predictions), self.run)


def read_run(root: str | Path, split: str | None = None) -> ReportRun:
    """Read a run; `split` names the evaluation: by default test if it was evaluated, else the latest.

    An evaluation without temperature scaling gets it here, from the saved predictions and on the same resamples.

    Raises:
        CheckpointError: no run, an unfinished or unevaluated one, damaged files, or files of different evaluations.
    """
    run = Run.at(root)
    ensemble = run.read_ensemble()
    record = ensemble.to_dict()
    entries, cost = _read_metrics(run, record)
    entry = _choose(run, entries, split)
    task = entry.task
    predictions = _read_predictions(run, f"{task}.{entry.split}", answered=True)
    mixture_of(predictions, calibration_of(entry, predictions), run)  # refuses what does not fit
    _check_pair(run, entry, predictions)
    members = tuple(m for m, member in enumerate(record["members"]) if member["state"] != "failed")
    if len(members) != predictions.num_members:
        raise _stale(run, f"num_members is {predictions.num_members}, and {len(members)} members of the run are left")
    validation = predictions if entry.split == "val" else _optional_predictions(run, f"{task}.val")
    if validation is not None and validation.num_members != predictions.num_members:
        validation = None
    if entry.best_member_scaled is None and validation is not None:
        entry = _with_temperature(entry, predictions, validation)
    return ReportRun(
        run=run,
        name=run.root.resolve().name,
        record=record,
        config=run.read_config(),
        environment=run.read_environment(),
        cost=cost,
        entry=entry,
        others=tuple(other for other in entries if (other.task, other.split) != (task, entry.split)),
        predictions=predictions,
        validation=validation,
        baselines=_read_baselines(run, entry, predictions),
        ood=_read_ood(run, entry, predictions),
        events=run.read_events(len(record["members"])),
        search=run.read_search(),
        members=members,
        parameters=_num_parameters(run, record),
        questions=ensemble.questions,
        decisions=_read_decisions(run, ensemble),
        distillation=run.read_distillation(),
    )


def expand_sweeps(roots: Sequence[str | Path]) -> list[str | Path]:
    """Run directories; the directory of a sweep stands for its finished runs, in the order of its points.

    Raises:
        CheckpointError: a sweep is damaged, or no run of it is finished.
    """
    expanded: list[str | Path] = []
    for root in roots:
        path = inside(root, "sweep.json")
        if not path.is_file():
            expanded.append(root)
            continue
        record = read_json(path, {"points": [{"name": FILE_NAME}]})
        runs = [inside(root, "runs", point["name"]) for point in record["points"]]
        finished = [run for run in runs if Run(run).is_finished]
        if not finished:
            raise CheckpointError(
                f"{root}: no run of this sweep is finished; the same lorchestra sweep command resumes it"
            )
        expanded += finished
    return expanded


def read_runs(roots: Sequence[str | Path], split: str | None = None) -> list[ReportRun]:
    """Read runs that can share a table: of one task, evaluated on the same rows.

    Raises:
        CheckpointError: as `read_run`.
        DataError: the runs are of different tasks or were evaluated on different rows.
    """
    runs = [read_run(root, split) for root in roots]
    if len({run.name for run in runs}) < len(runs):
        runs = [replace(run, name=str(run.run.root)) for run in runs]
    first = runs[0]
    for other in runs[1:]:
        if other.entry.task != first.entry.task:
            raise DataError(
                f"{other.run.root} is of the task {other.entry.task!r} and {first.run.root} of"
                f" {first.entry.task!r}: numbers of different tasks do not belong in one table; make a page for each"
            )
        if other.entry.split != first.entry.split or not same_rows(other.predictions, first.predictions):
            raise DataError(
                f"{other.run.root} was evaluated on other rows ({_rows(other)}) than {first.run.root} ({_rows(first)});"
                f" evaluate both on the same file: lorchestra evaluate RUN --data FILE, then --split NAME_OF_FILE here"
            )
    return runs


def same_rows(one: Predictions, other: Predictions) -> bool:
    """Whether predictions are of the same rows in the same order: ids, answers, choices, and texts if both have them.

    Row numbers and indices of answers alone are the same in many files.
    """
    same = one.ids == other.ids and np.array_equal(one.labels, other.labels) and one.options == other.options
    return same and (one.texts == other.texts or not (one.texts and other.texts))


def _rows(run: ReportRun) -> str:
    return f"{run.entry.split}, {run.predictions.num_examples} rows"


def _evaluate_again(run: Run) -> str:
    return f"evaluate the run: lorchestra evaluate {run.root}"


def _stale(run: Run, what: str) -> CheckpointError:
    return CheckpointError(f"{run.metrics}: {what}: the files are of different evaluations; {_evaluate_again(run)}")


def _read_decisions(run: Run, ensemble: EnsembleRecord) -> dict[str, Decisions]:
    """The certified decisions by question."""
    record = run.read_calibration(ensemble)
    saved = {} if record is None else {name: one.saved_decisions for name, one in record.questions.items()}
    return {name: one.decisions for name, one in saved.items() if one is not None}


def _read_metrics(run: Run, record: Json) -> tuple[list[Evaluation], Json]:
    """The evaluations and the cost of a run."""
    entries, cost = run.read_evaluations()
    if not entries:
        what = "holds no evaluation" if run.metrics.exists() else "not evaluated yet (no metrics.json)"
        raise CheckpointError(f"{run.metrics if run.metrics.exists() else run.root}: {what}; {_evaluate_again(run)}")
    return [Evaluation.from_dict(entry) for entry in entries], dict(cost) or record.get("cost") or {}


def _choose(run: Run, entries: Sequence[Evaluation], split: str | None) -> Evaluation:
    by_split = {entry.split: entry for entry in entries}
    if split is None:
        return by_split.get("test", entries[-1])
    if split not in by_split:
        raise CheckpointError(
            f"--split {split}: {run.root} has no such evaluation; {did_you_mean(split, by_split)}; others are made by:"
            f" lorchestra evaluate {run.root} --split NAME"
        )
    return by_split[split]


def _read_predictions(run: Run, stem: str, *, answered: bool) -> Predictions:
    path = run.prediction(stem)
    if not path.exists():
        raise CheckpointError(f"{path}: missing, though {run.metrics.name} refers to it; {_evaluate_again(run)}")
    return load_predictions(path, answered=answered)


def _optional_predictions(run: Run, stem: str) -> Predictions | None:
    path = run.prediction(stem)
    return load_predictions(path, answered=True) if path.exists() else None


def _read_baselines(run: Run, entry: Evaluation, predictions: Predictions) -> dict[str, Predictions]:
    """The baselines' saved predictions, as far as they exist and are of the same rows."""
    saved = {name: _optional_predictions(run, f"{entry.task}.{entry.split}.{name}") for name in entry.baselines}
    return {name: rows for name, rows in saved.items() if rows is not None and rows.ids == predictions.ids}


def _read_ood(run: Run, entry: Evaluation, predictions: Predictions) -> dict[str, Predictions]:
    ood = {name: _read_predictions(run, f"{entry.task}.ood_{name}", answered=False) for name in entry.ood or {}}
    for name, rows in ood.items():
        if rows.num_members != predictions.num_members:
            raise _stale(run, f"{entry.task}.ood_{name} has {rows.num_members} members, not {predictions.num_members}")
    return ood


def _check_pair(run: Run, entry: Evaluation, predictions: Predictions) -> None:
    """Refuse predictions from which the metrics were not computed."""
    for name in ("num_examples", "num_members"):
        here, there = getattr(entry, name), getattr(predictions, name)
        if here != there:
            raise _stale(run, f"{name} is {here} here and {there} in the predictions")
    if (differs := accuracy_differs(entry, predictions)) is not None:
        raise _stale(run, differs)


def mixture_of(predictions: Predictions, calibration: Calibrates | None, run: Run) -> FloatArray:
    """The calibrated mixture of saved predictions, `[E, C]`.

    Raises:
        CheckpointError: the calibration has another number of classes than the rows.
    """
    try:
        return pooled(predictions.log_probs_MEC, calibration)
    except ValueError as error:
        raise _stale(run, str(error)) from error


def accuracy_differs(entry: Evaluation, predictions: Predictions) -> str | None:
    """That an evaluation has another accuracy than predictions, as a clause; None where it has not."""
    saved = entry.ensemble.metrics["accuracy"]
    computed = accuracy(pooled(predictions.log_probs_MEC, calibration_of(entry, predictions)), predictions.labels)
    if saved is not None and abs(computed - saved) <= 1e-9:
        return None
    return f"accuracy is {saved} here and {computed} in the predictions"


def _with_temperature(entry: Evaluation, predictions: Predictions, validation: Predictions) -> Evaluation:
    scaled = evaluate(
        predictions,
        validation=validation,
        temperature=True,
        calibration=calibration_of(entry, predictions),
        resamples=entry.resamples,
        seed=entry.seed,
    )
    return replace(entry, ensemble_scaled=scaled.ensemble_scaled, best_member_scaled=scaled.best_member_scaled)


def _num_parameters(run: Run, record: Json) -> int | None:
    """Trainable parameters of one member, from the header of its adapter file."""
    path = run.inside(record["members"][0]["path"], "adapter_model.safetensors")
    try:
        with safe_open(path, framework="numpy") as file:
            return int(sum(np.prod(file.get_slice(name).get_shape()) for name in file.keys()))  # noqa: SIM118
    except (OSError, SafetensorError):
        return None

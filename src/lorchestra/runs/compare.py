"""Methods at equal budget on one configuration's rows: fitted, predicted and evaluated, one directory each.

Format of the directory: `compare.json` (the configuration as given and as resolved), `splits.json` (ids and digest of
each split), `methods/<name>/` (`result.json` and `predictions/` of a finished method, complete), `left_out.json`
(methods that could not do the task, with the reason).
"""

from __future__ import annotations

import dataclasses
import gc
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

from lorchestra.config.mappings import differences, from_mapping, to_mapping
from lorchestra.config.run import RunConfig, check_no_probe, check_run
from lorchestra.errors import CheckpointError, ConfigError, TrainingError
from lorchestra.inference.pipeline import Pipeline
from lorchestra.methods.contract import Cost, MethodContext
from lorchestra.methods.registry import NamedMethod, parse_name
from lorchestra.metrics.evaluation import ensemble_minus, evaluate_predictions
from lorchestra.metrics.question_scores import evaluate_questions
from lorchestra.models.loading import absolute_base
from lorchestra.planning.budget import settle_budget
from lorchestra.runs.baselines import labels_by_question
from lorchestra.runs.build import build_pipeline, settle_dtype, torch_threads
from lorchestra.runs.cached_fit import CachedFit
from lorchestra.runs.rows import RunRows, absolute_settings, check_unchanged, read_rows
from lorchestra.runs.search import settle_once
from lorchestra.store.atomic import atomic_directory, atomic_write_json, sweep_directory
from lorchestra.store.evaluations import check_entry
from lorchestra.store.predictions import load_predictions, save_predictions, tensors_path
from lorchestra.store.safe_paths import inside
from lorchestra.store.schema import Each, Number, Shape, read_json
from lorchestra.store.workspace import COMPARISON, Workspace
from lorchestra.training.callbacks import Callback, CallbackList
from lorchestra.training.precompute import TrainingRows
from lorchestra.types import Json, Predictions, Task

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1

REFERENCE = "lora_ensemble"
"""The method from which the others' differences are computed."""

_LONGEST_NAME = 200
"""Letters of a method's directory; file systems end at 255 bytes."""

_RECORD: Shape = {"format_version": int, "config": dict, "resolved": dict}
_RESULT: Shape = {
    "name": str,
    "summary": str,
    "cost": {field.name: Number() for field in dataclasses.fields(Cost)},
    "chosen": Each((Number(), None)),
    "predict_s": {"val": Number(), "test": Number()},
    "notes?": [str],
}

Result = Json
"""A method's `result.json`; see `compare_methods`."""


def compare_methods(
    config: RunConfig,
    names: Iterable[str],
    out: str | Path,
    *,
    callbacks: Sequence[Callback] = (),
) -> list[Result]:
    """Fit methods on the configuration's training rows, and evaluate them on its test rows.

    Methods that are finished in `out` are read instead; an interruption loses at most the method in progress. Wrappers
    of one method (`lora_ensemble`, `lora_ensemble+temperature`) share its fit.

    Args:
        config: M is its `adapt.members`, and its `train` the budget of one member. A learning rate or number of epochs
            that it leaves open is searched once, for all methods.
        names: methods of the registry, with settings and wrappers (`registry.parse_name`).
        out: the directory of the comparison.
        callbacks: report progress; `on_status` is called with the name of a method without wrappers before its fit.

    Returns:
        One dictionary per name, in order. Of a finished method: `name`, `summary`, `settings` (of the method),
        `wrappers` (each with its settings), `chosen` (numbers that its fit chose), `cost` (the fields of `Cost`; those
        of a wrapped method include the fit below it), `predict_s` (seconds by split), `entry` (`metrics.evaluation`, on
        the test rows), `config` (resolved), and, if `lora_ensemble` is finished in `out`, `ensemble_minus`: paired
        intervals of its metrics minus this method's. Of a method that cannot do the task, or of which every member
        failed: `name`, `summary` and `left_out`, the reason.

    Raises:
        ConfigError: no name or an unknown one, or another configuration than the one `out` was started with.
        DataError, CheckpointError: the rows, the base or `out` cannot be used, or another process is working in it.
        Interrupted: a callback asked to stop.
    """
    check_run(config)
    check_no_probe(config, "a comparison")
    names = list(dict.fromkeys(names))
    groups = _by_method(names)
    config, callback = absolute_settings(config), CallbackList(callbacks)
    with Workspace.open(out, COMPARISON) as workspace:
        rows = read_rows(config.data, config.train.seed)
        resolved = _saved_config(workspace.root, config, rows) if workspace.resuming else None
        for note in rows.notes:
            logger.info(note)
        settled = resolved or config
        with torch_threads(settled.base.threads):
            if not workspace.resuming:
                settled, _ = settle_dtype(settled)
            context = method_context(settle_once(settled, rows, callback), rows.task, callback)
            if not workspace.resuming:
                with workspace.create() as directory:
                    _describe(directory, config, context.config, rows)
            comparison = _Comparison(workspace.root, context, rows)
            left_out: dict[str, str] = {}
            for below, group in groups.items():
                callback.on_status([below], "fitting")
                left_out |= comparison.run(below, group)
                gc.collect()  # frees a method's base before the next one is loaded: both would count in its peak
        _write_left_out(workspace.root, names, left_out)
        return comparison.results(names, left_out)


def read_left_out(root: Path) -> dict[str, str]:
    """Methods that could not do the task, with the reason."""
    path = inside(root, "left_out.json")
    return {name: str(reason) for name, reason in read_json(path).items()} if path.exists() else {}


def _by_method(names: Sequence[str]) -> dict[str, list[NamedMethod]]:
    """The methods by the name of the method below their wrappers.

    Raises:
        ConfigError: no name, or one that cannot be used.
    """
    if not names:
        raise ConfigError("--methods: no method is named")
    groups: dict[str, list[NamedMethod]] = {}
    for named in map(parse_name, names):
        if len(_folder_name(named.name)) > _LONGEST_NAME:
            raise ConfigError(f"--methods: {named.name[:80]}... is too long for a directory's name; set less in it")
        groups.setdefault(named.below, []).append(named)
    return groups


@dataclasses.dataclass(frozen=True)
class _Comparison:
    """A directory of methods, with the context and the rows that they have in common."""

    root: Path
    context: MethodContext
    rows: RunRows

    def run(self, first: str, group: Sequence[NamedMethod]) -> dict[str, str]:
        """Finish a method and its wrappers; returns those left out, with the reason."""
        missing = [named for named in group if not _folder(self.root, named.name).exists()]
        if not missing:
            return {}
        left_out = {}
        below = CachedFit(group[0], self.context, {split: self.rows.task.splits[split] for split in ("val", "test")})
        if _folder(self.root, first).exists():
            predictions = {split: self.predictions(first, split) for split in below.splits}
            below.remember(_read_result(self.root, first), predictions)
        for named in sorted(missing, key=lambda named: named.name != first):
            try:
                self._finish(named, below)
            except (ConfigError, TrainingError) as error:
                left_out[named.name] = str(error)
                logger.info(f"{named.name} is left out: {error}")
        return left_out

    def _finish(self, named: NamedMethod, below: CachedFit) -> None:
        """Wrap, predict, evaluate and save one method."""
        name, fitted = named.name, below.as_fitted()
        before = below.elsewhere_s
        fitted = named.wrap(self.context, fitted)
        cost = dataclasses.replace(fitted.cost, fit_s=fitted.cost.fit_s + below.elsewhere_s - before)
        predictions, seconds = {}, {}
        for split, examples in below.splits.items():
            before, started = below.elsewhere_s, time.perf_counter()
            progress = self.context.progress(f"predicting {split}", len(examples))
            predictions[split] = fitted.predict(examples, split, progress)
            seconds[split] = time.perf_counter() - started + below.elsewhere_s - before
        result: Result = {
            "name": name,
            "summary": named.summary,
            "settings": dataclasses.asdict(named.config),
            "wrappers": [[wrapper, dataclasses.asdict(config)] for wrapper, config in named.wrappers],
            "chosen": fitted.chosen,
            "notes": fitted.notes,
            "cost": dataclasses.asdict(cost),
            "predict_s": seconds,
            "entry": self._evaluate(predictions["test"], predictions["val"]),
            "config": to_mapping(self.context.config),
        }
        with atomic_directory(_folder(self.root, name)) as directory:
            for one in predictions.values():
                save_predictions(directory / "predictions", one)
            atomic_write_json(directory / "result.json", result)
        for note in fitted.notes:
            logger.info(f"{name}: {note}")
        logger.info(f"{name} is done: fitted in {cost.fit_s:.0f} s, {seconds['test']:.0f} s for the test rows")

    def _evaluate(self, test: Predictions, validation: Predictions) -> Json:
        """The entry of the test rows, with one per typed question."""
        config, task = self.context.config, self.rows.task
        train, resamples, seed = task.splits["train"], config.evaluate.resamples, config.train.seed
        entry = evaluate_predictions(
            test,
            validation=validation,
            # answers to several questions have no majority
            train_labels=None if task.questions else [row.answer for row in train if row.answer is not None],
            resamples=resamples,
            seed=seed,
        )
        if task.questions:
            by_question = evaluate_questions(
                test,
                task.questions,
                validation=validation,
                train_labels=labels_by_question(train),
                resamples=resamples,
                seed=seed,
            )
            entry["questions"] = {name: one.to_dict() for name, one in by_question.items()}
        return entry

    def predictions(self, name: str, split: str) -> Predictions:
        """A finished method's predictions.

        Raises:
            CheckpointError: they are damaged, or of other rows.
        """
        folder = inside(_folder(self.root, name), "predictions")
        path = tensors_path(folder, f"{self.rows.task.name}.{split}")
        predictions = load_predictions(path, answered=True)
        rows = {(row.id, len(row.choices), row.answer) for row in self.rows.task.splits[split]}
        for key, options, label in zip(predictions.ids, predictions.options, predictions.labels.tolist(), strict=True):
            if (key, len(options), label) not in rows:
                raise CheckpointError(
                    f"{path}: its row {key[:100]!r} is not one of the {split} rows; the file was changed or damaged:"
                    " remove the method's directory"
                )
        return predictions

    def results(self, names: Sequence[str], left_out: Mapping[str, str]) -> list[Result]:
        """What `compare_methods` returns."""
        results = {name: _read_result(self.root, name) for name in names if name not in left_out}
        if _folder(self.root, REFERENCE).exists():
            others = {name: self.predictions(name, "test") for name in results if name != REFERENCE}
            reference = self.predictions(REFERENCE, "test")
            for name, other in others.items():
                if other.ids != reference.ids:
                    raise CheckpointError(
                        f"{_folder(self.root, name)}: its predictions are of other rows than those of {REFERENCE};"
                        " remove the method's directory"
                    )
            config = self.context.config
            differences = ensemble_minus(reference, others, resamples=config.evaluate.resamples, seed=config.train.seed)
            for name, intervals in differences.items():
                results[name]["ensemble_minus"] = intervals
        return [
            results[name]
            if name in results
            else {"name": name, "summary": parse_name(name).summary, "left_out": left_out[name]}
            for name in names
        ]


def _folder_name(name: str) -> str:
    # colons are not allowed in file names everywhere, and a value may hold anything
    return quote(name.replace(":", ","), safe="+=,")


def _folder(root: Path, name: str) -> Path:
    return inside(root, "methods", _folder_name(name))


def _saved_config(root: Path, config: RunConfig, rows: RunRows) -> RunConfig:
    """The resolved configuration of the comparison in a directory.

    Raises:
        CheckpointError: it is damaged, or of another format version.
        ConfigError: it has other settings.
        DataError: it has other rows.
    """
    path = inside(root, "compare.json")
    record = read_json(path, _RECORD)
    if record["format_version"] != FORMAT_VERSION:
        raise CheckpointError(f"{path}: format_version is {record['format_version']}, this is {FORMAT_VERSION}")
    saved = from_mapping(RunConfig, record["config"], str(path))
    saved = dataclasses.replace(saved, base=absolute_base(saved.base))
    for name, (now, before) in differences(config, saved).items():
        if name != "data.dir":  # rows are verified by their digests, so they may come from anywhere
            raise ConfigError(
                f"{name}: the comparison in {root} has {before!r}, not {now!r}; keep its settings, or choose another"
                " --out"
            )
    check_unchanged(rows, inside(root, "splits.json"))
    sweep_directory(inside(root, "methods"))
    resolved = from_mapping(RunConfig, record["resolved"], str(path), saved=True)
    return dataclasses.replace(resolved, data=dataclasses.replace(resolved.data, dir=config.data.dir))


def _describe(directory: Path, config: RunConfig, resolved: RunConfig, rows: RunRows) -> None:
    """Write what a comparison starts with."""
    atomic_write_json(directory / "splits.json", rows.record())
    record = {"format_version": FORMAT_VERSION, "config": to_mapping(config), "resolved": to_mapping(resolved)}
    atomic_write_json(directory / "compare.json", record)


def _read_result(root: Path, name: str) -> Result:
    path = inside(_folder(root, name), "result.json")
    result = read_json(path, _RESULT)
    check_entry(result.get("entry"), path, "entry", "remove the method's directory")
    return result


def _write_left_out(root: Path, names: Sequence[str], left_out: Mapping[str, str]) -> None:
    before = read_left_out(root)
    now = {name: reason for name, reason in before.items() if name not in names} | dict(left_out)
    if now != before:
        atomic_write_json(inside(root, "left_out.json"), now)


def method_context(
    config: RunConfig,
    task: Task,
    callback: Callback | None = None,
) -> MethodContext:
    """The context of `methods`: the task's training and validation rows, and a configuration with nothing left open.

    What the configuration leaves open (scoring, token budget) is settled once, on a base that is loaded for it, so that
    all methods have the same.

    Args:
        config: the run's configuration.
        task: its rows; methods do not see the test rows.
        callback: reports on every training; when it asks to stop, a fit ends with `Interrupted`.
    """
    train = task.splits["train"]
    prompt = config.data.prompt
    # a chat template is rendered once for all methods: it may write the time
    has_live_template = (prompt.chat_template or prompt.system_prompt is not None) and not prompt.frame.template
    if config.data.scoring == "auto" or config.train.token_budget is None or has_live_template:
        pipeline, resolved = build_pipeline(config, task.name, task.labels, train)
        rows = TrainingRows(pipeline.encode(train).rows, pipeline.encode(task.splits["val"]).rows)
        budget = settle_budget(config, pipeline, rows)
        config = dataclasses.replace(resolved, train=dataclasses.replace(resolved.train, token_budget=budget))
        del pipeline

    def open_pipeline(wanted: RunConfig) -> Pipeline:
        return build_pipeline(wanted, task.name, task.labels, train)[0]

    return MethodContext(
        config=config,
        open_pipeline=open_pipeline,
        train=train,
        val=task.splits["val"],
        labels=task.labels,
        callback=callback or Callback(),
    )

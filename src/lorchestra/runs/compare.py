"""Methods at equal budget on one configuration's rows: fitted, predicted and evaluated, one directory each.

Format of the directory: `compare.json` (the configuration as asked for and as resolved), `splits.json` (ids and digest
of each split), `methods/<name>/` (`result.json` and `predictions/` of a finished method, whole), `left_out.json`
(methods that could not do the task, with the reason).

One fit below several wrappers.

From a configuration and its rows to the setting in which methods are compared.
"""

from __future__ import annotations

import dataclasses
import gc
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

from lorchestra.config.mappings import differences, from_mapping, to_mapping
from lorchestra.config.run import RunConfig, check_run
from lorchestra.errors import CheckpointError, ConfigError, TrainingError
from lorchestra.inference.pipeline import Pipeline
from lorchestra.methods.contract import Cost, Fitted, MethodContext, Progress
from lorchestra.methods.registry import NamedMethod, parse_name
from lorchestra.metrics.evaluation import ensemble_minus, evaluate_predictions
from lorchestra.models.loading import absolute_base
from lorchestra.planning.budget import settle_budget
from lorchestra.runs.build import build_pipeline
from lorchestra.runs.rows import RunRows, absolute_settings, check_unchanged, read_rows
from lorchestra.store.atomic import atomic_directory, atomic_write_json, sweep_directory
from lorchestra.store.lock import holding_out
from lorchestra.store.predictions import load_predictions, save_predictions
from lorchestra.store.records import check_entry
from lorchestra.store.run_dir import read_json, tensors_path
from lorchestra.store.safe_paths import inside, typed_path
from lorchestra.store.schema import Each, Number, check_shape
from lorchestra.training.callbacks import Callback, CallbackList
from lorchestra.training.precompute import TrainingRows
from lorchestra.types import Example, Predictions, Task

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1

REFERENCE = "lora_ensemble"
"""The method from which the others' differences are taken."""

_LONGEST_NAME = 200
"""Letters of a method's directory; file systems end at 255 bytes."""

_RECORD: dict[str, Any] = {"format_version": int, "config": dict, "resolved": dict}
_RESULT: dict[str, Any] = {
    "name": str,
    "summary": str,
    "cost": {field.name: Number() for field in dataclasses.fields(Cost)},
    "chosen": Each((Number(), None)),
    "predict_s": {"val": Number(), "test": Number()},
    "notes?": [str],
}


@holding_out
def compare_methods(
    config: RunConfig,
    names: Iterable[str],
    out: str | Path,
    *,
    callbacks: Sequence[Callback] = (),
) -> list[dict[str, Any]]:
    """Fit methods on the configuration's training rows, and evaluate them on its test rows.

    What is finished in `out` is read and not done again; an interruption loses at most the method under way. Wrappers
    on one method (`lora_ensemble`, `lora_ensemble+temperature`) share its fit.

    Args:
        config: M is its `adapt.members`, and its `train` the budget of one member.
        names: methods of the registry, with settings and wrappers (`registry.parse_name`).
        out: the directory of the comparison.
        callbacks: report progress; `on_status` is called with the name of a method without wrappers before its fit.

    Returns:
        One dictionary a name, in order. Of a finished method: `name`, `summary`, `settings` (of the method), `wrappers`
        (each with its settings), `chosen` (numbers that its fit chose), `cost` (the fields of `Cost`; those of a
        wrapped method include the fit below it), `predict_s` (seconds by split), `entry` (`metrics.evaluation`, on the
        test rows), `config` (resolved), and, where `lora_ensemble` is finished in `out`, `ensemble_minus`: paired
        intervals of its metrics minus this method's. Of a method that cannot do the task, or of which every member
        failed: `name`, `summary` and `left_out`, the reason.

    Raises:
        ConfigError: no name or an unknown one, or another configuration than the one that `out` was begun with.
        DataError, CheckpointError: the rows, the base or `out` cannot be used, or another process is at work in it.
        Interrupted: a callback asked to stop.
    """
    check_run(config)
    names = list(dict.fromkeys(names))
    if not names:
        raise ConfigError("--methods: no method is named")
    groups: dict[str, list[NamedMethod]] = {}
    for named in map(parse_name, names):
        if len(_folder(Path(out), named.name).name) > _LONGEST_NAME:
            raise ConfigError(f"--methods: {named.name[:80]}... is too long for a directory's name; set less in it")
        groups.setdefault(named.below, []).append(named)
    root = typed_path(out)
    config = absolute_settings(config)
    rows = read_rows(config.data, config.train.seed)
    begun = _begun(root, config, rows)
    for note in rows.notes:
        logger.info(note)
    callback = CallbackList(callbacks)
    context = method_context(begun or config, rows.task, callback)
    if begun is None:
        _begin(root, config, context.config, rows)
    left_out: dict[str, str] = {}
    for below, group in groups.items():
        callback.on_status([below], "fitting")
        left_out |= _Comparison(root, context, rows).run(below, group)
        gc.collect()  # the base of a method goes before the next one's comes: both would count in its peak
    _note_left_out(root, names, left_out)
    return _results(root, names, left_out, config, rows)


def read_left_out(root: Path) -> dict[str, str]:
    """Methods that could not do the task, with the reason."""
    path = inside(root, "left_out.json")
    return {name: str(reason) for name, reason in read_json(path).items()} if path.exists() else {}


@dataclasses.dataclass(frozen=True)
class _Comparison:
    """Where, in which setting and on which rows."""

    root: Path
    context: MethodContext
    rows: RunRows

    def run(self, first: str, group: Sequence[NamedMethod]) -> dict[str, str]:
        """Finish a method and what is wrapped around it; returns those left out, with the reason."""
        missing = [named for named in group if not _folder(self.root, named.name).exists()]
        if not missing:
            return {}
        left_out = {}
        below = CachedFit(group[0], self.context, {split: self.rows.task.splits[split] for split in ("val", "test")})
        if _folder(self.root, first).exists():
            known = {split: _read_predictions(self.root, first, self.rows, split) for split in below.splits}
            below.remember(_read_result(self.root, first), known)
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
        found, seconds = {}, {}
        for split, examples in below.splits.items():
            before, started = below.elsewhere_s, time.perf_counter()
            progress = self.context.progress(f"predicting {split}", len(examples))
            found[split] = fitted.predict(examples, split, progress)
            seconds[split] = time.perf_counter() - started + below.elsewhere_s - before
        config, train = self.context.config, self.rows.task.splits["train"]
        entry = evaluate_predictions(
            found["test"],
            validation=found["val"],
            train_labels=[row.answer for row in train if row.answer is not None],
            resamples=config.evaluate.resamples,
            seed=config.train.seed,
        )
        result = {
            "name": name,
            "summary": named.summary,
            "settings": dataclasses.asdict(named.config),
            "wrappers": [[wrapper, dataclasses.asdict(config)] for wrapper, config in named.wrappers],
            "chosen": fitted.chosen,
            "notes": fitted.notes,
            "cost": dataclasses.asdict(cost),
            "predict_s": seconds,
            "entry": entry,
            "config": to_mapping(config),
        }
        with atomic_directory(_folder(self.root, name)) as directory:
            for predictions in found.values():
                save_predictions(directory / "predictions", predictions)
            atomic_write_json(directory / "result.json", result)
        for note in fitted.notes:
            logger.info(f"{name}: {note}")
        logger.info(f"{name} is done: fitted in {cost.fit_s:.0f} s, {seconds['test']:.0f} s for the test rows")


def _folder(root: Path, name: str) -> Path:
    # a colon is no part of a file's name everywhere, and a value may hold anything
    return inside(root, "methods", quote(name.replace(":", ","), safe="+=,"))


def _begun(root: Path, config: RunConfig, rows: RunRows) -> RunConfig | None:
    """The resolved configuration of a comparison that is there already; None where there is none.

    Raises:
        CheckpointError: something else is there.
        ConfigError: it has other settings.
        DataError: it has other rows.
    """
    path = inside(root, "compare.json")
    if not path.exists():
        if root.exists() and (not root.is_dir() or any(root.iterdir())):
            raise CheckpointError(f"--out {root}: exists and is not the directory of a comparison; choose another name")
        return None
    record = read_json(path)
    check_shape(record, _RECORD, path)
    if record["format_version"] != FORMAT_VERSION:
        raise CheckpointError(f"{path}: format_version is {record['format_version']}, this is {FORMAT_VERSION}")
    before = from_mapping(RunConfig, record["config"], str(path))
    before = dataclasses.replace(before, base=absolute_base(before.base))
    # rows are checked by their digest: they may come from another place now
    changed = {name: pair for name, pair in differences(config, before).items() if name != "data.dir"}
    for name, (now, then) in changed.items():
        raise ConfigError(
            f"{name}: the comparison in {root} has {then!r}, not {now!r}; keep its settings, or choose another --out"
        )
    check_unchanged(rows, inside(root, "splits.json"))
    sweep_directory(inside(root, "methods"))
    resolved = from_mapping(RunConfig, record["resolved"], str(path), saved=True)
    return dataclasses.replace(resolved, data=dataclasses.replace(resolved.data, dir=config.data.dir))


def _begin(root: Path, config: RunConfig, resolved: RunConfig, rows: RunRows) -> None:
    with suppress(OSError):
        root.rmdir()  # an empty directory may be there
    with atomic_directory(root) as directory:
        atomic_write_json(directory / "splits.json", rows.record())
        record = {"format_version": FORMAT_VERSION, "config": to_mapping(config), "resolved": to_mapping(resolved)}
        atomic_write_json(directory / "compare.json", record)


def _read_result(root: Path, name: str) -> dict[str, Any]:
    path = inside(_folder(root, name), "result.json")
    result = read_json(path)
    check_shape(result, _RESULT, path)
    check_entry(result.get("entry"), path, "entry", "remove the method's directory")
    return result


def _read_predictions(root: Path, name: str, rows: RunRows, split: str) -> Predictions:
    path = tensors_path(inside(_folder(root, name), "predictions"), f"{rows.task.name}.{split}")
    found = load_predictions(path, answered=True)
    asked = {(row.id, len(row.choices), row.answer) for row in rows.task.splits[split]}
    for key, options, label in zip(found.ids, found.options, found.labels.tolist(), strict=True):
        if (key, len(options), label) not in asked:
            raise CheckpointError(
                f"{path}: its row {key[:100]!r} is not one of the {split} rows; the file was changed or damaged: remove"
                " the method's directory"
            )
    return found


def _note_left_out(root: Path, names: Sequence[str], left_out: Mapping[str, str]) -> None:
    before = read_left_out(root)
    now = {name: reason for name, reason in before.items() if name not in names} | dict(left_out)
    if now != before:
        atomic_write_json(inside(root, "left_out.json"), now)


def _results(
    root: Path, names: Sequence[str], left_out: Mapping[str, str], config: RunConfig, rows: RunRows
) -> list[dict[str, Any]]:
    """What `compare_methods` returns."""
    found = {name: _read_result(root, name) for name in names if name not in left_out}
    if _folder(root, REFERENCE).exists():
        others = {name: _read_predictions(root, name, rows, "test") for name in found if name != REFERENCE}
        reference = _read_predictions(root, REFERENCE, rows, "test")
        for name, other in others.items():
            if other.ids != reference.ids:
                raise CheckpointError(
                    f"{_folder(root, name)}: its predictions are of other rows than those of {REFERENCE}; remove the"
                    " method's directory"
                )
        apart = ensemble_minus(
            reference,
            others,
            resamples=config.evaluate.resamples,
            seed=config.train.seed,
        )
        for name, intervals in apart.items():
            found[name]["ensemble_minus"] = intervals
    return [
        found[name]
        if name in found
        else {"name": name, "summary": parse_name(name).summary, "left_out": left_out[name]}
        for name in names
    ]


class CachedFit:
    """A method below wrappers: fitted when it is first needed, and asked for a split's predictions only once.

    `elsewhere_s` corrects a wrapper's clock: seconds that it would have taken by itself, for predictions that were
    there already, less those in which the method below was fitted, which its own cost has.

    Args:
        named: the method, with its settings; wrappers are not looked at.
        setting: what all methods of a comparison have in common.
        splits: the rows that are predicted once, by the name of their split; a wrapper that asks for a split's very
            sequence gets what is there.
    """

    def __init__(self, named: NamedMethod, context: MethodContext, splits: Mapping[str, Sequence[Example]]) -> None:
        self.named, self.context, self.splits = named, context, splits
        self.elsewhere_s = 0.0
        self._fitted: Fitted | None = None
        self._said: tuple[Cost, Mapping[str, float], list[str]] | None = None
        self._refused: ConfigError | TrainingError | None = None
        self._known: dict[str, tuple[Predictions, float]] = {}

    def remember(self, result: Mapping[str, Any], predictions: Mapping[str, Predictions]) -> None:
        """Take what an earlier call has found in place of a fit."""
        cost = {field.name: result["cost"][field.name] for field in dataclasses.fields(Cost)}
        self._said = Cost(**cost), result["chosen"], list(result.get("notes", []))
        self._known = {split: (found, result["predict_s"][split]) for split, found in predictions.items()}

    def as_fitted(self) -> Fitted:
        """What wrappers are put on.

        Raises:
            ConfigError, TrainingError: the method cannot do the task, or failed; again whenever it is asked for.
        """
        if self._said is None:
            fitted = self._fit()
            self._said = fitted.cost, fitted.chosen, fitted.notes
        return Fitted(self._predict, *self._said)

    def _fit(self) -> Fitted:
        if self._refused is not None:
            raise self._refused
        if self._fitted is None:
            started = time.perf_counter()
            try:
                self._fitted = self.named.fit(self.context)
            except (ConfigError, TrainingError) as error:
                self._refused = error
                raise
            self.elsewhere_s -= time.perf_counter() - started
        return self._fitted

    def _predict(self, examples: Sequence[Example], split: str, progress: Progress | None = None) -> Predictions:
        if examples is not self.splits.get(split):
            return self._fit().predict(examples, split, progress)
        if split in self._known:
            found, seconds = self._known[split]
            self.elsewhere_s += seconds
            return found
        fitted, started = self._fit(), time.perf_counter()
        found = fitted.predict(examples, split, progress)
        self._known[split] = found, time.perf_counter() - started
        return found


def method_context(
    config: RunConfig,
    task: Task,
    callback: Callback | None = None,
) -> MethodContext:
    """The setting for `methods`: the task's training and validation rows, and a configuration with nothing left open.

    What the configuration leaves open (scoring, token budget) is settled once, on a base that is loaded for it, so that
    all methods have the same.

    Args:
        config: the run's configuration.
        task: its rows; test rows are not handed on.
        callback: reports on every training; where it asks to stop, a fit ends with `Interrupted`.
    """
    train = task.splits["train"]
    prompt = config.data.prompt
    # a chat template is run once for all methods: it may write the time
    live = (prompt.chat_template or prompt.system_prompt is not None) and not prompt.frame.template
    if config.data.scoring == "auto" or config.train.token_budget is None or live:
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

"""The rows of a run: a task by name, or files, read and split; and rows to evaluate it on."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lorchestra.config.data import DataConfig
from lorchestra.config.run import RunConfig, check_run
from lorchestra.data.files import TaskFile, read_task_file
from lorchestra.data.formats import is_file_name, rows_name
from lorchestra.data.labels import label_names
from lorchestra.data.questions_file import read_questions
from lorchestra.data.readers.streams import STANDARD_INPUT
from lorchestra.data.splits import make_splits, split_digest
from lorchestra.data.tasks.load import load_task
from lorchestra.data.tasks.sources import data_directory
from lorchestra.data.tasks.table import TASKS
from lorchestra.data.typed_files import read_typed_file
from lorchestra.errors import ConfigError, DataError, did_you_mean
from lorchestra.metrics.validation import weak_validation
from lorchestra.models.loading import absolute_base
from lorchestra.questions import Question
from lorchestra.store.safe_paths import name_fault, typed_path
from lorchestra.store.splits import SplitRecord, read_digests
from lorchestra.types import Example, Json, Task

logger = logging.getLogger(__name__)

_MANY = 100_000
"""Rows that take seconds to split."""


@dataclass(frozen=True)
class RunRows:
    """A task's splits, and notes for the user on how they were made."""

    task: Task
    notes: tuple[str, ...]

    def record(self) -> dict[str, SplitRecord]:
        """The content of `splits.json`."""
        return {
            split: {"digest": split_digest(rows), "num_examples": len(rows), "ids": [row.id for row in rows]}
            for split, rows in self.task.splits.items()
        }


def read_rows(config: DataConfig, seed: int, questions: tuple[Question, ...] = ()) -> RunRows:
    """Read the configured task by name, or the configured files and split them.

    Args:
        config: the data settings.
        seed: decides which rows are held out.
        questions: the typed questions of a finished run; without them, those of the configured file, if there is one.

    Raises:
        ConfigError: neither a task nor a training file is configured, or both are, or the task or a question is
            unusable.
        DataError: a file or a row cannot be used, or no source has the task's rows.
    """
    if config.task is not None:
        given = [f"data.{split}" for split in ("train", "val", "test") if getattr(config, split) is not None]
        if given:
            raise ConfigError(
                f"data.task {config.task!r} and {', '.join(given)}: a task by name comes with its rows; give the name"
                " or the files, not both"
            )
        loaded = load_task(config.task, config.dir)
        return RunRows(loaded.task, (*loaded.notes, *validation_notes(loaded.task)))
    if config.train is None:
        raise ConfigError(
            "data.train: no training rows; give a file with --data.train FILE, or a task by name with --data.task"
        )
    for split in ("train", "val", "test"):
        if str(getattr(config, split)) == STANDARD_INPUT:
            raise ConfigError(
                f"data.{split}: standard input cannot be read again by evaluate or a resumed run; write the rows to a"
                " file first"
            )
    if config.read.questions is not None:
        questions = questions or read_questions(config.read.questions)
    train = _read_file(config.train, config, None, questions, require_answer=True)
    notes = [*train.notes, *train.warnings]
    others: dict[str, Sequence[Example] | None] = {}
    for split, path in (("val", config.val), ("test", config.test)):
        if path is None:
            others[split] = None
            continue
        file = read_like(path, config, train.labels, questions, require_answer=True)
        notes += (*file.notes, *file.warnings)
        others[split] = file.examples
    if len(train.examples) >= _MANY:
        logger.info(f"splitting {len(train.examples):,} rows")
    splits, report = make_splits(train.examples, others["val"], others["test"], seed, most=config.read.max_held_out)
    task = Task(name_of_file(config.train), splits, train.labels, questions)
    return RunRows(task, (*notes, *report.sentences(), *validation_notes(task)))


def read_task(config: RunConfig) -> Task:
    """The splits "train", "val" and "test" of a configuration's rows.

    Raises:
        ConfigError: a setting has another type or range, or there are no rows to train on.
        DataError: the rows cannot be read.
    """
    check_run(config)
    rows = read_rows(config.data, config.train.seed)
    for note in rows.notes:
        logger.info(note)
    return rows.task


def validation_notes(task: Task) -> list[str]:
    """Notes on validation rows that are too few or too uniform to select members by."""
    rows = task.splits["val"]
    return weak_validation([row.answer for row in rows if row.answer is not None], [row.choices for row in rows])


def name_of_file(path: str | Path) -> str:
    """The name under which results on a file's rows are saved: its name up to the first dot.

    Raises:
        DataError: it cannot be part of a file name.
    """
    name = rows_name(path)
    if (fault := name_fault(name)) is not None:
        raise DataError(
            f"{path}: results are saved under {name!r}, its name up to the first dot, which {fault}; rename it"
        )
    return name


def absolute_paths(config: DataConfig) -> DataConfig:
    """The settings with absolute paths; label names from a file and the data directory are resolved too.

    The path of a questions file is for people and resumed trainings: a finished run has its questions in its record.

    Raises:
        ConfigError: `data.read.label_names` names a file that cannot be read.
    """
    paths = {name: getattr(config, name) for name in ("train", "val", "test")}
    if config.task is not None or config.dir is not None:
        paths["dir"] = data_directory(config.dir)
    absolute: Json = {
        name: str(typed_path(path).absolute()) for name, path in paths.items() if path and path != STANDARD_INPUT
    }
    names = tuple(f"{label}={name}" for label, name in label_names(config.read.label_names).items())
    questions = config.read.questions and str(typed_path(config.read.questions).absolute())
    absolute["read"] = dataclasses.replace(config.read, label_names=names, questions=questions)
    return dataclasses.replace(config, **absolute)


def absolute_settings(config: RunConfig) -> RunConfig:
    """A run's settings with absolute paths to its rows and its base."""
    return dataclasses.replace(config, data=absolute_paths(config.data), base=absolute_base(config.base))


def check_same_kind(trained: tuple[str, ...] | None, given: tuple[str, ...] | None, path: str | Path) -> None:
    """Refuse a file of questions if the run was trained on texts with labels, and the reverse."""
    if (trained is None) != (given is None):
        kinds = {True: "questions with choices", False: "texts with labels"}
        raise DataError(
            f"{path}: has {kinds[given is None]}, but the training rows are {kinds[trained is None]}; give rows of the"
            " same kind"
        )


def with_directory(config: DataConfig, directory: str | None) -> DataConfig:
    """A saved configuration with the given directory of data sets; without one, the saved directory if it exists.

    Rows are verified by their digests, so they may come from anywhere.
    """
    if directory is None and config.dir is not None and Path(config.dir).is_dir():
        return config
    return dataclasses.replace(config, dir=directory)


def read_named(
    name: str,
    split: str,
    config: DataConfig,
    trained_labels: tuple[str, ...] | None,
    questions: tuple[Question, ...] = (),
) -> tuple[Example, ...]:
    """A split of another task by name, for a run that was trained on this one.

    Raises:
        ConfigError: an unknown task, or it has no such split.
        DataError: no source has the rows, or the run was trained on texts with labels and the task has others, or on
            typed questions.
    """
    _check_untyped(f"--task {name}", questions)
    loaded = load_task(name, config.dir, (split,))
    labels = loaded.task.labels
    if trained_labels is not None and labels != trained_labels:
        theirs = "questions with choices" if labels is None else f"the labels {', '.join(labels)}"
        raise DataError(
            f"--task {name}: its rows have {theirs}, but the run was trained on texts with the labels"
            f" {', '.join(trained_labels)}; name a task with these, or use its rows as OOD rows with --ood {name}"
        )
    return loaded.task.splits[split]


def read_ood(
    values: Sequence[str | Path],
    config: DataConfig,
    trained_labels: tuple[str, ...] | None,
    questions: tuple[Question, ...] = (),
    *,
    keep_answers: bool = False,
) -> dict[str, tuple[Example, ...]]:
    """Rows unlike the training rows, by name of their task or file.

    A run that was trained on texts with labels offers its labels as the choices of every row; one that was trained on
    typed questions asks each of them about every state.

    Args:
        values: tasks by name, or files.
        config: the directory of named tasks, and the columns of files.
        trained_labels: labels of the training rows, None if these are questions.
        questions: typed questions of the training rows.
        keep_answers: keep the answers of questions; without it, no row has one.

    Raises:
        ConfigError: neither a file nor a task, or two of one name.
        DataError: the rows cannot be used.
    """
    sets: dict[str, tuple[Example, ...]] = {}
    for value in values:
        is_task = is_task_name(value)
        name = str(value) if is_task else name_of_file(value)
        if name in sets:
            raise ConfigError(f"--ood {value}: another file or task is named {name} too; rename one")
        keep = keep_answers and trained_labels is None
        if is_task:
            _check_untyped(f"--ood {name}", questions)
            rows = load_task(name, config.dir, ("test",)).task.splits["test"]
            sets[name] = tuple(
                dataclasses.replace(row, choices=trained_labels or row.choices, answer=row.answer if keep else None)
                for row in rows
            )
        else:
            sets[name] = read_like(
                value, config, trained_labels, questions, require_answer=False, ignore_answers=not keep
            ).examples
    return sets


def read_like(
    path: str | Path,
    config: DataConfig,
    trained_labels: tuple[str, ...] | None,
    questions: tuple[Question, ...] = (),
    *,
    require_answer: bool,
    ignore_answers: bool = False,
) -> TaskFile:
    """A file with rows in the form of the training rows.

    Raises:
        DataError: the rows cannot be used, or have labels where the training rows are questions, or the reverse.
    """
    file = _read_file(
        path, config, trained_labels, questions, require_answer=require_answer, ignore_answers=ignore_answers
    )
    check_same_kind(trained_labels, file.labels, path)
    return file


def _read_file(
    path: str | Path,
    config: DataConfig,
    labels: tuple[str, ...] | None,
    questions: tuple[Question, ...],
    *,
    require_answer: bool,
    ignore_answers: bool = False,
) -> TaskFile:
    if questions:
        return read_typed_file(path, config, questions, require_answer=require_answer, ignore_answers=ignore_answers)
    return read_task_file(path, config, require_answer=require_answer, labels=labels, ignore_answers=ignore_answers)


def _check_untyped(option: str, questions: tuple[Question, ...]) -> None:
    """Refuse a task by name for a run on typed questions."""
    if questions:
        raise DataError(f"{option}: a task by name does not answer the run's typed questions; give a file with states")


def is_task_name(value: str | Path) -> bool:
    """Whether a value names a task rather than a file.

    Raises:
        ConfigError: it is neither the name of a known task nor of a file.
    """
    name = str(value)
    if name in TASKS:
        return True
    if not is_file_name(name):
        raise ConfigError(f"{name!r} is neither a file nor a task known by name; {did_you_mean(name, TASKS)}")
    return False


def check_unchanged(rows: RunRows, splits_path: Path) -> None:
    """Refuse rows other than those of the given `splits.json`.

    Raises:
        DataError: a split's digest differs from the saved one.
        CheckpointError: the file is missing or damaged.
    """
    digests = read_digests(splits_path, rows.task.splits)
    for split, examples in rows.task.splits.items():
        if digests[split] != split_digest(examples):
            raise DataError(
                f"the {split} rows are not those this run was made with (digest differs from {splits_path}): the data"
                " have changed since; give the changed file as new data with --data, or restore the files"
            )

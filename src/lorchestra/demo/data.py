"""The demo's data, from a wheel on PyPI instead of a hub: satirical and ordinary headlines, and OOD texts.

Source: the wheel `evals` 3.0.1.post1 (OpenAI Evals), under `evals/registry/data`. Its LICENSE.md puts everything under
the MIT license except for a list of data sets, none of which is used here.
"""

from __future__ import annotations

import hashlib
import importlib.util
import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from lorchestra.data.splits import normalize_text
from lorchestra.errors import CheckpointError, ConfigError, DataError
from lorchestra.store.atomic import atomic_write_text

WHEEL = "evals==3.0.1.post1"

DEMO_PROMPT = "Headline: {question}\nIs this headline satire? Answer:"
"""The demo's prompt; the labels are "no" and "yes"."""

# single words carry no information, and a few rows are whole stories or long paths that would dominate the run time
_SHORTEST_WORDS, _LONGEST_WORDS, _LONGEST_CHARACTERS = 3, 60, 300
_SOURCE = f"""Written by `lorchestra demo` from the PyPI wheel {WHEEL}, folder evals/registry/data.
License of the rows: MIT, Copyright (c) 2023 OpenAI (LICENSE.md in the wheel, which excepts none of these sets).
"""


@dataclass(frozen=True)
class DemoSizes:
    """Number of rows per file."""

    train: int = 400
    """Headlines to train on."""
    val: int = 200
    """Headlines to choose the kept adapters and the temperature on."""
    test: int = 1000
    """Headlines to test on."""
    certify: int = 1500
    """Headlines that certify what may be automated."""
    ood: int = 150
    """Maximum number of texts per OOD set."""


@dataclass(frozen=True)
class DemoData:
    """Paths of the task files; `ood` by the set's name."""

    train: Path
    val: Path
    test: Path
    certify: Path
    ood: Mapping[str, Path]


@dataclass(frozen=True)
class _Source:
    """One file of the wheel, its SHA-256, and a function from its user messages to texts."""

    folder: str
    sha256: str
    text: Callable[[str], str] = str.strip
    max_same_start: int | None = None
    """Maximum number of texts that start with the same four words."""


_HEADLINES = _Source("sarcasm", "4cb34ff4d2718da62368440ffe8dece7ece39a46b0fe4d172fdd8a76bc420f46")

_OOD = {
    # Complete questions on a technical subject, from an amateur radio exam; headlines are fragments about people and
    # news. The answer options, which follow on separate lines, are removed.
    "radio_questions": _Source(
        "fcc_amateur_extra",
        "937dbd19e69b6c7aa0c42158b8460b638586dfff011a6196bab5b87511c6eb04",
        text=lambda message: message.split("\nA.")[0].strip(),
    ),
    # Event log messages: English words, but generated, with paths, numbers and device names. Most rows repeat a
    # message with another path or update, so only a few of each kind are kept.
    "event_logs": _Source(
        "event_categories",
        "a374f443826a6ff003e49546ead963198c6d0a13e678780ad85c2a0ab92fc72a",
        max_same_start=3,
    ),
    # Sayings and retorts in another language, most of them sarcastic: a similar topic in different words.
    "portuguese": _Source(
        "portuguese-sarcasm",
        "087305a6cbfa26850c325785590e31e9056284a91125755e7e4d5ec8aee7864c",
    ),
}

_FILES = {split: f"headlines.{split}.jsonl" for split in ("train", "val", "test", "certify")}

OOD_NAMES = tuple(_OOD)
"""The names of the OOD sets."""


def write_demo_data(directory: str | Path, sizes: DemoSizes | None = None, seed: int = 0) -> DemoData:
    """Write the demo's task files into `directory`, which is created if missing.

    `headlines.{train,val,test,certify}.jsonl` hold `{"id", "text", "label"}` with labels "no" and "yes", and
    `<name>.jsonl` of each OOD set `{"id", "text"}`. Rows depend on `seed` and content only; splits are disjoint, and no
    text (case and whitespace folded) occurs twice. An `id` names the row's set and line in the wheel. Files are written
    atomically.

    Raises:
        DataError: the wheel is missing or has another version, or the directory cannot be written.
        ConfigError: sizes that the wheel cannot fill.
    """
    sizes = sizes or DemoSizes()
    for size in fields(sizes):
        if getattr(sizes, size.name) < 1:
            raise ConfigError(f"sizes.{size.name} is {getattr(sizes, size.name)}; give at least 1")
    folder = _wheel_folder()
    rows = _draw(_read(folder, _HEADLINES), seed)
    ends = list(itertools.accumulate(getattr(sizes, name) for name in _FILES))
    if ends[-1] > len(rows):
        raise ConfigError(f"sizes: all splits need {ends[-1]} headlines, but there are {len(rows)}; use fewer")
    files = {file: rows[start:end] for file, start, end in zip(_FILES.values(), (0, *ends), ends, strict=False)}
    for name, source in _OOD.items():
        texts = _draw(_read(folder, source), seed)[: sizes.ood]
        files[f"{name}.jsonl"] = [{"id": row["id"], "text": row["text"]} for row in texts]
    directory = Path(directory)
    _write_all(directory, files)
    ood = {name: directory / f"{name}.jsonl" for name in _OOD}
    return DemoData(**{split: directory / file for split, file in _FILES.items()}, ood=ood)


def _wheel_folder() -> Path:
    """The wheel's data folder, located without importing the package, whose requirements may be missing."""
    try:
        spec = importlib.util.find_spec("evals")
    except (ImportError, ValueError):
        spec = None
    for location in (spec.submodule_search_locations or ()) if spec else ():
        folder = Path(location, "registry", "data")
        if (folder / _HEADLINES.folder / "samples.jsonl").is_file():
            return folder
    raise DataError(f"the demo's data are not installed; run pip install --no-deps {WHEEL}")


def _read(folder: Path, source: _Source) -> list[dict[str, str]]:
    """The rows of one file without duplicates, in file order."""
    path = folder / source.folder / "samples.jsonl"
    reinstall = f"run pip install --no-deps --force-reinstall {WHEEL}"
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); {reinstall}") from error
    if hashlib.sha256(data).hexdigest() != source.sha256:
        raise DataError(f"{path}: not the rows of {WHEEL}; {reinstall}")
    rows: dict[str, dict[str, str]] = {}
    starts: Counter[str] = Counter()
    for number, line in enumerate(data.decode("utf-8").rstrip("\n").split("\n"), 1):
        sample = json.loads(line)
        text = source.text(sample["input"][-1]["content"])
        key = normalize_text(text)
        start = " ".join(key.split()[:4])
        if key in rows or len(text) > _LONGEST_CHARACTERS:
            continue
        if not _SHORTEST_WORDS <= len(text.split()) <= _LONGEST_WORDS:
            continue
        if source.max_same_start is not None and starts[start] >= source.max_same_start:
            continue
        starts[start] += 1
        label = "yes" if sample["ideal"] in ("1", "Y") else "no"
        rows[key] = {"id": f"{source.folder}-{number}", "text": text, "label": label}
    return list(rows.values())


def _draw(rows: Iterable[dict[str, str]], seed: int) -> list[dict[str, str]]:
    """The rows in an order that depends on seed and content only."""
    return sorted(rows, key=lambda row: hashlib.sha256(f"{seed}:{row['id']}:{row['text']}".encode()).hexdigest())


def _write_all(directory: Path, files: Mapping[str, Sequence[Mapping[str, str]]]) -> None:
    texts = {name: "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows) for name, rows in files.items()}
    try:
        for name, text in {**texts, "SOURCE.md": _SOURCE}.items():
            atomic_write_text(directory / name, text)
    except CheckpointError as error:
        raise DataError(f"the demo's data cannot be written: {error}") from error

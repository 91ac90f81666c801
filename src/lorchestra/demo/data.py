"""The demo's data, without a hub: headlines, satirical or not, out of a wheel on PyPI, and texts unlike headlines.

Source: the wheel `evals` 3.0.1.post1 (OpenAI Evals), under `evals/registry/data`. Its LICENSE.md puts everything under
the MIT license except the data sets that it lists, and none of those used here is listed.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from lorchestra.data.splits import normalize_text
from lorchestra.errors import ConfigError, DataError

WHEEL = "evals==3.0.1.post1"

DEMO_PROMPT = "Headline: {question}\nIs this headline satire? Answer:"
"""The demo's prompt: it asks what the labels "no" and "yes" answer."""

# Single words say nothing, and a few rows are whole stories or long paths, which would cost most of the time.
_SHORTEST_WORDS, _LONGEST_WORDS, _LONGEST_CHARACTERS = 3, 60, 300
_SOURCE = f"""Written by `lorchestra demo` from the PyPI wheel {WHEEL}, folder evals/registry/data.
License of the rows: MIT, Copyright (c) 2023 OpenAI (LICENSE.md in the wheel, which excepts none of these sets).
"""


@dataclass(frozen=True)
class DemoSizes:
    """Rows of each file."""

    train: int = 400
    """Headlines to train on."""
    val: int = 150
    """Headlines for early stopping and calibration."""
    test: int = 500
    """Headlines to test on."""
    ood: int = 150
    """Most texts of each set that is unlike headlines; smaller sets are taken whole."""


@dataclass(frozen=True)
class DemoData:
    """Where the task files lie; `ood` by the set's name."""

    train: Path
    val: Path
    test: Path
    ood: Mapping[str, Path]


@dataclass(frozen=True)
class _Source:
    """One file of the wheel, its SHA-256, and how a user message in it becomes a text."""

    folder: str
    sha256: str
    text: Callable[[str], str] = str.strip
    most_alike: int | None = None
    """Most texts kept that begin with the same four words."""


_HEADLINES = _Source("sarcasm", "4cb34ff4d2718da62368440ffe8dece7ece39a46b0fe4d172fdd8a76bc420f46")

_OOD = {
    # Whole questions on one technical subject, from an examination for amateur radio, where headlines are fragments
    # about people and news. The options, a line each, are left away.
    "radio_questions": _Source(
        "fcc_amateur_extra",
        "937dbd19e69b6c7aa0c42158b8460b638586dfff011a6196bab5b87511c6eb04",
        text=lambda message: message.split("\nA.")[0].strip(),
    ),
    # Messages of a computer's event log: English words, but machine-made, with paths, numbers and device names. Most
    # rows are one message with another path or update in it, so that only a few of each kind are kept.
    "event_logs": _Source(
        "event_categories",
        "a374f443826a6ff003e49546ead963198c6d0a13e678780ad85c2a0ab92fc72a",
        most_alike=3,
    ),
    # Sayings and retorts in another language, most of them sarcastic: the topic is near, the words are not.
    "portuguese": _Source(
        "portuguese-sarcasm",
        "087305a6cbfa26850c325785590e31e9056284a91125755e7e4d5ec8aee7864c",
    ),
}

_FILES = {split: f"headlines.{split}.jsonl" for split in ("train", "val", "test")}

OOD_NAMES = tuple(_OOD)
"""The names of the sets unlike headlines."""


def write_demo_data(directory: str | Path, sizes: DemoSizes | None = None, seed: int = 0) -> DemoData:
    """Write `headlines.train.jsonl`, `headlines.val.jsonl`, `headlines.test.jsonl` (`{"id", "text", "label"}`, labels
    "no" and "yes") and `<name>.jsonl` (`{"id", "text"}`) of each set of OOD texts into `directory`, which is made where
    it is missing.

    Rows are drawn by `seed` and by content: the splits are disjoint, and no text (case and spaces folded) is in
    two rows. An `id` names the row's set and line in the wheel. Each file appears whole or not at all.

    Raises: DataError where the wheel is missing or another version's, or the directory cannot be written; ConfigError
    for sizes that the wheel cannot fill.
    """
    sizes = sizes or DemoSizes()
    for size in fields(sizes):
        if getattr(sizes, size.name) < 1:
            raise ConfigError(f"sizes.{size.name} is {getattr(sizes, size.name)}; give at least 1")
    folder = _wheel_folder()
    rows = _draw(_read(folder, _HEADLINES), seed)
    wanted = sizes.train + sizes.val + sizes.test
    if wanted > len(rows):
        raise ConfigError(
            f"sizes: train, val and test make {wanted} headlines, but there are {len(rows)}; ask for fewer"
        )
    ends = (sizes.train, sizes.train + sizes.val, wanted)
    files = {
        _FILES[name]: rows[start:end]
        for name, start, end in zip(("train", "val", "test"), (0, *ends), ends, strict=False)
    }
    for name, source in _OOD.items():
        texts = _draw(_read(folder, source), seed)[: sizes.ood]
        files[f"{name}.jsonl"] = [{"id": row["id"], "text": row["text"]} for row in texts]
    directory = Path(directory)
    _write_all(directory, files)
    ood = {name: directory / f"{name}.jsonl" for name in _OOD}
    return DemoData(**{split: directory / file for split, file in _FILES.items()}, ood=ood)


def _wheel_folder() -> Path:
    """The wheel's data folder, found without importing the package (which would pull in its own requirements)."""
    try:
        spec = importlib.util.find_spec("evals")
    except (ImportError, ValueError):
        spec = None
    for location in (spec.submodule_search_locations or ()) if spec else ():
        folder = Path(location, "registry", "data")
        if (folder / _HEADLINES.folder / "samples.jsonl").is_file():
            return folder
    raise DataError(f"the demo's data are missing; install them: pip install --no-deps {WHEEL}")


def _read(folder: Path, source: _Source) -> list[dict[str, str]]:
    """The rows of one file, equal texts once, in file order."""
    path = folder / source.folder / "samples.jsonl"
    try:
        data = path.read_bytes()
    except OSError as error:
        message = f"{path}: cannot be read ({error.strerror}); install it again"
        raise DataError(f"{message}: pip install --no-deps --force-reinstall {WHEEL}") from error
    if hashlib.sha256(data).hexdigest() != source.sha256:
        message = f"{path}: not the rows of {WHEEL}; install that version"
        raise DataError(f"{message}: pip install --no-deps --force-reinstall {WHEEL}")
    rows: dict[str, dict[str, str]] = {}
    alike: Counter[str] = Counter()
    for number, line in enumerate(data.decode("utf-8").rstrip("\n").split("\n"), 1):
        sample = json.loads(line)
        text = source.text(sample["input"][-1]["content"])
        key = normalize_text(text)
        kind = " ".join(key.split()[:4])
        if key in rows or len(text) > _LONGEST_CHARACTERS:
            continue
        if not _SHORTEST_WORDS <= len(text.split()) <= _LONGEST_WORDS:
            continue
        if source.most_alike is not None and alike[kind] >= source.most_alike:
            continue
        alike[kind] += 1
        label = "yes" if sample["ideal"] in ("1", "Y") else "no"
        rows[key] = {"id": f"{source.folder}-{number}", "text": text, "label": label}
    return list(rows.values())


def _draw(rows: Iterable[dict[str, str]], seed: int) -> list[dict[str, str]]:
    """The rows in an order that seed and content decide alone."""
    return sorted(rows, key=lambda row: hashlib.sha256(f"{seed}:{row['id']}:{row['text']}".encode()).hexdigest())


def _write_all(directory: Path, files: Mapping[str, Sequence[Mapping[str, str]]]) -> None:
    texts = {name: "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows) for name, rows in files.items()}
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for name, text in {**texts, "SOURCE.md": _SOURCE}.items():
            _write_atomically(directory / name, text)
    except OSError as error:
        message = f"{directory}: the demo's data cannot be written ({error.strerror})"
        raise DataError(f"{message}; name a directory that can") from error


def _write_atomically(path: Path, text: str) -> None:
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes files that only their owner can read, unlike any other file a program writes.
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise

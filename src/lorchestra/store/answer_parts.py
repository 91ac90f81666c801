"""A directory of answers in parts: each part appears whole, and none is written twice.

`answers.json` says what the answers are made with, and of which files. `part-FIRST-LAST.jsonl` has the lines FIRST to
LAST of the answers, from 1; in the order of their names, the parts are one file of answers. `records/` has a record of
each finished part, with a digest of its rows. A part is finished when its record exists, which is written after it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lorchestra.errors import CheckpointError
from lorchestra.store.atomic import atomic_write_bytes, atomic_write_json, discard_directory, sweep_directory
from lorchestra.store.safe_paths import inside
from lorchestra.store.schema import COUNT, Shape, read_json
from lorchestra.store.workspace import ANSWERS
from lorchestra.types import Json, plain_values

FORMAT_VERSION = 1

_MADE_WITH: Shape = {
    "format_version": int,
    "of": {},
    "files": [{"path": str, "num_bytes": (COUNT, None)}],
    "chunk_rows": COUNT,
    "part_lines": COUNT,
    "num_lines": (COUNT, None),
}
_PART: Shape = {"rows_digest": str, "num_bytes": COUNT, "max_length": COUNT, "counts": {}}


@dataclass(frozen=True)
class Part:
    """Lines of the answers, from 1, `last` included."""

    first: int
    last: int

    @property
    def name(self) -> str:
        """Names sort as the lines do."""
        return f"part-{self.first:012d}-{self.last:012d}"


@dataclass(frozen=True)
class AnswerSource:
    """What answers are made with, and how they are cut.

    Attributes:
        of: settings, versions and digests by name, JSON values.
        files: the files with the rows, in order, and their sizes in bytes; None for a size that is not known.
        chunk_rows: rows that are answered together.
        part_lines: lines of a part, a multiple of `chunk_rows`; the last part may have fewer.
    """

    of: Mapping[str, object]
    files: Sequence[tuple[str, int | None]]
    chunk_rows: int
    part_lines: int


@dataclass(frozen=True)
class AnswerParts:
    """The parts in a directory."""

    root: Path
    source: AnswerSource

    @classmethod
    def start(cls, root: Path, source: AnswerSource) -> AnswerParts:
        """A new directory, or an empty one."""
        parts = cls(root, source)
        parts._save(None)
        return parts

    @classmethod
    def resume(cls, root: Path, source: AnswerSource) -> AnswerParts:
        """A directory with parts of an earlier call; they are cut as they were then.

        Raises:
            CheckpointError: its answers are made with something else, or of other files.
        """
        path = inside(root, ANSWERS.marker)
        record = _read(path)
        of = dict(plain_values(source.of))
        for name in {**record["of"], **of}:
            before, now = record["of"].get(name), of.get(name)
            if before != now:
                raise CheckpointError(
                    f"{root}: its answers were started with {name} {before!r}, not {now!r}; give that, {_CHOOSE}"
                )
        before = [(one["path"], one["num_bytes"]) for one in record["files"]]
        if before != list(source.files):
            changed = next((new for new in source.files if new not in before), None)
            what = f"{len(before)} files, now {len(source.files)}"
            if changed is not None:
                size = dict(before).get(changed[0])
                was = "is not among them" if size is None else f"had {size} bytes"
                what = f"other files: {changed[0]} has {changed[1]} bytes now, and {was}"
            raise CheckpointError(f"{root}: its answers are those of {what}; give the same files, {_CHOOSE}")
        parts = cls(root, AnswerSource(of, source.files, record["chunk_rows"], record["part_lines"]))
        for directory in (root, inside(root, "records")):
            sweep_directory(directory)
        return parts

    @classmethod
    def discard(cls, root: Path) -> None:
        """Remove all parts and their records, the directory's mark last."""
        discard_directory(inside(root, "records"))
        for path in root.glob("part-*.jsonl"):
            inside(root, path.name).unlink()
        inside(root, ANSWERS.marker).unlink(missing_ok=True)

    def complete(self, num_lines: int) -> None:
        """Record that there are no further parts."""
        self._save(num_lines)

    def record(self, part: Part, rows_digest: str) -> Json | None:
        """The record of a part if it is finished; else None.

        Raises:
            CheckpointError: its rows had another digest.
        """
        path = self.record_path(part)
        if not path.exists():
            return None
        record = read_json(path, _PART)
        if record["rows_digest"] != rows_digest:
            raise CheckpointError(
                f"{self.root}: the rows of {part.name}.jsonl were other ones when it was written; give the same files,"
                f" {_CHOOSE}"
            )
        lines = inside(self.root, f"{part.name}.jsonl")
        if not lines.exists() or lines.stat().st_size != record["num_bytes"]:
            return None  # removed or cut since
        return record

    def record_path(self, part: Part) -> Path:
        """The file of a part's record."""
        return inside(self.root, "records", f"{part.name}.json")

    def write(self, part: Part, rows_digest: str, lines: bytes, max_length: int, counts: Mapping[str, object]) -> None:
        """Write a part, then its record; writing it twice leaves one.

        Args:
            part: the part.
            rows_digest: of its rows.
            lines: its answers.
            max_length: tokens that a row may have.
            counts: of its answers, by name.

        Raises:
            CheckpointError: it cannot be written.
        """
        atomic_write_bytes(inside(self.root, f"{part.name}.jsonl"), lines)
        record = {"rows_digest": rows_digest, "num_bytes": len(lines), "max_length": max_length, "counts": counts}
        atomic_write_json(self.record_path(part), record)

    def check_visible(self) -> None:
        """Refuse a directory that is not the one of the command that started this process.

        Raises:
            CheckpointError: this machine does not have it, or another one.
        """
        path = inside(self.root, ANSWERS.marker)
        if not path.exists() or _read(path)["of"] != dict(plain_values(self.source.of)):
            raise CheckpointError(f"--out {self.root}: is not the directory that the command has made")

    def _save(self, num_lines: int | None) -> None:
        record = {
            "format_version": FORMAT_VERSION,
            "of": self.source.of,
            "files": [{"path": path, "num_bytes": num_bytes} for path, num_bytes in self.source.files],
            "chunk_rows": self.source.chunk_rows,
            "part_lines": self.source.part_lines,
            "num_lines": num_lines,
        }
        atomic_write_json(inside(self.root, ANSWERS.marker), record)


_CHOOSE = "choose another --out, or start over with --if-exists overwrite"


def _read(path: Path) -> Json:
    record = read_json(path, _MADE_WITH)
    if record["format_version"] != FORMAT_VERSION:
        raise CheckpointError(f"{path}: format_version is {record['format_version']}, this is {FORMAT_VERSION}")
    if not 0 < record["chunk_rows"] <= record["part_lines"]:
        raise CheckpointError(f"{path}: chunk_rows {record['chunk_rows']} does not fit part_lines; {_CHOOSE}")
    return record

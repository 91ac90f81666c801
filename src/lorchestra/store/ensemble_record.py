"""`ensemble.json`: the record that makes a run directory an ensemble, written last.

Format versions 1 and 2 are read, 2 is written. Fields that the shapes below do not list are for people.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lorchestra.errors import CheckpointError, ConfigError, printable
from lorchestra.questions import Question
from lorchestra.store.schema import COUNT, FILE_NAME, NUMBER_OR_NULL, Each, Number, Shape, check_shape
from lorchestra.types import Json

FORMAT_VERSION = 2
_READABLE_VERSIONS = (1, 2)

COST: Shape = (Each(NUMBER_OR_NULL), None)
"""The cost of a training, by name."""

_SHAPE_1: dict[str, Shape] = {
    "base": {"digest": str, "revision": (str, None), "id": str, "path": str, "quantization?": str},
    "tokenizer_digest": str,
    "num_members?": COUNT,
    "members": [
        {
            "path": str,
            "state": str,
            "sha256": str,
            "seed?": (int, None),
            "best_step?": (COUNT, None),
            "val_nll?": NUMBER_OR_NULL,
            "r?": Number(1, 2 * 10_000, whole=True),
            "scaling?": Number(-1e30, 1e30),
        }
    ],
    "task": FILE_NAME,
    "labels": ([str], None),
    "scoring": {"letter", "text", "tree", "head"},
    "prompt_template": str,
    "chat_template": bool,
    "system_prompt": (str, None),
    "normalize": {"sum", "token", "byte"},
    "max_length?": COUNT,
    "cost?": COST,
}
_CHAT_FRAME: Shape = {"trim": {"", "strip", "lstrip", "rstrip"}, "alone": [str], "shots": [str]}
_SHAPE_2: dict[str, Shape] = _SHAPE_1 | {
    "choice_end": {"where_needed", "never"},
    "chat_frame?": (_CHAT_FRAME, None),
    "answer_prefix?": str,
    "questions?": [{"name": str}],
    "information?": (str, None),
}
_MEMBER_PATH = re.compile(r"members/member_[0-9]{2,5}")
_OPTIONAL_OF_MEMBER = ("reason", "r", "scaling", "source")
_SCORING: tuple[str, ...] = (
    "labels",
    "prompt_template",
    "chat_template",
    "system_prompt",
    "choice_end",
    "chat_frame",
    "answer_prefix",
)
_SCORING += ("scoring", "normalize")


@dataclass(frozen=True)
class BaseRecord:
    """The base that a run was trained on; `path` is what PEFT loads it from."""

    id: str
    revision: str | None
    digest: str
    path: str
    quantization: str | None = None
    """How its linear maps were stored in training; None for plain weights."""

    def to_dict(self) -> Json:
        """Its entry in `ensemble.json`."""
        values = dataclasses.asdict(self)
        return values if self.quantization is not None else {k: v for k, v in values.items() if k != "quantization"}


@dataclass(frozen=True)
class MemberRecord:
    """One member: its PEFT folder (`path`, relative to the run), the checksum of its weights, and how training ended.

    `state` is "finished", "stopped" (early), "failed" or "imported". `best_step` is the optimizer step of the best
    validation NLL `val_nll`, in nats. `r` and `scaling` are recorded where they are not the configuration's.
    """

    path: str
    sha256: str
    seed: int | None
    state: str
    best_step: int | None
    val_nll: float | None
    reason: str | None = None
    """Why it failed."""
    r: int | None = None
    scaling: float | None = None
    source: str | None = None
    """The folder that it was imported from."""

    @property
    def name(self) -> str:
        """The name of its folder."""
        return Path(self.path).name

    @property
    def failed(self) -> bool:
        """Whether it diverged; a failed member takes no part in predictions."""
        return self.state == "failed"

    def to_dict(self) -> dict[str, object]:
        """The member's entry in `ensemble.json`; what is not recorded is left out."""
        values = dataclasses.asdict(self)
        return {name: value for name, value in values.items() if value is not None or name not in _OPTIONAL_OF_MEMBER}

    @classmethod
    def from_dict(cls, values: Json) -> MemberRecord:
        """The inverse of `to_dict`, of values in the right shape."""
        return cls(**{field.name: values.get(field.name) for field in dataclasses.fields(cls)})  # type: ignore[arg-type]


@dataclass(frozen=True)
class EnsembleRecord:
    """What a finished run is: base, members, task, and how questions were put to the model."""

    base: BaseRecord
    tokenizer_digest: str
    members: tuple[MemberRecord, ...]
    task: str
    labels: tuple[str, ...] | None
    """The label set in order; None if every question has its choices."""
    prompt_template: str
    chat_template: bool
    system_prompt: str | None
    choice_end: str
    """Which rows have an end after their choices: "where_needed", or "never" in format 1."""
    chat_frame: Mapping[str, object] | None
    answer_prefix: str | None
    max_length: int | None
    scoring: str
    normalize: str
    cost: Mapping[str, float | None] | None
    questions: tuple[Question, ...] = ()
    """The typed questions; none in other runs, whose files have no such field."""
    information: str | None = None
    """SHA-256 of `information.safetensors`, which predicts mutual information; None but in distilled runs."""
    missing: frozenset[str] = frozenset()
    """Fields that the file lacks because an earlier version wrote it."""

    @property
    def failed_members(self) -> dict[int, str]:
        """Failed members by index, with the reason."""
        # earlier versions wrote the reason to events.jsonl only
        return {
            m: printable(str(member.reason or "events.jsonl has the reason"))
            for m, member in enumerate(self.members)
            if member.failed
        }

    @property
    def good_members(self) -> tuple[int, ...]:
        """Indices of the members that did not fail."""
        return tuple(m for m, member in enumerate(self.members) if not member.failed)

    @property
    def digest(self) -> str:
        """SHA-256 of what answers depend on: base, members that did not fail, prompt, scoring, information."""
        members = [[member.sha256, member.r, member.scaling] for member in self.members if not member.failed]
        scoring = [getattr(self, name) for name in _SCORING]
        content = [self.base.digest, self.tokenizer_digest, members, scoring]
        if self.questions:
            content.append(_entries(self.questions))
        if self.information is not None:
            content.append(self.information)
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode("ascii")).hexdigest()

    def to_dict(self) -> Json:
        """The content of `ensemble.json`, without its format version."""
        values: Json = {
            "base": self.base.to_dict(),
            "tokenizer_digest": self.tokenizer_digest,
            "num_members": len(self.members),
            "members": [member.to_dict() for member in self.members],
            "task": self.task,
            "labels": None if self.labels is None else list(self.labels),
        }
        values |= {field.name: getattr(self, field.name) for field in dataclasses.fields(self)[5:-3]}
        if self.questions:
            values["questions"] = _entries(self.questions)
        if self.information is not None:
            values["information"] = self.information
        return {name: value for name, value in values.items() if name not in self.missing}

    @classmethod
    def from_dict(cls, values: Json, where: Path) -> EnsembleRecord:
        """The inverse of `to_dict`, of the content of the file `where`.

        Raises:
            CheckpointError: another format version, or a damaged record.
        """
        _check(values, where)
        names = [field.name for field in dataclasses.fields(cls)[:-3]]
        fields: Json = {name: values.get(name) for name in names} | {
            "base": BaseRecord(**{f.name: values["base"].get(f.name) for f in dataclasses.fields(BaseRecord)}),
            "members": tuple(map(MemberRecord.from_dict, values["members"])),
            "labels": None if values["labels"] is None else tuple(values["labels"]),
            "choice_end": values.get("choice_end", "never"),
            "questions": _questions(values.get("questions", []), where),
            "information": values.get("information"),
        }
        return cls(**fields, missing=frozenset({*names, "num_members"} - values.keys()))


def _entries(questions: Sequence[Question]) -> list[Json]:
    return [{"name": question.name, **question.to_dict()} for question in questions]


def _questions(entries: Sequence[Json], where: Path) -> tuple[Question, ...]:
    """The inverse of `_entries`, of objects with names."""
    names = [entry["name"] for entry in entries]
    if len(set(names)) < len(names):
        raise CheckpointError(f"{where}: two questions have the same name; the file was changed")
    try:
        return tuple(
            Question.from_dict(entry["name"], {key: value for key, value in entry.items() if key != "name"})
            for entry in entries
        )
    except ConfigError as error:
        raise CheckpointError(f"{where}: {error}; the file was changed or damaged") from error


def choice_end(prompt_version: int) -> str:
    """Which rows have an end after their choices, by `data.prompt.version`."""
    return "never" if prompt_version == 1 else "where_needed"


def _check(values: Json, where: Path) -> None:
    """Refuse a record that no version of the library wrote."""
    version = values.get("format_version")
    if version not in _READABLE_VERSIONS or isinstance(version, bool):
        raise CheckpointError(
            f"{where}: format_version is {version!r}, this version of lorchestra reads 1 and 2; use the version that"
            " wrote it, or train again"
        )
    shape = _SHAPE_1 if version == 1 else _SHAPE_2
    missing = {name for name in shape if not name.endswith("?")} - values.keys()
    if missing:
        raise CheckpointError(f"{where}: lacks {', '.join(sorted(missing))}; the file was changed or damaged")
    check_shape(values, shape, where)
    labels = values["labels"]
    if labels is not None and len(set(labels)) < max(2, len(labels)):
        raise CheckpointError(f"{where}: labels are not two or more different ones; the file was changed")
    if labels is not None and values.get("questions"):
        raise CheckpointError(f"{where}: has both labels and typed questions; the file was changed")
    if any("\ud800" <= character <= "\udfff" for label in labels or () for character in label):
        raise CheckpointError(f"{where}: a label holds half of a surrogate pair; the file was changed")
    if values.get("chat_frame") is not None and len(values["chat_frame"]["alone"]) != 3:
        raise CheckpointError(f"{where}: chat_frame.alone does not have three texts; the file was changed")
    _check_members(values, where)


def _check_members(values: Json, where: Path) -> None:
    """Refuse paths that lead to another run's files, or to any other file."""
    paths = [member["path"] for member in values["members"]]
    for index, path in enumerate(paths):
        if _MEMBER_PATH.fullmatch(path) is None:
            raise CheckpointError(
                f"{where}: members[{index}].path is {path!r}, which is not a member's path in a run directory"
                " (members/member_00, members/member_01, ...); the file was changed"
            )
    read = [member["path"] for member in values["members"] if member["state"] != "failed"]
    if len(set(read)) < len(read):
        raise CheckpointError(f"{where}: two members have the same path; the file was changed")
    if paths and values.get("num_members", len(paths)) != len(paths):
        raise CheckpointError(
            f"{where}: num_members is {values['num_members']}, but the record has {len(paths)}; the file was changed"
        )

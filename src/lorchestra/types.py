"""Types shared by all layers, and the legend of axis letters.

Axes: `M` member, `E` example, `N` packed token, `B` row, `T` position, `V` vocabulary, `C` choice, `D` width,
`R` rank, `I`/`O` in/out features. A tensor's name may end in its axes: `log_probs_MEC`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lorchestra.choice_tree import ChoiceTree
from lorchestra.errors import LorchestraError
from lorchestra.questions import Question

if TYPE_CHECKING:
    import pandas


Json = dict[str, Any]
"""A JSON object; what comes from a file has its shape checked where it is read (`store.schema`)."""


def plain_values(value: Any) -> Any:
    """`value` as JSON can represent it: paths as strings, arrays as lists, NaN and infinity as None."""
    if isinstance(value, np.generic | np.ndarray):
        return plain_values(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain_values(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain_values(entry) for entry in value]
    return str(value) if isinstance(value, Path) else value


@dataclass(frozen=True, slots=True)
class Example:
    """One multiple-choice question or text, with or without its answer.

    `where` is its file and line ("train.jsonl:17"), for error messages. With a typed question `asked`, `question` is
    the state that it is about, and `choices` are its options.
    """

    id: str
    question: str
    choices: tuple[str, ...]
    answer: int | None
    where: str = ""
    asked: Question | None = None


@dataclass(frozen=True)
class Task:
    """Named splits of examples.

    `labels` is the label set in order if the rows are texts with labels, and None for questions with choices.
    `questions` are the typed questions, if every row asks one of them.
    """

    name: str
    splits: Mapping[str, tuple[Example, ...]]
    labels: tuple[str, ...] | None = None
    questions: tuple[Question, ...] = ()


@dataclass(frozen=True, slots=True)
class EncodedExample:
    """An example as token ids: a prefix common to all choices, and the tokens that each choice adds to it.

    No choice is a prefix of another: where one would be, all of them are followed by an end (see `data.encode`).

    The score of choice c is `sum_j log p(choices[c][j] | prefix, choices[c][:j])`. With a `tree` the sum is over the
    branches on its path, and p is normalized over a branch's children. `row` is the example's index in its split; it
    keys dropout masks and the trunk cache, so it must not depend on batching.
    """

    row: int
    prefix: tuple[int, ...]
    choices: tuple[tuple[int, ...], ...]
    answer: int | None
    divisors: tuple[float, ...] | None = None
    """The divisor of each choice's summed log-probability (its tokens or bytes); None for the plain sum."""
    tree: ChoiceTree | None = None
    """The choices as a tree, with tree scoring; None for letters and texts."""
    state: int = 0
    """With a typed question, the number of first tokens of the prefix that are those of its state: rows of the same
    state that follow each other share them. 0 for other rows."""
    by_head: bool = False
    """Whether choice c is label c of the member's classification head, and `choices` are its indices, not tokens."""

    @property
    def num_tokens(self) -> int:
        """Tokens that go through the model: without a tree all but the last of each choice, which is only predicted."""
        if self.tree is not None:
            return len(self.prefix) + len(self.tree.tokens)
        return len(self.prefix) + sum(len(choice) - 1 for choice in self.choices)


@dataclass(frozen=True)
class Predictions:
    """Predictions of M members for E examples: the output of every method, and the input of metrics and reports.

    `log_probs_MEC` is float64 `[M, E, C]`, normalized over each row's choices, -inf in columns past `num_choices`.
    `labels` is int64 `[E]`, -1 where the answer is unknown.
    """

    log_probs_MEC: NDArray[np.float64]
    labels: NDArray[np.int64]
    ids: tuple[str, ...]
    options: tuple[tuple[str, ...], ...]
    task: str
    split: str
    texts: tuple[str, ...] = field(default=())
    """The questions, for reports; may be empty."""
    questions: tuple[str, ...] = field(default=())
    """The name of each row's typed question; empty if the rows have none."""
    predicted_information: NDArray[np.float64] | None = None
    """Mutual information of answer and member, `[E]` in nats, as a distilled run predicts it for the ensemble that
    taught it; None where it is computed from these members (see `metrics.predictive.information`)."""

    def __post_init__(self) -> None:
        """Refuse arrays whose shapes do not match."""
        num_examples = self.log_probs_MEC.shape[1]
        if self.log_probs_MEC.ndim != 3:
            raise ValueError(f"log_probs_MEC has shape {self.log_probs_MEC.shape}, not [M, E, C]")
        lengths = {"labels": len(self.labels), "ids": len(self.ids), "options": len(self.options)}
        if self.questions:
            lengths["questions"] = len(self.questions)
        if self.predicted_information is not None:
            lengths["predicted_information"] = len(self.predicted_information)
        for name, length in lengths.items():
            if length != num_examples:
                raise ValueError(f"{name} has {length} entries for {num_examples} examples")

    @property
    def num_members(self) -> int:
        """M."""
        return int(self.log_probs_MEC.shape[0])

    @property
    def num_examples(self) -> int:
        """E."""
        return int(self.log_probs_MEC.shape[1])

    @property
    def num_choices(self) -> NDArray[np.int64]:
        """Choices per example, int64 `[E]`."""
        return np.array([len(options) for options in self.options], dtype=np.int64)

    def of_rows(self, rows: NDArray[np.int64], num_choices: int | None = None) -> Predictions:
        """The predictions of the rows with these indices; with the first `num_choices` columns of C only."""
        return replace(
            self,
            log_probs_MEC=self.log_probs_MEC[:, rows, :num_choices],
            labels=self.labels[rows],
            ids=tuple(self.ids[e] for e in rows),
            options=tuple(self.options[e] for e in rows),
            texts=tuple(self.texts[e] for e in rows) if self.texts else (),
            questions=tuple(self.questions[e] for e in rows) if self.questions else (),
            predicted_information=None if self.predicted_information is None else self.predicted_information[rows],
        )

    def to_pandas(self) -> pandas.DataFrame:
        """A tidy table with one row per member, example and choice, in that order.

        Columns: `member`, `id`, `label` (index of the right choice, missing if unknown), `choice` (index), `option`
        (its text), `log_prob`, `prob`. For one row per example with the ensemble's uncertainty, see
        `lorchestra.answers_from`.

        Raises:
            LorchestraError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise LorchestraError("to_pandas needs pandas: pip install 'lorchestra[pandas]'") from error
        # columns past a row's number of choices are padding
        example, choice = np.nonzero(np.arange(self.log_probs_MEC.shape[2]) < self.num_choices[:, None])
        log_probs = self.log_probs_MEC[:, example, choice]
        labels = pandas.array(self.labels[example], dtype="Int64")
        labels[self.labels[example] < 0] = pandas.NA
        block = pandas.DataFrame(
            {
                "id": [self.ids[e] for e in example],
                "label": labels,
                "choice": choice,
                "option": [self.options[e][c] for e, c in zip(example, choice, strict=True)],
            }
        )
        table = pandas.concat([block] * self.num_members, ignore_index=True)
        table.insert(0, "member", np.repeat(np.arange(self.num_members), len(block)))
        return table.assign(log_prob=log_probs.ravel(), prob=np.exp(log_probs).ravel())


@dataclass(frozen=True)
class EarlyExitPredictions:
    """Predictions for rows that were answered by different numbers of members.

    `parts[i]` holds the rows that were answered by its first `num_members` members only, and `indices[i]`, int64, their
    indices among all rows. `num_members` is M.
    """

    parts: tuple[Predictions, ...]
    indices: tuple[NDArray[np.int64], ...]
    num_members: int

    @property
    def members_used(self) -> NDArray[np.int64]:
        """Number of members that answered each row, int64 `[E]`."""
        used = np.zeros(sum(part.num_examples for part in self.parts), dtype=np.int64)
        for part, indices in zip(self.parts, self.indices, strict=True):
            used[indices] = part.num_members
        return used

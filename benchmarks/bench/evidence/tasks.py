"""The tasks: where rows come from, and the files of one task, size and seed.

Test rows are the same for all sizes and seeds of a task, so differences are paired; a seed draws the training and
validation rows and starts the members.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from lorchestra.demo.data import DemoSizes, write_demo_data
from lorchestra.errors import DataError
from lorchestra.store.atomic import atomic_write_text

from ..real_sets import SETS, RealSet, Row, read_rows, shuffled

TEST_ROWS = 2000
VAL_ROWS = {200: 100, 1000: 250, 4000: 500}
"""Validation rows by number of training rows."""
EPOCHS = {200: 8, 1000: 4, 4000: 2}
"""Epochs by number of training rows; each member keeps the best of them by validation NLL."""
_HEADLINES = DemoSizes(train=6000, val=1, test=TEST_ROWS, certify=1, ood=1)
_TICKETS = 7000


@dataclass(frozen=True)
class Task:
    """A task: what it is, and how answers are scored."""

    what: str
    scoring: str
    prompts: tuple[str, ...]
    """Other wordings of the prompt, for members that differ in it."""
    real: RealSet | None = None
    has_labels: bool = True
    """Whether all rows have the same labels, so that a classification head can be trained."""


_NEWS = ("News: {question}\nTopic:", "{question}\nThis article is about", "Article: {question}\nSection:")
_FILM = ("Review: {question}\nSentiment:", "{question}\nThe review is", "Film review: {question}\nVerdict:")
_SATIRE = ("Headline: {question}\nKind:", "{question}\nThis headline is", "Read: {question}\nSatire or news?")
_EXAM = ("Exam question: {question}\nSubject:", "{question}\nThis is a question about", "{question}\nField:")
_CHOICE = ("Q: {question}\nA:", "{question}\nAnswer:", "Science question: {question}\nThe answer is")
_TICKET = ("Ticket: {question}\nQueue:", "{question}\nThis belongs to", "Message: {question}\nDepartment:")

TASKS = {
    "headlines": Task("satire or news, 2 labels", "text", _SATIRE),
    "sst2": Task("film reviews, 2 labels", "text", _FILM, SETS["sst2"]),
    "agnews": Task("news, 4 labels", "text", _NEWS, SETS["agnews"]),
    "tickets": Task("generated tickets (sys1bench), 6 queues", "text", _TICKET),
    "subjects17": Task("exam questions, 17 uneven subjects", "tree", _EXAM, SETS["subjects17"]),
    "subjects57": Task("exam questions, 57 subjects", "tree", _EXAM, SETS["subjects57"]),
    "arc_easy": Task("science questions with choices", "text", _CHOICE, SETS["arc_easy"], has_labels=False),
}


def write_files(name: str, size: int, seed: int, data_dir: Path, folder: Path) -> dict[str, Path]:
    """Write a task's rows unless they exist; returns paths by split.

    Raises:
        DataError: the task has fewer rows than the size needs.
    """
    test = folder / f"{name}.test.jsonl"
    files = {split: folder / f"{name}-{size}-{seed}.{split}.jsonl" for split in ("train", "val")} | {"test": test}
    if all(path.is_file() for path in files.values()):
        return files
    folder.mkdir(parents=True, exist_ok=True)
    pool, test_rows = _pool_and_test(name, data_dir, folder)
    drawn = shuffled(pool, seed + 1)
    if len(drawn) < size + VAL_ROWS[size]:
        raise DataError(
            f"{name}: {len(drawn)} rows are fewer than {size} training and {VAL_ROWS[size]} validation rows"
        )
    parts = {"train": drawn[:size], "val": drawn[size : size + VAL_ROWS[size]], "test": test_rows}
    for split, rows in parts.items():
        atomic_write_text(files[split], "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return files


def _pool_and_test(name: str, data_dir: Path, folder: Path) -> tuple[list[Row], list[Row]]:
    """Rows to draw from, and the test rows."""
    if name == "headlines":
        data = write_demo_data(folder / "headlines", _HEADLINES)
        return _named_labels(data.train), _named_labels(data.test)
    if name == "tickets":
        rows = _tickets(folder / "tickets.jsonl")
        return rows[TEST_ROWS:], rows[:TEST_ROWS]
    real = TASKS[name].real
    assert real is not None
    pool = shuffled(read_rows(data_dir / real.train), 0)
    test = shuffled(read_rows(data_dir / real.test), 0)[:TEST_ROWS] if real.test else pool[:TEST_ROWS]
    pool = pool if real.test else pool[TEST_ROWS:]
    return [real.convert(row) for row in pool], [real.convert(row) for row in test]


def _named_labels(path: Path) -> list[Row]:
    names = {"yes": "satire", "no": "news"}
    return [row | {"label": names[str(row["label"])]} for row in read_rows(path)]


def _tickets(path: Path) -> list[Row]:
    """Generated support tickets with their queue; no state occurs twice."""
    if not path.is_file():
        command = ["generate", "support_tickets", str(path), "--n", str(_TICKETS), "--seed", "1"]
        subprocess.run([str(Path(sys.executable).with_name("sys1bench")), *command], check=True, capture_output=True)
    rows: dict[str, Row] = {}
    for row in read_rows(path):
        question = row["questions"]["queue"]  # type: ignore[index]
        rows.setdefault(str(row["state"]), {"text": row["state"], "label": question["ground_truth"]})
    return shuffled(list(rows.values()), 0)

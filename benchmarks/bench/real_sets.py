"""Real data sets in several sizes and forms, written as task files with a fixed seed."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lorchestra.demo.data import DemoSizes, write_demo_data
from lorchestra.store.atomic import atomic_write_text

Row = dict[str, object]


@dataclass(frozen=True)
class RealSet:
    """Where a set's rows come from, and how many are training, validation and test rows."""

    what: str
    train: str
    test: str | None
    """File of the test rows below the data directory; None: drawn from the training file."""
    convert: Callable[[Row], Row]
    sizes: tuple[int, int, int]


def _labeled(row: Row) -> Row:
    return {"text": row["question"], "label": row["choices"][row["answer"]]}  # type: ignore[index]


def _by(column: str) -> Callable[[Row], Row]:
    return lambda row: {"text": str(row["question"])[:500], "label": row[column]}


def _question(row: Row) -> Row:
    return {name: row[name] for name in ("id", "question", "choices", "answer")}


SETS = {
    "sst2": RealSet("film reviews, 2 labels", "sst2/train.jsonl.gz", "sst2/test.jsonl", _labeled, (400, 100, 500)),
    "agnews": RealSet(
        "news, 4 labels", "ag_news/train_10k.jsonl.gz", "ag_news/test.jsonl.gz", _labeled, (400, 100, 500)
    ),
    "agnews4k": RealSet(
        "news, 4 labels, many rows", "ag_news/train_10k.jsonl.gz", "ag_news/test.jsonl.gz", _labeled, (4000, 400, 1000)
    ),
    "subjects17": RealSet(
        "exam questions, 17 uneven subjects", "mmlu/test.jsonl.gz", None, _by("subcategory"), (300, 80, 500)
    ),
    "subjects57": RealSet("exam questions, 57 subjects", "mmlu/test.jsonl.gz", None, _by("subject"), (900, 200, 600)),
    "arc_easy": RealSet(
        "questions with choices", "arc_easy/train.jsonl", "arc_easy/test.jsonl", _question, (600, 150, 500)
    ),
}
"""Sets by name; `headlines` comes from the demo's package instead."""
HEADLINES = DemoSizes(train=400, val=100, test=500, certify=1, ood=1)


def write_set(name: str, data_dir: Path, folder: Path) -> dict[str, Path]:
    """Write `NAME.{train,val,test}.jsonl` unless they exist; returns their paths."""
    files = {split: folder / f"{name}.{split}.jsonl" for split in ("train", "val", "test")}
    if all(path.is_file() for path in files.values()):
        return files
    folder.mkdir(parents=True, exist_ok=True)
    if name == "headlines":
        write_demo_data(folder, HEADLINES)
        for path in files.values():  # a name for each label, since the recipe's prompt has no question
            text = path.read_text().replace('"label": "yes"', '"label": "satire"')
            atomic_write_text(path, text.replace('"label": "no"', '"label": "news"'))
        return files
    real = SETS[name]
    rows = shuffled(read_rows(data_dir / real.train))
    num_train, num_val, num_test = real.sizes
    held_out = rows[num_train + num_val :] if real.test is None else shuffled(read_rows(data_dir / real.test))
    parts = {
        "train": rows[:num_train],
        "val": rows[num_train : num_train + num_val],
        "test": held_out[:num_test],
    }
    for split, part in parts.items():
        lines = (json.dumps(real.convert(row), ensure_ascii=False) + "\n" for row in part)
        atomic_write_text(files[split], "".join(lines))
    return files


def shuffled(rows: Sequence[Row], seed: int = 0) -> list[Row]:
    """The rows in an order that depends on their number and the seed."""
    mixed = list(rows)
    random.Random(seed).shuffle(mixed)
    return mixed


def read_rows(path: Path) -> list[Row]:
    """The rows of a JSONL file, compressed or not."""
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as file:
        return [json.loads(line) for line in file]

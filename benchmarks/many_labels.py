"""What labels cost: seconds per training row and per predicted row, with 4, 77 and 150 labels, by text and as a tree.

Rows are made of random words with random labels: their number of tokens matters, not what is learned. Labels are
drawn from TOPICS x EVENTS ("card payment declined"). A row's time is that of all members. All cases run in turns,
REPEATS times; the least is taken, in CPU time of one thread, since other processes change wall time.

    python benchmarks/many_labels.py                 about three minutes
    python benchmarks/many_labels.py --quick         fewer rows, and once: about a minute
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from bench.setting import processor

from lorchestra.config.adapt import AdaptConfig, BaseConfig
from lorchestra.config.data import DataConfig
from lorchestra.config.run import RegularizeConfig, RunConfig, TrainConfig
from lorchestra.data.prompts import ScoringMode
from lorchestra.inference.pipeline import Pipeline
from lorchestra.inference.predict import member_passes, predict_rows
from lorchestra.runs.build import build_pipeline
from lorchestra.training.callbacks import Callback
from lorchestra.training.members import member_settings
from lorchestra.training.precompute import TrainingRows
from lorchestra.training.trainer import Trainer
from lorchestra.types import EncodedExample, Example

TOPICS = (
    *("card payment", "cash withdrawal", "bank transfer", "exchange rate", "direct debit", "top up", "virtual card"),
    *("account balance", "identity check", "foreign currency", "contactless payment", "standing order", "lost phone"),
    *("joint account", "savings interest", "mobile app", "pin code", "monthly statement"),
)
EVENTS = (
    *("declined", "fee charged", "not recognised", "still pending", "wrong amount", "limit", "refund request"),
    *("cancelled", "not working", "charged twice"),
)
WORDS = (
    *("the", "my", "it", "was", "is", "not", "and", "when", "i", "have", "this", "but", "why", "how", "can", "you"),
    *("please", "still", "today", "week", "money", "bank", "card", "account", "app", "shop", "phone", "number", "fee"),
    *("sent", "paid", "waiting", "wrong", "new", "abroad", "online", "order", "transfer", "balance", "statement"),
    *("friend", "help", "problem", "again", "twice", "since", "before", "after", "working", "blocked", "changed"),
)
CASES: tuple[tuple[int, ScoringMode], ...] = (
    (4, "text"),
    (4, "tree"),
    (77, "text"),
    (77, "tree"),
    (150, "text"),
    (150, "tree"),
)
REFERENCE = (4, "text")


@dataclass
class Case:
    """One number of labels and kind of scoring: its rows and the least times."""

    rows: tuple[EncodedExample, ...]
    train_s: float = float("inf")
    predict_s: float = float("inf")


def make_labels(number: int) -> tuple[str, ...]:
    """Labels drawn from all topics with all events."""
    every = [f"{topic} {event}" for topic in TOPICS for event in EVENTS]
    return tuple(sorted(random.Random(0).sample(every, number)))


def make_examples(labels: tuple[str, ...], number: int, words: int) -> list[Example]:
    """Texts of `words` to three times as many random words with random labels; the same texts for any labels."""
    draw, answers = random.Random(1), random.Random(2)
    texts = [" ".join(draw.choices(WORDS, k=draw.randint(words, 3 * words))) for _ in range(number)]
    return [Example(str(i), text, labels, answers.randrange(len(labels))) for i, text in enumerate(texts)]


def timed(run: Callable[[], object]) -> float:
    """CPU seconds."""
    started = time.process_time()
    run()
    return time.process_time() - started


def measure(case: Case, pipeline: Pipeline, config: RunConfig) -> None:
    """Time a training step of all rows (layers below the adapters are cached, as in training), and a prediction."""
    rows, model = case.rows, pipeline.model
    train = dataclasses.replace(config.train, batch_size=len(rows), epochs=2)
    settings = member_settings(dataclasses.replace(config, train=train), len(rows), model.adapter_settings)
    trainer = Trainer(model, TrainingRows(rows, rows[:1]), train, settings, Callback())
    trainer.prepare()
    case.train_s = min(case.train_s, timed(trainer.step) / len(rows))
    passes = member_passes(range(model.num_members))
    case.predict_s = min(
        case.predict_s, timed(lambda: predict_rows(model, rows, passes, pipeline.token_budget)) / len(rows)
    )


def table(cases: dict[tuple[int, ScoringMode], Case]) -> list[str]:
    """The result as a Markdown table."""
    lines = [
        "| labels | scoring | tokens per row | of them choices | s per training row | of 4 labels | s per predicted row"
        " | of 4 labels |",
        "|---|---|---|---|---|---|---|---|",
    ]
    base = cases[REFERENCE]
    for (number, scoring), case in cases.items():
        tokens = sum(row.num_tokens for row in case.rows) / len(case.rows)
        choices = tokens - sum(len(row.prefix) for row in case.rows) / len(case.rows)
        lines.append(
            f"| {number} | {scoring} | {tokens:.0f} | {choices:.0f} | {case.train_s:.2f} |"
            f" {case.train_s / base.train_s:.2f} | {case.predict_s:.2f} | {case.predict_s / base.predict_s:.2f} |"
        )
    return lines


def run(args: argparse.Namespace) -> dict[tuple[int, ScoringMode], Case]:
    """Measure all cases in turns."""
    config = RunConfig(
        base=BaseConfig(name=args.base, dtype="float32", device="cpu"),
        adapt=AdaptConfig(members=args.members, layers=args.layers),
        data=DataConfig(scoring="text"),
        train=TrainConfig(token_budget=640),
        regularize=RegularizeConfig(),
    )
    pipeline, config = build_pipeline(config, "labels", make_labels(4), make_examples(make_labels(4), 1, args.words))
    cases = {}
    for number, scoring in CASES:
        examples = make_examples(make_labels(number), args.rows, args.words)
        rows = dataclasses.replace(pipeline, scoring=scoring).encode(examples).rows
        cases[number, scoring] = Case(rows[: args.text_rows] if scoring == "text" and number > 4 else rows)
    for repeat in range(args.repeats):
        for (number, scoring), case in cases.items():
            measure(case, pipeline, config)
            print(f"{repeat}: {number} labels, {scoring}: {case.train_s:.3f}, {case.predict_s:.3f} s", flush=True)
    return cases


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print the table; `--out` writes it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="smollm2-135m")
    parser.add_argument("--members", type=int, default=5)
    parser.add_argument("--layers", default="last:10")
    parser.add_argument("--rows", type=int, default=12)
    parser.add_argument(
        "--words", type=int, default=10, help="words of the shortest text; the longest has three times as many"
    )
    parser.add_argument("--text-rows", type=int, default=2, help="rows of the slow cases: many labels by text")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="6 rows, 1 for the slow cases, once")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args(arguments)
    if args.quick:
        args.rows, args.text_rows, args.repeats = 6, 1, 1
    torch.set_num_threads(1)
    cases = run(args)
    text = "\n".join(
        [
            f"# Cost of many labels: {processor()}, one thread",
            "",
            f"{args.members} members on {args.layers} of {args.base}; {args.rows} rows of {args.words} to"
            f" {3 * args.words} words, {args.text_rows} in the cases with many labels by text; least CPU time of"
            f" {args.repeats}. A row's time is that of all members. Layers below the adapters count in prediction,"
            " and not in training, which computes them once.",
            "",
            *table(cases),
            "",
        ]
    )
    print(text)
    if args.out is not None:
        args.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()

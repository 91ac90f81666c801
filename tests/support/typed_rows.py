"""Files of a small task with typed questions, and runs on it."""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path

from tiny_base import WORDS

from lorchestra.config.adapt import AdaptConfig, BaseConfig
from lorchestra.config.data import DataConfig, ReadConfig
from lorchestra.config.run import EvaluateConfig, RunConfig, TrainConfig

QUESTIONS = {
    "genre": {
        "type": "choice",
        "instructions": "Which?",
        "options": {"film": "on a screen", "play": None, "song": None},
    },
    "praised": {"type": "predicate", "instructions": "It is praised.", "true": "good or fine"},
    "length": {"type": "score", "instructions": "How long?", "levels": ["short", "middle", "long"]},
}


def write_rows(path: Path, number: int, seed: int = 0) -> Path:
    """A CSV file with a column per question; a third of the answers to two of them is missing."""
    draw = random.Random(seed)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["text", *QUESTIONS])
        writer.writeheader()
        for index in range(number):
            words, genre = draw.choices(WORDS, k=draw.randint(3, 8)), draw.choice(["film", "play", "song"])
            writer.writerow(
                {
                    "text": f"{seed} {index}: {genre} {' '.join(words)}",
                    "genre": genre if index % 3 else None,
                    "praised": ("no", "yes")["good" in words or "fine" in words],
                    "length": min(len(words) // 3, 2) if index % 3 != 1 else None,
                }
            )
    return path


def typed_config(folder: Path, base: Path, *, number: int = 40, **settings: object) -> RunConfig:
    """A quick run's configuration, and its files in the folder."""
    (folder / "questions.json").write_text(json.dumps(QUESTIONS), encoding="utf-8")
    files = {
        split: str(write_rows(folder / f"{split}.csv", number, seed))
        for seed, split in enumerate(("train", "val", "test"))
    }
    return RunConfig(
        base=BaseConfig(name=str(base)),
        adapt=AdaptConfig(members=2, r=2),
        data=DataConfig(**files, read=ReadConfig(questions=str(folder / "questions.json"))),
        train=TrainConfig(epochs=1, lr=0.05),
        evaluate=EvaluateConfig(resamples=20, few_shot=0),
        **settings,
    )

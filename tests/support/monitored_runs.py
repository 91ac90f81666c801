"""A run with a certified threshold, and rows like or unlike those that certified it."""

from __future__ import annotations

import random

from lorchestra.config.adapt import AdaptConfig, BaseConfig
from lorchestra.config.data import DataConfig
from lorchestra.config.run import RunConfig, TrainConfig
from lorchestra.runs.ensemble import Ensemble
from lorchestra.runs.train import train_run

WORDS = ("good", "bad", "fine", "dull", "long", "short", "the", "film", "song", "play", "was", "rather", "very")


def write_rows(path, number, seed, *, wrong=0.0, long=1, labeled=True):
    """Rows whose label is whether "good" is among the words; `long` repeats the text."""
    draw = random.Random(seed)
    lines = ["text,label" if labeled else "text"]
    for _ in range(number):
        words = draw.choices(WORDS, k=draw.randint(4, 9))
        label = "yes" if ("good" in words) != (draw.random() < wrong) else "no"
        lines.append(" ".join(words * long) + (f",{label}" if labeled else ""))
    path.write_text("\n".join(lines) + "\n")
    return path


def certify(folder, base):
    """The directory of a run in `folder` with a threshold."""
    config = RunConfig(
        base=BaseConfig(name=str(base)),
        adapt=AdaptConfig(members=2, r=8),
        data=DataConfig(train=str(write_rows(folder / "train.csv", 300, 0)), scoring="text"),
        train=TrainConfig(epochs=4, lr=0.03),
    )
    root = train_run(config, folder / "run").run.root
    decisions = Ensemble.load(root).calibrate(
        write_rows(folder / "certify.csv", 300, 1), target_error=0.4, score="max_prob"
    )
    assert decisions.has_threshold
    return root

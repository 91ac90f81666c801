"""Fixtures shared by all tests: a tiny base on disk, task files, and configurations of runs that take a second."""

from __future__ import annotations

import csv
import json
import random

import pytest
from tiny_base import WORDS, save_tiny_base

from lorchestra.data.config import DataConfig
from lorchestra.engine.config import EvaluateConfig, RegularizeConfig, RunConfig, TrainConfig
from lorchestra.models.config import AdaptConfig, BaseConfig


@pytest.fixture(scope="session")
def make_base(tmp_path_factory):
    """Saves a tiny random Llama with a byte-level tokenizer as transformers does; returns its directory."""

    def build(seed=0):
        return save_tiny_base(tmp_path_factory.mktemp(f"base{seed}") / "tiny", seed)

    return build


@pytest.fixture(scope="session")
def tiny_base(make_base):
    """The directory of one tiny base."""
    return make_base(0)


def sentences(number, seed=0):
    """`(text, label)` pairs, all different; the label is whether "good" is among the words."""
    draw = random.Random(seed)
    found = {}
    while len(found) < number:
        words = draw.choices(WORDS, k=draw.randint(4, 9))
        found[" ".join(words)] = "yes" if "good" in words or "fine" in words else "no"
    return list(found.items())


@pytest.fixture
def texts_csv(tmp_path):
    """Writes a CSV of labelled sentences; returns its path."""

    def build(name="reviews.csv", number=50, seed=0, columns=("text", "label")):
        path = tmp_path / name
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([columns, *sentences(number, seed)])
        return path

    return build


@pytest.fixture
def questions_jsonl(tmp_path):
    """Writes questions with two to four choices; returns the path."""

    def build(name="questions.jsonl", number=50, seed=0):
        draw = random.Random(seed)
        rows = []
        for text, _ in sentences(number, seed):
            choices = draw.sample(WORDS, draw.randint(2, 4))
            rows.append({"question": text, "choices": choices, "answer": draw.randrange(len(choices))})
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path

    return build


@pytest.fixture
def run_config(tiny_base):
    """Builds the configuration of a run on the tiny base that takes about a second."""

    def build(train_file, *, base=None, adapt=None, data=None, train=None, regularize=None, evaluate=None):
        return RunConfig(
            base=BaseConfig(name=str(base or tiny_base)),
            adapt=AdaptConfig(**{"members": 3, "r": 2} | (adapt or {})),
            data=DataConfig(train=str(train_file), **{"scoring": "text"} | (data or {})),
            train=TrainConfig(**{"epochs": 2, "batch_size": 8, "lr": 0.01, "checkpoint_every_s": 0.0} | (train or {})),
            regularize=RegularizeConfig(**(regularize or {})),
            evaluate=EvaluateConfig(**{"few_shot": 2, "resamples": 50} | (evaluate or {})),
        )

    return build

"""Fixtures of the method tests: a context on the tiny base, for texts with labels or for questions."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from lorchestra.runs.compare import method_context
from lorchestra.runs.rows import read_rows
from lorchestra.types import Task


class Splits(Mapping):
    """Splits whose test rows a method must not read."""

    def __init__(self, splits):
        self._splits = dict(splits)

    def __getitem__(self, name):
        assert name != "test", "a method read test rows"
        return self._splits[name]

    def __iter__(self):
        return iter(self._splits)

    def __len__(self):
        return len(self._splits)


@pytest.fixture
def make_context(run_config, texts_csv, questions_jsonl):
    """Returns a function that builds a context and its test rows."""

    def build(kind="texts", dtype="float32", scoring="text", **settings):
        file = texts_csv(number=60) if kind == "texts" else questions_jsonl(number=60)
        adapt = {"layers": "last:2", "dropout": 0.0} | settings.pop("adapt", {})
        data = {"scoring": scoring}
        train = {"token_budget": 400} | settings.pop("train", {})
        config = run_config(file, adapt=adapt, data=data, train=train, **settings)
        object.__setattr__(config.base, "dtype", dtype)
        task = read_rows(config.data, config.train.seed).task
        context = method_context(config, Task(task.name, Splits(task.splits), task.labels))
        return context, task.splits["test"]

    return build

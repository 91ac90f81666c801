"""What the methods of a comparison have in common is settled once."""

from __future__ import annotations

import pytest

from lorchestra.runs import compare as module
from lorchestra.runs.compare import method_context
from lorchestra.runs.rows import read_rows


@pytest.mark.parametrize("resolved", [True, False])
def test_what_is_left_open_is_settled_once(run_config, texts_csv, monkeypatch, resolved):
    opened = []
    original = module.build_pipeline

    def build_pipeline(config, *args):
        opened.append(config)
        return original(config, *args)

    monkeypatch.setattr(module, "build_pipeline", build_pipeline)
    settled = {"data": {"scoring": "text"}, "train": {"token_budget": 300}}
    config = run_config(texts_csv(), **(settled if resolved else {"data": {"scoring": "auto"}}))
    task = read_rows(config.data, config.train.seed).task
    context = method_context(config, task)
    assert len(opened) == (0 if resolved else 1)
    assert context.config.data.scoring in ("text", "letter")
    assert context.config.train.token_budget == (300 if resolved else 640)
    assert (context.train, context.val, context.labels) == (task.splits["train"], task.splits["val"], ("no", "yes"))
    pipeline = context.open_pipeline(context.config)
    assert pipeline.scoring == context.config.data.scoring
    assert pipeline.model.num_members == 3
    assert context.open_pipeline(context.config).model.model is not pipeline.model.model

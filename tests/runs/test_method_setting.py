"""What the methods of a comparison have in common is settled once."""

from __future__ import annotations

import pytest

from lorchestra.runs import compare as module
from lorchestra.runs.compare import method_setting
from lorchestra.runs.rows import read_rows


@pytest.mark.parametrize("resolved", [True, False])
def test_what_is_left_open_is_settled_once(run_config, texts_csv, monkeypatch, resolved):
    opened = []
    original = module.build_session

    def build_session(config, *args):
        opened.append(config)
        return original(config, *args)

    monkeypatch.setattr(module, "build_session", build_session)
    settled = {"data": {"scoring": "text"}, "train": {"token_budget": 300}}
    config = run_config(texts_csv(), **(settled if resolved else {"data": {"scoring": "auto"}}))
    task = read_rows(config.data, config.train.seed).task
    setting = method_setting(config, task)
    assert len(opened) == (0 if resolved else 1)
    assert setting.config.data.scoring in ("text", "letter")
    assert setting.config.train.token_budget == (300 if resolved else 640)
    assert (setting.train, setting.val, setting.labels) == (task.splits["train"], task.splits["val"], ("no", "yes"))
    session = setting.open_session(setting.config)
    assert session.scoring == setting.config.data.scoring
    assert session.model.num_members == 3
    assert setting.open_session(setting.config).model.model is not session.model.model

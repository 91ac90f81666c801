"""`lorchestra compare` on the tiny base: table, JSON, page, exit codes, help."""

from __future__ import annotations

import json
import os
import signal

import pytest

from lorchestra.cli import compare
from lorchestra.cli.progress import CompareProgress
from lorchestra.config.mappings import to_yaml
from lorchestra.methods.registry import METHODS, WRAPPERS


@pytest.fixture
def recipe(run_config, texts_csv, tmp_path):
    path = tmp_path / "recipe.yaml"
    test = str(texts_csv("test.csv", 40, seed=3))  # with fewer than 20 rows there are no intervals
    path.write_text(to_yaml(run_config(texts_csv(), adapt={"members": 2}, data={"test": test})))
    return path


def test_compare_then_report(lorchestra, recipe, tmp_path):
    """End to end: a table, the same as JSON without fitting again, one more method, and the page."""
    out = tmp_path / "out"
    code, table, err = lorchestra("compare", recipe, "--out", out, "--methods", "one_lora,lora_ensemble,mc_dropout")
    assert code == 0, err
    assert [line.split()[0] for line in table.splitlines() if line[:1].isalpha()][:4] == [
        "Method",
        "one_lora",
        "lora_ensemble",
        "mc_dropout",
    ]
    assert "mc_dropout is left out: mc_dropout: the dropout rate is 0" in err
    assert f"lorchestra report {out}" in err
    methods = "lora_ensemble, one_lora+temperature"
    code, text, err = lorchestra("compare", recipe, "--out", out, "--methods", methods, "--json")
    assert code == 0
    assert "lora_ensemble is done" not in err
    ensemble, scaled = json.loads(text)["methods"]
    assert (ensemble["name"], scaled["name"]) == ("lora_ensemble", "one_lora+temperature")
    assert len(scaled["ensemble_minus"]["nll"]) == 2
    assert f"{ensemble['entry']['ensemble']['nll']:.3f}" in table
    assert lorchestra("report", out) == (0, f"{out / 'report.html'}\n", "")
    page = (out / "report.html").read_text()
    assert "one LoRA with temperature scaling" in page

    run = tmp_path / "run"
    assert lorchestra("train", recipe, "--out", run)[0] == 0
    assert lorchestra("report", run, out) == (0, f"{run / 'report.html'}\n", "")
    page = (run / "report.html").read_text()
    # trained and compared from one recipe: the budgets are equal, so the verdict covers the methods
    assert "Not an equal budget" not in page
    assert "Against one LoRA with temperature scaling, it" in page
    assert lorchestra("report", run, "--methods", out)[0] == 0
    assert (run / "report.html").read_text() == page


def test_exit_codes(lorchestra, recipe, tmp_path):
    out = tmp_path / "out"
    code, _, err = lorchestra("compare", recipe, "--out", out, "--methods", "one_lra")
    assert code == 2
    assert "did you mean 'one_lora'?" in err
    code, _, err = lorchestra("compare", recipe, "--out", out, "--methods", "mc_dropout")
    assert code == 1
    code, _, err = lorchestra("compare", recipe, "--out", out, "--methods", "zero_shot", "--train.lr", 0.5)
    assert code == 2
    assert "train.lr: the comparison in" in err


def test_an_interrupt_is_exit_code_130(lorchestra, recipe, tmp_path, monkeypatch):
    shown = CompareProgress.on_step

    def interrupt(self, report, state):
        shown(self, report, state)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(CompareProgress, "on_step", interrupt)
    code, out, err = lorchestra("compare", recipe, "--out", tmp_path / "out", "--methods", "one_lora")
    assert (code, out) == (130, "")
    assert "stopped; run the same command again to resume" in err


def test_the_help_names_every_method(lorchestra):
    code, text, _ = lorchestra("compare", "--help")
    assert code == 0
    for name in [*METHODS, *(f"+{name}" for name in WRAPPERS)]:
        assert name in text, name


def test_names_are_split_at_commas_outside_brackets():
    names = compare._names('one_lora, laplace:precisions=[1,10]:draws=5,one_lora+contextual:texts=["N/A","[MASK]"],')
    assert names == ["one_lora", "laplace:precisions=[1,10]:draws=5", 'one_lora+contextual:texts=["N/A","[MASK]"]']

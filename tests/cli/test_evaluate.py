"""`lorchestra evaluate` on the tiny base: the baselines without adapters in table, JSON and page; no slow base."""

from __future__ import annotations

import json

import pytest

from lorchestra.config.mappings import to_yaml
from lorchestra.runs import evaluation_cost


@pytest.fixture
def recipe(run_config, texts_csv, tmp_path):
    path = tmp_path / "recipe.yaml"
    data = {"val": str(texts_csv("val.csv", 60, seed=1)), "test": str(texts_csv("test.csv", 60, seed=2))}
    path.write_text(to_yaml(run_config(texts_csv(), adapt={"members": 2}, data=data, evaluate={"full": False})))
    return path


def test_table_json_and_page_have_the_baselines(lorchestra, recipe, tmp_path):
    run = tmp_path / "run"
    code, table, err = lorchestra("train", recipe, "--out", run)
    assert code == 0, err
    for text in ("TF-IDF + LR", "frozen base + LR", "T = ", "Seconds spent", "the best baseline without adapters"):
        assert text in " ".join(table.split()), text
    assert "base_few_shot takes about" in err
    code, text, err = lorchestra("evaluate", run, "--json")
    assert code == 0
    assert "tfidf: taken from the run's earlier evaluation" in err
    entry = json.loads(text)
    assert {"base_zero_shot", "base_few_shot", "tfidf", "frozen"} == set(entry["baselines"])
    assert entry["baselines"]["frozen"]["T"] > 0
    assert lorchestra("report", run)[0] == 0
    page = (run / "report.html").read_text()
    assert f"frozen base + LR (T = {entry['baselines']['frozen']['T']:.2f})" in page
    assert "the best baseline without adapters" in page


def test_a_base_that_costs_too_much_is_left_out_with_the_option_that_includes_it(
    lorchestra, recipe, tmp_path, monkeypatch
):
    run = tmp_path / "run"
    monkeypatch.setattr(evaluation_cost, "MIN_S", 0.0)
    monkeypatch.setattr(evaluation_cost, "SHARE", 0.0)
    code, table, err = lorchestra("train", recipe, "--out", run, "--evaluate.no-tfidf", "--evaluate.no-frozen")
    assert code == 0
    assert "base, few-shot" not in table
    assert "left out: it would take about" in err
    assert "lorchestra evaluate --full" in err
    code, table, _ = lorchestra("evaluate", run, "--full")
    assert "base, few-shot" in table
    assert "base, zero-shot" in table

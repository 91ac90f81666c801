"""`lorchestra plan`: a table, JSON, exit codes."""

from __future__ import annotations

import json

import pytest

from lorchestra.config.mappings import to_yaml
from lorchestra.runs import plan
from lorchestra.store import disk


@pytest.fixture
def recipe(run_config, texts_csv, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(to_yaml(run_config(texts_csv())))
    return path


def test_a_table_for_people_and_json_for_machines(lorchestra, recipe):
    code, out, err = lorchestra("plan", recipe, "--seconds", 0.1, "--adapt.layers", "last:1")
    assert code == 0, err
    for text in ("predicted peak", "of which layers below", "evaluation on validation rows", "It fits into memory."):
        assert text in out
    code, out, _ = lorchestra("plan", recipe, "--seconds", 0.1, "--train.epochs", 7, "--json")
    record = json.loads(out)
    assert (code, record["work"]["epochs"], record["members"]) == (0, 7, 3)


def test_a_training_that_does_not_fit_lists_what_would_help(lorchestra, recipe, monkeypatch):
    monkeypatch.setattr(plan, "free_bytes", lambda device: 40_000_000)
    code, out, _ = lorchestra("plan", recipe, "--seconds", 0.1, "--adapt.members", 2000)
    assert code == 1
    assert "It does not fit into memory:" in out
    assert "--adapt.members" in out


def test_a_full_disk_is_reported(lorchestra, recipe, monkeypatch):
    monkeypatch.setattr(disk, "free_bytes", lambda path: 1000)
    code, out, _ = lorchestra("plan", recipe, "--seconds", 0.1)
    assert code == 1
    text = " ".join(out.split())
    assert "The disk lacks " in text
    assert ": choose another --out" in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--train.token-budget", 2], "train.token_budget: 2 is below the longest row"),
        (["--seconds", 0], "--seconds: 0.0 is not a number of seconds"),
        (["--adapt.members", 0], "adapt.members: 0 is less than 1"),
    ],
)
def test_refused(lorchestra, recipe, options, message):
    code, out, err = lorchestra("plan", recipe, *options)
    assert (code, out) == (2, "")
    assert message in err

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


STATED = ("--device-gb", 20, "--device-tflops", 0.1, "--device-gb-per-s", 10)


def test_tables_of_what_if_for_a_recipe_without_data(lorchestra, tmp_path):
    path = tmp_path / "quick.yaml"
    path.write_text("adapt: {layers: last:10}\n")
    code, out, err = lorchestra("plan", path, "--what-if", *STATED, "--members", 1, 5)
    text = " ".join(out.split())
    assert code == 0, err
    for words in (
        "Assumed: 1,000 training rows of 100 tokens",
        "smollm2-135m: 0.135B parameters in float32",
        "0.1 TFLOP/s (as stated)",
        "llama-3.1-8b: 8.03B parameters",
        "It does not fit: with one member the training takes",
        "the base is not split over devices",
        "Members are split over devices by torchrun",
        "are met within 20 %, and layers of 1B and 8B bases within 10 %",
    ):
        assert words in text
    code, out, _ = lorchestra("plan", path, "--what-if", *STATED, "--bases", "smollm2-135m", "--members", 5, "--json")
    (base,) = json.loads(out)["bases"]
    assert [cell["devices"] for cell in base["cells"]] == [1, 2, 4]


def test_what_if_takes_the_rows_of_a_recipe(lorchestra, recipe, tiny_base):
    code, out, err = lorchestra("plan", recipe, "--what-if", *STATED, "--bases", tiny_base, "--devices", 1)
    assert code == 0, err
    assert "Given: " in out
    assert "scored by text, 2 epochs." in " ".join(out.split())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--members", 5], "--members: is for --what-if; add that, or leave it out"),
        (["--device-gb", 5], "--device-gb: is for --what-if"),
        (["--what-if", "--device-gb", 0], "--device-gb: 0.0 is not a finite number above 0"),
        (["--what-if", "--bases", "llama"], "--bases: 'llama' is no file"),
        (["--what-if", "--base.device", "cuda"], "state the GPU with --device-gb"),
    ],
)
def test_what_if_is_refused(lorchestra, recipe, options, message):
    code, out, err = lorchestra("plan", recipe, *options)
    assert (code, out) == (2, "")
    assert message in " ".join(err.split())

"""`lorchestra predict` with many choices: the most probable ones by default, all on request."""

from __future__ import annotations

import csv
import json

import pytest

from lorchestra.runs.predict import Answer, shown_choices
from lorchestra.runs.train import train_run

LABELS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")


@pytest.fixture(scope="module")
def many(tiny_base, tmp_path_factory):
    """A run on texts with twelve labels, and a file of new texts, one of them empty."""
    from lorchestra.config.adapt import AdaptConfig, BaseConfig
    from lorchestra.config.data import DataConfig
    from lorchestra.config.run import RunConfig, TrainConfig

    folder = tmp_path_factory.mktemp("many")
    rows = [{"text": f"{label} film {i}", "label": label} for i in range(4) for label in LABELS]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "new.jsonl").write_text('{"text": "two film", "id": "a", "more": 7}\n{"text": "", "id": "b"}\n')
    config = RunConfig(
        base=BaseConfig(name=str(tiny_base)),
        adapt=AdaptConfig(members=2, r=2),
        data=DataConfig(train=str(folder / "rows.jsonl")),
        train=TrainConfig(epochs=1, lr=0.01),
    )
    return train_run(config, folder / "run").run.root, folder / "new.jsonl"


def answers(lorchestra, many, *options):
    run, new = many
    code, out, err = lorchestra("predict", run, "--data", new, *options)
    assert code == 0, err
    return [json.loads(line) for line in out.splitlines()]


def test_the_most_probable_choices(lorchestra, many):
    whole = answers(lorchestra, many, "--top", "all")
    assert len(whole[0]["probs"]) == 12
    assert len(whole[0]["member_probs"]) == 2
    cut = answers(lorchestra, many)
    ranked = sorted(zip(whole[0]["choices"], whole[0]["probs"], strict=True), key=lambda pair: -pair[1])
    assert [(one["choice"], one["prob"]) for one in cut[0]["top"]] == ranked[:5]
    assert cut[0]["num_choices"] == 12
    assert cut[0]["input"]["more"] == 7
    assert not {"choices", "probs", "member_probs"} & cut[0].keys()
    kept = cut[0].keys() - {"top", "num_choices"}
    assert {name: cut[0][name] for name in kept} == {name: whole[0][name] for name in kept}
    assert "no text" in cut[1]["error"] or "empty" in cut[1]["error"]
    assert len(answers(lorchestra, many, "--top", 2)[0]["top"]) == 2
    assert len(answers(lorchestra, many, "--top", 12)[0]["probs"]) == 12


def test_a_table_has_two_columns_per_rank(lorchestra, many, tmp_path):
    run, new = many
    code, _, err = lorchestra("predict", run, "--data", new, "--out", tmp_path / "a.csv", "--top", 3)
    assert code == 0, err
    with (tmp_path / "a.csv").open() as file:
        first, second = csv.DictReader(file)
    best = answers(lorchestra, many)[0]["top"]
    for rank in (1, 2, 3):
        assert first[f"choice_{rank}"] == best[rank - 1]["choice"]
        assert float(first[f"prob_{rank}"]) == best[rank - 1]["prob"]
    assert (second["choice_1"], second["prob_3"]) == ("", "")
    assert "prob_one" not in first
    code, _, err = lorchestra("predict", run, "--data", new, "--out", tmp_path / "b.csv", "--top", "all")
    assert code == 0, err
    with (tmp_path / "b.csv").open() as file:
        assert {f"prob_{label}" for label in LABELS} <= next(csv.DictReader(file)).keys()


def test_how_many_are_shown():
    assert [shown_choices(None, number) for number in (2, 10, 11)] == [None, None, 5]
    assert shown_choices("all", 200) is None
    assert shown_choices(3, 2) == 3


def test_equally_probable_choices_keep_their_order():
    answer = Answer("a", 1, ("x", "y", "z"), probs=(0.25, 0.5, 0.25))
    assert [one["choice"] for one in answer.top(3)] == ["y", "x", "z"]
    assert Answer("a", 1).top(3) == []


@pytest.mark.parametrize("value", ["0", "-1", "some"])
def test_other_numbers_are_refused(lorchestra, many, value):
    run, new = many
    code, _, err = lorchestra("predict", run, "--data", new, f"--top={value}")
    assert code == 2
    assert "--top" in err

"""`lorchestra sweep` on the tiny base: table, JSON, exit codes."""

from __future__ import annotations

import json

import pytest

from lorchestra.config.mappings import to_yaml


@pytest.fixture
def recipe(run_config, texts_csv, tmp_path):
    """A recipe for quick runs of two members."""
    path = tmp_path / "recipe.yaml"
    path.write_text(to_yaml(run_config(texts_csv(), adapt={"members": 2}, evaluate={"few_shot": 0})))
    return path


def test_a_grid_becomes_a_table_and_runs(lorchestra, recipe, tmp_path):
    out = tmp_path / "sweep"
    arguments = ["sweep", recipe, "--out", out, "--grid", "train.lr=0.01,0.003", "--grid", "adapt.r=1,2"]
    code, table, err = lorchestra(*arguments)
    assert code == 0, err
    header = next(line for line in table.splitlines() if "lr" in line)
    assert header.split()[:2] == ["lr", "r"]
    assert len([line for line in table.splitlines() if line.lstrip().startswith("0.0")]) == 4
    assert "training: 4 points" in err
    assert "finished: 4 points" in err
    assert str(out / "results.csv") in err
    code, text, _ = lorchestra(*arguments, "--json")
    assert code == 0
    points = json.loads(text)["points"]
    assert [point["settings"] for point in points] == [
        {"train.lr": lr, "adapt.r": r} for lr in (0.01, 0.003) for r in (1, 2)
    ]
    for point in points:
        metrics = json.loads((out / "runs" / point["name"] / "metrics.json").read_text())
        assert point["ensemble"]["nll"] == metrics["evaluations"][0]["ensemble"]["nll"]
    # a point is a run
    code, text, err = lorchestra("evaluate", out / "runs" / "lr=0.01,r=1", "--json")
    assert code == 0, err
    assert json.loads(text)["ensemble"]["nll"] == pytest.approx(points[0]["ensemble"]["nll"], abs=1e-5)


def test_a_point_that_fails_is_exit_code_1(lorchestra, recipe, tmp_path):
    code, table, err = lorchestra("sweep", recipe, "--out", tmp_path / "sweep", "--grid", "train.lr=0.01,1e30")
    assert code == 1
    assert "failed" in table
    assert "lr=1e+30 failed; " in err


def test_bad_grids_are_exit_code_2(lorchestra, recipe, tmp_path):
    for grid, message in (
        ([], "--grid: no setting varies"),
        (["--grid", "adapt.rr=1,2"], "did you mean 'r'"),
        (["--grid", "adapt.r=1,x"], "adapt.r is 'x'; it must be int"),
    ):
        code, out, err = lorchestra("sweep", recipe, "--out", tmp_path / "sweep", *grid)
        assert (code, out) == (2, "")
        assert message in err
        assert not (tmp_path / "sweep").exists()

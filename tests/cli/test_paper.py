"""`lorchestra paper` on the tiny base: every figure from a recipe to its page, with numbers that can be checked."""

from __future__ import annotations

import csv
import itertools
import json
import re

import numpy as np
import pytest

from lorchestra.cli import main as cli
from lorchestra.core.metrics import all_metrics
from lorchestra.core.predictive import mixture_log_probs
from lorchestra.experiments.paper.recipe import PROFILES, figure_names, read_figure
from lorchestra.experiments.paper.study import study_points
from lorchestra.report.paper.confidence import reflected_density
from lorchestra.report.paper.dots import draw_ood
from lorchestra.report.paper.figures import DRAW
from lorchestra.report.paper.runs import read_study
from lorchestra.store.predictions import load_predictions

FIGURES = [
    "fig1",
    "fig2",
    "fig3",
    "fig4",
    "fig5",
    "ablation-init",
    "ablation-members",
    "ablation-randomness",
    "ablation-rank",
    "baselines",
    "cost",
    "ood",
    "regularizers",
]


@pytest.fixture
def settings(tiny_base, texts_csv, tmp_path):
    """Options that put the tiny base and made-up rows in the place of a profile's."""
    values = {
        "base.name": tiny_base,
        "base.dtype": "float32",
        "data.train": texts_csv(),
        "data.val": texts_csv("val.csv", 10, seed=1),
        "data.test": texts_csv("test.csv", 30, seed=2),
        "adapt.layers": "last:1",
        "adapt.r": 2,
        "train.epochs": 2,
        "train.lr": 0.005,
    }
    return [part for field, value in values.items() for part in ("--set", f"{field}={value}")]


def test_every_figure_has_a_recipe_for_every_profile_and_is_drawn():
    assert figure_names() == FIGURES
    assert {*DRAW, "baselines"} == set(FIGURES)
    for name in FIGURES:
        for profile in PROFILES:
            recipe = read_figure(name, profile)
            assert recipe.title
            assert recipe.paper
            assert recipe.ours


@pytest.mark.parametrize("name", FIGURES)
@pytest.mark.parametrize("profile", ["small", "7b"])
def test_recipes_fit_the_settings(name, profile, tmp_path):
    """Whole configurations, checked; small ones without a task take the demo's headlines."""
    overrides = {"data.task": "sst2"} if profile == "small" else {}
    config, points, _ = study_points(read_figure(name, profile), tmp_path, overrides)
    assert len({point.name for point in points}) == len(points)
    assert config.train.keep == "last"


@pytest.mark.parametrize("name", [name for name in FIGURES if name not in ("fig5", "ood")])
def test_a_figure_from_recipe_to_page(name, lorchestra, settings, tmp_path):
    out = tmp_path / "paper"
    extra = ["--set", "adapt.members=2"] if name == "baselines" else []
    code, text, err = lorchestra("paper", name, "--profile", "smoke", "--out", out, *settings, *extra)
    assert code == 0, err
    folder = out / name
    sentence, caption = (folder / f"{name}.txt").read_text().split("\n\n")
    assert text == f"{name}: {sentence}\n"
    assert "This project's choice: alpha 32" in caption
    assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (folder / f"{name}.svg").read_text()
    rows = list(csv.DictReader((folder / f"{name}.csv").read_text().splitlines()))
    assert rows
    if name == "fig2":
        assert len(rows) == 7
        right = sum(
            float(r["ensemble_accuracy"]) >= float(r["single_accuracy"])
            and float(r["ensemble_ece"]) <= float(r["single_ece"])
            for r in rows
        )
        assert sentence.startswith(f"{right} of 7 arrows")
        plain = load_predictions(folder / "sweep/runs/as-configured/predictions/reviews.test.safetensors")
        found = all_metrics(mixture_log_probs(plain.log_probs_MEC), plain.labels)
        assert float(rows[0]["ensemble_accuracy"]) == pytest.approx(found["accuracy"], abs=1e-5)
        assert float(rows[0]["ensemble_ece"]) == pytest.approx(found["ece"], abs=1e-5)
    if name == "fig3":
        assert [(row["method"], row["epoch"]) for row in rows[:4]] == [
            ("one LoRA", "1"),
            ("one LoRA", "2"),
            ("ensemble", "1"),
            ("ensemble", "2"),
        ]
        entry = json.loads((folder / "sweep/runs/weight_decay_b=0.0/metrics.json").read_text())["evaluations"][0]
        assert float(rows[3]["nll"]) == pytest.approx(entry["ensemble"]["nll"], abs=1e-4)
        assert float(rows[1]["nll"]) == pytest.approx(entry["member_mean"]["nll"], abs=1e-4)
    if name == "ablation-members":
        assert [int(row["members"]) for row in rows] == list(range(1, 7))
        assert [int(row["subsets"]) for row in rows] == [6, 15, 20, 15, 6, 1]
        assert float(rows[-1]["nll_sd"]) == 0
        nlls = [float(row["nll"]) for row in rows]
        assert all(a >= b - 1e-9 for a, b in itertools.pairwise(nlls))  # by convexity, over all subsets
    if name == "cost":
        assert [row["members"] for row in rows] == ["1", "2", "4"]
        tokens = [int(row["tokens"]) for row in rows]
        assert tokens == [tokens[0], 2 * tokens[0], 4 * tokens[0]]


def test_rows_unlike_the_training_rows(lorchestra, settings, texts_csv, tmp_path):
    """Fig. 5 from a sweep: the numbers are those of the runs' evaluations."""
    arguments = [
        part.replace("--set", "--" + value.split("=")[0]) if part == "--set" else part.split("=", 1)[1]
        for part, value in zip(settings, [*settings[1:], ""], strict=True)
    ]
    out = tmp_path / "sweep"
    code, _, err = lorchestra(
        "sweep", *arguments, "--adapt.members", 2, "--grid", "regularize.weight_decay_b=0,50", "--out", out,
        "--ood", texts_csv("far.csv", 12, seed=7),
    )  # fmt: skip
    assert code == 0, err
    names = ["weight_decay_b=0.0", "weight_decay_b=50.0"]
    points = [(name, {"regularize.weight_decay_b": float(name.split("=")[1])}) for name in names]
    page = draw_ood(read_study(out / "runs", points))
    entry = json.loads((out / "runs" / names[1] / "metrics.json").read_text())["evaluations"][0]
    rows = {(row[1], row[2], row[3]): float(row[4]) for row in page.rows}
    assert {row[0] for row in page.rows} == {"far"}
    assert len(rows) == 2 * (2 + 3)
    for score in ("max_prob", "entropy", "mutual_information"):
        wanted = entry["ood"]["far"]["auroc"][score]
        assert rows["decay on B 50", "ensemble", score] == pytest.approx(wanted, abs=1e-5)


def test_a_density_integrates_to_one_and_stays_within():
    grid = np.linspace(0, 1, 2001)
    values = np.random.default_rng(0).beta(5, 1, size=200)
    density = reflected_density(values, grid)
    assert np.trapezoid(density, grid) == pytest.approx(1.0, abs=1e-3)
    assert np.isnan(reflected_density(np.array([0.5]), grid)).all()


def test_figures_are_listed_and_unknown_ones_refused(lorchestra, tmp_path):
    code, text, _ = lorchestra("paper")
    assert code == 0
    assert [line.split()[0] for line in text.splitlines()] == FIGURES
    for arguments, message in (
        (["fig9"], "'fig9' is no figure; did you mean 'fig"),
        (["fig1", "--set", "adapt.memberz=3"], "did you mean 'members'"),
        (["fig1", "--set", "adapt.members"], "write a field and its values"),
        (["fig1", "--set", "adapt.members=1,2"], "give one value"),
    ):
        code, _, err = lorchestra("paper", *arguments, "--profile", "smoke", "--out", tmp_path / "paper")
        assert code == 2, arguments
        assert message in err


def test_a_second_call_trains_nothing(lorchestra, settings, tmp_path, monkeypatch):
    arguments = ["paper", "fig3", "--profile", "smoke", "--out", tmp_path / "paper", *settings]
    assert lorchestra(*arguments)[0] == 0
    before = (tmp_path / "paper/fig3/fig3.csv").read_text()
    monkeypatch.setattr("lorchestra.engine.trainer.Trainer.step", None)
    code, _, err = lorchestra(*arguments)
    assert code == 0, err
    assert (tmp_path / "paper/fig3/fig3.csv").read_text() == before
    assert re.search(r"finished: 2 points", err)
    assert cli.COMMANDS["paper"]

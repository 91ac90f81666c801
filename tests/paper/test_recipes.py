"""The recipes of figures: valid points at every profile; the demo's headlines as the default task."""

from __future__ import annotations

import dataclasses

import pytest

from lorchestra.config.data import PromptConfig
from lorchestra.config.run import RegularizeConfig
from lorchestra.data.tasks.table import TASKS
from lorchestra.demo import data as demo
from lorchestra.demo.data import DEMO_PROMPT
from lorchestra.errors import ConfigError, DataError
from lorchestra.paper import recipes
from lorchestra.paper.recipes import figure_settings, profile_names, read_figure, read_profile
from lorchestra.paper.registry import FIGURES
from lorchestra.paper.run import HEADLINES, plan_figures
from lorchestra.runs.sweep.points import named_points


@pytest.mark.parametrize("profile", ["7b", "small", "smoke"])
@pytest.mark.parametrize("figure", FIGURES)
def test_points_of_every_figure_and_profile(figure, profile):
    scale, recipe = read_profile(profile), read_figure(figure, profile)
    settings = figure_settings(recipe, scale, scale.tasks)
    points = named_points(scale.settings, settings, figure)
    assert len(points) == len(settings) >= (1 if recipe.methods else 2)
    assert all(task in TASKS for task in (*scale.tasks, *scale.ood))
    assert recipe.title
    tasks = {point.config.data.task for point in points}
    expected = set(scale.tasks[:1] if recipe.one_task else scale.tasks)
    assert tasks == (expected if len(scale.tasks) > 1 else {None})


def test_recipes_and_figures_correspond():
    files = {path.stem for path in recipes.recipes_folder().glob("*.yaml")}
    assert files == {*FIGURES, "profiles"}
    assert profile_names() == ("7b", "small", "smoke")


def test_strengths_of_the_paper_by_task():
    scale = read_profile("7b")
    settings = figure_settings(read_figure("fig1", "7b"), scale, scale.tasks)
    decays = {one["data.task"]: one.get("regularize.weight_decay_b") for one in settings if len(one) > 1}
    assert decays == dict.fromkeys(scale.tasks, 100) | dict.fromkeys(["mmlu_social_sciences", "mmlu_stem"], 1000)
    assert (scale.settings.adapt.members, scale.settings.adapt.r, scale.settings.adapt.layers) == (5, 8, "all")


def test_figure_of_regularizers_is_complete():
    settings = [field for point in read_figure("regularizers").points for field in point]
    fields = {f"regularize.{field.name}" for field in dataclasses.fields(RegularizeConfig)}
    assert fields <= set(settings)
    assert {"adapt.dropout"} == set(settings) - fields


def test_lists_are_combined_and_duplicates_removed():
    recipe = recipes.Recipe(points=({"train.lr": [0.1, 0.2], "adapt.r": "$ranks"}, {"adapt.r": 4, "train.lr": 0.1}, {}))
    profile = recipes.Profile(values={"ranks": [4, 8]})
    points = [tuple(settings.values()) for settings in figure_settings(recipe, profile, ())]
    assert points == [(4, 0.1), (8, 0.1), (4, 0.2), (8, 0.2), ()]
    with pytest.raises(ConfigError, match=r"\$ranks: the profile has no such value; did you mean 'rank'"):
        figure_settings(recipe, recipes.Profile(values={"rank": 4}), ())


def test_invalid_recipe_is_refused(tmp_path, monkeypatch):
    (tmp_path / "profiles.yaml").write_text("smoke: {summary: s, settings: {train: {lrr: 1}}}")
    (tmp_path / "fig1.yaml").write_text("points: 3")
    monkeypatch.setattr(recipes, "recipes_folder", lambda: tmp_path)
    with pytest.raises(ConfigError, match=r"smoke\.settings\.train\.lrr is not a setting; did you mean 'lr'"):
        read_profile("smoke")
    with pytest.raises(ConfigError, match=r"fig1\.yaml: points is 3; it must be a list"):
        read_figure("fig1")


def _has_wheel():
    try:
        return bool(demo._wheel_folder())
    except DataError:
        return False


@pytest.mark.skipif(not _has_wheel(), reason=f"needs the PyPI wheel {demo.WHEEL}")
def test_headlines_if_no_task_is_given(tmp_path):
    config = read_profile("smoke").settings
    plans, trainings = plan_figures(["fig5", "fig1", "fig3"], "smoke", config, tmp_path / "out")
    assert [(training.root.name, len(training.points)) for training in trainings] == [("each-epoch-ood", 2)]
    assert [name.rsplit("/", 1)[1] for name in trainings[0].ood] == [f"{name}.jsonl" for name in demo.OOD_NAMES]
    data = plans[0].points[0].config.data
    with open(data.train) as rows:
        assert len(rows.readlines()) == HEADLINES.train
    assert (data.scoring, data.prompt.template) == ("text", DEMO_PROMPT)
    other = dataclasses.replace(config.data, scoring="letter", prompt=PromptConfig(template="{question}\n{options}"))
    plans, _ = plan_figures(["fig1"], "smoke", dataclasses.replace(config, data=other), tmp_path / "other")
    data = plans[0].points[0].config.data
    assert (data.scoring, data.prompt.template) == ("letter", "{question}\n{options}")


def test_ood_figures_need_ood_rows(make_task, tmp_path):
    make_task()
    config = read_profile("smoke").settings
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, task="quiz"))
    with pytest.raises(ConfigError, match="name tasks with --ood"):
        plan_figures(["fig1", "ood"], "smoke", config, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(ConfigError, match=r"'nonsense' is neither a file nor a task"):
        plan_figures(["ood"], "smoke", config, tmp_path / "out", ["nonsense"])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("order", [["fig1", "fig3", "ablation-members"], ["ablation-members", "fig3", "fig1"]])
def test_points_are_trained_once_with_all_requested_outputs(order, make_task, tmp_path):
    """And reused by a figure that needs fewer outputs, but trained again for one that needs more."""
    make_task()
    make_task("other")
    config = read_profile("smoke").settings
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, task="quiz"))

    def plan(*names):
        plans, trainings = plan_figures(names, "smoke", config, tmp_path / "out", ["other"])
        folders = {plan.name: {run.root.parent.parent.name for run in plan.folders} for plan in plans}
        return folders, {training.root.name: len(training.points) for training in trainings}

    folders, trainings = plan(*order)
    assert folders == {"fig1": {"each-epoch"}, "fig3": {"each-epoch"}, "ablation-members": {"plain"}}
    assert trainings == {"each-epoch": 2, "plain": 2}
    assert plan("fig1") == ({"fig1": {"plain"}}, {"plain": 2})
    for name in ("as-configured", "weight_decay_b=100.0"):
        record = tmp_path / "out/trainings/each-epoch/runs" / name / "ensemble.json"
        record.parent.mkdir(parents=True)
        record.touch()
    assert plan("fig1") == ({"fig1": {"each-epoch"}}, {"each-epoch": 2})
    assert plan("fig1", "ood")[0] == {"fig1": {"each-epoch"}, "ood": {"ood"}}

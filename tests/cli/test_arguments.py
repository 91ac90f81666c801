"""Arguments as settings: Hugging Face's names of settings, and which settings were given at all."""

from __future__ import annotations

import pytest

from lorchestra.cli.arguments import given_settings, parse_with_recipe
from lorchestra.cli.train import TrainArguments
from lorchestra.config.run import RunConfig
from lorchestra.runs.sweep.points import parse_axis

ALIASES = {
    "--adapt.lora-dropout": ("0.1", "adapt.dropout", 0.1),
    "--adapt.layers-to-transform": ("[0, 5]", "adapt.layers", "[0, 5]"),
    "--train.num-train-epochs": ("4", "train.epochs", 4),
    "--train.per-device-train-batch-size": ("2", "train.batch_size", 2),
    "--train.learning-rate": ("1e-4", "train.lr", 1e-4),
    "--train.max-grad-norm": ("0.5", "train.clip_norm", 0.5),
    "--train.early-stopping-patience": ("3", "train.patience", 3),
}


def parsed(*arguments):
    return parse_with_recipe(TrainArguments, [*arguments, "--out", "run"], "train", required=["out"])[1]


@pytest.mark.parametrize("form", ["two arguments", "one argument", "underscores"])
@pytest.mark.parametrize(("option", "case"), ALIASES.items())
def test_an_option_under_hugging_face_s_name(option, case, form):
    text, name, value = case
    option = option.replace("-", "_").replace("__", "--", 1) if form == "underscores" else option
    arguments = [f"{option}={text}"] if form == "one argument" else [option, text]
    group, setting = name.split(".")
    config = parsed(*arguments)
    assert getattr(getattr(config, group), setting) == value
    assert config == parsed(f"--{name.replace('_', '-')}", text) != RunConfig()
    assert given_settings(arguments) == {name}


def test_a_recipe_with_hugging_face_s_names_and_an_option_that_overrides_it(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("train: {learning_rate: 1e-4, num_train_epochs: 7}\nadapt: {lora_dropout: 0.2}\n")
    config = parsed(str(path), "--train.lr", "2e-4")
    assert (config.train.lr, config.train.epochs, config.adapt.dropout) == (2e-4, 7, 0.2)
    assert parsed(str(path), "--train.learning-rate", "2e-4") == config
    assert given_settings([str(path)]) == {"train.lr", "train.epochs", "adapt.dropout"}


def test_given_settings_are_those_that_were_typed_whatever_their_values(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("data: {max_length: null, scoring: auto}\n")
    arguments = [str(path), "--data-dir", "sets", "--train.no-gradient-checkpointing", "--train.epochs=3", "--out", "x"]
    assert given_settings(arguments) == {
        "data.scoring",
        "data.dir",
        "train.gradient_checkpointing",
        "train.epochs",
    }


def test_the_axis_of_a_grid_under_hugging_face_s_name():
    assert parse_axis("train.learning_rate=1e-4,3e-4") == parse_axis("train.lr=1e-4,3e-4")

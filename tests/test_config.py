"""Configurations as YAML: there and back, and every refusal names the file, the field and the value."""

from __future__ import annotations

import dataclasses
import inspect
import re
from pathlib import Path

import pytest
import yaml

from lorchestra.config import differences, from_mapping, read_recipe, refused_settings, to_mapping, to_yaml
from lorchestra.data.config import DataConfig, FieldsConfig, PromptConfig
from lorchestra.engine.config import RunConfig, TrainConfig
from lorchestra.errors import ConfigError
from lorchestra.models.config import AdaptConfig

RECIPES = sorted((Path(__file__).parents[1] / "recipes").glob("*.yaml"))


def test_there_and_back(tmp_path):
    config = RunConfig(
        adapt=AdaptConfig(target_modules=("q_proj",), layers="[0, 2]"),
        data=DataConfig(
            train="a.csv", fields=FieldsConfig(text="Überschrift"), prompt=PromptConfig(system_prompt="two\nlines: {x}")
        ),
        train=TrainConfig(lr=1e-4, token_budget=900),
    )
    path = tmp_path / "recipe.yaml"
    path.write_text(to_yaml(config), encoding="utf-8")
    assert read_recipe(path, RunConfig) == config
    assert from_mapping(RunConfig, to_mapping(config), "here") == config


def test_what_a_recipe_leaves_out_keeps_its_default(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("train:\n  lr: 1e-4\n  epochs: 7\nadapt:\n  layers: [0, 5]\n")
    config = read_recipe(path, RunConfig)
    assert config == RunConfig(train=TrainConfig(lr=1e-4, epochs=7), adapt=AdaptConfig(layers="[0, 5]"))
    path.write_text("")
    assert read_recipe(path, RunConfig) == RunConfig()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("target_modules: all-linear", {"target_modules": "all-linear"}),
        (r"target_modules: '.*\.(q|v)_proj'", {"target_modules": r".*\.(q|v)_proj"}),
        ("target_modules: [q_proj, v_proj]", {"target_modules": ("q_proj", "v_proj")}),
        ("init_lora_weights: true", {"init_lora_weights": True}),
        ("init_lora_weights: orthogonal", {"init_lora_weights": "orthogonal"}),
    ],
)
def test_text_beside_a_list_and_true_beside_names(text, expected):
    config = from_mapping(AdaptConfig, yaml.safe_load(text), "here")
    assert config == AdaptConfig(**expected)
    assert from_mapping(AdaptConfig, yaml.safe_load(to_yaml(config)), "there") == config


def test_refused_settings_are_found_through_the_parts():
    assert list(refused_settings(RunConfig)) == ["adapt.modules_to_save"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: {epoch: 3}", "train.epoch is no setting; did you mean 'epochs'?"),
        ("trian: {}", "trian is no setting; did you mean 'train'?"),
        ("zzz: 1", "zzz is no setting; known here: base, adapt, data, train, regularize, evaluate"),
        ("train: 3", "train must be a mapping of settings, not 3"),
        ("- 1", "a recipe must be a mapping of settings, not [1]"),
        ("train: {epochs: three}", "train.epochs is 'three'; it must be int"),
        ("train: {epochs: 1.5}", "train.epochs is 1.5; it must be int"),
        ("train: {epochs: true}", "train.epochs is True; it must be int"),
        ("train: {lr: fast}", "train.lr is 'fast'; it must be float"),
        ("train: {schedule: step}", "train.schedule is 'step'; it must be one of linear, cosine, constant"),
        ("adapt: {target_modules: true}", "adapt.target_modules is True; it must be text"),
        ("adapt: {target_modules: {q: 1}}", "adapt.target_modules is {'q': 1}; it must be text"),
        ("adapt: {target_modules: [true]}", "adapt.target_modules is True; it must be text"),
        ("adapt: {modules_to_save: [lm_head]}", "adapt.modules_to_save is not offered: members are low-rank adapters"),
        ("adapt: {REFUSED: {}}", "adapt.REFUSED is no setting"),
        ("adapt: {init_lora_weights: false}", "is False; it must be one of True, gaussian, orthogonal"),
        ("adapt: {init_lora_weights: 1}", "adapt.init_lora_weights is 1; it must be one of True, gaussian, orthogonal"),
        ("adapt: {init_lora_weights: pissa}", "is 'pissa'; it must be one of True, gaussian, orthogonal"),
        ("adapt: {same_init: 1}", "adapt.same_init is 1; it must be true or false"),
        ("data: {train: true}", "data.train is True; it must be text"),
        ("data: {prompt: 'Q {question}'}", "data.prompt must be a mapping of settings, not 'Q {question}'"),
        (
            "data: {prompt: {chat_templat: true}}",
            "data.prompt.chat_templat is no setting; did you mean 'chat_template'?",
        ),
        ("train: {lr: 1", "not valid YAML"),
        ("x: !!python/object/apply:os.system [ls]", "not valid YAML"),
        ("[" * 5000, "not valid YAML"),
    ],
)
def test_refusals(tmp_path, text, message):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=re.escape(str(path)) + ".*" + re.escape(message)):
        read_recipe(path, RunConfig)


def test_a_recipe_that_is_no_text_or_not_there(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read as a recipe"):
        read_recipe(tmp_path / "none.yaml", RunConfig)
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot be read as a recipe"):
        read_recipe(tmp_path / "bytes.yaml", RunConfig)


def test_differences_are_dotted():
    one = RunConfig()
    other = dataclasses.replace(one, data=DataConfig(fields=FieldsConfig(text="t")), train=TrainConfig(lr=1.0))
    assert differences(one, other) == {"data.fields.text": ("text", "t"), "train.lr": (3e-4, 1.0)}
    assert differences(one, one) == {}


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_the_recipes_here_can_be_read(recipe):
    assert read_recipe(recipe, RunConfig) != RunConfig()


def test_no_class_has_more_than_twelve_fields_and_each_is_explained():
    classes, total = [RunConfig], 0
    while classes:
        cls = classes.pop()
        fields = dataclasses.fields(cls)
        assert len(fields) <= 12
        source = inspect.getsource(cls)
        for field in fields:
            kind = field.default_factory
            if dataclasses.is_dataclass(kind):
                classes.append(kind)
            else:
                total += 1
                assert re.search(rf'    {field.name}: .*\n    """', source), f"{cls.__name__}.{field.name}"
    assert total <= 54

"""Configurations from and to YAML; errors name the file, the field and the value."""

from __future__ import annotations

import dataclasses
import inspect
import math
import re
from pathlib import Path

import pytest
import yaml

from lorchestra.config.adapt import AdaptConfig
from lorchestra.config.data import ChatFrame, DataConfig, FieldsConfig, PromptConfig, ReadConfig
from lorchestra.config.mappings import (
    differences,
    from_mapping,
    read_recipe,
    refused_settings,
    setting_aliases,
    to_mapping,
    to_yaml,
)
from lorchestra.config.run import RunConfig, TrainConfig, check_run
from lorchestra.errors import ConfigError

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))


def test_round_trip(tmp_path):
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


def test_settings_missing_from_a_recipe_keep_their_defaults(tmp_path):
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
def test_settings_of_two_types(text, expected):
    config = from_mapping(AdaptConfig, yaml.safe_load(text), "here")
    assert config == AdaptConfig(**expected)
    assert from_mapping(AdaptConfig, yaml.safe_load(to_yaml(config)), "there") == config


HUGGING_FACE = [
    ("adapt.lora_dropout", 0.1, "adapt.dropout", 0.1),
    ("adapt.layers_to_transform", [0, 5], "adapt.layers", "[0, 5]"),
    ("train.num_train_epochs", 4, "train.epochs", 4),
    ("train.per_device_train_batch_size", 2, "train.batch_size", 2),
    ("train.learning_rate", "1e-4", "train.lr", 1e-4),
    ("train.max_grad_norm", 0.5, "train.clip_norm", 0.5),
    ("train.early_stopping_patience", 3, "train.patience", 3),
]


def test_the_aliases_are_hugging_face_s():
    assert setting_aliases(RunConfig) == {alias: name for alias, _, name, _ in HUGGING_FACE}


@pytest.mark.parametrize(("alias", "written", "name", "value"), HUGGING_FACE)
def test_a_setting_under_hugging_face_s_name_is_saved_under_ours(tmp_path, alias, written, name, value):
    group, setting = name.split(".")
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({group: {alias.split(".")[1]: written}}))
    config = read_recipe(path, RunConfig)
    assert config == from_mapping(RunConfig, {group: {setting: value}}, "here")
    assert getattr(getattr(config, group), setting) == value != getattr(getattr(RunConfig(), group), setting)
    assert from_mapping(RunConfig, {group: {alias.split(".")[1]: written}}, "here") == config
    saved = to_mapping(config)[group]
    assert saved[setting] == value
    assert alias.split(".")[1] not in saved


@pytest.mark.parametrize(("alias", "written", "name", "value"), HUGGING_FACE)
def test_a_setting_under_both_names_is_refused(alias, written, name, value):
    group, setting = name.split(".")
    mapping = {group: {setting: value, alias.split(".")[1]: written}}
    message = f"here: {name} and {alias} are the same setting; leave one of them out"
    with pytest.raises(ConfigError, match=re.escape(message)):
        from_mapping(RunConfig, mapping, "here")


def test_refused_settings_of_groups():
    assert list(refused_settings(RunConfig)) == ["adapt.modules_to_save"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: {epoch: 3}", "train.epoch is not a setting; did you mean 'epochs'?"),
        ("trian: {}", "trian is not a setting; did you mean 'train'?"),
        ("zzz: 1", "zzz is not a setting; known here: base, adapt, data, train, regularize, evaluate"),
        ("train: 3", "train must be a mapping of settings, not 3"),
        ("- 1", "a recipe must be a mapping of settings, not [1]"),
        ("train: {epochs: three}", "train.epochs is 'three'; it must be int, or auto"),
        ("train: {epochs: 1.5}", "train.epochs is 1.5; it must be int"),
        ("train: {epochs: true}", "train.epochs is True; it must be int"),
        ("train: {lr: fast}", "train.lr is 'fast'; it must be float, or auto"),
        ("train: {learning_rate: fast}", "train.learning_rate is 'fast'; it must be float"),
        ("train: {learning_rat: 1}", "train.learning_rat is not a setting; did you mean 'lr'?"),
        ("max_grad_norm: 1", "max_grad_norm is not a setting; did you mean 'train.clip_norm'?"),
        ("train: {schedule: step}", "train.schedule is 'step'; it must be one of linear, cosine, constant"),
        ("adapt: {target_modules: true}", "adapt.target_modules is True; it must be text"),
        ("adapt: {target_modules: {q: 1}}", "adapt.target_modules is {'q': 1}; it must be text"),
        ("adapt: {target_modules: [true]}", "adapt.target_modules is True; it must be text"),
        ("adapt: {modules_to_save: [lm_head]}", "adapt.modules_to_save is not offered: members are low-rank adapters"),
        ("adapt: {REFUSED: {}}", "adapt.REFUSED is not a setting"),
        ("adapt: {init_lora_weights: false}", "is False; it must be one of True, gaussian, orthogonal"),
        ("adapt: {init_lora_weights: 1}", "adapt.init_lora_weights is 1; it must be one of True, gaussian, orthogonal"),
        ("adapt: {init_lora_weights: olora}", "is 'olora'; it must be one of True, gaussian, orthogonal, pissa, loftq"),
        ("adapt: {same_init: 1}", "adapt.same_init is 1; it must be true or false"),
        ("data: {train: true}", "data.train is True; it must be text"),
        ("data: {prompt: 'Q {question}'}", "data.prompt must be a mapping of settings, not 'Q {question}'"),
        (
            "data: {prompt: {chat_templat: true}}",
            "data.prompt.chat_templat is not a setting; did you mean 'chat_template'?",
        ),
        ("train: {lr: 1", "not valid YAML"),
        ("x: !!python/object/apply:os.system [ls]", "not valid YAML"),
        ("[" * 5000, "not valid YAML"),
        ("train: {epochs: !!int ''}", "not valid YAML"),
        ("train: {epochs: !!bool maybe}", "not valid YAML"),
        ("train: {epochs: !!timestamp x}", "not valid YAML"),
        ("train: !!map [1]", "not valid YAML"),
        ("train: &t {epochs: 2}\nadapt: *t", "*t: write out the value instead"),
        ("a: &a [*a]", "*a: write out the value instead"),
        ("train: {epochs: 2}\ntrain: {lr: 0.1}", "train is set twice"),
        ("train: {epochs: 2, epochs: 3}", "epochs is set twice"),
        ("train: {epochs: 0x" + "f" * 5000 + "}", "train.epochs is a number of 20,000 bits; choose a smaller number"),
        ("data: {prompt: [a, b]}", "data.prompt must be a mapping of settings, not ['a', 'b']"),
        ("data: {prompt: {template: [a, b]}}", "data.prompt.template is ['a', 'b']; it must be text"),
    ],
)
def test_refusals(tmp_path, text, message):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=re.escape(str(path)) + ".*" + re.escape(message)):
        read_recipe(path, RunConfig)


def test_a_recipe_that_is_not_text_or_missing(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read as a recipe"):
        read_recipe(tmp_path / "none.yaml", RunConfig)
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot be read as a recipe"):
        read_recipe(tmp_path / "bytes.yaml", RunConfig)


def test_differences_are_dotted():
    one = RunConfig()
    other = dataclasses.replace(one, data=DataConfig(fields=FieldsConfig(text="t")), train=TrainConfig(lr=1.0))
    assert differences(one, other) == {"data.fields.text": ("text", "t"), "train.lr": ("auto", 1.0)}
    assert differences(one, one) == {}


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_the_projects_recipes_can_be_read(recipe):
    assert read_recipe(recipe, RunConfig) != RunConfig()


def test_no_class_has_more_than_fourteen_fields_and_each_is_explained():
    classes, total = [RunConfig], 0
    while classes:
        cls = classes.pop()
        fields = dataclasses.fields(cls)
        assert len(fields) <= 14
        source = inspect.getsource(cls)
        for field in fields:
            kind = field.default_factory
            if kind is ChatFrame:  # written by training, and no flag
                continue
            if dataclasses.is_dataclass(kind):
                classes.append(kind)
            else:
                total += 1
                assert re.search(rf'    {field.name}: .*\n    """', source), f"{cls.__name__}.{field.name}"
    assert total <= 82  # 80, the number of orders of the options, and the quantization of the base


def test_references_are_refused_before_they_expand(tmp_path):
    """A billion laughs: references to references, a kilobyte on disk and more than any memory when expanded."""
    path = tmp_path / "recipe.yaml"
    lines = ["- &a0 [lol, lol]", *(f"- &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 30))]
    path.write_text("adapt:\n  target_modules:\n" + "".join(f"    {line}\n" for line in lines))
    with pytest.raises(ConfigError, match=r"\*a0: write out the value instead"):
        read_recipe(path, RunConfig)


@pytest.mark.parametrize("text", ["a\x85b", "\x85", "line\u2028line", "\x1b[31m", "\x00", "e: f", " 1e3", "é\n\nx\n"])
def test_every_text_is_preserved(tmp_path, text):
    config = RunConfig(data=DataConfig(prompt=PromptConfig(template=text)))
    path = tmp_path / "recipe.yaml"
    path.write_text(to_yaml(config), encoding="utf-8")
    assert read_recipe(path, RunConfig) == config


def test_settings_missing_from_a_saved_configuration_keep_their_old_values(tmp_path):
    path = tmp_path / "config.yaml"
    saved = to_mapping(RunConfig())
    del saved["data"]["read"]
    path.write_text(yaml.safe_dump(saved))
    before = read_recipe(path, RunConfig, whole=True)
    assert before.data.read == ReadConfig(max_held_out=None, rules=1)
    assert read_recipe(path, RunConfig).data.read == ReadConfig()
    assert dataclasses.replace(before, data=dataclasses.replace(before.data, read=ReadConfig())) == RunConfig()


def test_a_truncated_saved_configuration_is_refused(tmp_path):
    path = tmp_path / "config.yaml"
    whole = to_yaml(RunConfig(train=TrainConfig(epochs=9)))
    path.write_text(whole)
    assert read_recipe(path, RunConfig, whole=True).train.epochs == 9
    path.write_text(whole[: whole.index("regularize:")])
    assert read_recipe(path, RunConfig).train.epochs == 9
    with pytest.raises(ConfigError, match=r"config\.yaml: has no regularize settings; the file was truncated"):
        read_recipe(path, RunConfig, whole=True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"base": {"threads": 0}}, "base.threads: 0 is not in [1, 1024]"),
        ({"base": {"threads": 10**9}}, "base.threads: 1000000000 is not in"),
        ({"adapt": {"lora_alpha": math.nan}}, "adapt.lora_alpha: nan is not a finite number above 0"),
        ({"adapt": {"lora_alpha": 0}}, "adapt.lora_alpha: 0.0 is not a finite number above 0"),
        ({"adapt": {"members": 10**9}}, "adapt.members: 1000000000 is more than 10000"),
        ({"adapt": {"r": 10**6}}, "adapt.r: 1000000 is more than 10000"),
        ({"data": {"max_length": 0}}, "data.max_length: 0 is less than 1"),
        (
            {"data": {"prompt": {"template": "\ud800 {question}"}}},
            "data.prompt.template: lone surrogate at index 0",
        ),
        (
            {"data": {"prompt": {"system_prompt": "x\udfff"}}},
            "data.prompt.system_prompt: lone surrogate at index 1",
        ),
        (
            {"data": {"prompt": {"frame": {"alone": ["a", "\ud800", "b"]}}}},
            "data.prompt.frame.alone: lone surrogate at index 1",
        ),
        ({"train": {"token_budget": 0}}, "train.token_budget: 0 is less than 1"),
        ({"train": {"token_budget": -5}}, "train.token_budget: -5 is less than 1"),
        ({"train": {"checkpoint_every_s": math.nan}}, "train.checkpoint_every_s: nan is not a number from 0 up"),
        ({"train": {"checkpoint_every_s": -1}}, "train.checkpoint_every_s: -1.0 is not a number from 0 up"),
        ({"train": {"lr": 1e38}}, r"train.lr: 1e+38 is more than 1e+30"),
        ({"train": {"clip_norm": 1e300}}, r"train.clip_norm: 1e+300 is more than 1e+30"),
        ({"train": {"epochs": 2**63}}, "train.epochs: 9223372036854775808 is more than"),
        ({"adapt": {"lora_alpha": 1e300}}, r"adapt.lora_alpha: 1e+300 is more than 1e+30"),
        ({"adapt": {"trunk_memory_gb": 1e300}}, r"adapt.trunk_memory_gb: 1e+300 is more than 1e+30"),
        ({"adapt": {"init_std_b": 1e31}}, r"adapt.init_std_b: 1e+31 is more than 1e+30"),
        ({"regularize": {"kl_beta": 1e300}}, r"regularize.kl_beta: 1e+300 is more than 1e+30"),
        ({"evaluate": {"few_shot": -1}}, "evaluate.few_shot: -1 is less than 0"),
        ({"evaluate": {"resamples": -1}}, "evaluate.resamples: -1 is not in [0, 100000]"),
        ({"evaluate": {"resamples": 10**9}}, "evaluate.resamples: 1000000000 is not in"),
    ],
)
def test_settings_that_could_only_fail_later_are_refused_before_anything_is_loaded(settings, message):
    config = from_mapping(RunConfig, settings | {}, "here")
    with pytest.raises(ConfigError, match=re.escape(message)):
        check_run(config)


def test_the_defaults_and_the_recipes_pass_the_checks():
    check_run(RunConfig())
    for recipe in RECIPES:
        check_run(read_recipe(recipe, RunConfig))


SPELLINGS = {
    "octal": ("train: {seed: 010}", lambda c: c.train.seed, 10),
    "octal of YAML 1.2": ("train: {seed: 0o10}", lambda c: c.train.seed, 8),
    "no dot": ("train: {lr: 1e-4}", lambda c: c.train.lr, 1e-4),
    "yes as a name": ("data: {fields: {label: yes}}", lambda c: c.data.fields.label, "yes"),
    "off as a name": ("data: {fields: {label: off}}", lambda c: c.data.fields.label, "off"),
    "a number as a name": ("data: {fields: {label: 010}}", lambda c: c.data.fields.label, "010"),
    "a decimal as a name": ("data: {fields: {label: 1.50}}", lambda c: c.data.fields.label, "1.50"),
    "a time as a name": ("data: {fields: {label: 1:30}}", lambda c: c.data.fields.label, "1:30"),
    "a date as a name": ("data: {train: 2024-01-01}", lambda c: c.data.train, "2024-01-01"),
    "layers": ("adapt: {layers: [0, 2]}", lambda c: c.adapt.layers, "[0, 2]"),
}


@pytest.mark.parametrize(("text", "read", "expected"), SPELLINGS.values(), ids=SPELLINGS.keys())
def test_plain_values_are_read_by_yaml_1_2(tmp_path, text, read, expected):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    config = read_recipe(path, RunConfig)
    assert read(config) == expected
    assert type(read(config)) is type(expected)
    path.write_text(to_yaml(config))
    assert read_recipe(path, RunConfig) == config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: {gradient_checkpointing: yes}", "is 'yes'; it must be true or false, written true"),
        ("train: {gradient_checkpointing: Off}", "it must be true or false, written false"),
        ("train: {epochs: 1_000}", "is '1_000'; it must be int, written 1000"),
        ("train: {checkpoint_every_s: 1:30}", "is '1:30'; it must be float"),
        ("data: {fields: {label: true}}", "is True; it must be text, in quotes"),
        ("train: {epochs: 1, epochs: 2}", "epochs is set twice"),
        ("train: {<<: {epochs: 1}}", "train.<< is not a setting"),
    ],
)
def test_values_that_yaml_1_1_reads_differently_are_refused_with_a_hint(tmp_path, text, message):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=re.escape(message)):
        read_recipe(path, RunConfig)


@pytest.mark.parametrize("name", ["1e4", "010", "yes", "0o7", "1_0", "null", "1:30", "true", "2024-01-01", "="])
def test_text_that_looks_like_another_type_is_preserved(tmp_path, name):
    path = tmp_path / "recipe.yaml"
    config = RunConfig(data=DataConfig(fields=FieldsConfig(label=name)))
    path.write_text(to_yaml(config))
    assert read_recipe(path, RunConfig) == config
    path.write_text(f"data:\n  fields: {{label: '{name}'}}\n")
    assert read_recipe(path, RunConfig) == config

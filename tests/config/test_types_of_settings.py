"""Configurations made in Python: a setting of another type is an error before anything is read."""

from __future__ import annotations

import pytest

from lorchestra.config.adapt import AdaptConfig, BaseConfig
from lorchestra.config.data import DataConfig
from lorchestra.config.run import EvaluateConfig, RunConfig, TrainConfig, check_run
from lorchestra.errors import ConfigError

WRONG = {
    "no configuration": ({}, "the configuration is of type dict; pass a lorchestra.RunConfig"),
    "a file for a group": (RunConfig(data="a.csv"), "data is 'a.csv'; pass a lorchestra.DataConfig"),
    "a dict for a group": (RunConfig(data=DataConfig(fields={})), "data.fields is {}; pass a lorchestra.FieldsConfig"),
    "text for an integer": (RunConfig(train=TrainConfig(epochs="3")), "train.epochs is '3'; it must be int"),
    "text for a number": (RunConfig(train=TrainConfig(lr="1e-4")), "train.lr is '1e-4'; it must be float: 0.0001"),
    "a fraction": (RunConfig(train=TrainConfig(epochs=1.5)), "train.epochs is 1.5; it must be int"),
    "a whole float": (RunConfig(adapt=AdaptConfig(members=2.0)), "adapt.members is 2.0; it must be int"),
    "a boolean": (RunConfig(train=TrainConfig(seed=True)), "train.seed is True; it must be int"),
    "None": (RunConfig(train=TrainConfig(batch_size=None)), "train.batch_size is None; it must be int"),
    "a number for text": (RunConfig(adapt=AdaptConfig(layers=2)), "adapt.layers is 2; it must be str"),
    "a list for text": (RunConfig(data=DataConfig(train=["a.csv"])), "data.train is .*; it must be text"),
    "unknown choice": (RunConfig(train=TrainConfig(schedule="cosin")), "train.schedule is 'cosin'; it must be one of"),
    "unknown device": (RunConfig(base=BaseConfig(device="gpu")), "base.device is 'gpu'; it must be one of"),
    "text for resamples": (RunConfig(evaluate=EvaluateConfig(resamples="9")), "evaluate.resamples is '9'; it must be"),
}


@pytest.mark.parametrize(("config", "message"), WRONG.values(), ids=WRONG)
def test_a_value_of_another_type_is_refused(config, message):
    with pytest.raises(ConfigError, match=message):
        check_run(config)


@pytest.mark.parametrize(
    "config",
    [
        RunConfig(),
        RunConfig(train=TrainConfig(lr=1)),
        RunConfig(adapt=AdaptConfig(target_modules=["q_proj", "v_proj"])),
        RunConfig(adapt=AdaptConfig(target_modules=("q_proj", "v_proj"))),
        RunConfig(adapt=AdaptConfig(target_modules="all-linear")),
    ],
)
def test_what_python_offers_instead_is_accepted(config):
    check_run(config)

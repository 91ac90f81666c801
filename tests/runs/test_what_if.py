"""Predictions without a base next to plans of the same configuration, which load one."""

import dataclasses
import json

import pytest

import lorchestra.runs.what_if
from lorchestra.config.data import PromptConfig
from lorchestra.errors import ConfigError
from lorchestra.models.number_format import ProductRates
from lorchestra.planning.pass_cost import PassCost
from lorchestra.planning.shapes import PUBLIC_SHAPES
from lorchestra.runs.plan import plan_run
from lorchestra.runs.what_if import ASSUMED_ROWS, ASSUMED_TOKENS, WhatIf, what_if

STATED = {"device_gb": 100.0, "tflops": 0.1, "gb_per_s": 10.0}


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"adapt": {"layers": "last:1"}},
        {"adapt": {"layers": "last:2", "members": 11, "dropout": 0.1, "target_modules": "all-linear"}},
        {"adapt": {"layers": "[0, 2]", "target_modules": ("o_proj",)}, "regularize": {"kl_beta": 0.1}},
        {"adapt": {"layers": "last:1"}, "data": {"scoring": "tree"}, "train": {"lr": "auto", "epochs": "auto"}},
        {"data": {"prompt": PromptConfig(template="one two " * 10 + "{question} Answer:")}},
        {"adapt": {"init_lora_weights": "pissa", "layers": "last:2"}, "data": {"scoring": "letter"}},
    ],
    ids=[
        "all layers",
        "last layer",
        "eleven members",
        "scattered layers",
        "tree and search",
        "prefix",
        "pissa, letters",
    ],
)
def test_terms_are_those_of_a_plan(run_config, texts_csv, tmp_path, tiny_base, monkeypatch, settings):
    """Bytes that a plan measures by building the ensemble, tokens that it counts, saved bytes that hooks report."""
    config = run_config(texts_csv(), **settings)
    plan = plan_run(config, tmp_path, seconds=0.1)
    members = config.adapt.members
    saved = []
    monkeypatch.setattr(PassCost, "saved_bytes", _kept(PassCost.saved_bytes, saved))
    (base,) = what_if(config, WhatIf((str(tiny_base),), (members,), (1,), **STATED))["bases"]
    (cell,) = base["cells"]
    assert base["parameters"] == plan["parameters"]["base"]
    assert base["member_parameters"] == plan["parameters"]["member"]
    assert base["layers"] == plan["layers"]
    for part in ("base", "adapters", "training", "trunk"):
        assert cell["bytes"][part] == plan["bytes"][part], part
    assert cell["tokens"] == plan["work"]["tokens"]
    assert cell["token_budget"] == plan["token_budget"]["value"]
    assert max(saved) == pytest.approx(plan["calibration"]["saved_bytes"], rel=0.03)  # without indices of the scores
    assert (cell["time_s"]["search"] > 0) == (plan["time_s"]["search"] > 0)
    assert (cell["time_s"]["trunk"] > 0) == (plan["time_s"]["trunk"] > 0)
    assert (cell["time_s"]["base"] > 0) == (plan["time_s"]["base"] > 0)


def _kept(original, results):
    def saved_bytes(self, counts):
        results.append(original(self, counts))
        return results[-1]

    return saved_bytes


def test_rows_are_assumed_without_data(run_config):
    config = run_config(None)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, train=None))
    record = what_if(config, WhatIf(members=(1, 3), devices=(1, 2, 64), **STATED))
    assert record["rows"] == {
        "train": ASSUMED_ROWS[0],
        "val": ASSUMED_ROWS[1],
        "mean_tokens": ASSUMED_TOKENS,
        "scoring": "letter",
        "assumed": True,
    }
    assert [base["name"] for base in record["bases"]] == list(PUBLIC_SHAPES)
    for base in record["bases"]:
        assert [(cell["members"], cell["devices"]) for cell in base["cells"]] == [(1, 1), (3, 1), (3, 2)]
        assert [cell["tokens"] for cell in base["cells"]] == [2 * 100_000, 6 * 100_000, 6 * 100_000]
        assert base["flop_per_s"] == 1e11
        assert json.dumps(base)
    small, *_, large = record["bases"]
    assert small["least_devices"] == {}
    assert large["least_devices"] == {"1": None, "3": None}  # 282 GB in float32, on devices of 100 GB
    assert all(not cell["bytes"]["fits"] for cell in large["cells"])


def test_speed_is_measured_here_by_default(run_config, texts_csv, tiny_base, monkeypatch):
    """Products per core, of as many threads as torch has; the faster format, as for a training."""
    rates = ProductRates(float32=10.0, bfloat16=40.0)
    asked = []
    monkeypatch.setattr(
        lorchestra.runs.what_if, "product_rates", lambda shapes, tokens: asked.append((shapes, tokens)) or rates
    )
    config = run_config(texts_csv())
    config = dataclasses.replace(config, base=dataclasses.replace(config.base, threads=2))
    question = WhatIf(("llama-3.2-1b", str(tiny_base)), (1,), (1,))
    record = what_if(config, question)
    assert [base["dtype"] for base in record["bases"]] == ["bfloat16", "bfloat16"]
    assert [base["flop_per_s"] for base in record["bases"]] == [2 * 40e9, 2 * 40e9]
    assert record["bases"][0]["bytes_per_s"] == 2 * 12e9
    assert asked[0] == ({(8192, 2048): 32, (2048, 8192): 16, (2048, 2048): 32}, 640)
    assert record["device"] == {"kind": "cpu", "threads": 2, "stated": False}
    config = dataclasses.replace(config, base=dataclasses.replace(config.base, dtype="float32"))
    assert what_if(config, question)["bases"][0]["flop_per_s"] == 2 * 10e9


@pytest.mark.parametrize(
    ("change", "question", "message"),
    [
        ({}, {"members": (0,)}, r"--members: 0 is not in \[1, 10000\]"),
        ({}, {"devices": (1, -1)}, "--devices: -1 is not in"),
        ({}, {"bases": ()}, "--bases: give at least one"),
        ({}, {"tflops": 0.0}, "--device-tflops: 0.0 is not a finite number above 0"),
        ({}, {"device_gb": float("nan")}, "--device-gb: nan is not"),
        ({}, {"bases": ("gpt",)}, "--bases: 'gpt' is no file"),
        ({"adapt": {"layers": "last:17"}}, {"bases": ("llama-3.2-1b",)}, "the base has 16 layers"),
        ({"adapt": {"target_modules": ("c_attn",)}}, {}, "adapt.target_modules: 'c_attn' is not counted"),
        ({"data": {"scoring": "head"}}, {}, "data.scoring: head is not counted"),
        ({"train": {"token_budget": 3}}, {}, "train.token_budget: 3 is below the longest row"),
    ],
)
def test_refused(run_config, texts_csv, change, question, message):
    with pytest.raises(ConfigError, match=message):
        what_if(run_config(texts_csv(), **change), WhatIf(**STATED | question))


def test_a_gpu_must_be_stated(run_config, texts_csv):
    config = run_config(texts_csv())
    config = dataclasses.replace(config, base=dataclasses.replace(config.base, device="cuda"))
    with pytest.raises(ConfigError, match="state the GPU with --device-gb, --device-tflops and --device-gb-per-s"):
        what_if(config, WhatIf(tflops=100.0))
    record = what_if(config, WhatIf(("llama-3.1-8b",), (1,), (1,), **STATED))
    assert (record["bases"][0]["dtype"], record["bases"][0]["cells"][0]["bytes"]["process"]) == ("bfloat16", 0)
    packed = dataclasses.replace(config, base=dataclasses.replace(config.base, quantization="nf4"))
    with pytest.raises(ConfigError, match=r"base\.quantization: nf4 is not counted"):
        what_if(packed, WhatIf(tflops=100.0))
    wide = dataclasses.replace(config, base=dataclasses.replace(config.base, dtype="float64"))
    with pytest.raises(ConfigError, match=r"base\.dtype: float64 is not counted"):
        what_if(wide, WhatIf(**STATED))

"""Compared methods: as fitted by hand, one fit for all wrappers, finished methods are reused, bad calls are refused."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from named_methods import fit_method
from stopping import StopWhen

from lorchestra.config.data import PromptConfig
from lorchestra.errors import CheckpointError, ConfigError, DataError
from lorchestra.methods.registry import METHODS
from lorchestra.metrics.evaluation import evaluate_predictions
from lorchestra.runs.compare import compare_methods, method_context, read_left_out
from lorchestra.runs.rows import read_rows
from lorchestra.store.predictions import load_predictions
from lorchestra.training.callbacks import Callback, Interrupted

NAMES = ["zero_shot", "one_lora", "one_lora+temperature", "lora_ensemble", "lora_ensemble+contextual"]


@pytest.fixture
def config(run_config, texts_csv):
    """Two members on split files."""
    return run_config(
        texts_csv(),
        data={"val": str(texts_csv("val.csv", 8, seed=1)), "test": str(texts_csv("test.csv", 12, seed=2))},
        adapt={"members": 2, "layers": "last:1"},
        train={"token_budget": 400},
    )


class Clock:
    """Stands in for the module `time`: each look at it takes a thousandth of a second, and more goes by on request."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        self.now += 0.001
        return self.now


@pytest.fixture
def clock(monkeypatch):
    """The clock that methods and comparisons look at."""
    clock = Clock()
    for module in (
        "lorchestra.runs.compare",
        "lorchestra.runs.cached_fit",
        "lorchestra.methods.contract",
    ):
        monkeypatch.setattr(f"{module}.time", clock)
    return clock


@pytest.fixture
def count_fits(monkeypatch):
    """Counts fits by method; from the second on, each may happen to make a clock go on."""

    def install(*names, slower=lambda: None):
        fits = dict.fromkeys(names, 0)
        for name in names:
            plain = METHODS[name]

            def fit(context, settings, name=name, plain=plain):
                fits[name] += 1
                if fits[name] > 1:
                    slower()
                return plain.fit(context, settings)

            monkeypatch.setitem(METHODS, name, dataclasses.replace(plain, fit=fit))
        return fits

    return install


def saved(out, name, split="test"):
    return load_predictions(out / "methods" / name / "predictions" / f"reviews.{split}.safetensors")


def without_times(result):
    """What must be the same in two calls: all but clocks and memory."""
    cost = {key: value for key, value in result["cost"].items() if key not in ("fit_s", "peak_bytes")}
    return {key: value for key, value in result.items() if key not in ("cost", "predict_s")} | {"cost": cost}


def test_results_are_those_of_fitting_by_hand(config, tmp_path):
    results = compare_methods(config, NAMES, tmp_path / "out")
    assert [result["name"] for result in results] == NAMES
    task = read_rows(config.data, config.train.seed).task
    context = method_context(config, task)
    ensemble = saved(tmp_path / "out", "lora_ensemble")
    for name, result in zip(NAMES, results, strict=True):
        fitted = fit_method(context, name)
        test, val = fitted.predict(task.splits["test"], "test"), fitted.predict(task.splits["val"], "val")
        np.testing.assert_array_equal(saved(tmp_path / "out", name).log_probs_MEC, test.log_probs_MEC)
        np.testing.assert_array_equal(saved(tmp_path / "out", name, "val").log_probs_MEC, val.log_probs_MEC)
        assert result["chosen"] == fitted.chosen
        for part in ("fit_base_passes", "tokens", "parameters", "predict_base_passes"):
            assert result["cost"][part] == getattr(fitted.cost, part), (name, part)
        assert result["cost"]["fit_s"] > 0
        labels = [row.answer for row in task.splits["train"]]
        entry = evaluate_predictions(test, validation=val, train_labels=labels, resamples=50, seed=0)
        assert result["entry"] == entry
        assert result["config"]["train"]["lr"] == 0.01
        # the paired intervals are those of an evaluation with the method as a baseline
        beside = evaluate_predictions(ensemble, baselines={"it": test}, resamples=50, seed=0)["baselines"]["it"]
        assert result.get("ensemble_minus", beside["ensemble_minus"]) == beside["ensemble_minus"]
        assert ("ensemble_minus" in result) == (name != "lora_ensemble")


def test_a_method_can_have_settings_and_appear_more_than_once(config, tmp_path, count_fits):
    fits = count_fits("mc_dropout")
    names = ["mc_dropout:dropout=0.1", "mc_dropout:dropout=0.5", "mc_dropout:dropout=0.5+temperature", "mc_dropout"]
    results = compare_methods(config, names, tmp_path / "out")
    rates = [result["settings"]["dropout"] for result in results[:3]]
    assert rates == [0.1, 0.5, 0.5]
    assert "(mc_dropout:dropout=0.1 as a method's name)" in results[3]["left_out"]
    one, other = (saved(tmp_path / "out", f"mc_dropout,dropout={rate}").log_probs_MEC for rate in (0.1, 0.5))
    assert np.abs(one - other).max() > 1e-3
    assert fits == {"mc_dropout": 3}  # the third is the one that refuses
    assert compare_methods(config, names[:3], tmp_path / "out") == results[:3]
    assert fits == {"mc_dropout": 3}


def test_whatever_a_name_holds_its_directory_is_one_below_methods(config, tmp_path):
    out = tmp_path / "out"
    name = "zero_shot+contextual:texts=[N/A,x/../../../../y]"
    compare_methods(config, [name], out)
    assert [path.name for path in (out / "methods").iterdir()] == [
        "zero_shot+contextual,texts=%5BN%2FA,x%2F..%2F..%2F..%2F..%2Fy%5D"
    ]
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["out"]
    with pytest.raises(ConfigError, match="too long for a directory's name"):
        compare_methods(config, [f"one_lora+contextual:texts=[{'x' * 300}]"], tmp_path / "other")


def test_the_budget_has_the_tokens_that_all_rows_share_on_top(config, tmp_path):
    prompt = PromptConfig(template="one two " * 10 + "{question} Answer:")
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, token_budget=None))
    longer = dataclasses.replace(config, data=dataclasses.replace(config.data, prompt=prompt))
    (result,) = compare_methods(longer, ["zero_shot"], tmp_path / "out")
    assert result["config"]["train"]["token_budget"] > 640 + 16
    (result,) = compare_methods(config, ["zero_shot"], tmp_path / "plain")
    assert result["config"]["train"]["token_budget"] == 640


def test_wrappers_share_a_fit_and_take_what_is_there(config, tmp_path, count_fits):
    fits = count_fits("one_lora")
    out = tmp_path / "out"
    first = compare_methods(config, ["one_lora+contextual", "one_lora", "one_lora+temperature"], out)
    assert fits == {"one_lora": 1}
    again = compare_methods(config, ["one_lora+contextual", "one_lora", "one_lora+temperature"], out)
    assert fits == {"one_lora": 1}
    assert again == first
    # a temperature is fitted on saved predictions alone; other inputs need the method itself
    (calibrated,) = compare_methods(config, ["one_lora+temperature+temperature"], out)
    assert fits == {"one_lora": 1}
    assert calibrated["cost"]["parameters"] == first[1]["cost"]["parameters"] + 2
    compare_methods(config, ["one_lora+temperature+contextual"], out)
    assert fits == {"one_lora": 2}


def test_a_wrapper_costs_the_same_whether_the_fit_below_it_was_there(config, tmp_path, count_fits, clock):
    """Three slow seconds of a fit that is made again are in no time of a wrapper."""

    def slower():
        clock.now += 3.0

    fits = count_fits("one_lora", slower=slower)
    (plain,) = compare_methods(config, ["one_lora"], tmp_path / "out")
    (wrapped,) = compare_methods(config, ["one_lora+contextual"], tmp_path / "out")
    assert plain["cost"]["fit_s"] <= wrapped["cost"]["fit_s"] < plain["cost"]["fit_s"] + 2
    assert plain["predict_s"]["test"] <= wrapped["predict_s"]["test"] < 3
    assert wrapped["predict_s"]["val"] < 3
    assert fits == {"one_lora": 2}
    (scaled,) = compare_methods(config, ["one_lora+temperature"], tmp_path / "out")
    assert scaled["cost"]["fit_s"] >= plain["cost"]["fit_s"] + plain["predict_s"]["val"]


def test_an_interruption_loses_the_method_under_way_alone(config, tmp_path, count_fits):
    names = ["zero_shot", "one_lora", "lora_ensemble"]
    whole = compare_methods(config, names, tmp_path / "whole")
    fits = count_fits(*names)

    class StopsInTheEnsemble(Callback):
        name, steps = "", 0

        def on_status(self, names, status):
            (self.name,) = names

        def on_step(self, report, state):
            self.steps += self.name == "lora_ensemble"

        def should_stop(self):
            return self.steps > 2

    watcher = StopsInTheEnsemble()
    out = tmp_path / "out"
    with pytest.raises(Interrupted):
        compare_methods(config, names, out, callbacks=[watcher])
    assert watcher.steps == 3
    assert sorted(path.name for path in (out / "methods").iterdir()) == ["one_lora", "zero_shot"]
    results = compare_methods(config, names, out)
    assert fits == {"zero_shot": 1, "one_lora": 1, "lora_ensemble": 2}
    assert [without_times(one) for one in results] == [without_times(one) for one in whole]


def test_a_prediction_can_be_stopped(config, tmp_path):
    with pytest.raises(Interrupted):
        compare_methods(config, ["zero_shot"], tmp_path / "out", callbacks=[StopWhen(lambda: True)])
    assert not list((tmp_path / "out").glob("methods/*"))


def test_other_settings_and_rows_are_refused(config, tmp_path, texts_csv):
    out = tmp_path / "out"
    compare_methods(config, ["zero_shot"], out)
    faster = dataclasses.replace(config, train=dataclasses.replace(config.train, lr=0.02))
    with pytest.raises(ConfigError, match=r"train\.lr: the comparison in .*out has 0\.01, not 0\.02"):
        compare_methods(faster, ["zero_shot"], out)
    more = dataclasses.replace(config, adapt=dataclasses.replace(config.adapt, members=3))
    with pytest.raises(ConfigError, match=r"adapt\.members: the comparison in .*out has 2, not 3"):
        compare_methods(more, ["zero_shot"], out)
    texts_csv("test.csv", 12, seed=9)
    with pytest.raises(DataError, match="the test rows are not those this run was made with"):
        compare_methods(config, ["zero_shot"], out)


def test_bad_calls_leave_nothing(config, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(ConfigError, match=r"method 'one_lra' is unknown; did you mean 'one_lora'\?"):
        compare_methods(config, ["zero_shot", "one_lra"], out)
    with pytest.raises(ConfigError, match="no method is named"):
        compare_methods(config, [], out)
    assert not out.exists()
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="exists and is not the directory of a comparison"):
        compare_methods(config, ["zero_shot"], out)
    (out / "notes.txt").unlink()
    assert len(compare_methods(config, ["zero_shot"], out)) == 1
    (out / "methods/zero_shot/result.json").write_text('{"name": "zero_shot"}')
    with pytest.raises(CheckpointError, match=r"result\.json: summary is missing"):
        compare_methods(config, ["zero_shot"], out)


def test_a_method_that_cannot_do_the_task_is_left_out_with_the_reason(on_log, config, tmp_path, count_fits):
    """MC dropout without dropout; the result of the others is as without it, and it is tried again where asked for."""
    messages = []
    fits = count_fits("mc_dropout")
    on_log(messages.append)
    results = compare_methods(config, ["mc_dropout+temperature", "mc_dropout", "zero_shot"], tmp_path / "out")
    assert [set(one) for one in results[:2]] == [{"name", "summary", "left_out"}] * 2
    assert "entry" in results[2]
    assert all("mc_dropout: the dropout rate is 0" in one["left_out"] for one in results[:2])
    assert sum("is left out: mc_dropout: the dropout rate is 0" in text for text in messages) == 2
    assert fits == {"mc_dropout": 1}
    assert set(read_left_out(tmp_path / "out")) == {"mc_dropout", "mc_dropout+temperature"}
    compare_methods(config, ["zero_shot"], tmp_path / "out")
    assert set(json.loads((tmp_path / "out/left_out.json").read_text())) == {"mc_dropout", "mc_dropout+temperature"}


def test_members_that_all_fail_end_no_comparison(config, tmp_path):
    wild = dataclasses.replace(config, train=dataclasses.replace(config.train, lr=1e30, clip_norm=0.0))
    results = compare_methods(wild, ["zero_shot", "one_lora"], tmp_path / "out")
    assert "entry" in results[0]
    assert "every member failed" in results[1]["left_out"]


def test_what_is_left_open_is_settled_once(config, tmp_path, monkeypatch):
    """Scoring and token budget come from the first call's file in the second, so that no base is loaded for them."""
    left_open = dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, scoring="auto"),
        train=dataclasses.replace(config.train, token_budget=None),
    )
    out = tmp_path / "out"
    (result,) = compare_methods(left_open, ["zero_shot"], out)
    assert result["config"]["data"]["scoring"] in ("letter", "text")
    assert result["config"]["train"]["token_budget"] == 640
    monkeypatch.setattr("lorchestra.runs.compare.build_pipeline", None)
    again = compare_methods(left_open, ["zero_shot"], out)
    assert again == [result]

"""The number format of a job: measured when it starts, saved, and kept by whatever resumes or uses it."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
import yaml
from safetensors.torch import load_file
from stop_after import StopAfter

import lorchestra.runs.sweep.settle as settling
from lorchestra.errors import CheckpointError, ConfigError
from lorchestra.models import number_format
from lorchestra.models.number_format import ProductRates
from lorchestra.runs.build import build_module
from lorchestra.runs.compare import compare_methods
from lorchestra.runs.ensemble import load_run
from lorchestra.runs.import_peft import import_run
from lorchestra.runs.plan import plan_run
from lorchestra.runs.rows import read_rows
from lorchestra.runs.sweep.points import grid_points
from lorchestra.runs.sweep.run import run_sweep
from lorchestra.runs.train import train_run
from lorchestra.training.callbacks import Interrupted


@pytest.fixture
def slow_bfloat16(monkeypatch):
    """Moves to a processor that is slow at bfloat16."""

    def move():
        monkeypatch.setattr(number_format, "product_rates", lambda shapes, num_tokens: ProductRates(240.0, 131.0))

    return move


def dtype_of(config_file):
    return yaml.safe_load(config_file.read_text())["base"]["dtype"]


def with_dtype(config, dtype):
    return dataclasses.replace(config, base=dataclasses.replace(config.base, dtype=dtype))


def weights(root):
    return [file.read_bytes() for file in sorted(root.glob("members/*/adapter_model.safetensors"))]


def make_old(config_file):
    """Changes a run's configuration to what was saved before formats were measured."""
    mapping = yaml.safe_load(config_file.read_text())
    mapping["base"]["dtype"] = "auto"
    config_file.write_text(yaml.safe_dump(mapping))


def test_a_tiny_base_is_float32_everywhere(run_config, texts_csv, tmp_path):
    run = train_run(run_config(texts_csv()), tmp_path / "run").run
    assert dtype_of(run.config) == "float32"
    assert "gflops_per_core" not in run.read_environment()


def test_the_measured_format_and_its_reason_are_logged_and_saved(
    on_log, run_config, texts_csv, tmp_path, fast_bfloat16
):
    messages = []
    on_log(messages.append)
    run = train_run(run_config(texts_csv()), tmp_path / "run").run
    assert dtype_of(run.config) == "bfloat16"
    assert run.read_environment()["dtype"] == "bfloat16"
    assert run.read_environment()["gflops_per_core"] == {"float32": 100.0, "bfloat16": 400.0}
    assert len([text for text in messages if "auto is bfloat16 here" in text]) == 1
    for file in run.members.glob("*/*.safetensors"):
        assert {tensor.dtype for tensor in load_file(file).values()} == {torch.float32}


def test_a_finished_run_keeps_its_format_on_any_processor(
    run_config, texts_csv, tmp_path, fast_bfloat16, slow_bfloat16
):
    root = train_run(run_config(texts_csv()), tmp_path / "run").run.root
    rows = texts_csv("new.csv", 6, seed=9)
    before = list(load_run(root).predict(rows))
    slow_bfloat16()
    ensemble = load_run(root)
    assert ensemble.pipeline.base.dtype == torch.bfloat16
    assert list(ensemble.predict(rows)) == before


@pytest.mark.parametrize("adapt", [{}, {"layers": "last:1", "trunk_memory_gb": 0.0}], ids=["all layers", "trunk file"])
def test_a_run_resumed_on_another_processor_ends_with_the_same_bytes(
    run_config, texts_csv, tmp_path, fast_bfloat16, slow_bfloat16, adapt
):
    config = run_config(texts_csv(), adapt=adapt)
    whole = train_run(config, tmp_path / "whole").run.root
    root = tmp_path / "pieces"
    with pytest.raises(Interrupted):
        train_run(config, root, callbacks=[StopAfter(6)])
    slow_bfloat16()
    train_run(config, root, if_exists="resume", given=["base.dtype"])
    assert weights(root) == weights(whole)
    assert weights(root) != weights(train_run(with_dtype(config, "float32"), tmp_path / "float32").run.root)


def test_a_searched_run_keeps_the_format_of_its_search(run_config, texts_csv, tmp_path, fast_bfloat16, slow_bfloat16):
    config, root = run_config(texts_csv(), train={"lr": "auto"}), tmp_path / "run"
    with pytest.raises(Interrupted):
        train_run(config, root, callbacks=[StopAfter(3)])
    slow_bfloat16()
    train_run(config, root, if_exists="resume")
    assert dtype_of(root / "config.yaml") == "bfloat16"
    assert load_run(root).pipeline.base.dtype == torch.bfloat16


def test_another_format_for_a_resumed_run_is_refused(run_config, texts_csv, tmp_path, fast_bfloat16):
    config, root = run_config(texts_csv()), tmp_path / "run"
    with pytest.raises(Interrupted):
        train_run(config, root, callbacks=[StopAfter(6)])
    with pytest.raises(ConfigError, match=r"base\.dtype: the run in .* has 'bfloat16', not 'float32'"):
        train_run(with_dtype(config, "float32"), root, if_exists="resume")


def test_runs_from_before_formats_were_measured_stay_in_float32(run_config, texts_csv, tmp_path, fast_bfloat16):
    config = run_config(texts_csv())
    whole = train_run(with_dtype(config, "float32"), tmp_path / "whole").run.root
    root = tmp_path / "pieces"
    with pytest.raises(Interrupted):
        train_run(with_dtype(config, "float32"), root, callbacks=[StopAfter(6)])
    make_old(root / "config.yaml")
    train_run(config, root, if_exists="resume")
    assert weights(root) == weights(whole)
    assert load_run(root).pipeline.base.dtype == torch.float32


def test_a_sweep_has_one_format(run_config, texts_csv, tmp_path, fast_bfloat16, slow_bfloat16):
    """Also its points on another processor; a sweep of an earlier version stays in float32."""
    config = run_config(texts_csv(), adapt={"members": 2}, evaluate={"few_shot": 0})
    first, second = (grid_points(config, [("train.lr", [rate])]) for rate in (0.01, 0.02))
    run_sweep(first, tmp_path / "sweep", evaluate=False)
    slow_bfloat16()
    run_sweep([*first, *second], tmp_path / "sweep", evaluate=False)
    files = sorted(tmp_path.glob("sweep/runs/*/config.yaml"))
    assert [dtype_of(file) for file in files] == ["bfloat16", "bfloat16"]


def test_a_sweep_from_before_formats_were_measured_stays_in_float32(run_config, texts_csv, tmp_path, fast_bfloat16):
    config = run_config(texts_csv(), adapt={"members": 2}, evaluate={"few_shot": 0})
    first, second = (grid_points(config, [("train.lr", [rate])]) for rate in (0.01, 0.02))
    run_sweep(first, tmp_path / "sweep", evaluate=False)
    (tmp_path / "sweep/number_formats.json").unlink()
    run_sweep(second, tmp_path / "sweep", evaluate=False)
    assert dtype_of(tmp_path / "sweep/runs/lr=0.02/config.yaml") == "float32"


def test_a_sweep_that_was_killed_before_it_measured_measures(run_config, texts_csv, tmp_path, fast_bfloat16):
    points = grid_points(run_config(texts_csv(), adapt={"members": 1}), [("train.lr", [0.01])])
    root = tmp_path / "sweep"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(settling, "settle_dtypes", None)
        with pytest.raises(TypeError):
            run_sweep(points, root, evaluate=False)
    run_sweep(points, root, evaluate=False)
    assert dtype_of(root / "runs/lr=0.01/config.yaml") == "bfloat16"


def test_an_unknown_format_in_a_sweep_is_refused(run_config, texts_csv, tmp_path):
    points = grid_points(run_config(texts_csv()), [("train.lr", [0.01])])
    run_sweep(points, tmp_path / "sweep", evaluate=False)
    path = tmp_path / "sweep/number_formats.json"
    path.write_text(path.read_text().replace('"dtype": "float32"', '"dtype": "int8"'))
    with pytest.raises(CheckpointError, match=r"number_formats\.json: dtype is 'int8', not float32 or bfloat16"):
        run_sweep(points, tmp_path / "sweep", evaluate=False)


def test_a_comparison_has_one_format(run_config, texts_csv, tmp_path, fast_bfloat16, slow_bfloat16):
    config = run_config(texts_csv(), adapt={"members": 2})
    (first,) = compare_methods(config, ["zero_shot"], tmp_path / "out")
    slow_bfloat16()
    (second,) = compare_methods(config, ["one_lora"], tmp_path / "out")
    assert [result["config"]["base"]["dtype"] for result in (first, second)] == ["bfloat16", "bfloat16"]
    assert json.loads((tmp_path / "out/compare.json").read_text())["config"]["base"]["dtype"] == "auto"


def test_a_plan_is_of_the_measured_format(run_config, texts_csv, tmp_path, fast_bfloat16, slow_bfloat16):
    config = run_config(texts_csv())
    half = plan_run(config, tmp_path, seconds=0.1)
    slow_bfloat16()
    full = plan_run(config, tmp_path, seconds=0.1)
    assert (half["dtype"], full["dtype"]) == ("bfloat16", "float32")
    assert 2 * half["bytes"]["base"] == full["bytes"]["base"]


def test_imported_members_and_modules_take_the_measured_format(
    run_config, texts_csv, peft_folder, tmp_path, fast_bfloat16
):
    config = run_config(texts_csv())
    run = import_run([peft_folder()], tmp_path / "run", data=config.data)
    assert dtype_of(run.config) == "bfloat16"
    assert run.read_environment()["gflops_per_core"] == {"float32": 100.0, "bfloat16": 400.0}
    module = build_module(config, read_rows(config.data, 0).task)
    assert module.pipeline.base.dtype == torch.bfloat16

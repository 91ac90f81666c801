"""The programs in examples/ run to their end on the tiny base."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lorchestra.runs.ensemble import load_run

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(name, *arguments):
    """Run an example as a user does; returns what it printed."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    command = [sys.executable, str(EXAMPLES / name), *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_every_example_is_run_here():
    run_here = {"own_loop.py", "from_datasets.py", "shift.py"}
    assert {path.name for path in EXAMPLES.glob("*.py")} == run_here | {"ray_serve.py"}


def test_the_example_for_ray_compiles():
    path = EXAMPLES / "ray_serve.py"
    compile(path.read_text(), path, "exec")


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
def test_the_example_for_slurm_is_valid_bash():
    subprocess.run(["bash", "-n", str(EXAMPLES / "slurm.sh")], check=True)


@pytest.mark.slow
def test_a_custom_training_loop(tiny_base, texts_csv, tmp_path):
    out = run("own_loop.py", "--base", tiny_base, "--data", texts_csv(), "--out", tmp_path / "out", "--lr", 0.02)
    first, second = (float(line.split()[-1]) for line in out.splitlines() if line.startswith("epoch"))
    assert second < first
    assert "test accuracy" in out
    assert load_run(tmp_path / "out/run").pipeline.model.num_members == 3


@pytest.mark.slow
@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("datasets", "pandas")),
    reason="datasets or pandas is not installed (extras hub, pandas)",
)
def test_from_a_dataset(tiny_base, tmp_path):
    out = run("from_datasets.py", "--base", tiny_base, "--out", tmp_path / "out")
    assert "test accuracy" in out
    trained = load_run(tmp_path / "out/run")
    assert trained.labels == ("negative", "positive")
    assert "prediction  confidence" in out


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("evals") is None, reason="the wheel evals is not installed")
def test_monitoring_a_shift(tiny_base, tmp_path):
    rows = ("--members", 2, "--layers", "last:2", "--rows", 120, "--rows-per-day", 60, "--target-error", 0.75)
    out = run("shift.py", "--base", tiny_base, "--out", tmp_path / "out", *rows)
    assert "At most 75 % of the automated rows are wrong" in out
    days = [line for line in out.splitlines() if "%  " in line]
    assert [line.split()[1] for line in days] == ["0%", "0%", "10%", "20%", "30%", "40%", "70%"]
    alarms = [not line.endswith("  no") for line in days]
    assert alarms[:2] == [False, False]
    assert alarms[-1]

"""Crashes at random moments: a resumed run ends with the bytes of one that was never disturbed."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from commands import Command

from lorchestra.config.mappings import to_yaml
from lorchestra.runs.train import train_run
from lorchestra.store.atomic import atomic_write_text

DRILL = Path(__file__).parents[2] / "benchmarks/crash_drill.py"


@pytest.mark.slow
def test_the_command_killed_over_and_over_ends_with_the_same_bytes(run_config, texts_csv, tmp_path):
    """Processes killed at random moments of their work on files; a checkpoint after every step."""
    config = run_config(texts_csv(), adapt={"dropout": 0.1}, train={"epochs": 12})
    whole = train_run(config, tmp_path / "whole").run.root
    recipe, root, draw = tmp_path / "recipe.yaml", tmp_path / "run", random.Random(5)
    atomic_write_text(recipe, to_yaml(config))
    words = ("train", recipe, "--out", root, "--skip-evaluation", "--if-exists", "resume")
    sizes = []
    for last in (*(draw.randint(40, 160) for _ in range(3)), None):
        with Command(*words, directory=tmp_path, last_operation=(root, last) if last else None) as command:
            assert command.wait() == (-signal.SIGKILL if last else 0), command.err
        sizes.append((root / "events.jsonl").stat().st_size)
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[2]  # each got further
    names = [f"members/member_{m:02d}/adapter_model.safetensors" for m in range(3)]
    assert [(root / name).read_bytes() for name in names] == [(whole / name).read_bytes() for name in names]


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="the drill forks, which this system cannot")
def test_a_dozen_crashes_of_every_kind(tmp_path):
    """The first of the 200 of `benchmarks/crash_drill.py`: kills, signals, full disks, before and while saving."""
    page = tmp_path / "drill.md"
    command = [sys.executable, str(DRILL), "--kills", "12", "--seed", "3", "--out", str(page)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert result.returncode == 0, page.read_text() if page.exists() else result.stderr
    text = page.read_text()
    assert text.startswith("# Crash drill: 12 crashes in ")
    rows = dict(re.findall(r"^\| ([A-Za-z][^|]+) \| (\d+) \|", text, flags=re.MULTILINE))
    assert len(rows) >= 5
    assert sum(map(int, rows.values())) == 12

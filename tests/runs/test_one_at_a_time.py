"""Two at work in one directory: the second ends at once, whatever it is; different directories go side by side."""

from __future__ import annotations

import dataclasses
import json
import re
import signal
import threading
import time

import pytest
from commands import Command
from stopping import StopWhen

from lorchestra.cli import main as cli
from lorchestra.config.mappings import to_yaml
from lorchestra.errors import CheckpointError
from lorchestra.runs.compare import compare_methods
from lorchestra.runs.sweep.points import grid_points, parse_axis
from lorchestra.runs.sweep.run import run_sweep
from lorchestra.runs.train import train_run
from lorchestra.training.callbacks import Interrupted


@pytest.fixture
def config(run_config, texts_csv):
    """One epoch of two members on split files."""
    data = {"val": str(texts_csv("val.csv", 8, seed=1)), "test": str(texts_csv("test.csv", 12, seed=2))}
    return run_config(texts_csv(), data=data, adapt={"members": 2}, train={"epochs": 1}, evaluate={"few_shot": 0})


@pytest.fixture(params=["train", "resume", "sweep", "compare"])
def command(request, config):
    """What works in a directory."""
    points = grid_points(config, [parse_axis("train.lr=0.01,0.003")])
    return {
        "train": lambda out: train_run(config, out),
        "resume": lambda out: train_run(config, out, if_exists="resume"),
        "sweep": lambda out: run_sweep(points, out),
        "compare": lambda out: compare_methods(config, ["zero_shot"], out),
    }[request.param]


def test_a_directory_in_which_another_process_is_at_work_is_refused(command, held_by_another, tmp_path):
    out, before = tmp_path / "out", {path.name for path in tmp_path.iterdir()}
    with held_by_another(out) as holder:
        with pytest.raises(CheckpointError, match=rf"out: another process \(pid {holder.pid} on .+\) is working in it"):
            command(out)
        assert not out.exists()
        holder.send_signal(signal.SIGKILL)
        holder.wait(timeout=900)
    command(out)
    assert {path.name for path in tmp_path.iterdir()} == before | {"out"}
    assert not list(out.rglob("*.lock"))


def test_figures_are_not_made_twice_at_once(held_by_another, make_shared_task, tiny_base, tmp_path, capsys):
    task = make_shared_task(numbers=(24, 8, 12))
    options = ["--base.name", tiny_base, "--data.task", "quiz", "--data-dir", task.directory, "--data.scoring", "text"]
    options += ["--adapt.members", 2, "--adapt.layers", "all", "--train.epochs", 1, "--evaluate.resamples", 50]
    arguments = [str(part) for part in ("paper", "fig1", "--out", tmp_path / "paper", *options)]
    with held_by_another(tmp_path / "paper") as holder:
        assert cli.main(arguments) == 2
        errors = " ".join(capsys.readouterr().err.split())
        assert re.search(rf"error: --out \S+paper: another process \(pid {holder.pid} on .+\) is working in it", errors)
        assert not (tmp_path / "paper").exists()
    assert cli.main(arguments) == 0  # the sweeps inside have separate locks
    assert not list(tmp_path.rglob("*.lock"))


def test_a_run_is_not_resumed_while_it_is_trained(config, tmp_path):
    """In one process too; a new name is another matter."""
    seen = []

    def meanwhile():
        if not seen:
            seen.append(None)
            for if_exists in ("fail", "resume"):
                with pytest.raises(CheckpointError, match="this process, in another call, is working in it"):
                    train_run(config, tmp_path / "run", if_exists=if_exists)
            seen[0] = train_run(config, tmp_path / "run", if_exists="new").run.root.name
        return False

    train_run(config, tmp_path / "run", callbacks=[StopWhen(meanwhile)])
    assert seen == ["run-2"]
    with pytest.raises(Interrupted):
        train_run(config, tmp_path / "stopped", callbacks=[StopWhen(lambda: True)])
    train_run(config, tmp_path / "stopped", if_exists="resume")
    assert not list(tmp_path.rglob("*.lock"))


def test_two_trainings_of_one_process_go_side_by_side(config, tmp_path):
    """Each waits in its training for the other one."""
    both, done = threading.Barrier(2, timeout=900), []

    def train(name):
        waiting = iter([both.wait])
        train_run(config, tmp_path / name, callbacks=[StopWhen(lambda: bool([wait() for wait in waiting] and False))])
        done.append(name)

    threads = [threading.Thread(target=train, args=(name,)) for name in ("a", "b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=900)
    assert sorted(done) == ["a", "b"]


def logged_steps(root):
    """The steps in a log that may be written meanwhile."""
    lines = (root / "events.jsonl").read_text().splitlines(keepends=True)
    events = [json.loads(line) for line in lines if line.endswith("\n")]
    return [event for event in events if event["event"] == "step"]


@pytest.mark.slow
def test_of_two_commands_started_together_one_trains(config, tmp_path):
    """The log of the one that trains holds each step once; then it is killed, and another may take over."""
    # neither is done before the other has looked, however the machine shares its time
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, epochs=100_000))
    recipe, root = tmp_path / "recipe.yaml", tmp_path / "runs/rc"
    recipe.write_text(to_yaml(config))
    words = ("train", recipe, "--out", root, "--skip-evaluation", "--if-exists", "resume")
    folders = [tmp_path / name for name in ("one", "two", "three")]
    for folder in folders:
        folder.mkdir()
    deadline = time.monotonic() + 900
    with Command(*words, directory=folders[0]) as one, Command(*words, directory=folders[1]) as two:
        while one.exit_code is None and two.exit_code is None and time.monotonic() < deadline:
            time.sleep(0.01)
        refused, at_work = (one, two) if one.exit_code is not None else (two, one)
        assert refused.exit_code == 2
        assert f"another process (pid {at_work.pid} on " in " ".join(refused.err.split())
        while not (root / "events.jsonl").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        at_work.kill()
        at_work.wait()
    killed = time.time()
    with Command(*words, directory=folders[2]) as other:
        while sum(step["time"] > killed for step in logged_steps(root)) < 3 and other.exit_code is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        other.send_signal(signal.SIGINT)
        assert other.wait() == 130, other.err
    steps = [event["step"] for event in logged_steps(root)]
    assert len(steps) >= 3
    assert steps == list(range(1, len(steps) + 1))
    assert [path.name for path in root.parent.iterdir()] == ["rc"]

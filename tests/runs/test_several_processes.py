"""`lorchestra train` in several processes: the run of one process, whatever happens to one of them."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import re
import shutil
import signal
import sys
import time
from contextlib import contextmanager, suppress

import psutil
import pytest
from processes import start_commands
from tiny_base import tiny_tokenizer

from lorchestra.config.mappings import to_yaml
from lorchestra.runs.rows import read_rows
from lorchestra.runs.train import train_run
from lorchestra.runs.training import prepare_training
from lorchestra.store.run import Run

TIMEOUT = 240


@pytest.fixture
def recipe(run_config, texts_csv, tmp_path):
    """Writes the recipe of a quick run; returns it and its configuration.

    All rows have the same number of tokens, which is the token budget: a micro-batch is one row, whatever processes
    compute the others. So every product has the same shape, and members have the same bits.
    """
    tokenizer = tiny_tokenizer()
    with texts_csv("all.csv", 600).open(newline="", encoding="utf-8") as file:
        columns, *texts = csv.reader(file)
    texts = [row for row in texts if len(tokenizer(f" {row[0]}")["input_ids"]) == 7][:70]
    for name, some in {"train": texts[:46], "val": texts[46:58], "test": texts[58:]}.items():
        with (tmp_path / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([columns, *some])

    def build(**settings):
        files = {name: str(tmp_path / f"{name}.csv") for name in ("val", "test")}
        config = run_config(tmp_path / "train.csv", data=files, **settings)
        given = dataclasses.replace(config, train=dataclasses.replace(config.train, lr=0.01, epochs=1))
        rows = prepare_training(given, read_rows(config.data, 0))[2]
        (number,) = {row.num_tokens for row in rows.train}
        config = dataclasses.replace(config, train=dataclasses.replace(config.train, token_budget=number))
        path = tmp_path / "recipe.yaml"
        path.write_text(to_yaml(config), encoding="utf-8")
        return path, config

    return build


def trained(arguments, directory, size=2):
    """Train in some processes; returns the exit codes, and stderr by process."""
    commands = start_commands([arguments] * size, directory)
    try:
        return [command.wait(TIMEOUT) for command in commands], [command.err for command in commands]
    finally:
        for command in commands:
            command.kill()


def weights(root):
    """The bytes of the members' files."""
    return [(folder / "adapter_model.safetensors").read_bytes() for folder in sorted((root / "members").iterdir())]


def assert_same_run(ours, theirs):
    """The same files, settings and members, and other records that agree up to rounding."""
    names = [sorted(str(path.relative_to(run.root)) for path in run.root.rglob("*")) for run in (ours, theirs)]
    assert names[0] == names[1]
    assert ours.read_config() == theirs.read_config()
    assert weights(ours.root) == weights(theirs.root)
    one, two = ours.read_ensemble(), theirs.read_ensemble()
    assert [member.seed for member in one.members] == [member.seed for member in two.members]
    nlls = [[member.val_nll for member in record.members] for record in (one, two)]
    assert nlls[0] == pytest.approx(nlls[1], abs=1e-5)
    assert one.cost["tokens"] == two.cost["tokens"]
    assert one.cost["base_passes"] == two.cost["base_passes"]
    temperatures = [
        run.read_calibration(record).questions[""].calibration.temperature
        for run, record in ((ours, one), (theirs, two))
    ]
    assert temperatures[0] == pytest.approx(temperatures[1], abs=1e-3)
    events = [run.read_events(len(one.members)) for run in (ours, theirs)]
    assert [event["event"] for event in events[0]] == [event["event"] for event in events[1]]
    for mine, other in zip(*events, strict=True):
        for name in ("step", "loss", "lr", "tokens", "status"):
            assert mine.get(name) == other.get(name)


def test_the_run_is_that_of_one_process(recipe, tmp_path):
    """With a trunk, dropout, a KL term and early stopping; the first process alone prints and evaluates."""
    path, config = recipe(
        adapt={"layers": "last:1", "dropout": 0.1}, regularize={"kl_beta": 0.1}, train={"epochs": 3, "patience": 1}
    )
    one = train_run(config, tmp_path / "one").run
    codes, errors = trained(["train", path, "--out", tmp_path / "two"], tmp_path)
    assert codes == [0, 0], errors
    assert errors[1] == ""
    assert "trained ensemble" in errors[0]
    assert "train test (examples: 12, members: 3)" in (tmp_path / "rank_0/stdout.txt").read_text()
    assert (tmp_path / "rank_1/stdout.txt").read_text() == ""
    two = Run(tmp_path / "two")
    assert two.read_named_evaluations()
    assert [run.read_environment()["num_processes"] for run in (one, two)] == [1, 2]
    shutil.rmtree(two.predictions)
    for written in (two.metrics, *two.root.glob("*.png")):
        written.unlink()
    assert_same_run(two, one)
    assert not list(tmp_path.glob(".*.lock"))


def test_the_search_is_done_once_for_all(recipe, tmp_path):
    path, config = recipe(train={"lr": "auto", "epochs": 2, "batch_size": 20})
    one = train_run(config, tmp_path / "one").run
    codes, errors = trained(["train", path, "--out", tmp_path / "two", "--skip-evaluation"], tmp_path)
    assert codes == [0, 0], errors
    assert_same_run(Run(tmp_path / "two"), one)
    assert Run(tmp_path / "two").read_search().lr == one.read_search().lr


def wait_for_steps(root, number, commands):
    """Wait until the log has some steps."""
    deadline = time.monotonic() + TIMEOUT
    while time.monotonic() < deadline and all(command.exit_code is None for command in commands):
        if (root / "events.jsonl").exists() and (root / "events.jsonl").read_text().count('"step", ') >= number:
            return
        time.sleep(0.01)
    raise AssertionError([command.err for command in commands])


@pytest.mark.parametrize("killed", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_killed_process_ends_all_and_the_run_is_resumed_with_the_same_bytes(recipe, tmp_path, killed):
    path, config = recipe(adapt={"dropout": 0.1}, train={"epochs": 6})
    arguments = ["train", path, "--out", tmp_path / "run", "--skip-evaluation", "--if-exists", "resume"]
    commands = start_commands([arguments] * 2, tmp_path)
    try:
        wait_for_steps(tmp_path / "run", 4, commands)
        commands[killed].send_signal(signal.SIGKILL)
        codes = [command.wait(TIMEOUT) for command in commands]
    finally:
        for command in commands:
            command.kill()
    other = commands[1 - killed]
    assert codes[killed] == -signal.SIGKILL
    assert codes[1 - killed] == 1
    lines = [line for line in other.err.splitlines() if line.startswith(("error", "internal", "Traceback"))]
    assert len(lines) == 1, other.err
    assert "another of the 2 processes of this training has ended" in lines[0]
    assert not (tmp_path / "run/ensemble.json").exists()
    codes, errors = trained(arguments, tmp_path)
    assert codes == [0, 0], errors
    assert weights(tmp_path / "run") == weights(train_run(config, tmp_path / "whole").run.root)
    steps = [event["step"] for event in Run(tmp_path / "run").read_events(3) if event["event"] == "step"]
    assert steps == list(range(1, len(steps) + 1))


def test_an_interrupted_run_is_resumed_by_another_number_of_processes(recipe, tmp_path):
    """Ctrl-C reaches all processes; a stop of one alone would stop all, too."""
    path, config = recipe(train={"epochs": 6})
    arguments = ["train", path, "--out", tmp_path / "run", "--skip-evaluation", "--if-exists", "resume"]
    commands = start_commands([arguments] * 3, tmp_path)
    try:
        wait_for_steps(tmp_path / "run", 3, commands)
        commands[1].send_signal(signal.SIGINT)
        assert [command.wait(TIMEOUT) for command in commands] == [130] * 3
    finally:
        for command in commands:
            command.kill()
    assert [command.err for command in commands[1:]] == ["", ""]
    stopped = "stopped; resume with: torchrun --nproc-per-node 3 -m lorchestra train --out "
    assert stopped in " ".join(commands[0].err.split())
    resumed = train_run(config, tmp_path / "run", if_exists="resume").run
    assert [event["event"] for event in resumed.read_events(3)].count("resumed") == 1
    whole = train_run(config, tmp_path / "whole").run
    assert weights(resumed.root) == weights(whole.root)


def test_an_error_in_one_process_is_the_only_message(recipe, texts_csv, tmp_path):
    path, _ = recipe()
    arguments = ["train", path, "--out", tmp_path / "run"]
    for extra, message in {
        ("--data.train", tmp_path / "missing.csv"): r"error: \S+missing.csv",
        ("--data.train", texts_csv("other.csv", 50, seed=5)): "error: .+ differs between process 0 ",
    }.items():
        commands = start_commands([arguments, [*arguments, *extra]], tmp_path)
        try:
            codes = [command.wait(TIMEOUT) for command in commands]
        finally:
            for command in commands:
                command.kill()
        assert 0 not in codes
        lines = [line for command in commands for line in command.err.splitlines() if "error: " in line]
        assert len(lines) == 1, lines
        assert re.match(message, lines[0]), lines
    assert not (tmp_path / "run").exists()


def test_what_cannot_be_done_in_several_processes_is_refused(recipe, tmp_path):
    path, _ = recipe()
    codes, errors = trained(["train", path, "--out", tmp_path / "run", "--adapt.members", 1], tmp_path)
    assert codes == [2, 2]
    assert sorted(map(len, errors))[0] == 0
    assert "adapt.members: 1 members cannot be split over 2 processes" in "".join(errors)
    assert "--nproc-per-node 1" in "".join(errors)
    assert not (tmp_path / "run").exists()
    codes, errors = trained(["predict", tmp_path / "run", "--data", "rows.csv"], tmp_path)
    assert codes == [2, 2]
    assert errors[1] == ""
    assert "error: predict: runs in one process, and torchrun has started 2; start it without torchrun" in errors[0]
    codes, errors = trained(["train", "--no-such-option"], tmp_path)
    assert codes == [2, 2]
    assert errors[1] == ""
    assert "no-such-option" in errors[0]


@contextmanager
def torchrun(size, *arguments, directory, restarts=0):
    """Start a command as a user does; all processes are killed at the end."""
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", size, "--max-restarts", restarts]
    command = [sys.executable, "-m", *launcher, "-m", "lorchestra", *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with (directory / "stderr.txt").open("w", encoding="utf-8") as errors:
        process = psutil.Popen([str(word) for word in command], stdout=errors, stderr=errors, env=environment)
    try:
        yield process
    finally:
        if process.poll() is None:
            for one in (*process.children(recursive=True), process):
                with suppress(psutil.NoSuchProcess):
                    one.kill()
            process.wait()


def wait_for_checkpoint(root, process):
    """Wait until the training has a checkpoint."""
    deadline = time.monotonic() + TIMEOUT
    while not (root / "resume/latest.json").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)


def kill_rank(rank, process):
    """Kill one of torchrun's processes."""
    (child,) = [child for child in process.children(recursive=True) if child.environ().get("RANK") == str(rank)]
    child.kill()


@pytest.mark.slow
def test_four_processes_of_torchrun(recipe, tmp_path):
    path, config = recipe(adapt={"members": 5}, train={"epochs": 1})
    with torchrun(4, "train", path, "--out", tmp_path / "four", "--skip-evaluation", directory=tmp_path) as process:
        assert process.wait(TIMEOUT) == 0, (tmp_path / "stderr.txt").read_text()
    assert_same_run(Run(tmp_path / "four"), train_run(config, tmp_path / "one").run)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_torchrun_ends_if_a_process_is_killed_or_it_is_interrupted(recipe, tmp_path, number):
    path, _ = recipe(train={"epochs": 5000, "patience": 0})
    root = tmp_path / "run"
    with torchrun(2, "train", path, "--out", root, "--skip-evaluation", directory=tmp_path) as process:
        wait_for_checkpoint(root, process)
        if number == signal.SIGKILL:
            kill_rank(1, process)
        else:
            process.send_signal(number)
        assert process.wait(TIMEOUT) != 0
    text = (tmp_path / "stderr.txt").read_text()
    if number == signal.SIGINT:
        assert "stopped; resume with: torchrun --nproc-per-node 2" in " ".join(text.split())
    else:
        assert text.count("another of the 2 processes of this training has ended") == 1, text
    assert json.loads((root / "resume/latest.json").read_text())["state"]["step"] > 0


@pytest.mark.slow
def test_torchrun_restarts_a_training(recipe, tmp_path):
    path, config = recipe(train={"epochs": 20, "patience": 0})
    words = ["train", path, "--out", tmp_path / "run", "--skip-evaluation", "--if-exists", "resume"]
    with torchrun(2, *words, directory=tmp_path, restarts=1) as process:
        wait_for_checkpoint(tmp_path / "run", process)
        kill_rank(1, process)
        assert process.wait(TIMEOUT) == 0, (tmp_path / "stderr.txt").read_text()
    events = [event["event"] for event in Run(tmp_path / "run").read_events(3)]
    assert events.count("resumed") == 1
    assert weights(tmp_path / "run") == weights(train_run(config, tmp_path / "one").run.root)

"""`--engine ray` without a cluster: every wrong option ends at once, with a message."""

from __future__ import annotations

import importlib.util
import signal
import socket
import subprocess
import sys

import pytest

from lorchestra.config.mappings import to_yaml
from lorchestra.errors import ConfigError
from lorchestra.runs.cluster.connection import WorkerShape, _kept_handlers, divided
from lorchestra.runs.train import train_run

needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed (extra ray)")


@pytest.fixture
def commands(run_config, texts_csv, tmp_path):
    """A `predict` and a `sweep` that would work, but for the options that follow."""
    config = run_config(texts_csv(), adapt={"members": 1}, train={"epochs": 1})
    (tmp_path / "recipe.yaml").write_text(to_yaml(config))
    run = train_run(config, tmp_path / "run").run.root
    out = tmp_path / "out"
    predict = ["predict", run, "--data", config.data.train, "--out", out]
    return predict, ["sweep", tmp_path / "recipe.yaml", "--grid", "adapt.r=1,2", "--out", out]


def test_options_of_a_cluster_need_one(lorchestra, commands, tmp_path):
    for command in commands:
        for options, message in (
            (["--address", "auto"], "--address auto: needs --engine ray"),
            (["--workers", "2"], "--workers 2: needs --engine ray"),
            (["--engine", "ray", "--workers", "0"], "--workers: 0 is less than 1"),
        ):
            code, out, err = lorchestra(*command, *options)
            assert (code, out) == (2, "")
            assert message in err
    assert not (tmp_path / "out").exists()


def test_stop_signals_keep_their_handlers():
    """Ray's abort the process at SIGTERM."""
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with _kept_handlers():
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


@needs_ray
def test_an_address_that_does_not_answer_is_reported_at_once(lorchestra, commands, tmp_path, monkeypatch):
    import ray

    def connect(*unused, **also_unused):
        raise AssertionError("Ray itself would wait for minutes")

    monkeypatch.setattr(ray, "init", connect)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        for command in commands:
            code, out, err = lorchestra(*command, "--engine", "ray", "--address", address)
            assert (code, out) == (1, "")
            assert f"--address {address}: does not answer (Connection refused)" in err
        monkeypatch.setenv("RAY_ADDRESS", address)
        assert "does not answer" in lorchestra(*commands[0], "--engine", "ray")[2]
    for address, message in (
        ("ray://head:10001", "start the command on a node of the cluster"),
        ("head", "is neither HOST:PORT nor auto"),
        ("head:65536", "is neither HOST:PORT nor auto"),
    ):
        code, _, err = lorchestra(*commands[0], "--engine", "ray", "--address", address)
        assert code == 2
        assert message in err
    assert not (tmp_path / "out").exists()


def test_the_missing_extra_is_named(lorchestra, commands, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "ray" else find(name))
    for command in commands:
        code, out, err = lorchestra(*command, "--engine", "ray")
        assert (code, out) == (2, "")
        assert "--engine ray: needs the extra ray: pip install 'lorchestra[ray]'" in err


def test_ray_is_imported_where_it_is_used_only():
    code = (
        "import sys, lorchestra, lorchestra.cli.predict, lorchestra.runs.cluster.answers; print('ray' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (result.stdout, result.returncode) == ("False\n", 0), result.stderr


@pytest.mark.parametrize(
    ("cpus", "gpus", "number", "shape"),
    [
        ([1, 1], [0, 0], None, (2, 1, 0)),  # one per node
        ([8, 8], [0, 0], None, (2, 8, 0)),
        ([8, 4, 0], [0, 0, 0], None, (2, 4, 0)),
        ([8, 8], [0, 0], 4, (4, 4, 0)),
        ([8, 8], [0, 0], 3, (3, 4, 0)),
        ([3, 3], [0, 0], 3, (3, 1, 0)),  # two threads would leave the third worker without a node
        ([16, 16], [4, 4], None, (8, 4, 1)),
        ([16, 64], [4, 0], None, (4, 4, 1)),
        ([2, 64], [4, 4], None, (6, 1, 1)),  # the first node has CPUs for two workers alone
        ([16, 64], [4, 0], 1, (1, 16, 1)),
    ],
)
def test_nodes_are_divided_among_equal_workers(cpus, gpus, number, shape):
    assert divided(cpus, gpus, number) == WorkerShape(*shape)


@pytest.mark.parametrize(
    ("cpus", "gpus", "number", "message"),
    [
        ([4, 4], [0, 0], 9, "--workers 9: the cluster has CPUs for 8"),
        ([64, 64], [2, 0], 3, "--workers 3: the cluster has GPUs for 2"),
        ([0], [0], None, "the cluster has CPUs for 0"),
        ([], [], None, "the cluster has CPUs for 0"),
    ],
)
def test_more_workers_than_fit_are_refused(cpus, gpus, number, message):
    with pytest.raises(ConfigError, match=message):
        divided(cpus, gpus, number)

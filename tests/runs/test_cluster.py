"""Jobs on a Ray cluster of two nodes, one of which is killed: the bytes of a local job, nothing lost, nothing twice."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path

import pytest
from tiny_base import save_tiny_base

from lorchestra.cli import main as cli
from lorchestra.config.adapt import AdaptConfig, BaseConfig
from lorchestra.config.data import DataConfig
from lorchestra.config.run import RunConfig, TrainConfig
from lorchestra.errors import CheckpointError, DataError
from lorchestra.report.answers import AnswerFormat
from lorchestra.runs import predict as answering
from lorchestra.runs.cluster import answers as job
from lorchestra.runs.cluster.connection import ClusterError, WorkerShape
from lorchestra.runs.cluster.passes import RayEngine
from lorchestra.runs.cluster.pool import WorkerPool
from lorchestra.runs.sweep.points import grid_points, parse_axis
from lorchestra.runs.sweep.run import run_sweep
from lorchestra.runs.train import train_run
from lorchestra.training.callbacks import Callback, Interrupted

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed (extra ray)"),
]

CHUNK, PART = 8, 32
NODE = {"num_cpus": 1, "object_store_memory": 80_000_000}
SHAPE = WorkerShape(2, 1, 0)


@pytest.fixture(scope="module")
def cluster():
    """Two nodes of one CPU each, to which this process is connected; its second one can be killed."""
    import ray
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.delenv("RAY_ADDRESS", raising=False)
        # by default a node counts as dead after half a minute
        checks = {"health_check_period_ms": 300, "health_check_timeout_ms": 2000, "health_check_failure_threshold": 3}
        head = {**NODE, "include_dashboard": False, "_system_config": checks}
        nodes = Cluster(initialize_head=True, head_node_args=head)
        nodes.second = nodes.add_node(**NODE)
        ray.init(address=nodes.address, log_to_driver=False, logging_level="ERROR")
        yield nodes
        ray.shutdown()
        nodes.shutdown()


@pytest.fixture
def two_nodes(cluster):
    """The cluster with both of its nodes."""
    if cluster.second is None:
        cluster.second = cluster.add_node(**NODE)
    return cluster


def kill_second(cluster):
    """Kill the second node and all processes on it, as a power failure does."""
    cluster.remove_node(cluster.second, allow_graceful=False)
    cluster.second = None


class At(Callback):
    """Calls a function once, when so many rows are done."""

    def __init__(self, rows, function):
        self.rows, self.function = rows, function
        self.seen = []

    def on_progress(self, what, done, total):
        self.seen.append(done)
        if self.function is not None and done >= self.rows:
            function, self.function = self.function, None
            function()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run on texts with the labels no and yes."""
    folder = tmp_path_factory.mktemp("run")
    rows = [f"the film {i} was {word},{label}" for i in range(25) for word, label in (("good", "yes"), ("bad", "no"))]
    (folder / "reviews.csv").write_text("text,label\n" + "\n".join(rows) + "\n")
    config = RunConfig(
        base=BaseConfig(name=str(save_tiny_base(folder / "base"))),
        adapt=AdaptConfig(members=2, r=2),
        data=DataConfig(train=str(folder / "reviews.csv"), scoring="text"),
        train=TrainConfig(epochs=1, lr=0.05),
    )
    return train_run(config, folder / "run").run.root


@pytest.fixture
def rows(tmp_path):
    """Three files of JSON lines, 600 rows in all, 5 of them bad; returns their pattern."""
    number = 0
    for file, size in (("a", 130), ("b", 3), ("c", 467)):
        lines = []
        for _ in range(size):
            number += 1
            lines.append(json.dumps({"text": f"the film {number} was {'long ' * (number % 5)}fine", "n": number}))
        lines[1] = '{"text": 7}'
        if file != "b":
            lines[-2] = '{"text"'
        (tmp_path / f"rows-{file}.jsonl").write_text("".join(f"{line}\n" for line in lines))
    return str(tmp_path / "rows-*.jsonl")


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(answering, "CHUNK_ROWS_CPU", CHUNK)
    monkeypatch.setattr(job, "CHUNK_ROWS_CPU", CHUNK)


@pytest.fixture
def local(run, rows, tmp_path):
    """The file that `lorchestra predict` writes."""
    assert cli.main(["predict", str(run), "--data", rows, "--out", str(tmp_path / "local.jsonl")]) == 0
    return (tmp_path / "local.jsonl").read_bytes()


def answer(run, rows, out, *, of="these", callback=None, **options):
    settings = job.AnswerSettings(part_lines=PART)
    of = {"lorchestra": job.version("lorchestra"), "run": of}
    work = job.AnswerJob(str(run), DataConfig(), of, AnswerFormat("jsonl"), settings)
    return job.answer_parts(work, rows, out, callback=callback or Callback(), **options)


def lines(out):
    return b"".join(path.read_bytes() for path in sorted(Path(out).glob("part-*.jsonl")))


def no_worker(*unused):
    raise AssertionError("a worker was started")


def test_a_killed_node_changes_nothing(two_nodes, run, rows, local, tmp_path, monkeypatch, on_log):
    messages = []
    on_log(messages.append)
    fill = WorkerPool._fill
    # both workers have work when one is killed
    ready = lambda pool: len(pool._workers) < 2 or all(worker.ready for worker in pool._workers)  # noqa: E731
    monkeypatch.setattr(WorkerPool, "_fill", lambda pool, calls: not ready(pool) or fill(pool, calls))

    def kill():
        monkeypatch.setattr(WorkerPool, "_fill", fill)
        kill_second(two_nodes)

    callback = At(1, kill)
    outcome = answer(run, rows, tmp_path / "out", callback=callback)
    assert lines(tmp_path / "out") == local
    assert any("a worker was lost; its work is repeated" in message for message in messages)
    assert (outcome.num_parts, outcome.num_finished_before) == (19, 0)
    assert callback.seen[-1] == 600
    counts = outcome.counts
    assert (counts.rows, counts.answered, counts.failed) == (600, 595, 5)
    assert "rows-a.jsonl:2: the text is 7" in counts.first_fault
    records = [json.loads(line) for line in lines(tmp_path / "out").splitlines()]
    assert [record["row"] for record in records] == list(range(1, 601))
    bad = [record for record in records if record["error"] is not None]
    assert [record["row"] for record in bad] == [2, 129, 132, 135, 599]
    assert "rows-c.jsonl:466: invalid JSON" in bad[-1]["error"]
    # all parts exist: nothing is computed again
    monkeypatch.setattr(job._Answering, "_start", no_worker)
    again = answer(run, rows, tmp_path / "out")
    assert (again.num_finished_before, again.counts) == (19, counts)


def test_an_interrupted_job_answers_what_is_missing(two_nodes, run, rows, local, tmp_path):
    def stop():
        raise KeyboardInterrupt

    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        answer(run, rows, out, callback=At(4 * PART, stop))
    # a part without a record does not count
    finished = sorted(path.stem for path in (out / "records").glob("part-*.json"))
    assert 4 <= len(finished) < 19
    written = {name: (out / f"{name}.jsonl").stat().st_mtime_ns for name in finished}
    (out / f"{finished[0]}.jsonl").write_bytes(b"")
    outcome = answer(run, rows, out, workers=1)
    assert outcome.num_finished_before >= len(finished) - 1
    assert lines(out) == local
    again = [name for name in finished if (out / f"{name}.jsonl").stat().st_mtime_ns != written[name]]
    assert again == finished[:1]
    assert json.loads((out / "answers.json").read_text())["num_lines"] == 600
    # only parts of the same rows and the same run are continued
    with pytest.raises(CheckpointError, match="started with run 'these', not 'others'"):
        answer(run, rows, out, of="others")
    path = Path(rows.replace("*", "b"))
    text = path.read_text()
    path.write_text(text.replace("film", "play"))
    with pytest.raises(CheckpointError, match=r"the rows of part-000000000129-000000000160\.jsonl were other ones"):
        answer(run, rows, out)
    path.write_text(text + '{"text": "one more"}\n')
    with pytest.raises(CheckpointError, match=r"other files: .*rows-b.jsonl has \d+ bytes now, and had \d+ bytes"):
        answer(run, rows, out)
    assert lines(out) == local


def test_bad_input_ends_with_a_message_and_leaves_nothing(two_nodes, run, rows, tmp_path, capsys):
    out = tmp_path / "out"
    predict = ["predict", str(run), "--engine", "ray", "--data"]
    for arguments, message in (
        ([f"{tmp_path}/none-*.jsonl", "--out", str(out)], "this pattern has no files with rows"),
        ([rows, "--out", str(out), "--workers", "3"], "--workers 3: the cluster has CPUs for 2; give fewer"),
        ([rows], "needs a directory for the parts; give --out DIR"),
        ([rows, "--out", "s3://bucket/out"], "is a URL"),
        (["-", "--out", str(out)], "leave --engine ray out for standard input"),
        ([rows, "--out", str(tmp_path / "rows-a.jsonl")], "is a file"),
        ([rows, "--out", str(tmp_path)], "exists and is not a directory of answers"),
    ):
        assert cli.main([*predict, *arguments]) == 2
        assert message in capsys.readouterr().err
        assert not out.exists()
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(DataError, match="has no rows"):
        answer(run, tmp_path / "empty.jsonl", out)
    assert not out.exists()


def squares(folder, numbers):
    """Squares by actors whose processes end at multiples of 4 once, and at 13 always."""
    import ray

    class Actor:  # in a function, so that workers need not import this module
        def load(self):
            pass

        def answer(self, number):
            seen = Path(folder, str(number))
            if number == 13 or (number % 4 == 0 and not seen.exists()):
                seen.touch()
                os._exit(1)
            return number * number

    def start():
        return ray.remote(num_cpus=1)(Actor).remote()

    with WorkerPool(start, lambda actor, number: actor.answer.remote(number), 2) as pool:
        return sorted(pool.results(iter(numbers)))


def test_calls_of_lost_workers_are_repeated_and_bad_ones_end_the_job(two_nodes, tmp_path):
    assert squares(tmp_path, range(1, 10)) == [(n, n * n) for n in range(1, 10)]
    assert squares(tmp_path, []) == []
    with pytest.raises(ClusterError, match="3 workers were lost, each while it answered 13"):
        squares(tmp_path, [1, 13, 2])


@pytest.fixture
def sweep(run_config, texts_csv, tmp_path):
    """Runs the first points of one member each, a pass each, in a directory."""
    config = run_config(
        texts_csv(),
        adapt={"members": 1, "layers": "last:1"},
        train={"epochs": 12, "patience": 99},
        evaluate={"few_shot": 0},
    )
    points = grid_points(config, [parse_axis("train.lr=0.01,0.003")])
    return lambda out, number=2, **options: run_sweep(points[:number], tmp_path / out, most_members=1, **options)


def results(root):
    """Bytes of all adapters and predictions, and what the evaluations say."""
    kept = {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.glob("runs/**/*.safetensors"))}
    entries = [json.loads(path.read_text())["evaluations"][0] for path in sorted(root.glob("runs/*/metrics.json"))]
    return kept, [(entry["ensemble"], entry["uncertainty"], entry["intervals"]) for entry in entries]


class WhenTraining(Callback):
    """Calls a function once, when a pass has a checkpoint; its result is whether to stop."""

    def __init__(self, root, function):
        self.root, self.function = root, function

    def should_stop(self):
        if self.function is None or not list(self.root.glob("passes/*/resume/*.json")):
            return False
        function, self.function = self.function, None
        return function()


def test_a_sweep_has_the_results_of_a_local_one_whoever_is_killed_or_stopped(two_nodes, sweep, tmp_path):
    import ray

    expected = results(sweep("local").root)
    assert len(expected[1]) == 2
    with pytest.raises(Interrupted):
        sweep("stopped", engine=RayEngine(SHAPE), callbacks=[WhenTraining(tmp_path / "stopped", lambda: True)])
    assert list((tmp_path / "stopped/passes").glob("*/resume/*.json"))
    assert results(sweep("stopped").root) == expected

    class Occupant:
        def ready(self):
            pass

    # with the first node occupied, the pass runs on the second one until that is killed
    occupant = ray.remote(num_cpus=1, resources={"node:__internal_head__": 0.01})(Occupant).remote()
    ray.get(occupant.ready.remote())

    def kill():
        kill_second(two_nodes)
        ray.kill(occupant)

    callback = WhenTraining(tmp_path / "killed", kill)
    outcome = sweep("killed", 1, engine=RayEngine(WorkerShape(1, 1, 0)), callbacks=[callback])
    assert callback.function is None
    assert outcome.failed == ()
    adapters, entries = results(outcome.root)
    assert entries == expected[1][1:]  # files are sorted, lr=0.003 first
    assert adapters == {name: data for name, data in expected[0].items() if "lr=0.01" in name}
    assert not (outcome.root / "passes").exists()

"""Memory and speed of `lorchestra predict --engine ray`: rows per second with one and two workers of one thread.

Rows are random words in four files; the base is random, with one layer. A Ray cluster of one node per worker, each with
one CPU, is started on this machine. The command's memory is that of the process that reads the rows and hands them out;
every part that comes back is checked for its rows' ids, in order.

    python benchmarks/ray_predict.py                    1,000,000 rows, with 1 and with 2 workers
    python benchmarks/ray_predict.py --rows 20000
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

from bench.setting import processor
from ray.cluster_utils import Cluster
from stream_predict import make_texts, train

_NUM_FILES = 4
_STORE_BYTES = 200_000_000
"""Ray's object store on each node: far less than a million rows."""
_INTERVAL_S = 1.0


@dataclass(frozen=True)
class Reading:
    """The command at some time: parts that are finished, and its anonymous memory."""

    seconds: float
    parts: int
    memory_mb: float


@dataclass(frozen=True)
class Result:
    """One run of the command. `memory_mb` is the highest in the first and in the second half of the parts."""

    workers: int
    rows_per_s: float
    memory_mb: tuple[float, float]


def write_rows(folder: Path, number: int) -> str:
    """Write rows with ids from 1, evenly into files; returns their pattern."""
    texts = make_texts()
    ids = itertools.count(1)
    for file in range(_NUM_FILES):
        size = number // _NUM_FILES + (file < number % _NUM_FILES)
        with (folder / f"rows-{file}.jsonl").open("w", encoding="utf-8") as lines:
            for row in itertools.islice(ids, size):
                lines.write(f'{{"id": "{row}", "text": "{texts[row % len(texts)]}"}}\n')
    return str(folder / "rows-*.jsonl")


def watch(process: subprocess.Popen[bytes], out: Path) -> Iterator[Reading]:
    """Readings until the command ends."""
    start = time.monotonic()
    while process.poll() is None:
        try:
            status = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8")
            memory = int(next(line.split()[1] for line in status.splitlines() if line.startswith("RssAnon")))
        except (OSError, StopIteration):  # it is ending
            continue
        parts = sum(name.endswith(".json") for name in os.listdir(out / "records")) if (out / "records").exists() else 0
        yield Reading(time.monotonic() - start, parts, memory / 1024)
        time.sleep(_INTERVAL_S)


def measure(run: Path, pattern: str, number: int, workers: int, folder: Path) -> Result:
    """Run the command on a fresh cluster, and check its answers.

    Raises:
        SystemExit: a line is missing or out of order, or the command failed.
    """
    out = folder / f"answers-{workers}"
    node = {"num_cpus": 1, "object_store_memory": _STORE_BYTES, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=node)
    try:
        for _ in range(workers - 1):
            cluster.add_node(**node)
        command = [sys.executable, "-m", "lorchestra", "predict", str(run), "--data", pattern, "--out", str(out)]
        command += ["--engine", "ray", "--address", cluster.address, "--workers", str(workers)]
        with (folder / "messages").open("wb") as messages:
            process = subprocess.Popen(command, stderr=messages)
            readings = list(watch(process, out))
    finally:
        cluster.shutdown()
    if process.returncode:
        raise SystemExit((folder / "messages").read_text(encoding="utf-8"))
    check(out, number)
    shutil.rmtree(out)
    working = [one for one in readings if one.parts > 0]
    first, last = working[0], working[-1]
    part_rows = number / max(one.parts for one in readings)
    rate = (last.parts - first.parts) * part_rows / max(last.seconds - first.seconds, 1e-9)
    halves = (
        [one for one in working if 2 * one.parts <= last.parts],
        [one for one in working if 2 * one.parts > last.parts],
    )
    return Result(workers, rate, tuple(max((one.memory_mb for one in half), default=0.0) for half in halves))


def check(out: Path, number: int) -> None:
    """Refuse answers that are not those of all rows in order."""
    row = 0
    for part in sorted(out.glob("part-*.jsonl")):
        with part.open("rb") as lines:
            for row, line in enumerate(lines, row + 1):  # noqa: B020 - continues over the parts
                if not line.startswith(b'{"id": "%d", "row": %d,' % (row, row)):
                    raise SystemExit(f"line {row} is {line[:80]!r}")
    if row != number:
        raise SystemExit(f"{row} lines for {number} rows")


def report(results: list[Result], number: int) -> str:
    """The results as Markdown."""
    lines = [
        f"# `predict --engine ray`: {processor()}, one thread per worker",
        "",
        f"2 members on a random base of one layer; {number:,} rows of 3 to 9 words in {_NUM_FILES} files; all answers"
        " in order. Memory: of the process that reads the rows (anonymous, without Ray's object store).",
        "",
        "| workers | rows per second | memory, first half of the parts, MB | second half |",
        "|---|---|---|---|",
        *(f"| {r.workers} | {r.rows_per_s:,.0f} | {r.memory_mb[0]:.0f} | {r.memory_mb[1]:.0f} |" for r in results),
    ]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Measure; exit code 1 if memory grew by more than 5 % in the second half."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000, help="how many rows")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2], help="numbers of workers")
    parser.add_argument("--out", type=Path, help="file for the table")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run = train(folder, make_texts())
        pattern = write_rows(folder, args.rows)
        results = [measure(run, pattern, args.rows, workers, folder) for workers in args.workers]
    text = report(results, args.rows)
    print(text)
    if args.out is not None:
        args.out.write_text(text, encoding="utf-8")
    print(json.dumps([vars(result) for result in results]))
    return int(any(result.memory_mb[1] > 1.05 * result.memory_mb[0] > 0 for result in results))


if __name__ == "__main__":
    sys.exit(main())

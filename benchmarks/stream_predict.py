"""Memory and speed of `lorchestra predict RUN --data -`: peak RSS after few and after many rows from a pipe.

Rows are random words; the base is random, with one layer, so that reading, writing and bookkeeping are most of the
work. Every line that comes back is checked for its row's id and number. The command runs in one thread.

    python benchmarks/stream_predict.py                          1,000,000 rows, or as many as 20 minutes allow
    python benchmarks/stream_predict.py --rows 50000 --minutes 2
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

from bench.setting import processor
from tiny_base import WORDS, save_tiny_base

_FIRST = 10_000
"""Rows after which memory is compared with that at the end."""
_NUM_TEXTS = 1_000


@dataclass(frozen=True)
class Reading:
    """The command after a number of answers: seconds since the first one, and the peak of its memory so far."""

    rows: int
    seconds: float
    peak_mb: float


def make_texts() -> list[str]:
    """Texts of 3 to 9 words."""
    draw = random.Random(0)
    return [" ".join(draw.choices(WORDS, k=draw.randint(3, 9))) for _ in range(_NUM_TEXTS)]


def train(folder: Path, texts: list[str]) -> Path:
    """Train two members for an epoch; returns the run directory."""
    save_tiny_base(folder / "base", num_layers=1)
    rows = [{"text": text, "label": "yes" if "good" in text else "no"} for text in texts[:100]]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    command = [sys.executable, "-m", "lorchestra", "train", "--base.name", str(folder / "base")]
    command += ["--data.train", str(folder / "train.jsonl"), "--data.scoring", "letter", "--adapt.members", "2"]
    command += ["--adapt.r", "2", "--train.lr", "0.01", "--train.epochs", "1", "--out", str(folder / "run")]
    subprocess.run([*command, "--skip-evaluation"], check=True, capture_output=True)
    return folder / "run"


def write_rows(pipe: IO[bytes], texts: list[str], most: int, until: float, sent: list[int]) -> None:
    """Write rows until there are enough or the time is up; their number is appended to `sent`."""
    number = 0
    with pipe:
        while number < most and time.monotonic() < until:
            number += 1
            pipe.write(b'{"id": "%d", "text": "%s"}\n' % (number, texts[number % _NUM_TEXTS].encode()))
    sent.append(number)


def measure(run: Path, texts: list[str], most: int, minutes: float) -> tuple[list[Reading], float]:
    """Send rows to the command and check its lines; memory at powers of ten, their halves, and at the end.

    Returns:
        The readings, and the command's CPU time in seconds, its start included.

    Raises:
        SystemExit: a line is missing or out of order, or the command failed.
    """
    command = [sys.executable, "-m", "lorchestra", "predict", str(run), "--data", "-"]
    marks = {factor * 10**power for power in range(3, 9) for factor in (1, 5)}
    readings: list[Reading] = []
    sent: list[int] = []
    rows, start = 0, 0.0
    with tempfile.TemporaryFile() as messages:
        streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": messages}
        with subprocess.Popen(command, **streams) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            until = time.monotonic() + 60 * minutes
            threading.Thread(target=write_rows, args=(process.stdin, texts, most, until, sent)).start()
            for rows, line in enumerate(process.stdout, 1):
                start = start or time.monotonic()
                if not line.startswith(b'{"id": "%d", "row": %d,' % (rows, rows)):
                    raise SystemExit(f"line {rows} is {line[:80]!r}")
                if rows in marks:
                    readings.append(Reading(rows, time.monotonic() - start, peak_mb(process.pid)))
                    print(readings[-1], flush=True)
            # the process is not waited for yet, so its peak can be read from the kernel's record of its end
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode or sent != [rows]:
            messages.seek(0)
            raise SystemExit(f"exit code {process.returncode}, {rows} lines for {sent} rows: {messages.read()!r}")
    # the two records of the peak differ by some pages
    peak = max(usage.ru_maxrss / 1024, *(one.peak_mb for one in readings), 0.0)
    last = Reading(rows, time.monotonic() - start, peak)
    return [*(one for one in readings if one.rows < rows), last], usage.ru_utime + usage.ru_stime


def peak_mb(pid: int) -> float:
    """The process's peak RSS so far, in MB of 2**20 bytes."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))) / 1024


def report(readings: list[Reading], cpu_s: float) -> str:
    """The result as Markdown."""
    last = readings[-1]
    lines = [
        f"# `predict --data -` from a pipe: {processor()}, one thread",
        "",
        f"2 members on a random base of one layer; rows of 3 to 9 words. {last.rows:,} rows in, as many lines out, in"
        f" order; {last.rows / last.seconds:,.0f} rows per second, {last.rows / cpu_s:,.0f} per second of CPU time.",
        "",
        "| rows answered | seconds since the first answer | peak RSS, MB |",
        "|---|---|---|",
        *(f"| {one.rows:,} | {one.seconds:,.0f} | {one.peak_mb:.1f} |" for one in readings),
    ]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Measure; exit code 1 if the peak grew by more than 5 % after the first rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000, help="how many rows to send")
    parser.add_argument("--minutes", type=float, default=20.0, help="stop sending after this time")
    parser.add_argument("--out", type=Path, help="file for the table")
    args = parser.parse_args()
    texts = make_texts()
    with tempfile.TemporaryDirectory() as folder:
        readings, cpu_s = measure(train(Path(folder), texts), texts, args.rows, args.minutes)
    text = report(readings, cpu_s)
    print(text)
    if args.out is not None:
        args.out.write_text(text, encoding="utf-8")
    first = next((one for one in readings if one.rows >= _FIRST), readings[-1])
    return int(readings[-1].peak_mb > 1.05 * first.peak_mb)


if __name__ == "__main__":
    sys.exit(main())

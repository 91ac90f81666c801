"""What a sweep saves: the same points in one packed pass, in one pass per point, and as separate trainings.

All three train and evaluate the same members on the same rows; the largest difference of their answers is reported.

    python benchmarks/sweep_gain.py                  about ten minutes on two cores
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import tempfile
import time
from pathlib import Path

import numpy as np
from bench.setting import processor

from lorchestra.demo.data import DemoSizes, write_demo_data
from lorchestra.demo.run import demo_config
from lorchestra.runs.ensemble import load_run
from lorchestra.runs.evaluate import evaluate_run
from lorchestra.runs.sweep.points import Point, grid_points
from lorchestra.runs.sweep.run import run_sweep
from lorchestra.runs.train import train_run
from lorchestra.store.predictions import load_predictions

AXES = [("train.lr", [5e-4, 2e-3]), ("regularize.weight_decay_b", [0.0, 10.0, 100.0])]


def sweep(points: list[Point], out: Path, most_members: int) -> Path:
    run_sweep(points, out, most_members=most_members)
    return out / "runs"


def one_by_one(points: list[Point], out: Path) -> Path:
    for point in points:
        train_run(point.config, out / point.name)
        evaluate_run(load_run(out / point.name))
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--members", type=int, default=3)
    parser.add_argument("--rows", type=int, default=100, help="training rows and test rows")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        sizes = DemoSizes(train=args.rows, val=args.rows // 4, test=args.rows)
        config = demo_config(write_demo_data(Path(folder) / "data", sizes), 0)
        config = dataclasses.replace(
            config,
            adapt=dataclasses.replace(config.adapt, members=args.members),
            train=dataclasses.replace(config.train, epochs=args.epochs),
        )
        points = grid_points(config, AXES)
        ways = {
            "one packed pass": lambda out: sweep(points, out, 10_000),
            "one pass per point, one sweep": lambda out: sweep(points, out, args.members),
            "separate trainings and evaluations": lambda out: one_by_one(points, out),
        }
        seconds, answers = {}, {}
        for number, (name, run) in enumerate(ways.items()):
            started = time.perf_counter()
            runs = run(Path(folder) / str(number))
            seconds[name] = time.perf_counter() - started
            print(f"{name}: {seconds[name]:.0f} s", flush=True)
            predictions = [
                load_predictions(next((runs / p.name).glob("predictions/*.test.safetensors"))) for p in points
            ]
            answers[name] = np.concatenate([one.log_probs_MEC for one in predictions])
    slowest = max(seconds.values())
    first = next(iter(answers.values()))
    lines = [
        f"# Sweep of {len(points)} points: {processor()}, {os.cpu_count()} cores",
        "",
        f"{args.members} members per point on the last 6 of 30 layers of SmolLM2-135M, {args.rows} training and test"
        f" rows (the demo's headlines), {args.epochs} epochs, each way once, including evaluation with baselines.",
        "",
        "| way | seconds | times as fast as the slowest | largest difference of a log-probability |",
        "|---|---|---|---|",
    ]
    for name, value in seconds.items():
        difference = np.abs(answers[name] - first).max()
        lines.append(f"| {name} | {value:.0f} | {slowest / value:.2f} | {difference:.1e} |")
    text = "\n".join(lines) + "\n"
    print(text)
    if args.out:
        args.out.write_text(text)


if __name__ == "__main__":
    main()

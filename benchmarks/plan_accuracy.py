"""Accuracy of `lorchestra plan`: its predictions against the trainings, each in a separate process.

The real peak is the one that the training records (on Linux VmHWM), the real time that of steps, cached layers and
evaluations. Three recipes of one to three minutes each on two idle cores: short rows on the last 6 layers, questions
on all layers, ten members on the last 10.

    python benchmarks/plan_accuracy.py --data-dir DIRECTORY_OF_DATA_SETS --out benchmarks/results/plan.md
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from bench.setting import processor

from lorchestra.config.adapt import AdaptConfig, BaseConfig
from lorchestra.config.data import DataConfig, PromptConfig
from lorchestra.config.mappings import read_recipe, to_yaml
from lorchestra.config.run import RunConfig, TrainConfig
from lorchestra.data.tasks.load import load_task
from lorchestra.demo.data import DEMO_PROMPT, DemoSizes, write_demo_data
from lorchestra.runs.train import train_run
from lorchestra.training.callbacks import Callback
from lorchestra.training.trainer import Trainer

LR = 3e-4
"""Given, so that nothing is searched."""


class Stopwatch(Callback):
    """Splits a training's time into cached layers, steps, evaluations and calibration."""

    def on_train_begin(self, trainer: Trainer) -> None:
        self.started = self.last = time.perf_counter()
        self.trunk = self.evaluation = self.steps = 0.0

    def on_step(self, report, state) -> None:
        self.last, self.steps = time.perf_counter(), state.train_s

    def on_evaluation(self, entry, state) -> None:
        now = time.perf_counter()
        self.evaluation += now - self.last
        self.last = now

    def on_progress(self, text, done, total) -> None:
        if text.startswith("layers below"):
            self.trunk = time.perf_counter() - self.started
        elif text.startswith("calibration"):
            self.last = time.perf_counter()


def train(recipe: Path, out: Path) -> dict[str, Any]:
    """Run a recipe in this process; returns its times and its peak."""
    watch = Stopwatch()
    outcome = train_run(read_recipe(recipe, RunConfig), out, callbacks=[watch])
    cost = outcome.run.read_ensemble().cost or {}
    return {
        "peak": cost["peak_bytes"],
        "training": watch.steps + watch.trunk,
        "evaluation": watch.evaluation,
        "total": watch.last - watch.started,
    }


def write_rows(directory: Path, task: str, data_dir: str | None, numbers: dict[str, int]) -> DataConfig:
    """The first rows of a named task's splits, as files."""
    splits = load_task(task, data_dir).task.splits
    paths = {}
    for split, number in numbers.items():
        path = directory / f"{task}.{split}.jsonl"
        rows = ({"question": r.question, "choices": r.choices, "answer": r.answer} for r in splits[split][:number])
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        paths[split] = str(path)
    return DataConfig(**paths, scoring="text")


def recipes(directory: Path, data_dir: str | None, scale: float) -> dict[str, RunConfig]:
    """The runs to predict."""

    def rows(number: int) -> int:
        return max(16, round(number * scale))

    demo = write_demo_data(directory / "headlines", DemoSizes(rows(400), rows(100), 20, 20), 0)
    prompt = PromptConfig(template=DEMO_PROMPT)
    files = {split: str(getattr(demo, split)) for split in ("train", "val", "test")}
    questions = write_rows(directory, "arc_easy", data_dir, {"train": rows(64), "val": rows(16), "test": 16})
    reviews = write_rows(directory, "sst2", data_dir, {"train": rows(160), "val": rows(40), "test": 16})
    base = BaseConfig(threads=torch.get_num_threads(), dtype="float32")
    return {
        "headlines, last:6, 5 members": RunConfig(
            base=base,
            adapt=AdaptConfig(layers="last:6"),
            data=DataConfig(**files, scoring="text", prompt=prompt),
            train=TrainConfig(epochs=2, lr=LR),
        ),
        "arc_easy, all layers, 5 members": RunConfig(base=base, data=questions, train=TrainConfig(epochs=1, lr=LR)),
        "sst2, last:10, 10 members": RunConfig(
            base=base, adapt=AdaptConfig(members=10, layers="last:10"), data=reviews, train=TrainConfig(epochs=2, lr=LR)
        ),
    }


def measured(arguments: list[str], codes: tuple[int, ...] = (0,)) -> dict[str, Any]:
    """Run a subprocess; returns the JSON of its last line."""
    process = subprocess.run([sys.executable, *arguments], capture_output=True, text=True)
    if process.returncode not in codes:
        raise RuntimeError(f"{' '.join(arguments)}\n{process.stderr}")
    return json.loads(process.stdout.splitlines()[-1])


def row(name: str, plan: dict[str, Any], real: dict[str, Any]) -> str:
    """One line of the table."""

    def both(predicted: float, actual: float, unit: float, digits: int) -> str:
        return f"{predicted / unit:.{digits}f} / {actual / unit:.{digits}f} ({100 * (predicted / actual - 1):+.0f} %)"

    sizes, times = plan["bytes"], plan["time_s"]
    permanent = sum(sizes[part] for part in ("process", "base", "adapters", "training", "trunk"))
    ratio = (real["peak"] - permanent) / plan["calibration"]["saved_bytes"]
    cells = [
        both(sizes["peak"], real["peak"], 1e9, 2),
        f"{ratio:.2f}",
        *(both(times[part], real[part], 1, 0) for part in ("training", "evaluation", "total")),
    ]
    return f"| {name} | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", help="directory with arc_easy and sst2; default: LORCHESTRA_DATA_DIR")
    parser.add_argument("--scale", type=float, default=1.0, help="factor on the number of rows")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--train", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.train:
        print(json.dumps(train(args.train, args.train.with_suffix(".run"))))
        return
    lines = [
        f"# Predicted and real: {processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} thread(s), torch"
        f" {torch.__version__}",
        "",
        "SmolLM2-135M in float32. Predicted / real (difference). Over saved: growth of the real process beyond all"
        " permanent parts, divided by the bytes that the largest micro-batch's forward pass saves.",
        "",
        "| recipe | peak memory, GB | over saved | training, s | evaluation, s | in all, s |",
        "|---|---|---|---|---|---|",
    ]
    with tempfile.TemporaryDirectory() as directory:
        for number, (name, config) in enumerate(recipes(Path(directory), args.data_dir, args.scale).items()):
            recipe = Path(directory, f"recipe{number}.yaml")
            recipe.write_text(to_yaml(config), encoding="utf-8")
            plan = measured(["-m", "lorchestra", "plan", str(recipe), "--json"])
            lines.append(row(name, plan, measured([__file__, "--train", str(recipe)])))
            print(lines[-1], file=sys.stderr, flush=True)
    text = "\n".join(lines) + "\n"
    print(text)
    if args.out:
        args.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()

"""What is trained for one cell of the experiment: a task, a number of training rows and a seed.

Two sweeps, whose points are members of few packed passes, and a comparison of the other methods. All have the same
rows, rank, layers and budget per member.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lorchestra.config.adapt import AdaptConfig, BaseConfig
from lorchestra.config.data import DataConfig, PromptConfig
from lorchestra.config.run import EvaluateConfig, RunConfig, TrainConfig
from lorchestra.metrics.predictive import FloatArray, IntArray
from lorchestra.runs.compare import compare_methods
from lorchestra.runs.sweep.points import Point, with_settings
from lorchestra.runs.sweep.run import run_sweep
from lorchestra.store.predictions import load_predictions
from lorchestra.store.run import Run
from lorchestra.training.callbacks import Callback
from lorchestra.types import Predictions

from .tasks import EPOCHS, TASKS, write_files

LR, LAYERS, M = 2e-3, "last:6", 5
POOL = 20
"""Plain members: ensembles of up to 20, and several disjoint ones of fewer."""
DECAYS = (10, 30, 100)

PLAIN: dict[str, Mapping[str, object]] = {"pool": {"adapt.members": POOL}}
REGULARIZED: dict[str, Mapping[str, object]] = {
    **{f"decay{strength}": {"regularize.weight_decay_b": strength} for strength in DECAYS},
    "kl0.1": {"regularize.kl_beta": 0.1},
    "kl1": {"regularize.kl_beta": 1.0},
}
VARIED: dict[str, Mapping[str, object]] = {
    "bootstrap": {"adapt.order": "bootstrap"},
    "folds": {"adapt.order": "folds"},
    "scaled-a": {"adapt.init_scale": 5.0},
    "random-b": {"adapt.init_std_b": 0.02},
    "rank2": {"adapt.r": 2, "adapt.members": 2},
    "rank32": {"adapt.r": 32, "adapt.lora_alpha": 128.0, "adapt.members": 2},
    "lr-half": {"train.lr": LR / 2, "adapt.members": 2},
    "lr-double": {"train.lr": LR * 2, "adapt.members": 2},
    "dropout": {"adapt.dropout": 0.1},
    "last3": {"adapt.layers": "last:3", "adapt.members": 2},
    "last12": {"adapt.layers": "last:12", "adapt.members": 2},
    "maps-ko": {"adapt.target_modules": ["k_proj", "o_proj"], "adapt.members": 2},
    "maps-mlp": {"adapt.target_modules": ["up_proj", "down_proj"], "adapt.members": 2},
}
"""Members that differ in more than a seed; an arm mixes them (`arms`)."""
CONTROLS: dict[str, Mapping[str, object]] = {
    "rank40": {"adapt.r": 40, "adapt.lora_alpha": 160.0, "adapt.members": 1},
    "long": {"adapt.members": 1},
}
"""One LoRA with M times the rank, and one trained M times as long."""
HEADS: dict[str, Mapping[str, object]] = {"heads": {"data.scoring": "head"}}
"""A classification head per member, started by logistic regression, instead of the labels' texts."""
DEPTH_MEMBERS = 3
DEPTHS = {"all": (5e-4, 1e-3, 2e-3), "last:10": (1e-3, 2e-3, 4e-3), "last:15": (1e-3, 2e-3)}
"""Rates tried by adapted layers; the best is chosen by validation."""
METHODS = (
    *("soup", "snapshot", "last_layer", "swag", "laplace", "batch_ensemble", "mc_dropout:dropout=0.1", "blob"),
    *("tfidf", "frozen", "zero_shot"),
)


@dataclass(frozen=True, order=True)
class Cell:
    """One cell of the experiment."""

    task: str
    size: int
    seed: int

    @classmethod
    def parse(cls, text: str) -> Cell:
        """`headlines-200-0`."""
        task, size, seed = text.rsplit("-", 2)
        if task not in TASKS or int(size) not in EPOCHS:
            raise SystemExit(f"--cells: {text!r} is not TASK-SIZE-SEED with a task of {', '.join(TASKS)} and a size of"
                             f" {', '.join(map(str, EPOCHS))}")  # fmt: skip
        return cls(task, int(size), int(seed))

    def __str__(self) -> str:
        return f"{self.task}-{self.size}-{self.seed}"


@dataclass(frozen=True)
class Members:
    """Log-probabilities `[M, E, C]` of the members, draws or passes of one arm's part, with labels `[E]`."""

    val: FloatArray
    test: FloatArray
    val_labels: IntArray
    test_labels: IntArray
    options: tuple[tuple[str, ...], ...]
    """The validation rows' choices."""


class Experiment:
    """Trains cells and reads what came of them.

    Args:
        out: the directory of rows, sweeps and comparisons.
        data_dir: the real data sets.
        dtype: the base's number format.
        threads: CPU threads, None for torch's choice.
    """

    def __init__(self, out: Path, data_dir: Path, dtype: str, threads: int | None) -> None:
        self.out, self.data_dir, self.dtype, self.threads = out, data_dir, dtype, threads

    def train(self, cell: Cell, stages: Sequence[str], callbacks: Sequence[Callback] = ()) -> None:
        """Finish the stages of a cell, which are `plain`, `regularized`, `varied` and so on; see `evidence.py`."""
        for stage in stages:
            if stage == "heads" and not TASKS[cell.task].has_labels:
                continue
            if stage == "methods":
                compare_methods(self.config(cell), METHODS, self.out / str(cell) / stage, callbacks=callbacks)
            else:
                run_sweep(self.points(cell, stage), self.out / str(cell) / stage, callbacks=callbacks)

    def config(self, cell: Cell) -> RunConfig:
        """The configuration that all trainings of a cell have in common."""
        task, files = TASKS[cell.task], write_files(cell.task, cell.size, cell.seed, self.data_dir, self.out / "rows")
        return RunConfig(
            base=BaseConfig(dtype=self.dtype, threads=self.threads),  # type: ignore[arg-type]
            adapt=AdaptConfig(members=M, layers=LAYERS),
            data=DataConfig(**{split: str(path) for split, path in files.items()}, scoring=task.scoring),  # type: ignore[arg-type]
            train=TrainConfig(epochs=EPOCHS[cell.size], lr=LR, seed=cell.seed, calibration="none"),
            evaluate=EvaluateConfig(few_shot=0, tfidf=False, frozen=False, resamples=0, mc_dropout=False),
        )

    def points(self, cell: Cell, stage: str) -> list[Point]:
        """The points of a stage's sweep."""
        config = self.config(cell)
        if stage == "depth":
            return [
                Point(depth_name(layers, lr), given, with_settings(config, given))
                for layers, rates in DEPTHS.items()
                for lr in rates
                for given in [{"adapt.layers": layers, "train.lr": lr, "adapt.members": DEPTH_MEMBERS}]
            ]
        if stage == "prompts":
            return [
                Point(f"prompt{index}", {"data.prompt.template": text}, _with_prompt(config, text))
                for index, text in enumerate(TASKS[cell.task].prompts)
            ]
        settings = {
            "plain": PLAIN,
            "regularized": REGULARIZED,
            "varied": VARIED,
            "controls": CONTROLS,
            "heads": HEADS,
        }[stage]
        points = [Point(name, given, with_settings(config, given)) for name, given in settings.items()]
        return [_trained_longer(point) if point.name == "long" else point for point in points]

    def read(self, cell: Cell, stage: str, name: str) -> Members | None:
        """What a point or method predicted; None if it is not finished."""
        root = self.out / str(cell) / stage
        if stage == "methods":
            folder = root / "methods" / name.replace(":", ",") / "predictions"
            paths = [next(iter(folder.glob(f"*.{split}.safetensors")), None) for split in ("val", "test")]
            return (
                None if None in paths else _members(*(load_predictions(path, answered=True) for path in paths if path))
            )
        run = Run(root / "runs" / name)
        if not run.metrics.is_file():
            return None
        task = run.read_ensemble().task
        return _members(*(run.load_predictions(task, split, answered=True) for split in ("val", "test")))

    def finished(self) -> list[Cell]:
        """The cells of which the plain members are finished."""
        cells = [Cell.parse(path.parent.name) for path in sorted(self.out.glob("*-*-*/plain"))]
        return [cell for cell in cells if self.read(cell, "plain", "pool") is not None]


def depth_name(layers: str, lr: float) -> str:
    """The name of a point of the stage `depth`."""
    return f"{layers.replace(':', '')}-{lr:g}"


def _with_prompt(config: RunConfig, template: str) -> RunConfig:
    return dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, prompt=PromptConfig(template=template)),
        adapt=dataclasses.replace(config.adapt, members=1),
    )


def _trained_longer(point: Point) -> Point:
    train = dataclasses.replace(point.config.train, epochs=M * point.config.train.num_epochs)
    return dataclasses.replace(point, config=dataclasses.replace(point.config, train=train))


def _members(val: Predictions, test: Predictions) -> Members:
    by_id = np.argsort(np.array(test.ids))  # one order for all arms
    return Members(val.log_probs_MEC, test.log_probs_MEC[:, by_id], val.labels, test.labels[by_id], tuple(val.options))

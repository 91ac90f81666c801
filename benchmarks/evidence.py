"""Which ensembles are worth their cost: one resumable experiment on seven real tasks, in three sizes and seeds.

    python benchmarks/evidence.py train --cells headlines-200-0,sst2-200-0 --data-dir DIR
    python benchmarks/evidence.py report

A cell is TASK-SIZE-SEED. Finished parts are not repeated, interrupted ones are resumed, so the hours come in pieces.
Everything is trained with the same rows, rank, layers, rate and budget per member; strengths and members are chosen on
validation rows, and every arm has one temperature, fitted there.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from bench.evidence.page import write_results
from bench.evidence.trainings import Cell, Experiment
from bench.setting import log

from lorchestra.training.callbacks import Callback, StepReport
from lorchestra.training.checkpoint import TrainState
from lorchestra.training.trainer import Trainer

BESIDE = Path(__file__).parents[2] / "shared" / "data"
STAGES = ("plain", "regularized", "controls", "methods", "varied", "prompts", "depth")


class Steps(Callback):
    """Prints progress every 25 steps."""

    def __init__(self) -> None:
        self.names = self.status = ""

    def on_status(self, names: Sequence[str], status: str) -> None:
        """Keep what is being trained."""
        self.status = f"{status} {' '.join(names)[:80]}"

    def on_train_begin(self, trainer: Trainer) -> None:
        """Keep the number of steps."""
        self.num_steps = trainer.num_steps

    def on_step(self, report: StepReport, state: TrainState) -> None:
        """Print every 25th step."""
        if report.step % 25 == 0:
            rate = state.tokens / max(state.train_s, 1e-9)
            log(f"{self.status}: step {report.step} of {self.num_steps}, {rate:,.0f} tokens/s")


def main(arguments: Sequence[str] | None = None) -> None:
    """Train cells, or report on those that are trained."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["train", "report"])
    parser.add_argument("--cells", default="", help="train: TASK-SIZE-SEED, separated by commas")
    parser.add_argument("--stages", default=",".join(STAGES), help=f"train: of {', '.join(STAGES)}")
    parser.add_argument("--data-dir", type=Path, default=BESIDE)
    parser.add_argument("--dtype", default="auto", help="number format of the base")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=Path, default=Path("runs/evidence"), help="directory of rows and trainings")
    parser.add_argument("--results", type=Path, default=Path(__file__).parents[1] / "docs" / "results")
    args = parser.parse_args(arguments)
    experiment = Experiment(args.out, args.data_dir, args.dtype, args.threads, [Steps()])
    if args.command == "train":
        for cell in map(Cell.parse, filter(None, args.cells.split(","))):
            log(f"{cell}")
            experiment.train(cell, args.stages.split(","))
    else:
        print(write_results(experiment, args.results))


if __name__ == "__main__":
    main()

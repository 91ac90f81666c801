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
from bench.steps import Steps

BESIDE = Path(__file__).parents[2] / "shared" / "data"
STAGES = ("plain", "heads", "regularized", "controls", "methods", "varied", "prompts", "depth")


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
    experiment = Experiment(args.out, args.data_dir, args.dtype, args.threads)
    if args.command == "train":
        for cell in map(Cell.parse, filter(None, args.cells.split(","))):
            log(f"{cell}")
            experiment.train(cell, args.stages.split(","), [Steps(str(cell))])
    else:
        print(write_results(experiment, args.results))


if __name__ == "__main__":
    main()

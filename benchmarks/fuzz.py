"""Fuzzing: thousands of damaged task files, recipes and run directories, drawn from a seed.

Each case must end in a result or in exactly one LorchestraError with exit code 2; `fuzzing/harness.py` defines the
violations. One process, one core; a single case can be repeated by its surface and number.

    nice python benchmarks/fuzz.py --cases 10000 --seed 0
    python benchmarks/fuzz.py --seed 0 --surface runs --case 47
"""

from __future__ import annotations

import argparse
import datetime
import faulthandler
import os
import platform
import resource
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # a damaged name of a base must not be looked up on the network
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import torch
from fuzzing.harness import Outcome, run_case
from fuzzing.recipes import Recipes
from fuzzing.records import Records
from fuzzing.runs import Runs
from fuzzing.task_files import TaskFiles

SHARES = {"task files": 0.35, "recipes": 0.3, "runs": 0.2, "records": 0.15}
COLUMNS = ("result", "ConfigError", "DataError", "CheckpointError", "RefusedError", "violation")
RESULT = Path(__file__).parent / "results/fuzz.md"
PACKAGES = ("lorchestra", "torch", "transformers", "tokenizers", "safetensors", "pyarrow", "pyyaml", "tyro", "numpy")


def report(outcomes: Sequence[Outcome], seed: int, seconds: float) -> str:
    """The results as Markdown: outcomes by kind, and every violation with the options that repeat it."""
    counts: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for outcome in outcomes:
        counts[outcome.surface, outcome.kind][outcome.ended] += 1
    total = Counter(outcome.ended for outcome in outcomes)
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in PACKAGES)
    lines = [
        f"# Fuzzing: {len(outcomes):,} cases, {total['violation']} violations",
        "",
        f"`python benchmarks/fuzz.py --cases {len(outcomes)} --seed {seed}`, {datetime.date.today()}, Python"
        f" {platform.python_version()}, {versions}; {seconds / 60:.0f} minutes on one core.",
        "",
        "A case ends in a result or in one error with exit code 2 (*command* is an error printed by the command line);"
        " anything else is a violation.",
        "",
        "| input | kind | result | ConfigError | DataError | CheckpointError | command | violations |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for (surface, kind), ended in counts.items():
        lines.append(f"| {surface} | {kind} | " + " | ".join(str(ended[column]) for column in COLUMNS) + " |")
    lines.append("| all | | " + " | ".join(str(total[column]) for column in COLUMNS) + " |")
    bad = [outcome for outcome in outcomes if outcome.ended == "violation"]
    lines += ["", "## Violations", "", *([] if bad else ["None."])]
    lines += [f"- `--surface '{o.surface}' --case {o.case}` ({o.kind}): `{o.text}`" for o in bad]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--surface", choices=SHARES, help="only this kind of input")
    parser.add_argument("--case", type=int, help="only this case of it")
    parser.add_argument("--memory-gb", type=float, default=8.0, help="memory limit of the process")
    parser.add_argument("--out", type=Path, default=RESULT)
    args = parser.parse_args()
    faulthandler.enable()
    limit = int(args.memory_gb * 1e9)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    torch.set_num_threads(1)
    started, outcomes = time.perf_counter(), []
    with tempfile.TemporaryDirectory() as folder:
        for surface in (TaskFiles(), Recipes(), Runs(Path(folder)), Records(Path(folder))):
            if args.surface not in (None, surface.name):
                continue
            number = args.cases if args.surface else round(SHARES[surface.name] * args.cases)
            for case in range(number) if args.case is None else [args.case]:
                outcomes.append(run_case(surface, args.seed, case))
                if outcomes[-1].ended == "violation" or args.case is not None:
                    print(outcomes[-1], file=sys.stderr, flush=True)
                if case % 500 == 499:
                    spent = time.perf_counter() - started
                    print(f"{surface.name}: {case + 1} of {number}, {spent:.0f} s", file=sys.stderr, flush=True)
    if args.case is None:
        text = report(outcomes, args.seed, time.perf_counter() - started)
        print(text)
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(text)
    return int(any(outcome.ended == "violation" for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())

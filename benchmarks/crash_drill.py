"""Kill a training repeatedly, at random moments, resume it, and compare the adapters' bytes with an undisturbed run's.

Runs on a tiny base, with a checkpoint after every step so that many crashes hit the saving; `fuzzing/crashes.py` has
the kinds of crashes. A run is crashed three to seven times before it may finish.

    nice python benchmarks/crash_drill.py --kills 200
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["OMP_NUM_THREADS"] = "1"

from fuzzing.crashes import Crash, as_expected, fill, import_everything, logged_steps, small_disk, train
from fuzzing.runs import adapter_bytes
from fuzzing.task_files import as_csv, valid_rows
from tiny_base import save_tiny_base

from lorchestra.config.adapt import AdaptConfig, BaseConfig
from lorchestra.config.data import DataConfig
from lorchestra.config.mappings import to_yaml
from lorchestra.config.run import RegularizeConfig, RunConfig, TrainConfig

RESULT = Path(__file__).parent / "results/crash_drill.md"
PACKAGES = ("lorchestra", "torch", "transformers", "safetensors")
_DISK_BYTES = 4_000_000


@dataclass
class Drill:
    """Results: crashes by kind, those that came after the run had finished, and violations."""

    crashed: Counter[str] = field(default_factory=Counter)
    late: Counter[str] = field(default_factory=Counter)
    runs: int = 0
    steps: int = 0
    leftovers: int = 0
    seconds: float = 0.0
    wrong: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Reference:
    """An undisturbed run."""

    recipe: Path
    adapter_bytes: list[bytes]
    steps: list[int]
    seconds: float
    operations: int


def make_references(folder: Path) -> list[Reference]:
    """Two kinds of runs: all layers with dropout; the last layer on a cached trunk, with the KL term and decay."""
    base = folder / "base"
    # in a child: the parent must not have torch's threads when it forks
    if (child := os.fork()) == 0:
        save_tiny_base(base)
        os._exit(0)
    os.waitpid(child, 0)
    rows = folder / "rows.csv"
    rows.write_bytes(as_csv(valid_rows(random.Random(0), 40, "text")))
    references = []
    kinds = (
        (AdaptConfig(members=3, r=2, dropout=0.1), RegularizeConfig()),
        (AdaptConfig(members=3, r=2, layers="last:1"), RegularizeConfig(kl_beta=0.5, weight_decay_b=5.0)),
    )
    for number, (adapt, regularize) in enumerate(kinds):
        config = RunConfig(
            base=BaseConfig(name=str(base), threads=1),
            adapt=adapt,
            data=DataConfig(train=str(rows), scoring="text"),
            train=TrainConfig(epochs=4, lr=0.01, checkpoint_every_s=0.0),
            regularize=regularize,
        )
        recipe, root, count = folder / f"recipe{number}.yaml", folder / f"whole{number}", folder / "count"
        recipe.write_text(to_yaml(config))
        train(recipe, folder / "warm-up", None)
        shutil.rmtree(folder / "warm-up")
        ended = train(recipe, root, None, count)
        assert ended.code == 0, ended.output
        steps = list(logged_steps(root))
        references.append(Reference(recipe, adapter_bytes(root), steps, ended.seconds, int(count.read_text())))
    return references


def crash_one_run(drill: Drill, reference: Reference, root: Path, kinds: list[str], draw: random.Random) -> None:
    """Crash one run once per kind, resuming it each time; let it finish, and compare."""
    for kind in kinds:
        left = 1 - len(logged_steps(root)) / len(reference.steps)
        crash = Crash.draw(draw, kind, reference.seconds, reference.operations, left)
        ballast = fill(root.parent, int(crash.at)) if kind == "disk full" else None
        ended = train(reference.recipe, root, crash)
        if ballast is not None:
            ballast.unlink()
        if ended.code == 0:
            drill.late[kind] += 1
        else:
            drill.crashed[kind] += 1
        if not as_expected(crash, ended):
            drill.wrong.append(f"{crash} ended with {ended.code}: {' '.join(ended.output[-300:].split())}")
    ended = train(reference.recipe, root, None)
    drill.runs += 1
    if ended.code != 0:
        drill.wrong.append(f"after {kinds} a resume ended with {ended.code}: {' '.join(ended.output[-300:].split())}")
    elif adapter_bytes(root) != reference.adapter_bytes:
        drill.wrong.append(f"after {kinds}: adapters differ from those of an undisturbed run")
    elif list(logged_steps(root)) != reference.steps:
        drill.wrong.append(f"after {kinds}: the log does not have each step once")
    drill.steps = len(reference.steps)
    drill.leftovers += len(list(root.rglob("*.tmp")))


def run_drill(kills: int, seed: int, folder: Path) -> Drill:
    """Crash runs until this many crashes have happened."""
    import_everything()
    draw, drill, started = random.Random(seed), Drill(), time.perf_counter()
    references = make_references(folder)
    disk = folder / "disk"
    with small_disk(disk, _DISK_BYTES) as mounted:
        possible = [kind for kind in Crash.kinds if mounted or kind != "disk full"]
        while (left := kills - drill.crashed.total()) > 0 and drill.runs < 10 * kills:
            kinds = draw.choices(possible, k=min(left, draw.randint(3, 7)))
            parent = disk if "disk full" in kinds else folder
            root = parent / "run"
            crash_one_run(drill, references[drill.runs % 2], root, kinds, draw)
            shutil.rmtree(root, ignore_errors=True)
            for leftover in parent.glob(".run.*.tmp"):
                shutil.rmtree(leftover)
            print(f"{drill.crashed.total()} of {kills}, wrong: {drill.wrong or None}", file=sys.stderr, flush=True)
    drill.seconds = time.perf_counter() - started
    return drill


def report(drill: Drill, kills: int, seed: int) -> str:
    """The results as Markdown."""
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in PACKAGES)
    crashes = drill.crashed.total()
    lines = [
        f"# Crash drill: {crashes} crashes in {drill.runs} runs, {len(drill.wrong)} wrong",
        "",
        f"`python benchmarks/crash_drill.py --kills {kills} --seed {seed}`, {datetime.date.today()}, Python"
        f" {platform.python_version()}, {versions}; {drill.seconds / 60:.1f} minutes.",
        "",
        f"Each run ({drill.steps} steps, a checkpoint after each) is crashed, resumed, crashed again, and finally"
        " allowed to finish. Expected: every crash ends in a signal, 130, or one error with exit code 2; every resume"
        " works; the adapters' bytes are those of an undisturbed run; and the log has each step once.",
        "",
        "| crash | crashes | after the run had finished |",
        "|---|---|---|",
    ]
    kinds = [kind for kind in Crash.kinds if drill.crashed[kind] or drill.late[kind]]
    lines += [f"| {kind} | {drill.crashed[kind]} | {drill.late[kind]} |" for kind in kinds]
    lines += ["", f"Temporary files left by killed processes, removed by a later run after an hour: {drill.leftovers}."]
    lines += ["", "## Wrong", "", *([f"- {text}" for text in drill.wrong] or ["Nothing."])]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULT)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="crash-drill-") as folder:
        drill = run_drill(args.kills, args.seed, Path(folder))
    text = report(drill, args.kills, args.seed)
    print(text)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(text)
    return int(bool(drill.wrong))


if __name__ == "__main__":
    sys.exit(main())

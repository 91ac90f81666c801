"""Speed and memory of lorchestra and PEFT on a CPU, in one table.

The ways of a case run in turn in one process, on the same rows and from the same adapters, and their losses and answers
are compared. The table is printed and written to benchmarks/results/<what>_<hardware>_<month>.md.

    python benchmarks/speed.py                          everything: half an hour on two cores
    python benchmarks/speed.py --only train,memory      parts: train, inference, prefix, memory, limit
    python benchmarks/speed.py --quick                  a few minutes, fewer members and one round; printed only
"""

from __future__ import annotations

import argparse
import datetime
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import torch
from bench.inference import measure_inference
from bench.limit import measure_limit
from bench.memory import measure_memory, run_alone
from bench.prefix import measure_prefix
from bench.setting import RANK, Base, Setting, hardware, log, num_cpus, processor
from bench.table import Section, render
from bench.training import measure_training

PARTS = ("train", "inference", "prefix", "memory", "limit")


def measure(setting: Setting, parts: Sequence[str]) -> list[Section]:
    """The selected parts, in the table's order."""
    base = Base(setting.base)
    if "prefix" in parts and setting.prefix + setting.mean > base.context_length:
        raise SystemExit(f"--prefix {setting.prefix}: {setting.base} has a context of {base.context_length} tokens")
    measures = {
        "train": lambda: measure_training(base, setting),
        "inference": lambda: measure_inference(base, setting),
        "prefix": lambda: measure_prefix(base, setting),
        "memory": lambda: measure_memory(setting),
        "limit": lambda: measure_limit(base, setting),
    }
    return [measures[part]() for part in PARTS if part in parts]


def report(setting: Setting, sections: Sequence[Section], seconds: float) -> str:
    """The table and its conditions."""
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "transformers", "peft"))
    name = Path(setting.base).name
    intro = [
        f"{name} in float32, {num_cpus()} CPUs ({torch.get_num_threads()} threads), {versions};"
        f" {datetime.date.today().isoformat()}, {seconds / 60:.0f} minutes. r = {RANK}, {setting.batch} rows per"
        f" member and step or per padded batch, rows of random tokens with ragged lengths (mean {setting.mean}),"
        f" answers of one token, token budget {setting.token_budget} (in training; more in prediction and with shared"
        " prefixes), AdamW.",
        f"Every case runs its ways in turn in one process ({_rounds(setting)}), after an untimed warm-up, on the"
        " same rows (except b in training) from the same adapters; medians, min to max. Tokens are those of the"
        " rows, without padding, of all members together. a0, a1, b and c have their adapters on the same layers and"
        " maps as the packed way they are compared with; M members one after the other take M times the time of one, so"
        " their tokens/s hold for every M (in brackets: members timed).",
        "Left out: concurrent trainers of several LoRAs; vLLM's CPU build, which needs a separate environment"
        " (`benchmarks/vllm_members.py`); GPUs (`benchmarks/gpu.py`).",
    ]
    return render(f"Speed and memory: {processor()}, {num_cpus()} CPUs", intro, sections)


def _rounds(setting: Setting) -> str:
    if setting.rounds <= 2:
        return f"rounds: {setting.rounds}"
    return f"rounds: {setting.rounds}, and 2 for more than {setting.main} members and if all linear maps are adapted"


def default_path(parts: Sequence[str]) -> Path:
    """The table's default path."""
    what = "speed" if set(parts) == set(PARTS) else "speed-" + "-".join(part for part in PARTS if part in parts)
    month = datetime.date.today().strftime("%Y-%m")
    return Path(__file__).parent / "results" / f"{what}_{hardware()}_{month}.md"


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(PARTS), help="parts, separated by commas")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--base", default=Setting.base, help="as lorchestra's base.name")
    parser.add_argument("--members", help="numbers of members M, separated by commas")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--mean", type=int, default=Setting.mean, help="mean tokens of a row")
    parser.add_argument("--prefix", type=int, default=Setting.prefix, help="tokens of the shared prefix")
    parser.add_argument("--token-budget", type=int, default=Setting.token_budget)
    parser.add_argument("--out", type=Path, help="file for the table")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)  # a child process of the memory part
    parser.add_argument("--memory-steps", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    args.parts = args.only.split(",")
    if unknown := set(args.parts) - set(PARTS):
        parser.error(f"--only: {', '.join(sorted(unknown))}: unknown; choose from {', '.join(PARTS)}")
    return args


def make_setting(args: argparse.Namespace) -> Setting:
    """Defaults, the quick form and the options, in ascending precedence."""
    members = (1, 5) if args.quick else Setting.members
    if args.members:
        members = tuple(sorted(int(m) for m in args.members.split(",")))
    return Setting(
        base=args.base,
        members=members,
        main=Setting.main if Setting.main in members else members[-1],
        mean=args.mean,
        prefix=args.prefix,
        token_budget=args.token_budget,
        rounds=args.rounds or (1 if args.quick else Setting.rounds),
        quick=args.quick,
    )


def main(arguments: Sequence[str] | None = None) -> list[Section]:
    """Measure, print and write; returns the sections."""
    args = parse(arguments)
    setting = make_setting(args)
    if args.memory_of:
        run_alone(args.memory_of, setting.main, setting, args.memory_steps)
        return []
    started = time.perf_counter()
    sections = measure(setting, args.parts)
    text = report(setting, sections, time.perf_counter() - started)
    print(text)
    path = args.out or (None if args.quick else default_path(args.parts))
    if path is not None:
        path.write_text(text, encoding="utf-8")
        log(f"written to {path}")
    return sections


if __name__ == "__main__":
    main()

"""Training steps on a quantized base, by number of members: what dequantizing costs, and that members share it.

A weight is dequantized once per micro-batch for the forward pass, and once for the backward pass, however many members'
tokens are in it. All ways run in turn in one process, all layers adapted; times are the process's CPU time.

    python benchmarks/quantized.py                 about 15 minutes on one core
    python benchmarks/quantized.py --quick         printed only
"""

from __future__ import annotations

import argparse
import datetime
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from bench.packed_ways import PackedTraining
from bench.rows import make_rows
from bench.setting import Base, Setting, hardware, log, processor

from lorchestra.models.quantized import stored_bytes
from lorchestra.store.atomic import atomic_write_text

KINDS: tuple[Literal["none", "nf4", "int8"], ...] = ("none", "nf4", "int8")
RESULTS = Path(__file__).parent / "results"


@dataclass
class Steps:
    """Steps of some members on a base that is stored in one way."""

    kind: str
    members: int
    rows: int
    """Rows per member and step."""
    training: PackedTraining
    seconds: list[float] = field(default_factory=list)
    """CPU seconds of a step, by round."""
    tokens: int = 0

    @property
    def milliseconds(self) -> float:
        """CPU time per step and member, median of the rounds."""
        return 1000 * statistics.median(self.seconds) / self.members

    def run(self) -> float:
        """One step; returns its CPU seconds."""
        started = time.process_time()
        self.tokens = self.training.step()[0]
        return time.process_time() - started


def measure(setting: Setting, bases: dict[str, Base]) -> list[Steps]:
    """All ways in turn: once to warm up, then in every round."""
    ways = []
    for rows in sorted({1, setting.batch}):
        # as many rows in each step, so that rounds are alike
        examples = make_rows(rows, setting.mean, bases["none"].vocab_size, spread=0.1)
        sized = Setting(base=setting.base, batch=rows, mean=setting.mean, token_budget=setting.token_budget)
        for members in setting.members:
            ways += [
                Steps(kind, members, rows, PackedTraining(bases[kind], sized, examples, members, "q+v", "all layers"))
                for kind in KINDS
            ]
    for number in range(-1, setting.rounds):
        for way in ways:
            seconds = way.run()
            if number >= 0:
                way.seconds.append(seconds)
        log("warmed up" if number < 0 else f"round {number + 1} of {setting.rounds}")
    return ways


def table(ways: Sequence[Steps]) -> list[str]:
    """One line per way, with its ratio to the plain base."""
    lines = [
        "| rows per member | members | base | tokens per step | CPU ms per step and member (min to max) | over plain |",
        "|---|---|---|---|---|---|",
    ]
    for way in ways:
        plain = next(o for o in ways if (o.kind, o.members, o.rows) == ("none", way.members, way.rows))
        low, high = (1000 * value / way.members for value in (min(way.seconds), max(way.seconds)))
        lines.append(
            f"| {way.rows} | {way.members} | {way.kind} | {way.tokens:,} | {way.milliseconds:,.0f} ({low:,.0f} to"
            f" {high:,.0f}) | {way.milliseconds / plain.milliseconds:.2f} |"
        )
    return lines


def main(arguments: Sequence[str] | None = None) -> list[Steps]:
    """Measure, print the table, and write it unless it is a quick run without --out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="smollm2-135m")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--members", default="1,5,20")
    parser.add_argument("--mean", type=int, default=75, help="mean tokens of a row")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="one round")
    parser.add_argument("--out", type=Path)
    parsed = parser.parse_args(arguments)
    rounds = 1 if parsed.quick else parsed.rounds
    setting = Setting(
        base=parsed.base, members=tuple(map(int, parsed.members.split(","))), mean=parsed.mean, rounds=rounds
    )
    bases = {kind: Base(parsed.base, parsed.dtype, kind) for kind in KINDS}
    ways = measure(setting, bases)
    stored = ", ".join(f"{kind} {stored_bytes(bases[kind].modules()) / 1e6:,.1f} MB" for kind in KINDS)
    threads = torch.get_num_threads()
    intro = (
        f"{parsed.base} in {parsed.dtype}, {processor()}, {threads} {'thread' if threads == 1 else 'threads'}, torch"
        f" {torch.__version__}, {datetime.date.today()}. Stored: {stored}. Rows of random tokens (mean {parsed.mean}),"
        f" r = 8 on q and v of all layers, token budget {setting.token_budget}; rounds: {rounds}."
    )
    text = "\n".join([f"# Quantized bases: {processor()}", "", intro, "", *table(ways)]) + "\n"
    print(text)
    out = parsed.out or (None if parsed.quick else RESULTS / f"quantized_{hardware()}.md")
    if out is not None:
        atomic_write_text(out, text)
    return ways


if __name__ == "__main__":
    main()

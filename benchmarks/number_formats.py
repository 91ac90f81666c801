"""The base in float32 and in bfloat16 on this CPU: products, training steps and predictions, next to PEFT in the same
format, on rows of similar and of long-tailed lengths.

All ways run in turn in one process. Times are the process's CPU time, so that other jobs on the machine count little;
tokens are the rows' own, without padding, of all members together.

    python benchmarks/number_formats.py                        about 20 minutes on one core
    python benchmarks/number_formats.py --quick                some minutes; printed only
"""

from __future__ import annotations

import argparse
import datetime
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from bench.packed_ways import PackedTraining, make_ensemble
from bench.peft_ways import PeftMembers
from bench.rows import make_rows
from bench.setting import Base, Setting, hardware, log, processor

from lorchestra.config.adapt import BaseConfig
from lorchestra.inference.predict import member_passes, predict_rows
from lorchestra.models.ensemble import EnsembleModel
from lorchestra.models.loading import base_directory
from lorchestra.models.number_format import ProductRates, product_rates, product_shapes
from lorchestra.models.sizes import weight_shapes
from lorchestra.store.atomic import atomic_write_text
from lorchestra.types import EncodedExample

Dtype = Literal["float32", "bfloat16"]
DTYPES: tuple[Dtype, ...] = ("float32", "bfloat16")
LENGTHS = {"similar lengths": 0.1, "long-tailed lengths": 1.0}
"""Standard deviation of the logarithm of a row's length."""
RESULTS = Path(__file__).parent / "results"


@dataclass
class FormatWay:
    """One way of doing a case's work in one format; `run` returns its tokens."""

    case: str
    name: str
    dtype: Dtype
    run: Callable[[int], int]
    rates: list[float] = field(default_factory=list)
    """Tokens per second of CPU time, by round."""

    @property
    def median(self) -> float:
        """Of the rounds."""
        return statistics.median(self.rates)


def time_in_turns(ways: Sequence[FormatWay], rounds: int) -> None:
    """Run every way once to warm up, then all of them once per round."""
    for number in range(-1, rounds):
        for way in ways:
            started = time.process_time()
            tokens = way.run(max(number, 0))
            rate = tokens / (time.process_time() - started)
            if number >= 0:
                way.rates.append(rate)
            what = "warm-up" if number < 0 else f"round {number + 1} of {rounds}"
            log(f"{way.case}, {what}: {way.name} {way.dtype} {rate:,.0f} tokens per CPU second")


def make_peft(base: Base, model: EnsembleModel) -> PeftMembers:
    """The first member by PEFT.

    The head's input is made contiguous, in PEFT's favour: as transformers slices it, torch copies the head's weight
    once per row in bfloat16, which would take two thirds of a prediction.
    """
    modules = base.modules()
    modules.get_output_embeddings().register_forward_pre_hook(lambda head, inputs: (inputs[0].contiguous(),))
    return PeftMembers(modules, model.adapters, model.adapt, 1)


def training_ways(
    bases: dict[Dtype, Base], setting: Setting, rows: list[EncodedExample], layers: str, case: str
) -> list[FormatWay]:
    """Steps of one member by PEFT, and of all by lorchestra."""
    ways = []
    for dtype, base in bases.items():
        packed = PackedTraining(base, setting, rows, setting.main, "q+v", layers)
        peft = make_peft(base, packed.trainer.model)

        def peft_step(number: int, packed: PackedTraining = packed, peft: PeftMembers = peft) -> int:
            items = [item for item in packed.trainer.step_items(number) if item.member == 0]
            peft.train(items, "a1")
            return sum(item.example.num_tokens for item in items)

        def packed_step(number: int, packed: PackedTraining = packed) -> int:
            return packed.step()[0]

        ways += [
            FormatWay(case, "PEFT, padded batches", dtype, peft_step),
            FormatWay(case, f"lorchestra, M = {setting.main}", dtype, packed_step),
        ]
    return ways


def prediction_ways(
    bases: dict[Dtype, Base], setting: Setting, rows: list[EncodedExample], layers: str, case: str
) -> list[FormatWay]:
    """All members' predictions of all rows, by PEFT in padded batches of similar lengths, and by lorchestra."""
    ways, tokens = [], sum(row.num_tokens for row in rows)
    for dtype, base in bases.items():
        model = make_ensemble(base, setting.main, "q+v", layers)
        peft = make_peft(base, model)

        def peft_predict(number: int, peft: PeftMembers = peft) -> int:
            peft.predict(rows, "b", setting.batch)
            return tokens

        def packed_predict(number: int, model: EnsembleModel = model) -> int:
            predict_rows(model, rows, member_passes(range(setting.main)), setting.token_budget)
            return tokens * setting.main

        ways += [
            FormatWay(case, "PEFT, padded batches", dtype, peft_predict),
            FormatWay(case, f"lorchestra, M = {setting.main}", dtype, packed_predict),
        ]
    return ways


def table(ways: Sequence[FormatWay]) -> list[str]:
    """One line per way, with its ratio to float32 and to PEFT in the same format."""
    lines = [
        "| case | way | format | tokens per CPU second (min to max) | over float32 | over PEFT |",
        "|---|---|---|---|---|---|",
    ]
    for way in ways:
        same_case = [other for other in ways if other.case == way.case]
        full = next(other for other in same_case if other.name == way.name and other.dtype == "float32")
        peft = next(other for other in same_case if other.name.startswith("PEFT") and other.dtype == way.dtype)
        figure = f"{way.median:,.0f} ({min(way.rates):,.0f} to {max(way.rates):,.0f})"
        ratios = f"{way.median / full.median:.2f} | {way.median / peft.median:.2f}"
        lines.append(f"| {way.case} | {way.name} | {way.dtype} | {figure} | {ratios} |")
    return lines


def measure(setting: Setting) -> tuple[ProductRates, list[FormatWay]]:
    """The products' rates, and all ways with their measurements."""
    shapes = product_shapes(weight_shapes(base_directory(BaseConfig(name=setting.base))))
    rates = product_rates(shapes or {(512, 512): 1}, setting.token_budget)
    bases = {dtype: Base(setting.base, dtype) for dtype in DTYPES}
    done: list[FormatWay] = []
    for lengths, spread in LENGTHS.items():
        count = setting.batch * (2 if setting.quick else 8)
        rows = make_rows(count, setting.mean, bases["float32"].vocab_size, spread=spread)
        for layers in bases["float32"].layers:
            for what, make in (("training", training_ways), ("prediction", prediction_ways)):
                ways = make(bases, setting, rows, layers, f"{what}, {layers}, {lengths}")
                time_in_turns(ways, setting.rounds)
                done += ways
    return rates, done


def main(arguments: Sequence[str] | None = None) -> list[FormatWay]:
    """Measure, print the table, and write it unless it is a quick run without --out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="smollm2-135m")
    parser.add_argument("--members", type=int, default=5)
    parser.add_argument("--mean", type=int, default=75, help="mean tokens of a row")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="few rows and one round")
    parser.add_argument("--out", type=Path)
    parsed = parser.parse_args(arguments)
    rounds = 1 if parsed.quick else parsed.rounds
    setting = Setting(base=parsed.base, main=parsed.members, mean=parsed.mean, rounds=rounds, quick=parsed.quick)
    rates, ways = measure(setting)
    threads = torch.get_num_threads()
    machine = f"{processor()}, {threads} {'thread' if threads == 1 else 'threads'}, torch {torch.__version__}"
    intro = (
        f"{parsed.base}, {machine}, {datetime.date.today()}. CPU time of the process, rounds: {rounds}; r = 8 on q and"
        f" v, 8 rows per member and step or padded batch, rows of random tokens (mean {parsed.mean}), token budget"
        f" {setting.token_budget}. On the last third, lorchestra's training steps take the trunk from its cache, and"
        " its predictions compute it once per row. PEFT gets a contiguous input of the head, without which torch"
        " copies the head's weight per row in bfloat16."
    )
    lines = [f"# Number formats: {processor()}", "", intro, "", rates.sentence() + ".", "", *table(ways)]
    text = "\n".join(lines) + "\n"
    print(text)
    out = parsed.out or (None if parsed.quick else RESULTS / f"number_formats_{hardware()}.md")
    if out is not None:
        atomic_write_text(out, text)
    return ways


if __name__ == "__main__":
    main()

"""All-layer training as a fraction of the machine's speed in matrix products."""

from __future__ import annotations

import statistics
import time

import torch

from bench.flops import Shape, shape_of, steps_flops
from bench.packed_ways import PackedTraining
from bench.rows import make_rows
from bench.setting import RANK, TARGETS, Base, Setting, log
from bench.table import Row, Section
from lorchestra.models.patching import decoder_layers
from lorchestra.nn.packing import pack, plan_micro_batches

SQUARES = (1024, 2048, 4096)


def measure_limit(base: Base, setting: Setting) -> Section:
    """Operations per second of training steps over those of float32 products, measured in turn."""
    examples = make_rows(8 * setting.batch, setting.mean, base.vocab_size)
    training = PackedTraining(base, setting, examples, setting.main, "q+v", "all layers")
    training.warm_up()
    shape = shape_of(decoder_layers(base.modules())[0], base.num_layers)
    achieved, at_shapes, at_squares, needed, tokens = [], [], [], 0, 0
    for number in range(setting.rounds):
        at_shapes.append(shapes_rate(shape, setting.token_budget))
        at_squares.append(max(_rate(n, n, n) for n in (SQUARES[:2] if setting.quick else SQUARES)))
        flops = _step_flops(training, shape, setting)
        started = time.perf_counter()
        count, _ = training.step()
        achieved.append(flops / (time.perf_counter() - started))
        needed, tokens = needed + flops, tokens + count
        log(f"limit, round {number + 1} of {setting.rounds}: {achieved[-1] / 1e9:,.0f} GFLOP/s")
    case = "limit, training, q+v, all layers"
    members = str(setting.main)
    rows = [
        Row(case, "packed, needed operations per second", members, _giga(achieved)),
        Row(case, "torch.mm at the step's shapes, all tokens of a micro-batch", "", _giga(at_shapes)),
        Row(case, "torch.mm of large squares, best size", "", _giga(at_squares)),
        Row(case, "packed, over torch.mm at the step's shapes", members, _fraction(achieved, at_shapes)),
        Row(case, "packed, over torch.mm of large squares", members, _fraction(achieved, at_squares)),
    ]
    per_token = needed / tokens
    note = (
        f"Limit: {per_token / 1e9:.3f} GFLOP per token are needed (`benchmarks/bench/flops.py` defines the count);"
        f" torch.mm at the step's shapes would do {statistics.median(at_shapes) / per_token:,.0f} tokens/s, at large"
        f" squares {statistics.median(at_squares) / per_token:,.0f}. Unneeded work does not count as achieved:"
        " it lowers the fraction."
    )
    return Section(rows, [note], {"flops per token": per_token})


def _step_flops(training: PackedTraining, shape: Shape, setting: Setting) -> int:
    """Operations that the next step needs."""
    trainer = training.trainer
    planned = plan_micro_batches(trainer.step_items(trainer.state.step), setting.token_budget, trainer.shared)
    adapted = TARGETS["q+v"]
    return steps_flops(shape, (pack(items, "cpu", trainer.shared) for items in planned), adapted, RANK)


def shapes_rate(shape: Shape, tokens: int) -> float:
    """Operations per second of a layer's frozen maps in turn, forward and gradient of the input."""
    flops = seconds = 0.0
    for inputs, outputs in shape.maps.values():
        for a, b in ((inputs, outputs), (outputs, inputs)):
            work = 2.0 * tokens * a * b
            flops, seconds = flops + work, seconds + work / _rate(tokens, a, b)
    return flops / seconds


def _rate(rows: int, inner: int, columns: int) -> float:
    """Operations per second of torch.mm in float32, `[rows, inner]` by `[inner, columns]`; median of repeats."""
    x, weight = torch.randn(rows, inner), torch.randn(inner, columns)
    out = torch.empty(rows, columns)
    torch.mm(x, weight, out=out)
    times: list[float] = []
    while len(times) < 3 or (sum(times) < 0.2 and len(times) < 1000):
        started = time.perf_counter()
        torch.mm(x, weight, out=out)
        times.append(time.perf_counter() - started)
    return 2.0 * rows * inner * columns / statistics.median(times)


def _spread(values: list[float], unit: str) -> str:
    return f"{statistics.median(values):,.0f} {unit} ({min(values):,.0f} to {max(values):,.0f})"


def _giga(values: list[float]) -> str:
    return _spread([value / 1e9 for value in values], "GFLOP/s")


def _fraction(achieved: list[float], limit: list[float]) -> str:
    ratios = [a / b for a, b in zip(achieved, limit, strict=True)]
    return f"{statistics.median(ratios):.0%} ({min(ratios):.0%} to {max(ratios):.0%})"

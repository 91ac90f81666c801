"""How often the 95 % intervals of the evaluation contain the true value, on simulated models with known true values.

    python benchmarks/coverage.py            about a quarter of an hour on one core
    python benchmarks/coverage.py --quick    a minute, to see that it runs

Rows are drawn from models with known probabilities: answers follow softmax(z), z normal, and the evaluated model
predicts softmax(a z) with a = 1 (calibrated), 2 (over-confident) or 0.5 (under-confident); "easy" is calibrated with
few errors. It is compared with a model of noisier scores. True values come from a million rows. Percentile bootstrap
intervals are listed as well, for the metrics that do not use them. A set without an interval counts in the share in
brackets, not in the coverage.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterator

import numpy as np
from bench.setting import processor

from lorchestra.metrics.intervals import COMPARED, Ends, difference_intervals, judge, method_intervals
from lorchestra.metrics.predictive import FloatArray, IntArray
from lorchestra.metrics.scores import RESAMPLED, all_metrics, bootstrap, interval, score_rows
from lorchestra.metrics.table import AUTOMATED

KINDS = {"calibrated": (2.0, 1.0, 1.5), "over": (2.0, 2.0, 2.5), "under": (2.0, 0.5, 0.9), "easy": (8.0, 1.0, 1.5)}
"""Spread of the true scores, and the factors of the evaluated model and of the one it is compared with."""

CLASSES = (2, 4)
ROWS = (10, 20, 60, 200, 500, 2000)
NOISE = 0.7
RESAMPLES = 500


def log_softmax(scores: FloatArray) -> FloatArray:
    scores = scores - scores.max(axis=-1, keepdims=True)
    return np.asarray(scores - np.log(np.exp(scores).sum(axis=-1, keepdims=True)))


def draw(generator: np.random.Generator, rows: int, classes: int, kind: str) -> tuple[dict[str, FloatArray], IntArray]:
    """The log-probabilities of both models, and the answers."""
    spread, factor, other = KINDS[kind]
    scores = spread * generator.normal(size=(rows, classes))
    below = np.exp(log_softmax(scores)).cumsum(axis=1) < generator.random((rows, 1))
    labels = np.minimum(below.sum(axis=1), classes - 1)
    noisy = scores + NOISE * generator.normal(size=scores.shape)
    return {"model": log_softmax(factor * scores), "other": log_softmax(other * noisy)}, labels


def truths(classes: int, kind: str) -> dict[str, float]:
    """True values of the metrics, and of the differences under "minus"."""
    distributions, labels = draw(np.random.default_rng(99), 1_000_000, classes, kind)
    values = {name: all_metrics(log_probs, labels) for name, log_probs in distributions.items()}
    if kind in ("calibrated", "easy"):
        values["model"]["ece"] = 0.0
    metrics = {metric: values["model"][metric] for metric in RESAMPLED}
    return metrics | {f"minus {m}": values["model"][m] - values["other"][m] for m in (*COMPARED, "ece")}


def intervals_of(distributions: dict[str, FloatArray], labels: IntArray, seed: int) -> Iterator[tuple[str, Ends]]:
    """Every interval by name; those that the evaluation does not use end in "(percentile)"."""
    scores = {name: score_rows(log_probs, labels) for name, log_probs in distributions.items()}
    draws = bootstrap(scores, RESAMPLES, seed)
    model, other = (judge(scores, draws, name) for name in ("model", "other"))
    intervals = method_intervals(model, seed)
    yield from ((metric, intervals[metric]) for metric in RESAMPLED)
    for metric in ("accuracy", "signed_gap", "ece", *AUTOMATED):
        yield f"{metric} (percentile)", interval(draws["model"][metric])
    yield from ((f"minus {metric}", ends) for metric, ends in difference_intervals(model, other).items())
    for metric in ("accuracy", "ece"):
        yield f"minus {metric} (percentile)", interval(draws["model"][metric] - draws["other"][metric])


def coverage(rows: int, classes: int, kind: str, sets: int) -> dict[str, tuple[float | None, float]]:
    """By interval: how often it contains the true value, if it exists; and how often it exists."""
    true = truths(classes, kind)
    generator = np.random.default_rng([rows, classes])
    held: dict[str, list[bool | None]] = defaultdict(list)
    for seed in range(sets):
        for name, ends in intervals_of(*draw(generator, rows, classes, kind), seed):
            value = true[name.removesuffix(" (percentile)")]
            held[name].append(None if ends is None else ends[0] <= value <= ends[1])
    return {name: _share(values) for name, values in held.items()}


def _share(values: list[bool | None]) -> tuple[float | None, float]:
    known = [value for value in values if value is not None]
    return (float(np.mean(known)) if known else None), len(known) / len(values)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", type=int, default=400, help="simulated evaluations per line")
    parser.add_argument("--quick", action="store_true", help="few sets and rows")
    args = parser.parse_args()
    sets, sizes = (20, ROWS[:3]) if args.quick else (args.sets, ROWS)
    print(f"# Coverage of the 95 % intervals, in percent: {sets} simulated sets per cell\n")
    print(f"{processor()}; {RESAMPLES} resamples. In brackets: share of sets that have an interval, if not all.\n")
    columns = [f"{kind} {classes}" for kind in KINDS for classes in CLASSES]
    for rows in sizes:
        cells = [
            coverage(rows, classes, kind, sets if rows < 2000 else sets // 2) for kind in KINDS for classes in CLASSES
        ]
        print(f"\n## {rows} rows\n\n| | {' | '.join(columns)} |\n|---{'|---' * len(columns)}|")
        for name in cells[0]:
            print(f"| {name} | {' | '.join(_cell(*cell[name]) for cell in cells)} |", flush=True)


def _cell(share: float | None, given: float) -> str:
    if share is None:
        return "none"
    return f"{100 * share:.0f}" + ("" if given == 1 else f" ({100 * given:.0f})")


if __name__ == "__main__":
    main()

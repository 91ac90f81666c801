"""What a distilled run retains of its ensemble's gain over one LoRA, on the test rows of all of them.

The ensemble and the distilled runs are finished runs on the same rows; those that were not evaluated yet are. One LoRA
is the mean over the ensemble's members, each with a temperature; the ensemble and the distilled runs are calibrated as
they are. All differences are paired.

    python benchmarks/distill.py RUN forward=RUN_FORWARD reverse=RUN_REVERSE [--out FILE]
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

from lorchestra.errors import CheckpointError
from lorchestra.metrics.calibrator import pooled
from lorchestra.metrics.intervals import Judged, difference_intervals, judge
from lorchestra.metrics.predictive import FloatArray, apply_temperature, information
from lorchestra.metrics.scores import auroc, bootstrap, interval, score_rows
from lorchestra.metrics.table import BY_KEY
from lorchestra.metrics.temperature import regularized_temperature
from lorchestra.report.html.source import same_rows
from lorchestra.runs.ensemble import Ensemble
from lorchestra.store.atomic import atomic_write_text
from lorchestra.store.run import Run
from lorchestra.types import Predictions

SHOWN = ("aurc", "nll", "confident_errors", "automated_5")
RESAMPLES = 2_000


@dataclass(frozen=True)
class Evaluated:
    """A run's predictions of test and validation rows, and its calibrated mixture of the former."""

    test: Predictions
    val: Predictions
    mixture_EC: FloatArray

    @classmethod
    def of(cls, root: str) -> Evaluated:
        """The predictions of a finished run: saved ones, or made now."""
        run = Run.at(root)
        record = run.read_ensemble()
        try:
            test, val = (run.load_predictions(record.task, split) for split in ("test", "val"))
        except CheckpointError:
            Ensemble.load(root).evaluate()
            test, val = (run.load_predictions(record.task, split) for split in ("test", "val"))
        calibration = run.read_calibration(record)
        return cls(test, val, pooled(test.log_probs_MEC, None if calibration is None else calibration.calibration))


def scaled_members(ensemble: Evaluated) -> dict[str, FloatArray]:
    """Each member with a temperature from the validation rows."""
    scaled = {}
    for m, (test_EC, val_EC) in enumerate(zip(ensemble.test.log_probs_MEC, ensemble.val.log_probs_MEC, strict=True)):
        fit = regularized_temperature(val_EC, ensemble.val.labels, ensemble.val.options)
        scaled[f"member {m}"] = test_EC if fit.T is None else apply_temperature(test_EC, fit.T)
    return scaled


def report(ensemble: Evaluated, students: Mapping[str, Evaluated], seed: int) -> Iterator[str]:
    """The tables, in Markdown."""
    labels_E, members = ensemble.test.labels, scaled_members(ensemble)
    mixtures = {"ensemble": ensemble.mixture_EC} | {name: one.mixture_EC for name, one in students.items()}
    scores = {name: score_rows(log_probs, labels_E) for name, log_probs in (members | mixtures).items()}
    draws = bootstrap(scores, RESAMPLES, seed)
    methods = {"one LoRA": judge(scores, draws, *members)} | {name: judge(scores, draws, name) for name in mixtures}
    metrics = [BY_KEY[key] for key in SHOWN]
    yield f"{len(labels_E):,} test rows, {len(members)} members, {RESAMPLES:,} resamples, seed {seed}.\n"
    yield _row(["method, with temperature", *(metric.heading for metric in metrics)])
    yield _row(["---"] * (1 + len(metrics)))
    for name, method in methods.items():
        yield _row([name, *(metric.number(method.points()[metric.key]) for metric in metrics)])
    yield "\nDifferences, with 95 % intervals, and the share of the ensemble's gain that is retained:\n"
    yield _row(["metric", "ensemble - one LoRA", *(f"{s} - {o}" for s in students for o in ("one LoRA", "ensemble"))])
    yield _row(["---"] * (2 + 2 * len(students)))
    for metric in metrics:
        cells = [_difference(methods["ensemble"], methods["one LoRA"], metric.key)]
        for name in students:
            cells += [_difference(methods[name], methods[other], metric.key) for other in ("one LoRA", "ensemble")]
        yield _row([metric.heading, *cells])
    yield ""
    for name in students:
        shares = [f"{metric.heading} {_retained(methods, name, metric.key)}" for metric in metrics]
        yield f"- {name}, retained: {'; '.join(shares)}"
    yield from _information(ensemble, students)


def _difference(one: Judged, other: Judged, key: str) -> str:
    metric, ends = BY_KEY[key], difference_intervals(one, other)[key]
    point = metric.number(one.points()[key] - other.points()[key], signed=True)
    return point if ends is None else f"{point} [{', '.join(metric.number(end, signed=True) for end in ends)}]"


def _retained(methods: Mapping[str, Judged], name: str, key: str) -> str:
    """The share of the gain; its interval only where the gain itself is clear, since it is divided by it."""
    one, many, student = (methods[method] for method in ("one LoRA", "ensemble", name))
    gain = many.points()[key] - one.points()[key]
    share = f"{100 * (student.points()[key] - one.points()[key]) / gain:.0f} %" if gain else "no gain"
    ends = difference_intervals(many, one)[key]
    if ends is None or ends[0] <= 0 <= ends[1]:
        return f"{share} (the gain itself is not clear)"
    ratios = (student.draws[key] - one.draws[key]) / (many.draws[key] - one.draws[key])
    low, high = interval(ratios) or (np.nan, np.nan)
    return f"{share} [{100 * low:.0f}, {100 * high:.0f}]"


def _information(ensemble: Evaluated, students: Mapping[str, Evaluated]) -> Iterator[str]:
    """How predicted mutual information compares with the ensemble's, on the test rows."""
    true_E = information(ensemble.test)
    yield "\nMutual information of the test rows (nats), and AUROC of wrong answers by it:\n"
    yield _row(["method", "mean", "rank correlation", "R²", "AUROC of errors"])
    yield _row(["---"] * 5)
    for name, one in {"ensemble": ensemble, **students}.items():
        values_E = information(one.test)
        wrong_E = one.mixture_EC.argmax(axis=1) != one.test.labels
        explained = 1 - float(((values_E - true_E) ** 2).mean() / true_E.var())
        if np.ptp(values_E) == 0:  # one member that does not predict it
            continue
        rank = float(spearmanr(values_E, true_E).statistic)
        errors = auroc(values_E[~wrong_E], values_E[wrong_E])
        yield _row([name, f"{values_E.mean():.4f}", f"{rank:.3f}", f"{explained:.3f}", f"{errors:.3f}"])


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    """Compare the runs, print the tables, and write them."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("ensemble", help="the ensemble's run directory")
    parser.add_argument("students", nargs="+", metavar="NAME=RUN", help="distilled runs, each with a name")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="Markdown file to write")
    args = parser.parse_args()
    ensemble = Evaluated.of(args.ensemble)
    students = {name: Evaluated.of(root) for name, _, root in (one.partition("=") for one in args.students)}
    for name, one in students.items():
        if not same_rows(one.test, ensemble.test):
            raise SystemExit(f"{name}: was evaluated on other rows than {args.ensemble}")
    text = "\n".join(report(ensemble, students, args.seed))
    print(text)
    if args.out is not None:
        atomic_write_text(args.out, text + "\n")


if __name__ == "__main__":
    main()

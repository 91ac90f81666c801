"""What the demo's ensemble, and one LoRA with a temperature, may decide without a person: certified and measured."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.table import Table

from lorchestra.demo.run import TASK
from lorchestra.metrics.calibrator import Calibration, pooled
from lorchestra.metrics.certificates import Certificate, certify
from lorchestra.metrics.predictive import FloatArray
from lorchestra.metrics.temperature import regularized_temperature
from lorchestra.runs.build import torch_threads
from lorchestra.runs.ensemble import Ensemble
from lorchestra.training.callbacks import Callback, progress
from lorchestra.types import Predictions

TARGETS = (0.05, 0.10)
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Decided:
    """One certificate, and what its threshold does with the test rows.

    `test_automated` and `test_errors` count test rows, of `num_test`.
    """

    way: str
    certificate: Certificate
    test_automated: int
    test_errors: int
    num_test: int


def decide(trained: Ensemble, certify_file: Path, callback: Callback) -> list[Decided]:
    """Certify the ensemble and each member with a temperature on rows that none of them has seen.

    Args:
        trained: the finished, evaluated demo.
        certify_file: the certifying rows.
        callback: reports progress.
    """
    examples = trained.read(certify_file, require_answer=True)
    report = progress(callback, "ensemble on the certifying rows", len(examples))
    with torch_threads(trained.config.base.threads):
        certifying = trained.pipeline.predict_members(examples, "certify", report)
    parts = (certifying, *(trained.run.load_predictions(TASK, split, answered=True) for split in ("val", "test")))
    decided = _decided("ensemble", parts, trained.calibration)
    for m in range(certifying.num_members):
        alone = tuple(dataclasses.replace(part, log_probs_MEC=part.log_probs_MEC[m : m + 1]) for part in parts)
        fit = regularized_temperature(alone[1].log_probs_MEC[0], alone[1].labels, alone[1].options)
        scaled = None if fit.T is None else Calibration("temperature", "", fit.num_rows, temperature=fit.T)
        decided += _decided(f"member {m}", alone, scaled)
    return decided


def _decided(way: str, parts: Sequence[Predictions], calibration: Calibration | None) -> list[Decided]:
    """One result per target, of certifying, validation and test rows; ranked by the largest probability."""
    (scores_E, correct_E), (reference_E, _), (test_E, right_E) = (_ranked(part, calibration) for part in parts)
    decided = []
    for target in TARGETS:
        certificate = certify(scores_E, correct_E, target, CONFIDENCE, reference_scores_E=reference_E)
        automated_E = test_E >= (np.inf if certificate.threshold is None else certificate.threshold)
        errors = int((automated_E & ~right_E).sum())
        decided.append(Decided(way, certificate, int(automated_E.sum()), errors, len(test_E)))
    return decided


def _ranked(predictions: Predictions, calibration: Calibration | None) -> tuple[FloatArray, np.ndarray]:
    log_probs_EC = pooled(predictions.log_probs_MEC, calibration)
    return np.exp(log_probs_EC.max(axis=1)), log_probs_EC.argmax(axis=1) == predictions.labels


def decision_table(decided: Sequence[Decided]) -> Table:
    """The ensemble, and the mean over members, at each target."""
    first = decided[0].certificate
    table = Table(
        title="How much can be decided without a person?",
        title_justify="left",
        caption=(
            f"Certified on {first.num_rows:,} other headlines: with {100 * CONFIDENCE:.0f} % confidence each, at most"
            " that share of the automated ones is wrong. Test rows: the share of"
            f" {decided[0].num_test:,} that is automated, and how many of these are wrong. One LoRA + T: mean of"
            f" {len(decided) // len(TARGETS) - 1} members, each with a temperature; where a certificate is refused,"
            " nothing is automated."
        ),
        caption_justify="left",
        box=SIMPLE_HEAD,
    )
    table.add_column("Error", no_wrap=True)
    table.add_column("Decided by", no_wrap=True)
    for title in ("Certified", "Interval", "Test rows", "Wrong"):
        table.add_column(title, justify="right", no_wrap=True)
    for target in TARGETS:
        chosen = [one for one in decided if one.certificate.target_error == target]
        ensemble, members = chosen[0], chosen[1:]
        table.add_row(f"<= {100 * target:.0f} %", "ensemble", *_cells([ensemble]))
        table.add_row("", "one LoRA + T", *_cells(members))
    return table


def _cells(chosen: Sequence[Decided]) -> list[str]:
    shares = [one.certificate.coverage if one.certificate.threshold is not None else 0.0 for one in chosen]
    automated, errors = (sum(getattr(one, name) for one in chosen) for name in ("test_automated", "test_errors"))
    refused = sum(one.certificate.threshold is None for one in chosen)
    interval = chosen[0].certificate.coverage_interval if len(chosen) == 1 else None
    share = f"{100 * float(np.mean(shares)):.1f} %"
    if refused:
        share = "refused" if len(chosen) == 1 else f"{share} ({refused} refused)"
    measured = automated / sum(one.num_test for one in chosen)
    return [
        share,
        "" if interval is None else f"{100 * interval[0]:.1f} to {100 * interval[1]:.1f}",
        f"{100 * measured:.1f} %",
        "" if not automated else f"{100 * errors / automated:.1f} %",
    ]

"""Compare new rows with those that certified a run's threshold: does the guarantee still hold?"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lorchestra.data.splits import content_digest
from lorchestra.errors import ConfigError, DataError
from lorchestra.inference.pipeline import Pipeline
from lorchestra.metrics.calibrator import Calibration
from lorchestra.metrics.monitoring import AutomatedErrors, Monitoring, compare, profile
from lorchestra.runs.one_question import question_of, rows_with
from lorchestra.training.callbacks import Callback, CallbackList, progress
from lorchestra.types import Example, Predictions

if TYPE_CHECKING:
    from lorchestra.metrics.decisions import Decisions
    from lorchestra.runs.ensemble import Ensemble

FEWEST_ROWS = 20
"""With fewer new rows nothing but an absurd change could be noticed."""


def monitor_run(
    trained: Ensemble,
    data: str | Path | Sequence[Example],
    false_alarm: float,
    question: str | None,
    callbacks: Sequence[Callback],
) -> Monitoring:
    """What `Ensemble.monitor` does."""
    if isinstance(false_alarm, bool) or not isinstance(false_alarm, int | float) or not 0 < false_alarm < 1:
        raise ConfigError(f"false_alarm: {false_alarm!r} is not a number between 0 and 1")
    asked = question_of(trained, question)
    record = trained.run.read_calibration(trained.record)
    if record is not None and asked is not None:
        record = record.of_question(asked.name)
    saved = None if record is None else record.saved_decisions
    if record is None or saved is None or saved.reference is None:
        raise ConfigError(
            f"{trained.run.root}: has no certifying rows to compare others with; run lorchestra calibrate"
            f" {trained.run.root} first"
        )
    examples = trained.read(data, require_answer=False) if isinstance(data, str | Path) else tuple(data)
    examples = rows_with(examples, asked)
    source = Path(data).name if isinstance(data, str | Path) else "given rows"
    if len(examples) < FEWEST_ROWS:
        raise DataError(f"{source}: {len(examples)} rows are too few to compare; give at least {FEWEST_ROWS}")
    report = progress(CallbackList(callbacks), f"ensemble on {source}", len(examples))
    predictions = trained.pipeline.predict_members(examples, "new", report)
    new = profile(predictions, record.calibration, num_prompt_tokens(trained.pipeline, examples), source)
    parts = [*map(content_digest, examples), *([] if asked is None else [asked.name])]
    digest = hashlib.sha256("".join(parts).encode()).hexdigest()
    looks = trained.run.read_looks()
    monitoring = compare(
        saved.reference,
        new,
        look=1 + (looks.index(digest) if digest in looks else len(looks)),
        false_alarm=false_alarm,
        automated=_automated_errors(predictions, saved.decisions, record.calibration),
        seed=trained.config.train.seed,
    )
    if trained.run.why_read_only() is None:
        trained.run.write_look(digest, monitoring.to_dict())
    return monitoring


def num_prompt_tokens(pipeline: Pipeline, examples: Sequence[Example]) -> list[int]:
    """Tokens of each row's prompt, of the rows that are not dropped for their length."""
    return [len(row.prefix) for row in pipeline.tokenize(examples, pipeline.data.too_long).rows]


def _automated_errors(
    predictions: Predictions, decisions: Decisions, calibration: Calibration
) -> AutomatedErrors | None:
    """The errors among automated rows with a label; None without labels, or without one threshold for all rows."""
    known_E = predictions.labels >= 0
    certificate = decisions.certificates[0]
    if not known_E.any() or certificate.threshold is None or decisions.classes is not None:
        return None
    log_probs_EC, automated_E = decisions.decide(
        predictions.log_probs_MEC, calibration, predictions.predicted_information
    )
    wrong_E = log_probs_EC.argmax(axis=1) != predictions.labels
    # the error among automated rows, or among all rows, as it was certified
    counted_E = known_E & automated_E if certificate.error_of == "automated" else known_E
    errors = int((known_E & automated_E & wrong_E).sum())
    return AutomatedErrors(errors, int(counted_E.sum()), certificate.target_error)

"""A cascade of two finished runs: certify it on labelled rows that are new to both, and answer rows by it."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from lorchestra.data.input_rows import InputRow
from lorchestra.data.splits import content_digest
from lorchestra.errors import CheckpointError, ConfigError, DataError
from lorchestra.inference.pipeline import TooLong
from lorchestra.inference.predict import PrefixReuse
from lorchestra.metrics.calibrator import Calibration
from lorchestra.metrics.decisions import Decision, DecisionSettings
from lorchestra.metrics.run_cascade import RunCascade, Runs, certify_runs
from lorchestra.runs.answer_options import AnswerOptions
from lorchestra.runs.calibrate import (
    certifying_rows,
    check_certifying,
    check_new,
    check_settings,
    predict_labelled,
    record_of,
    rows_to_compare,
    used_rows,
)
from lorchestra.runs.evaluate import with_files
from lorchestra.runs.predict import AnsweredChunk, answer_chunk
from lorchestra.runs.rows import with_directory
from lorchestra.store.run_cascade_record import SavedRunCascade
from lorchestra.training.callbacks import Callback, CallbackList
from lorchestra.types import Example

if TYPE_CHECKING:
    from lorchestra.runs.ensemble import Ensemble


def calibrate_runs(
    first: Ensemble,
    second: Ensemble,
    data: str | Path,
    *,
    target_error: float = 0.05,
    confidence: float = 0.95,
    data_dir: str | None = None,
    files: Mapping[str, str | Path | None] = MappingProxyType({}),
    callbacks: Sequence[Callback] = (),
) -> RunCascade:
    """Certify the thresholds of a cascade end to end, and save it in the first run.

    Args:
        first: the cheap run; it answers every row.
        second: the expensive run; it answers the rows of which the first is not sure.
        data: a file with labelled rows that are new to both, in the form of the first run's.
        target_error: highest error rate among the rows that one of the runs answers, in (0, 1).
        confidence: probability of the guarantee, in (0, 1).
        data_dir: the directory with data sets, instead of the one that a run was trained with.
        files: by "train", "val" and "test", where the files of the first run's training are now.
        callbacks: report progress; when one asks to stop, `Interrupted` is raised.

    Raises:
        ConfigError: an option is out of range, or the runs do not have the same labels.
        DataError: rows cannot be read, are too few, or are not new to both runs.
        CheckpointError: a record is damaged, or the first run cannot be written.
    """
    settings, callback = DecisionSettings(target_error, confidence), CallbackList(callbacks)
    check_settings(settings, first.labels)
    _check_runs(first, second)
    record, other = record_of(first), record_of(second)
    if (read_only := first.run.why_read_only()) is not None:
        raise CheckpointError(f"{read_only} The thresholds could not be saved.")
    configs = (
        with_directory(with_files(first.config.data, files), data_dir),
        with_directory(second.config.data, data_dir),
    )
    splits = [
        rows_to_compare(one, config, None).task.splits for one, config in zip((first, second), configs, strict=True)
    ]
    names = [str(one.run.root) for one in (first, second)]
    runs = (first.run, second.run)
    used = [used_rows(*one) for one in zip(splits, (record, other), runs, names, strict=True)]
    examples = first.read(data, require_answer=True)
    for one, name in zip(used, names, strict=True):
        check_new(examples, one, data, name)
    check_certifying(examples, settings, first.labels, str(data))
    calibrations = (record.calibration, other.calibration)
    known, seconds = _predict(first, second, examples, "certifying", calibrations, callback)
    reference, _ = _predict(first, second, _reference(splits), "val", calibrations, callback)
    source, predictions = Path(data).name, known[0][0]
    rows, digests, earlier = certifying_rows(record, source, predictions, reference[0][0].num_examples)
    both = (second.record.digest, _digest(calibrations))
    try:
        cascade = certify_runs(known, reference, settings, rows, seconds, both)
    except ValueError as error:
        raise DataError(f"{source}: {error}") from error
    first.run.write_calibration(record.with_run_cascade(SavedRunCascade(cascade, digests, earlier)))
    return cascade


def run_cascade_of(first: Ensemble, second: Ensemble) -> RunCascade:
    """The certified cascade of two runs.

    Raises:
        ConfigError: there is none, or it was refused.
        CheckpointError: it was certified with another second run, or with other calibrations.
    """
    _check_runs(first, second)
    saved = record_of(first).saved_run_cascade
    again = f"lorchestra calibrate {first.run.root} {second.run.root} --data FILE"
    if saved is None:
        raise ConfigError(f"{first.run.root}: has no cascade with a second run; certify one first: {again}")
    cascade = saved.cascade
    if cascade.second != second.record.digest:
        raise CheckpointError(
            f"{first.run.root}: its cascade was certified with another second run (digest {cascade.second[:12]},"
            f" {second.run.root} has {second.record.digest[:12]}); give that run, or certify again: {again}"
        )
    if cascade.calibrations != _digest((record_of(first).calibration, record_of(second).calibration)):
        raise CheckpointError(
            f"{first.run.root}: a run of its cascade is calibrated differently than when it was certified; restore its"
            f" calibration.json, or certify again: {again}"
        )
    if not cascade.has_threshold:
        raise ConfigError(f"{first.run.root}: the cascade with {second.run.root} was refused: {cascade.guarantee()}")
    return cascade


def answer_chunks_by_runs(
    first: Ensemble,
    second: Ensemble,
    cascade: RunCascade,
    chunks: Iterable[tuple[InputRow, ...]],
    too_long: TooLong | None = None,
) -> Iterator[AnsweredChunk]:
    """Answers to all rows, a chunk at a time: of the first run where it is sure, else of the second.

    `Answer.members_used` counts the members of both runs that have seen the row.
    """
    options = [
        AnswerOptions(None, None, too_long or one.config.data.too_long, one.calibration) for one in (first, second)
    ]
    reuse = PrefixReuse(), PrefixReuse()
    num_first, num_second = len(first.members), len(second.members)
    first_threshold, second_threshold = cascade.thresholds
    for chunk in chunks:
        asked = answer_chunk(first.pipeline, chunk, options[0], reuse[0])
        done = {}
        for answer in asked.answers:
            if answer.confidence is None:
                done[answer.row, answer.question] = answer
            elif answer.confidence >= first_threshold:
                done[answer.row, answer.question] = replace(answer, decision="automate", members_used=num_first)
        left = {(answer.row, answer.question) for answer in asked.answers}.difference(done)
        rest = tuple(row for row in chunk if (row.number, row.question) in left)
        again = answer_chunk(second.pipeline, rest, options[1], reuse[1]) if rest else AnsweredChunk((), (), (), ())
        for answer in again.answers:
            decision: Decision | None = None
            if answer.confidence is not None:
                decision = "automate" if answer.confidence >= second_threshold else "abstain"
            members_used = num_first + num_second
            done[answer.row, answer.question] = replace(answer, decision=decision, members_used=members_used)
        keys = [(row.number, row.question) for row in chunk]
        answers = tuple(done[key] for key in keys if key in done)
        yield AnsweredChunk(chunk, answers, asked.dropped + again.dropped, asked.truncated + again.truncated)


def _check_runs(first: Ensemble, second: Ensemble) -> None:
    """Refuse runs that cannot answer the same rows.

    Raises:
        ConfigError: names the difference.
    """
    if first.record.digest == second.record.digest:
        raise ConfigError(f"{second.run.root}: is the same ensemble as {first.run.root}; a cascade needs two runs")
    if first.record.questions != second.record.questions:
        roots = f"{first.run.root} and {second.run.root}"
        raise ConfigError(f"{roots} do not have the same typed questions; train one with the questions of the other")
    if first.labels == second.labels:
        return
    (name, labels), (other, others) = ((str(one.run.root), one.labels) for one in (first, second))
    if labels is None or others is None:
        questions, texts = (name, other) if labels is None else (other, name)
        raise ConfigError(f"{questions} answers questions with separate choices, and {texts} labels texts")
    if set(labels) == set(others):
        raise ConfigError(f"{name} and {other} have their labels in another order: train one with that of the other")
    missing = sorted(set(labels) ^ set(others))[0]
    owner = name if missing in labels else other
    raise ConfigError(f"{name} and {other} do not have the same labels: {missing!r} is one of {owner} only")


def _predict(
    first: Ensemble,
    second: Ensemble,
    examples: Sequence[Example],
    split: str,
    calibrations: tuple[Calibration, Calibration],
    callback: Callback,
) -> tuple[Runs, tuple[float, float]]:
    """Predictions of both runs with their calibrations, and seconds per row."""
    start = time.perf_counter()
    of_first = predict_labelled(first, examples, split, callback)
    between = time.perf_counter()
    of_second = predict_labelled(second, examples, split, callback)
    if of_first.ids != of_second.ids:
        raise DataError(
            f"{split} rows: {of_first.num_examples} fit into {first.run.root}, and {of_second.num_examples} into"
            f" {second.run.root}; both must answer the same rows: leave out those that are too long for one"
        )
    number = max(len(examples), 1)
    runs = ((of_first, calibrations[0]), (of_second, calibrations[1]))
    return runs, ((between - start) / number, (time.perf_counter() - between) / number)


def _reference(splits: Sequence[Mapping[str, Sequence[Example]]]) -> list[Example]:
    """Validation rows with an answer that neither run was trained on, each once.

    Raises:
        DataError: there are none.
    """
    trained = {content_digest(row) for one in splits for row in one["train"]}
    rows = {content_digest(row): row for one in reversed(splits) for row in one["val"] if row.answer is not None}
    known = [row for digest, row in rows.items() if digest not in trained]
    if not known:
        raise DataError("no validation row is new to both trainings; they fix the thresholds to be tested")
    return known


def _digest(calibrations: tuple[Calibration, Calibration]) -> str:
    text = json.dumps([one.to_dict() for one in calibrations], sort_keys=True)
    return hashlib.sha256(text.encode("ascii")).hexdigest()

"""Answers to a stream of rows: read, encoded and answered in chunks, so that memory does not grow with their number."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

import numpy as np

from lorchestra.data.input_rows import InputRow
from lorchestra.errors import LorchestraError
from lorchestra.inference.pipeline import Pipeline, encode_each
from lorchestra.inference.predict import PrefixReuse
from lorchestra.metrics import predictive
from lorchestra.metrics.calibrator import Calibration, pooled
from lorchestra.metrics.decisions import Decision, Decisions
from lorchestra.metrics.early_exit import first_members
from lorchestra.questions import Question
from lorchestra.runs.answer_options import AnswerOptions, QuestionOptions
from lorchestra.store.schema import COUNT, Shape, check_shape
from lorchestra.types import EarlyExitPredictions, EncodedExample, Example, Json, Predictions

if TYPE_CHECKING:
    import pandas

_MANY, _TOP = 10, 5
"""Of more choices than the first number, lines have the most probable ones, as many as the second."""
CHUNK_ROWS_CPU, CHUNK_ROWS_CUDA = 256, 1024
"""Rows of a chunk: enough to fill some passes, few enough that the first answers come soon."""


@dataclass(frozen=True)
class Answer:
    """The ensemble's answer to one row: what a line of `lorchestra predict` holds.

    Without an answer (`error` says why), `prediction` and everything that follows from it are None.

    Attributes:
        id: the row's id; ids may repeat.
        row: its number, from 1.
        choices: what it could choose from.
        prediction, prediction_index: the most probable choice's text and index.
        label, label_index: the right choice, if it is known.
        confidence: probability of the prediction.
        probs: probability of each choice under the calibrated mixture of members.
        member_probs: those of each member, which are not calibrated.
        entropy: of `probs`, in nats.
        mutual_information: of answer and member, in nats: how far the members, as they are, disagree; of a distilled
            run, as predicted for the ensemble that taught it.
        disagreement: share of pairs of members with different predictions.
        calibrated: whether `probs` are calibrated; False where they are the mixture as it is; None without an answer.
        abstain: whether the confidence is below the threshold that was given; None without one.
        decision: "automate" or "abstain", by the run's certified threshold; None without one.
        prediction_set: the choices that fit, by the run's prediction sets; it may be empty. None without such sets.
        error: why there is no answer.
        input: the row's columns, except id and choices.
        members_used: how many members answered; None without early exit or a cascade.
        question: the typed question's name; None for rows without one.
        score: the expected level, from 0, of a question of type score; None otherwise.
        trained: whether the run was trained on the typed question; None for rows without one.
        information_predicted: whether `mutual_information` is predicted, by a distilled run.
    """

    id: str
    row: int
    choices: tuple[str, ...] | None = None
    prediction: str | None = None
    prediction_index: int | None = None
    label: str | None = None
    label_index: int | None = None
    confidence: float | None = None
    probs: tuple[float, ...] | None = None
    member_probs: tuple[tuple[float, ...], ...] | None = None
    entropy: float | None = None
    mutual_information: float | None = None
    disagreement: float | None = None
    calibrated: bool | None = None
    abstain: bool | None = None
    decision: Decision | None = None
    prediction_set: tuple[str, ...] | None = None
    error: str | None = None
    input: Mapping[str, object] = field(default_factory=lambda: MappingProxyType({}))
    members_used: int | None = None
    question: str | None = None
    score: float | None = None
    trained: bool | None = None
    information_predicted: bool = False

    @property
    def prediction_text(self) -> str | None:
        """`prediction` under its earlier name."""
        return self.prediction

    def top(self, number: int) -> list[dict[str, object]]:
        """The most probable choices, most probable first: each its `choice` and `prob`; empty without an answer."""
        if self.choices is None or self.probs is None:
            return []
        pairs = sorted(zip(self.choices, self.probs, strict=True), key=lambda pair: -pair[1])  # stable: ties in order
        return [{"choice": choice, "prob": prob} for choice, prob in pairs[:number]]

    def to_dict(self, *, early_exit: bool = False, top: int | None = None) -> dict[str, object]:
        """The fields of a JSON line.

        Args:
            early_exit: whether `members_used` is one of them, even if it is None (early exit, or a cascade).
            top: with more choices than that, `top` (see the method) instead of `choices`, `probs`, `member_probs`.
        """
        values = self._fields(early_exit)
        if top is None or self.choices is None or len(self.choices) <= top:
            return values
        cut: dict[str, object] = {}
        for name, value in values.items():
            if name == "choices":
                cut["num_choices"] = len(self.choices)
            elif name == "probs":
                cut["top"] = self.top(top)
            elif name != "member_probs":
                cut[name] = value
        return cut

    def _fields(self, early_exit: bool) -> dict[str, object]:
        """All fields of a JSON line."""
        probs, members = self.probs, self.member_probs
        values: dict[str, object] = {
            "id": self.id,
            "row": self.row,
            "choices": None if self.choices is None else list(self.choices),
            "prediction": self.prediction,
            "prediction_index": self.prediction_index,
            "prediction_text": self.prediction,
            "label": self.label,
            "label_index": self.label_index,
            "confidence": self.confidence,
            "probs": None if probs is None else list(probs),
            "member_probs": None if members is None else [list(member) for member in members],
            "entropy": self.entropy,
            "mutual_information": self.mutual_information,
            "disagreement": self.disagreement,
            "calibrated": self.calibrated,
            "abstain": self.abstain,
            "decision": self.decision,
            "prediction_set": None if self.prediction_set is None else list(self.prediction_set),
        }
        if early_exit or self.members_used is not None:
            values["members_used"] = self.members_used
        if self.information_predicted:
            values["information_predicted"] = True
        if self.question is not None:
            values |= {"question": self.question, "score": self.score, "trained": self.trained}
        return values | {"error": self.error, "input": dict(self.input)}


class Answers(Iterator[Answer]):
    """The answers to a stream of rows, in order, each computed when its chunk is reached."""

    def __init__(self, answers: Iterator[Answer]) -> None:
        self._answers = answers

    def __next__(self) -> Answer:
        """The next answer."""
        return next(self._answers)

    def to_pandas(self) -> pandas.DataFrame:
        """The remaining answers as a table with the fields of a JSON line of `lorchestra predict`, a row per answer.

        Raises:
            LorchestraError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise LorchestraError("to_pandas needs pandas: pip install 'lorchestra[pandas]'") from error
        return pandas.DataFrame([answer.to_dict() for answer in self])


@dataclass(frozen=True)
class AnsweredChunk:
    """The answers to consecutive rows, in order; rows that were left out for their length have none.

    `rows` are all rows of the chunk; `dropped` and `truncated` say where those come from that were left out, and those
    whose question was cut.
    """

    rows: tuple[InputRow, ...]
    answers: tuple[Answer, ...]
    dropped: tuple[str, ...]
    truncated: tuple[str, ...]


@dataclass
class AnswerCounts:
    """Counts of the rows so far: JSON values, saved with the lines of an interrupted command."""

    rows: int = 0
    answered: int = 0
    failed: int = 0
    dropped: int = 0
    truncated: int = 0
    members_used: int = 0
    automated: int = 0
    decided: int = 0
    sets_one: int = 0
    sets_several: int = 0
    sets_none: int = 0
    first_fault: str = ""
    first_dropped: str = ""
    first_truncated: str = ""

    def add(self, chunk: AnsweredChunk) -> None:
        """Count a chunk."""
        self.rows += len(chunk.rows)
        self.dropped += len(chunk.dropped)
        self.truncated += len(chunk.truncated)
        self.first_dropped = self.first_dropped or next(iter(chunk.dropped), "")
        self.first_truncated = self.first_truncated or next(iter(chunk.truncated), "")
        for answer in chunk.answers:
            if answer.error is None:
                self.answered += 1
                self.members_used += answer.members_used or 0
                self._add_decision(answer)
            else:
                self.failed += 1
                self.first_fault = self.first_fault or answer.error

    def merge(self, later: AnswerCounts) -> None:
        """Add the counts of rows that come after these."""
        for name, value in vars(later).items():
            before = getattr(self, name)
            setattr(self, name, before or value if isinstance(value, str) else before + value)

    @classmethod
    def from_dict(cls, values: Json, where: Path, field: str = "counts") -> AnswerCounts:
        """Counts from the `field` of a record in the file `where`.

        Raises:
            CheckpointError: they are damaged.
        """
        check_shape(values, cls.shape(), where, field)
        return cls(**{name: values[name] for name in cls.shape()})

    @classmethod
    def shape(cls) -> dict[str, Shape]:
        """The shape of their record."""
        return {name: str if isinstance(value, str) else COUNT for name, value in vars(cls()).items()}

    def _add_decision(self, answer: Answer) -> None:
        self.decided += answer.decision is not None
        self.automated += answer.decision == "automate"
        if answer.prediction_set is not None:
            size = len(answer.prediction_set)
            self.sets_one += size == 1
            self.sets_several += size > 1
            self.sets_none += size == 0

    def sentences(self, max_length: int) -> Iterator[str]:
        """Messages about decisions, and about rows that are longer than `max_length` tokens."""
        if self.decided:
            share = 100 * self.automated / self.decided
            yield (
                f"decisions: {self.automated} of {self.decided} answers automated ({share:.1f} %),"
                f" {self.decided - self.automated} left to a person"
            )
        if number := self.sets_one + self.sets_several + self.sets_none:
            yield (
                f"prediction sets of {number} rows: {self.sets_one} with one answer, {self.sets_several} with several"
                f" (each may be right), {self.sets_none} with none (no answer fits as well as right ones usually do)"
            )
        for number, first, what in (
            (self.dropped, self.first_dropped, "left out"),
            (self.truncated, self.first_truncated, "cut at the question's end"),
        ):
            if number:
                yield f"{number} row(s) longer than {max_length} tokens {what}, the first: {first}"


def shown_choices(top: int | Literal["all"] | None, num_choices: int) -> int | None:
    """Number of the most probable choices to write; None for all."""
    if top == "all":
        return None
    if top is not None:
        return top
    return _TOP if num_choices > _MANY else None


def chunk_rows(pipeline: Pipeline) -> int:
    """Rows of a chunk on the pipeline's device."""
    return CHUNK_ROWS_CUDA if pipeline.model.device.type == "cuda" else CHUNK_ROWS_CPU


def answer_chunks(
    pipeline: Pipeline, chunks: Iterable[tuple[InputRow, ...]], options: AnswerOptions
) -> Iterator[AnsweredChunk]:
    """Answers to all rows, a chunk at a time (see `data.chunks`).

    A chunk's answers depend on its rows alone, so a stream that starts at a later chunk has the same ones. In other
    chunks a row's numbers differ by rounding, since it is computed in another packed batch.
    """
    prefix_reuse = PrefixReuse()
    for chunk in chunks:
        yield answer_chunk(pipeline, chunk, options, prefix_reuse)


def answers_from(
    predictions: Predictions | EarlyExitPredictions,
    abstain_below: float | None = None,
    calibration: Calibration | None = None,
    decisions: Decisions | None = None,
    questions: Mapping[str, QuestionOptions] = MappingProxyType({}),
) -> list[Answer]:
    """Predictions as answers, in the order of their rows; after early exit, of the members that answered.

    In a cascade, predictions of all members are reduced to those of the stage that answers each row.

    Args:
        predictions: of the members.
        abstain_below: `Answer.abstain` is true if the confidence is below this.
        calibration: of the mixture (`Ensemble.calibration`); without one, the answers are the mixture's as it is.
        decisions: thresholds and sets (`Ensemble.decisions`), made with this calibration; after early exit, only those
            by a cascade.
        questions: the two for rows with typed questions, by name; then not for all rows.
    """
    cascade = None if decisions is None else decisions.stages
    if isinstance(predictions, Predictions) and cascade is not None:
        used_E = cascade.rule(calibration).members_used(predictions.log_probs_MEC)
        predictions = first_members(predictions, used_E)
    if isinstance(predictions, Predictions):
        return list(_answers(predictions, abstain_below, calibration, decisions, questions))
    by_stage = None if cascade is None else decisions
    undecided = {name: QuestionOptions(one.calibration) for name, one in questions.items()}
    answers = [
        replace(answer, row=int(index) + 1, members_used=part.num_members)
        for part, indices in zip(predictions.parts, predictions.indices, strict=True)
        for index, answer in zip(indices, _answers(part, abstain_below, calibration, by_stage, undecided), strict=True)
    ]
    return sorted(answers, key=lambda answer: answer.row)


def prediction_rows(predictions: Predictions, abstain_below: float | None = None) -> Iterator[dict[str, object]]:
    """As `answers_from`, as dictionaries without `row`, `error` and `input`."""
    for answer in _answers(predictions, abstain_below, None):
        values = answer.to_dict()
        yield {name: value for name, value in values.items() if name not in ("row", "error", "input")}


def _answers(
    predictions: Predictions,
    abstain_below: float | None,
    calibration: Calibration | None,
    decisions: Decisions | None = None,
    questions: Mapping[str, QuestionOptions] = MappingProxyType({}),
) -> Iterator[Answer]:
    if questions:
        yield from _answers_by_question(predictions, abstain_below, questions)
        return
    log_probs = predictions.log_probs_MEC
    calibrated = pooled(log_probs, calibration)
    automated = None
    if decisions is not None and decisions.has_threshold:
        automated = decisions.automated(log_probs, calibrated, predictions.predicted_information)
    sets = None if decisions is None or decisions.sets is None else decisions.sets.sets(calibrated)
    mixture = np.exp(calibrated)
    member_probs = np.exp(log_probs)
    entropy = predictive.entropy(calibrated)
    information = predictive.information(predictions)
    disagreement = predictive.disagreement(log_probs)
    for e, options in enumerate(predictions.options):
        probs = mixture[e, : len(options)]
        best = int(probs.argmax())
        label = int(predictions.labels[e])
        yield Answer(
            id=predictions.ids[e],
            row=e + 1,
            choices=options,
            prediction=options[best],
            prediction_index=best,
            label=None if label < 0 else options[label],
            label_index=None if label < 0 else label,
            confidence=float(probs[best]),
            probs=tuple(probs.tolist()),
            member_probs=tuple(map(tuple, member_probs[:, e, : len(options)].tolist())),
            entropy=float(entropy[e]),
            mutual_information=float(information[e]),
            disagreement=float(disagreement[e]),
            calibrated=calibration is not None and calibration.is_calibrated,
            abstain=None if abstain_below is None else bool(probs[best] < abstain_below),
            decision=None if automated is None else "automate" if automated[e] else "abstain",
            prediction_set=None
            if sets is None
            else tuple(o for o, fits in zip(options, sets[e], strict=False) if fits),
            information_predicted=predictions.predicted_information is not None,
        )


def _answers_by_question(
    predictions: Predictions, abstain_below: float | None, questions: Mapping[str, QuestionOptions]
) -> Iterator[Answer]:
    """The answers to rows with typed questions, in their order."""
    answers: dict[int, Answer] = {}
    names = np.array(predictions.questions)
    for name in dict.fromkeys(predictions.questions):
        rows = np.flatnonzero(names == name)
        part = predictions.of_rows(rows, num_choices=len(predictions.options[rows[0]]))
        options = questions.get(name, QuestionOptions())
        found = _answers(part, abstain_below, options.calibration, options.decisions)
        answers |= {int(e): replace(answer, row=int(e) + 1) for e, answer in zip(rows, found, strict=True)}
    return iter([answers[e] for e in range(predictions.num_examples)])


def answer_chunk(
    pipeline: Pipeline, chunk: tuple[InputRow, ...], options: AnswerOptions, prefix_reuse: PrefixReuse
) -> AnsweredChunk:
    """Answers to the rows of one chunk."""
    examples = {index: row.example for index, row in enumerate(chunk) if row.example is not None}
    encoded = dict(zip(examples, encode_each(pipeline, list(examples.values()), options.too_long), strict=True))
    tokens = {index: one.tokens for index, one in encoded.items() if one.tokens is not None}
    asked = [examples[index] for index in tokens]
    answers = dict(zip(tokens, _predict(pipeline, asked, list(tokens.values()), options, prefix_reuse), strict=True))
    faults = {index: row.fault for index, row in enumerate(chunk) if row.example is None}
    faults |= {index: one.fault for index, one in encoded.items() if one.tokens is None}
    finished = []
    for index, row in enumerate(chunk):
        if index in answers:
            answer = replace(answers[index], id=row.id, row=row.number, input=dict(row.kept))
            finished.append(_with_question(answer, row.asked))
        elif (fault := faults[index]) is not None:
            finished.append(_with_question(_unanswered(row, fault), row.asked))
    dropped = tuple(examples[i].where for i, one in encoded.items() if one.tokens is None and one.fault is None)
    truncated = tuple(examples[i].where for i, one in encoded.items() if one.truncated)
    return AnsweredChunk(chunk, tuple(finished), dropped, truncated)


def _predict(
    pipeline: Pipeline,
    examples: Sequence[Example],
    tokens: Sequence[EncodedExample],
    options: AnswerOptions,
    prefix_reuse: PrefixReuse,
) -> list[Answer]:
    if not examples:
        return []
    rows = [replace(one, row=index) for index, one in enumerate(tokens)]
    predictions: Predictions | EarlyExitPredictions
    if (rule := options.stop_rule) is None:
        predictions = pipeline.predict_encoded(examples, rows, "predict", prefix_reuse)
    else:
        predictions = pipeline.predict_encoded_early(examples, rows, "predict", rule, prefix_reuse=prefix_reuse)
    below, questions = options.abstain_below, options.questions
    return answers_from(predictions, below, options.calibration, options.decisions, questions)


def _with_question(answer: Answer, asked: Question | None) -> Answer:
    """The answer with the name of the run's typed question, and its score."""
    if asked is None:
        return answer
    return replace(answer, question=asked.name, score=expected_level(asked, answer.probs), trained=True)


def expected_level(question: Question, probs: Sequence[float] | None) -> float | None:
    """The expected level, from 0, of a question of type score; None for others, and without an answer."""
    if question.type != "score" or probs is None:
        return None
    return float(np.arange(len(probs)) @ np.array(probs))


def _unanswered(row: InputRow, error: str) -> Answer:
    answer, example = Answer(row.id, row.number, error=error, input=dict(row.kept)), row.example
    if example is None:
        return answer
    label = None if example.answer is None else example.choices[example.answer]
    return replace(answer, choices=example.choices, label=label, label_index=example.answer)

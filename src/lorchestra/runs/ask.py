"""Typed questions about states, asked of a finished run: those it was trained on, and any other.

A server encodes each request as it comes (`Asker.encode`) and answers many at once (`Asker.answer`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lorchestra.inference.pipeline import Pipeline
from lorchestra.inference.predict import MemberPass, predict_rows
from lorchestra.metrics.calibrator import RAW, Calibration
from lorchestra.metrics.decisions import Decisions
from lorchestra.nn.packing import BASE
from lorchestra.questions import Question
from lorchestra.runs.predict import Answer, answers_from
from lorchestra.types import EncodedExample, Example

if TYPE_CHECKING:
    from lorchestra.runs.ensemble import Ensemble


@dataclass(frozen=True, slots=True)
class Asked:
    """A typed question about a state, given as text.

    `member` is the index of the only member to answer (among those that did not fail), `BASE` for the base, or None for
    all members together. States are cached per `partition`: nothing that is cached for one is used for another.
    """

    state: str
    question: Question
    member: int | None = None
    partition: str = ""


@dataclass(frozen=True, slots=True)
class EncodedAsk:
    """A question that is ready to be answered."""

    asked: Asked
    row: EncodedExample
    trained: bool
    order: tuple[int, ...]
    """Per option of the question, its index among the row's choices."""

    @property
    def num_tokens(self) -> int:
        """Tokens of the prompt and its options that go through the model."""
        return self.row.num_tokens


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer to a question, and its tokens: all of them, and those that were taken from the cache."""

    answer: Answer
    input_tokens: int
    cached_tokens: int = 0


class Asker:
    """Asks a run's ensemble typed questions.

    Not thread-safe: `encode` may run in one thread at a time, and `answer` in one, which may be another.

    Args:
        ensemble: the run.
        raw: answer with the mixture as it is, without the run's calibration and decisions.
    """

    def __init__(self, ensemble: Ensemble, *, raw: bool = False) -> None:
        self.ensemble = ensemble
        self.raw = raw
        pipeline = ensemble.pipeline
        self._zero_shot = replace(pipeline, scoring="tree") if pipeline.scoring == "head" else pipeline
        self._as_tree = replace(pipeline, scoring="tree")

    @property
    def questions(self) -> tuple[Question, ...]:
        """The questions that the run was trained on: its typed questions, or its labels as a choice."""
        labels = self.ensemble.labels
        return () if labels is None else (Question(self.ensemble.record.task, "choice", "", labels),)

    @property
    def num_members(self) -> int:
        """Number of members that answer."""
        return self.ensemble.pipeline.model.num_members

    def encode(self, asked: Asked) -> EncodedAsk:
        """Tokenize a question and its state.

        Raises:
            DataError: the prompt is longer than the model's context, or an option adds no tokens to it.
            ConfigError: the tokenizer cannot tell the options apart.
        """
        question = asked.question
        labels = self.ensemble.labels
        if labels is not None and question.type == "choice" and set(question.options) == set(labels):
            example = Example("", asked.state, labels, None, "state")
            pipeline = self._zero_shot if asked.member == BASE else self.ensemble.pipeline  # the base has no head
            row = pipeline.tokenize([example], "error").rows[0]
            return EncodedAsk(asked, row, True, tuple(labels.index(option) for option in question.options))
        example = Example("", asked.state, question.options, None, "state", question)
        row = self._pipeline_for(question).tokenize([example], "error").rows[0]
        return EncodedAsk(asked, row, False, tuple(range(len(question.options))))

    def answer(self, asks: Sequence[EncodedAsk]) -> list[Reply]:
        """Answers to questions, in their order, in passes that hold as many of them as the token budget allows."""
        pipeline = self.ensemble.pipeline
        replies: list[Reply | None] = [None] * len(asks)
        for passes, indices in self._by_passes(asks):
            rows = [replace(asks[index].row, row=position) for position, index in enumerate(indices)]
            log_probs = predict_rows(pipeline.model, rows, passes, pipeline.token_budget)
            for position, index in enumerate(indices):
                ask = asks[index]
                answer = self._answer(ask, log_probs[:, position, : len(ask.order)])
                replies[index] = Reply(answer, ask.num_tokens)
        return [reply for reply in replies if reply is not None]

    def _pipeline_for(self, question: Question) -> Pipeline:
        fits_letters = self._zero_shot.scoring != "letter" or len(question.options) <= 26
        return self._zero_shot if fits_letters else self._as_tree

    def _by_passes(self, asks: Sequence[EncodedAsk]) -> Iterator[tuple[list[MemberPass], list[int]]]:
        """Groups of questions that the same members answer, in the same kind of scoring."""
        groups: dict[tuple[int | None, bool, bool], list[int]] = {}
        for index, ask in enumerate(asks):
            key = (ask.asked.member, ask.row.by_head, ask.row.tree is None)
            groups.setdefault(key, []).append(index)
        for (member, _, _), indices in groups.items():
            members = range(self.num_members) if member is None else [member]
            yield [MemberPass(m) for m in members], indices

    def _answer(self, ask: EncodedAsk, log_probs_MC: NDArray[np.float64]) -> Answer:
        question = ask.asked.question
        options = tuple(question.options[ask.order.index(c)] for c in range(len(ask.order)))
        example = Example("", ask.asked.state, options, None)
        predictions = self.ensemble.pipeline.predictions([example], [0], log_probs_MC[:, None], "ask")
        calibration, decisions = self._settings(ask)
        answer = _in_order(answers_from(predictions, None, calibration, decisions)[0], ask)
        score = None
        if question.type == "score" and answer.probs is not None:
            score = float(np.arange(len(answer.probs)) @ np.array(answer.probs))
        return replace(answer, question=question.name, score=score, trained=ask.trained)

    def _settings(self, ask: EncodedAsk) -> tuple[Calibration, Decisions | None]:
        """The calibration and decisions of a question; none where it was not trained, or not all members answer."""
        if self.raw or not ask.trained or ask.asked.member is not None:
            return RAW, None
        return self.ensemble.calibration, self.ensemble.decisions


def _in_order(answer: Answer, ask: EncodedAsk) -> Answer:
    """The answer with the options in the question's order instead of the row's."""
    order, options = ask.order, ask.asked.question.options
    if order == tuple(range(len(order))) or answer.probs is None or answer.member_probs is None:
        return answer
    return replace(
        answer,
        choices=options,
        prediction_index=None if answer.prediction is None else options.index(answer.prediction),
        probs=tuple(answer.probs[c] for c in order),
        member_probs=tuple(tuple(member[c] for c in order) for member in answer.member_probs),
    )

"""Typed questions about states, asked of a finished run: those it was trained on, and any other.

A server encodes each request as it comes (`Asker.encode`) and answers many at once (`Asker.answer`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lorchestra.data.prompts import LETTERS
from lorchestra.errors import ConfigError, DataError
from lorchestra.inference.answer_states import predict_early_with_information, predict_with_information
from lorchestra.inference.linear_probe import NO_EARLY_EXIT
from lorchestra.inference.predict import MemberPass
from lorchestra.inference.state_cache import StateCache, rows_in_order
from lorchestra.metrics.calibrator import RAW, Calibration
from lorchestra.metrics.decisions import Decisions
from lorchestra.metrics.early_exit import ExitRule
from lorchestra.nn.packing import BASE
from lorchestra.questions import Question
from lorchestra.runs.predict import Answer, answers_from, expected_level
from lorchestra.types import EncodedExample, Example

if TYPE_CHECKING:
    from lorchestra.runs.ensemble import Ensemble


@dataclass(frozen=True, slots=True)
class Asked:
    """A typed question about a state, given as text.

    `member` is the index of the only member to answer (among those that did not fail), `BASE` for the base, or None for
    all members together. States are cached per `partition`: nothing that is cached for one is used for another. With
    `early_exit` members answer one after the other until the question is decided; then no state is cached, and there is
    no decision, which is certified for the answers of all members.
    """

    state: str
    question: Question
    member: int | None = None
    partition: str = ""
    early_exit: ExitRule | None = None


@dataclass(frozen=True, slots=True)
class EncodedAsk:
    """A question that is ready to be answered."""

    asked: Asked
    row: EncodedExample
    question: Question
    """The question as the row has it: its options may be in another order."""
    trained: bool

    @property
    def num_tokens(self) -> int:
        """Tokens of the prompt and its options that go through the model."""
        return self.row.num_tokens

    @property
    def trained_name(self) -> str | None:
        """The name under which the run was trained on the question; None if it was not."""
        return self.question.name if self.trained else None

    @property
    def state_tokens(self) -> int:
        """How many of these are the state's, which all questions about it share."""
        return self.row.state


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer to a question, with its number of tokens.

    `state_tokens` of the `input_tokens` are the state's, which the questions of a request share; `cached_tokens` were
    taken from the cache, and `written_tokens` are there now. `question` is the name under which the run was trained on
    the question, if it was.
    """

    answer: Answer
    input_tokens: int
    state_tokens: int = 0
    cached_tokens: int = 0
    written_tokens: int = 0
    question: str | None = None


class Asker:
    """Asks a run's ensemble typed questions.

    An answer depends on its state and its question alone: not on the question's name or the other questions, nor, for
    options that are scored by their text, on the order of these. Rounding may still differ with the size of a pass.

    Not thread-safe: `encode` may run in one thread at a time, and `answer` in one, which may be another.

    Args:
        ensemble: the run.
        cache_bytes: most bytes of cached states.
        raw: answer with the mixture as it is, without the run's calibration and decisions.
    """

    def __init__(self, ensemble: Ensemble, *, cache_bytes: int = 0, raw: bool = False) -> None:
        self.ensemble = ensemble
        self.raw = raw
        self.cache = StateCache(cache_bytes)
        self._pipelines = {"": ensemble.pipeline, "tree": replace(ensemble.pipeline, scoring="tree")}
        self._trained = {_key(question): question for question in self.questions}

    @property
    def questions(self) -> tuple[Question, ...]:
        """The questions that the run was trained on: its typed questions, or its labels as a choice."""
        labels, record = self.ensemble.labels, self.ensemble.record
        return record.questions if labels is None else (Question(record.task, "choice", "", labels),)

    @property
    def num_members(self) -> int:
        """Number of members that answer."""
        return self.ensemble.pipeline.model.num_members

    def encode(self, asked: Asked) -> EncodedAsk:
        """Tokenize a question and its state.

        Raises:
            DataError: the prompt is longer than the model's context, or an option adds no tokens to it.
            ConfigError: the tokenizer cannot tell the options apart; or early exit is exact and the question's
                calibration may change predictions, or a linear probe has a part in its answers.
        """
        labels, given = self.ensemble.labels, asked.question
        if labels is not None and given.type == "choice" and set(given.options) == set(labels):
            # a run on texts with labels has one question, whose instructions are its prompt
            return self._encode(asked, self.questions[0], Example("", asked.state, labels, None, "state"), True)
        question = self._trained.get(_key(given))
        trained = question is not None
        if question is None:
            question = given if self._lettered(given) else _sorted(given)
        return self._encode(
            asked, question, Example("", asked.state, question.options, None, "state", question), trained
        )

    def _encode(self, asked: Asked, question: Question, example: Example, trained: bool) -> EncodedAsk:
        # a head has the run's labels only, and the base has none; there are 26 letters; and any other text is scored as
        # a tree, which costs no more with many options, unless the run was trained to score it otherwise
        of_run = self.ensemble.pipeline.scoring
        fits = trained or self._lettered(question)
        fits = fits and not (of_run == "head" and asked.member == BASE)
        row = self._pipelines["" if fits else "tree"].tokenize([example], "error", bounded=False).rows[0]
        length, most = row.num_tokens + 1, self.ensemble.pipeline.max_length
        if length > most:
            raise DataError(f"the state and the question have {length} tokens, and the run's prompts at most {most}")
        ask = EncodedAsk(asked, row, question, trained)
        if asked.early_exit is not None:
            if trained and self.ensemble.pipeline.linear_probe is not None:
                raise ConfigError(NO_EARLY_EXIT)
            asked.early_exit.check_calibration(self._settings(ask)[0])
        return ask

    def _lettered(self, question: Question) -> bool:
        return self.ensemble.pipeline.scoring == "letter" and len(question.options) <= len(LETTERS)

    def answer(self, asks: Sequence[EncodedAsk]) -> list[Reply]:
        """Answers to questions, in their order, in passes that hold as many of them as the token budget allows."""
        pipeline = self.ensemble.pipeline
        replies: dict[int, Reply] = {}
        for passes, rule, indices in self._by_passes(asks):
            members = [one.member for one in passes]
            rows = [replace(asks[index].row, row=position) for position, index in enumerate(indices)]
            if rule is not None:
                replies |= self._answer_early(rule, rows, {index: asks[index] for index in indices})
                continue
            found = {row.row: self.cache.of(row, asks[i].asked.partition) for row, i in zip(rows, indices, strict=True)}
            states = {row: state for row, state in found.items() if state is not None}
            known = {row: state.num_known(members) for row, state in states.items()}
            try:
                log_probs, information = predict_with_information(
                    pipeline.information, pipeline.model, rows, passes, pipeline.token_budget, states=states
                )
            finally:
                self.cache.trim()
            log_probs = self._with_probe([asks[index] for index in indices], log_probs, passes)
            for row, index in zip(rows, indices, strict=True):
                of_row = None if information is None else information[row.row]
                answer = self._answer(asks[index], log_probs[:, row.row, : len(row.choices)], of_row)
                cached = known.get(row.row, 0)
                written = row.state - cached if row.row in states else 0
                replies[index] = Reply(answer, row.num_tokens, row.state, cached, written, asks[index].trained_name)
        return [replies[index] for index in range(len(asks))]

    def _with_probe(
        self, asks: Sequence[EncodedAsk], log_probs_MEC: NDArray[np.float64], passes: Sequence[MemberPass]
    ) -> NDArray[np.float64]:
        """The log-probabilities with the run's linear probe mixed into answers to the question it was trained on."""
        probe, trained = self.ensemble.pipeline.linear_probe, [e for e, ask in enumerate(asks) if ask.trained]
        if probe is None or not trained:
            return log_probs_MEC
        texts = [Example("", asks[e].asked.state, asks[e].question.options, None, "state") for e in trained]
        mixed_MEC, labels = log_probs_MEC.copy(), slice(probe.num_labels)
        of_trained_MEC = self.ensemble.pipeline.with_probe(texts, log_probs_MEC[:, trained, labels], passes)
        mixed_MEC[:, trained, labels] = of_trained_MEC
        return mixed_MEC

    def _answer_early(
        self, rule: ExitRule, rows: Sequence[EncodedExample], asks: Mapping[int, EncodedAsk]
    ) -> dict[int, Reply]:
        """Replies by index, of the members that it took to decide each question."""
        pipeline = self.ensemble.pipeline
        log_probs, used, information = predict_early_with_information(
            pipeline.information, pipeline.model, rows, rule, pipeline.token_budget
        )
        replies = {}
        for row, (index, ask) in zip(rows, asks.items(), strict=True):
            log_probs_MC = log_probs[: used[row.row], row.row, : len(row.choices)]
            answer = self._answer(ask, log_probs_MC, None if information is None else information[row.row])
            answer = replace(answer, members_used=int(used[row.row]))
            replies[index] = Reply(answer, row.num_tokens, row.state, question=ask.trained_name)
        return replies

    def _by_passes(self, asks: Sequence[EncodedAsk]) -> Iterator[tuple[list[MemberPass], ExitRule | None, list[int]]]:
        """Groups of questions that the same members answer by the same rule, in the same kind of scoring.

        Within a group they are sorted by content, so that their order changes no bit.
        """
        order = rows_in_order([ask.row for ask in asks], [ask.asked.partition for ask in asks])
        groups: dict[tuple[int | None, ExitRule | None, bool, bool], list[int]] = {}
        for index in order:
            asked, row = asks[index].asked, asks[index].row
            rule = asked.early_exit if asked.member is None else None
            groups.setdefault((asked.member, rule, row.by_head, row.tree is None), []).append(index)
        for (member, rule, _, _), indices in groups.items():
            members = range(self.num_members) if member is None else [member]
            yield [MemberPass(m) for m in members], rule, indices

    def _answer(
        self, ask: EncodedAsk, log_probs_MC: NDArray[np.float64], information: np.float64 | None = None
    ) -> Answer:
        """The answer; `information` is predicted, for the question that the run was trained on."""
        example = Example("", ask.asked.state, ask.question.options, None)
        information_E = None if information is None or not ask.trained else np.array([information])
        predictions = self.ensemble.pipeline.predictions([example], [0], log_probs_MC[:, None], "ask", information_E)
        calibration, decisions = self._settings(ask)
        if ask.asked.early_exit is not None:
            decisions = None
        answer = _in_order(answers_from(predictions, None, calibration, decisions)[0], ask.asked.question.options)
        score = expected_level(ask.question, answer.probs)
        return replace(answer, question=ask.asked.question.name, score=score, trained=ask.trained)

    def _settings(self, ask: EncodedAsk) -> tuple[Calibration, Decisions | None]:
        """The calibration and decisions of a question; none where it was not trained, or not all members answer."""
        if self.raw or not ask.trained or ask.asked.member is not None:
            return RAW, None
        name = ask.question.name
        if name in self.ensemble.calibrations:
            return self.ensemble.calibrations[name], self.ensemble.decisions_by_question[name]
        return self.ensemble.calibration, self.ensemble.decisions


def _key(question: Question) -> tuple[object, ...]:
    """What two questions share that are the same: all but their names, and the order of a choice's options."""
    options = tuple(zip(question.options, question.descriptions, strict=True))
    return (question.type, question.instructions.strip(), frozenset(options) if question.type == "choice" else options)


def _sorted(question: Question) -> Question:
    """The question with the options of a choice in alphabetical order."""
    if question.type != "choice":
        return question
    options, descriptions = zip(
        *sorted(zip(question.options, question.descriptions, strict=True), key=lambda pair: pair[0]), strict=True
    )
    return replace(question, options=options, descriptions=descriptions)


def _in_order(answer: Answer, options: tuple[str, ...]) -> Answer:
    """The answer with its options in the given order."""
    if answer.choices is None or answer.choices == options or answer.probs is None or answer.member_probs is None:
        return answer
    columns = [answer.choices.index(option) for option in options]
    return replace(
        answer,
        choices=options,
        prediction_index=None if answer.prediction is None else options.index(answer.prediction),
        probs=tuple(answer.probs[c] for c in columns),
        member_probs=tuple(tuple(member[c] for c in columns) for member in answer.member_probs),
    )

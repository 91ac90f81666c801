"""The request queue: batches within their budget, fairness, deadlines, cancellation, limits, failures."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from dataclasses import replace

import pytest
from live_server import FakeEngine, served

from lorchestra.config.serve import ServeLimits
from lorchestra.questions import Question
from lorchestra.runs.ask import Asked
from lorchestra.server.errors import (
    DrainingError,
    EngineError,
    InvalidRequestError,
    OverloadedError,
    TooManyWaitingError,
)
from lorchestra.server.queue import RequestQueue

QUESTION = Question("q", "predicate", "Is it true?")
WORDS = 10


class Case:
    """A queue whose engine is held in its first pass, so that the next ones are composed of all that waits."""

    def __init__(self, **limits):
        self.engines = [FakeEngine(), FakeEngine()]
        self.runs = [served(engine, f"run{i}") for i, engine in enumerate(self.engines)]
        self.batches = []
        self.queue = RequestQueue(ServeLimits(**limits), lambda batch, seconds: self.batches.append(list(batch)))
        self.jobs = []

    @property
    def engine(self):
        return self.engines[0]

    def hold(self):
        """Hold the worker in a pass."""
        for engine in self.engines:
            engine.gate.clear()
        job = self.ask("holder", ["held"])
        assert self.engine.entered.wait(10)
        return job

    def release(self):
        for engine in self.engines:
            engine.gate.set()

    def ask(self, client, states, *, run=0, deadline_s=60.0, is_shared=False):
        done = threading.Event()
        job = self.queue.open(client, time.monotonic() + deadline_s, done.set)
        job.done = done
        self.jobs.append(job)
        for state in states:
            ask = self.runs[run].engine.encode(Asked(" ".join([state] * WORDS), QUESTION))
            state = WORDS - 1 if is_shared else 0
            self.queue.add(job, replace(ask, row=replace(ask.row, state=state)), 1)
        self.queue.submit(job, self.runs[run])
        return job

    def order(self):
        """The states of every batch after the first, a word each."""
        return [[ticket.ask.asked.state.split()[0] for ticket in batch] for batch in self.batches[1:]]


@contextmanager
def queue(**limits):
    case = Case(**limits)
    case.queue.start()
    try:
        yield case
    finally:
        case.release()
        case.queue.stop()
        for job in case.jobs:
            case.queue.close(job)
        assert (case.queue.num_jobs, case.queue.num_waiting, case.queue.reserved_tokens) == (0, 0, 0)


def finished(*jobs):
    return all(job.done.wait(10) for job in jobs)


def test_what_arrives_during_a_pass_joins_the_next_batch():
    with queue(max_batch_tokens=1000) as case:
        held = case.hold()
        jobs = [case.ask(client, [f"{client}{i}" for i in range(2)]) for client in "abc"]
        case.release()
        assert finished(held, *jobs)
        assert [sorted(batch) for batch in case.order()] == [["a0", "a1", "b0", "b1", "c0", "c1"]]
        for job in jobs:
            for ticket in job.tickets:
                assert ticket.reply == case.engine.answer([ticket.ask])[0]


def test_batches_keep_to_their_budget_but_hold_a_question():
    with queue(max_batch_tokens=3 * WORDS) as case:
        held = case.hold()
        small = case.ask("a", [f"a{i}" for i in range(7)])
        large = case.ask("b", [" ".join(["b"] * 5)])
        case.release()
        assert finished(held, small, large)
        assert sorted(len(batch) for batch in case.order()) == [1, 1, 3, 3]
        assert ["b"] in case.order()


def test_the_state_of_a_request_counts_once_in_a_batch():
    with queue(max_batch_tokens=2 * WORDS) as case:
        held = case.hold()
        job = case.ask("a", ["a"] * 24, is_shared=True)
        case.release()
        assert finished(held, job)
        assert [len(batch) for batch in case.order()] == [11, 11, 2]  # 10 tokens for the first, 1 for each further one


def test_a_client_with_many_questions_does_not_delay_others():
    with queue(max_batch_tokens=4 * WORDS) as case:
        held = case.hold()
        many = case.ask("a", [f"a{i:02d}" for i in range(40)])
        few = [case.ask(client, [client]) for client in "bc"]
        case.release()
        assert finished(held, many, *few)
        assert set(case.order()[0]) == {"a00", "a01", "b", "c"}


def test_turns_are_counted_in_tokens_over_batches():
    with queue(max_batch_tokens=2 * WORDS) as case:
        held = case.hold()
        long = case.ask("a", ["a a a a"] * 3)  # four times the tokens of b's
        short = case.ask("b", ["b"] * 12)
        case.release()
        assert finished(held, long, short)
        served_first = [state for batch in case.order() for state in batch][:9]
        assert served_first.count("b") >= 4
        assert served_first.count("a") >= 1


def test_an_idle_client_saves_up_nothing():
    with queue(max_batch_tokens=WORDS) as case:
        assert finished(case.ask("a", [f"a{i}" for i in range(20)]))
        held = case.hold()
        one, two = case.ask("a", ["a", "a"]), case.ask("new", ["n", "n"])
        case.release()
        assert finished(held, one, two)
        assert case.order()[-4:] in (["a", "n", "a", "n"], [["a"], ["n"], ["a"], ["n"]], [["n"], ["a"], ["n"], ["a"]])


def test_a_batch_is_of_one_run():
    with queue(max_batch_tokens=1000) as case:
        held = case.hold()
        jobs = [case.ask(client, ["x"], run=index % 2) for index, client in enumerate("abcd")]
        case.release()
        assert finished(held, *jobs)
        assert sorted(map(len, case.engines[1].batches)) == [2]
        assert sorted(map(len, case.engines[0].batches)) == [1, 2]


def test_closed_and_late_jobs_are_not_computed_and_free_the_queue():
    with queue() as case:
        held = case.hold()
        closed, late, kept = (
            case.ask("a", ["closed"] * 3),
            case.ask("a", ["late"], deadline_s=0.01),
            case.ask("a", ["k"]),
        )
        before = case.queue.reserved_tokens
        case.queue.close(closed)
        case.queue.close(closed)
        assert before - case.queue.reserved_tokens == 3 * WORDS
        assert case.queue.num_waiting == 2
        time.sleep(0.02)
        case.release()
        assert finished(held, kept)
        assert case.order() == [["k"]]
        assert not late.done.is_set()
        assert not closed.done.is_set()


def test_a_failure_fails_the_request_that_causes_it_alone(caplog):
    with queue(max_batch_tokens=1000) as case:
        held = case.hold()
        good, poison, other = (
            case.ask(client, [state]) for client, state in (("a", "good"), ("b", "poison"), ("c", "x"))
        )
        case.release()
        assert finished(held, good, poison, other)
        assert isinstance(poison.error, EngineError)
        assert good.error is None
        assert good.is_answered
        assert other.is_answered
        assert "RuntimeError" in caplog.text
        assert "poison" not in caplog.text
        assert finished(case.ask("b", ["fine"]))  # the worker survives


def test_too_many_requests_and_tokens_are_refused():
    with queue(max_requests=4, max_queue_tokens=8 * WORDS) as case:
        case.hold()
        case.ask("a", ["a"] * 3)
        with pytest.raises(TooManyWaitingError, match="fill half") as share:
            case.ask("a", ["a"] * 2)
        assert share.value.http_status == 429
        assert share.value.retry_after_s >= 1
        case.queue.close(case.jobs[-1])
        with pytest.raises(InvalidRequestError, match="several requests"):
            case.ask("b", ["b"] * 5)
        case.queue.close(case.jobs[-1])
        case.ask("b", ["b"] * 4)
        with pytest.raises(OverloadedError, match="too many questions") as full:
            case.ask("c", ["c"])
        assert full.value.http_status == 529
        with pytest.raises(OverloadedError, match="4 requests"):
            case.queue.open("d", 0, print)


def test_a_draining_queue_answers_what_it_has_and_takes_nothing():
    with queue() as case:
        held, waiting = case.hold(), case.ask("a", ["a"])
        case.queue.drain()
        with pytest.raises(DrainingError):
            case.ask("a", ["a"])
        case.release()
        assert finished(held, waiting)


def test_stopping_ends_a_thread_that_waits():
    with queue() as case:
        case.queue.stop()
        assert not case.queue.is_alive


def test_many_threads_get_their_replies_alone():
    """Each reply is that of its question, and none is missing."""
    with queue(max_batch_tokens=7 * WORDS) as case:
        wrong = []

        def client(name):
            for number in range(20):
                job = case.ask(name, [f"{name}-{number}-{i}" for i in range(number % 4 + 1)])
                if number % 5 == 4:
                    case.queue.close(job)
                    continue
                if not job.done.wait(20):
                    wrong.append((name, number))
                for ticket in job.tickets:
                    if ticket.reply != case.engine._reply(ticket.ask):
                        wrong.append(ticket.ask.asked.state)
                case.queue.close(job)

        threads = [threading.Thread(target=client, args=(f"c{i}",)) for i in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []

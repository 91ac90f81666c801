"""The request queue: one worker thread answers the questions of many requests together.

Questions that arrive while a batch is computed wait for the next one. A batch takes the next question of the client
that has had the fewest tokens so far (start-time fair queueing), until its token budget is full: a client that sends
four hundred questions delays others by a batch, not by all of them. The questions of a request that was cancelled, or
is past its deadline, are not computed.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

from lorchestra.config.serve import ServeLimits
from lorchestra.runs.ask import EncodedAsk, Reply
from lorchestra.server.errors import (
    DrainingError,
    EngineError,
    HttpError,
    InvalidRequestError,
    OverloadedError,
    TooManyWaitingError,
    without_texts,
)
from lorchestra.server.registry import ServedRun

logger = logging.getLogger(__name__)

_MAX_RETRY_AFTER_S = 30.0
_RATE_SMOOTHING = 0.2
"""Weight of a new batch in the mean of tokens per second."""


@dataclass(eq=False)
class Ticket:
    """A question of a request that so many members answer (`passes`), and its reply once there is one."""

    job: Job
    ask: EncodedAsk
    passes: int
    reply: Reply | None = None

    def cost(self, jobs: Collection[Job]) -> int:
        """Tokens that it adds, once per member, to a batch with questions of these jobs: a job's state counts once."""
        shared = self.ask.state_tokens if self.job in jobs else 0
        return self.passes * (self.ask.num_tokens - shared)


@dataclass(eq=False)
class Job:
    """The questions of one request.

    Attributes:
        client: whose it is.
        deadline: when its answers are of no more use, by `time.monotonic`.
        on_done: called from the worker thread when all tickets have replies, or `error` is set.
        tokens: of all its questions.
    """

    client: str
    deadline: float
    on_done: Callable[[], None]
    tickets: list[Ticket] = field(default_factory=list)
    error: HttpError | None = None
    run: ServedRun | None = None
    tokens: int = 0

    @property
    def is_answered(self) -> bool:
        """Whether every question has a reply."""
        return all(ticket.reply is not None for ticket in self.tickets)


@dataclass
class _Client:
    """Tickets that wait for a batch; `served` is the virtual time of fair queueing, by their cost."""

    served: float = 0.0
    waiting: deque[Ticket] = field(default_factory=deque)
    reserved: int = 0
    num_jobs: int = 0


class RequestQueue:
    """Jobs that are open, and the thread that answers them.

    A job is opened, given its tickets, submitted, and closed in any case. All methods may be called from any thread.

    Args:
        limits: of requests, tokens and batches.
        on_batch: receives tickets and seconds of each batch that was computed.
    """

    def __init__(self, limits: ServeLimits, on_batch: Callable[[Sequence[Ticket], float], None]) -> None:
        self._limits = limits
        self._on_batch = on_batch
        self._changed = threading.Condition()
        self._jobs: set[Job] = set()
        self._clients: dict[str, _Client] = {}
        self._reserved = 0
        self._served = 0.0
        self._tokens_per_s = 0.0
        self._draining = self._stopped = False
        self._thread = threading.Thread(target=self._work, name="lorchestra-worker", daemon=True)

    def start(self) -> None:
        """Start the worker thread."""
        self._thread.start()

    def drain(self) -> None:
        """Refuse new jobs from now on."""
        with self._changed:
            self._draining = True

    def stop(self) -> None:
        """End the worker thread after its current batch."""
        with self._changed:
            self._draining = self._stopped = True
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join()

    @property
    def is_alive(self) -> bool:
        """Whether the worker thread runs."""
        return self._thread.is_alive()

    @property
    def num_jobs(self) -> int:
        """Number of open jobs."""
        return len(self._jobs)

    @property
    def num_waiting(self) -> int:
        """Number of questions that wait for a batch."""
        with self._changed:
            return sum(len(client.waiting) for client in self._clients.values())

    @property
    def reserved_tokens(self) -> int:
        """Tokens of all open jobs."""
        return self._reserved

    def open(self, client: str, deadline: float, on_done: Callable[[], None]) -> Job:
        """A new job without questions.

        Raises:
            DrainingError, OverloadedError: the server takes no more.
        """
        with self._changed:
            if self._draining:
                raise DrainingError("the server is shutting down; ask another, or this one later")
            if len(self._jobs) >= self._limits.max_requests:
                raise OverloadedError(
                    f"{len(self._jobs)} requests are being answered; try again later", self._retry_after()
                )
            job = Job(client, deadline, on_done)
            self._jobs.add(job)
            self._clients.setdefault(client, _Client()).num_jobs += 1
            return job

    def add(self, job: Job, ask: EncodedAsk, passes: int) -> Ticket:
        """Add a question that so many members answer to a job, and reserve its tokens.

        Raises:
            InvalidRequestError: the job alone has more tokens than one client may have waiting.
            OverloadedError, TooManyWaitingError: too many tokens wait, of all clients or of this one.
        """
        tokens = ask.num_tokens
        ticket = Ticket(job, ask, passes)
        most = self._limits.max_queue_tokens
        with self._changed:
            client = self._clients[job.client]
            if job.tokens + tokens > most // 2:
                raise InvalidRequestError(f"the questions have over {most // 2:,} tokens; send several requests")
            if self._reserved + tokens > most:
                raise OverloadedError("too many questions are waiting; try again later", self._retry_after())
            if client.reserved + tokens > most // 2:
                raise TooManyWaitingError(
                    "your questions fill half of the queue; wait for answers", self._retry_after()
                )
            client.reserved += tokens
            job.tokens += tokens
            self._reserved += tokens
            job.tickets.append(ticket)
        return ticket

    def submit(self, job: Job, run: ServedRun) -> None:
        """Queue a job's questions for a run."""
        with self._changed:
            job.run = run
            client = self._clients[job.client]
            if not client.waiting:  # a client that was idle has saved up nothing
                client.served = max(client.served, self._served)
            client.waiting.extend(job.tickets)
            self._changed.notify_all()

    def close(self, job: Job) -> None:
        """Forget a job, answered or not; its questions that wait are never computed."""
        with self._changed:
            if job not in self._jobs:
                return
            self._jobs.remove(job)
            client = self._clients[job.client]
            client.num_jobs -= 1
            client.reserved -= job.tokens
            self._reserved -= job.tokens
            if not job.is_answered:
                client.waiting = deque(ticket for ticket in client.waiting if ticket.job is not job)
            if client.num_jobs == 0:
                del self._clients[job.client]

    def _retry_after(self) -> float:
        """Seconds in which half of what waits should be answered."""
        if not self._tokens_per_s:
            return 1.0
        return min(max(1.0, self._reserved / 2 / self._tokens_per_s), _MAX_RETRY_AFTER_S)

    def _work(self) -> None:
        while (batch := self._next_batch()) is not None:
            started = time.monotonic()
            self._answer(batch)
            seconds = max(time.monotonic() - started, 1e-6)
            rate = sum(ticket.ask.num_tokens for ticket in batch) / seconds
            weight = _RATE_SMOOTHING if self._tokens_per_s else 1.0
            self._tokens_per_s += weight * (rate - self._tokens_per_s)
            self._on_batch(batch, seconds)

    def _next_batch(self) -> list[Ticket] | None:
        """Tickets to answer next; None when the queue is stopped."""
        with self._changed:
            while not self._stopped:
                if batch := self._take():
                    return batch
                self._changed.wait()
            return None

    def _take(self) -> list[Ticket]:
        batch: list[Ticket] = []
        jobs: set[Job] = set()
        total, run = 0, None
        while (client := self._next_client(run)) is not None:
            ticket = client.waiting[0]
            run = ticket.job.run
            assert run is not None
            cost = ticket.cost(jobs)
            if batch and total + cost > (self._limits.max_batch_tokens or run.batch_tokens):
                break
            batch.append(client.waiting.popleft())
            jobs.add(ticket.job)
            total += cost
            self._served = client.served
            client.served += cost
        return batch

    def _next_client(self, run: ServedRun | None) -> _Client | None:
        """The client that was served least, among those whose next question is for this run (None: for any)."""
        now = time.monotonic()
        ready = []
        for client in self._clients.values():
            while client.waiting and client.waiting[0].job.deadline <= now:
                client.waiting.popleft()
            if client.waiting and (run is None or client.waiting[0].job.run is run):
                ready.append(client)
        return min(ready, key=lambda client: client.served, default=None)

    def _answer(self, batch: Sequence[Ticket]) -> None:
        """Answer tickets; if that fails, those of each job alone, so that one request cannot fail others."""
        jobs = list(dict.fromkeys(ticket.job for ticket in batch))
        run = jobs[0].run
        assert run is not None
        try:
            replies = run.engine.answer([ticket.ask for ticket in batch])
            for ticket, reply in zip(batch, replies, strict=True):
                ticket.reply = reply
        except Exception as error:
            if len(jobs) > 1:
                for job in jobs:
                    self._answer([ticket for ticket in batch if ticket.job is job])
                return
            logger.error("a batch of %d questions failed: %s", len(batch), without_texts(error))
            jobs[0].error = EngineError("computing the answers failed; the server's log has the kind of error")
        for job in jobs:
            if job.error is not None or job.is_answered:
                job.on_done()

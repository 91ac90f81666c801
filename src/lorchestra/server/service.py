"""A server's state: its models, its queue, and whether it is starting, ready or draining."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from lorchestra.config.serve import ServeLimits
from lorchestra.errors import ConfigError, DataError
from lorchestra.questions import Question
from lorchestra.runs.ask import Asked, EncodedAsk
from lorchestra.server.errors import InvalidRequestError, StateTooLongError
from lorchestra.server.keys import Keys
from lorchestra.server.metrics import Metrics
from lorchestra.server.queue import Job, RequestQueue, Ticket
from lorchestra.server.registry import Model, Registry, ServedRun
from lorchestra.server.wire import Answered, AskedQuestion, ParsedRequest

logger = logging.getLogger(__name__)

_CHARACTERS_PER_TOKEN = 16
"""Texts with more characters per token than this, on average, are refused as too long without being tokenized."""
_WARM_UP = Question("warm-up", "predicate", "This is a test.")
_WARM_UP_TIMEOUT_S = 600.0


@dataclass(frozen=True)
class ServiceOptions:
    """How a service is run: its limits, who may ask, whether texts are logged, and states reused for everybody."""

    limits: ServeLimits = field(default_factory=ServeLimits)
    keys: Keys = field(default_factory=lambda: Keys({}))
    log_texts: bool = False
    share_states: bool = False


class Service:
    """Answers parsed requests.

    Args:
        runs: what is served; the first is also called `jev-latest`.
        options: see `ServiceOptions`.
    """

    def __init__(self, runs: Sequence[ServedRun], options: ServiceOptions) -> None:
        self.registry = Registry(runs)
        self.options = options
        self.limits = options.limits
        self.metrics = Metrics(runs)
        self.queue = RequestQueue(self.limits, self._on_batch)
        self._encoder = ThreadPoolExecutor(1, "lorchestra-encoder")
        self._is_warm = self.has_failed = self.is_draining = False
        self.metrics.watch("open_requests", "Requests that are being answered", lambda: self.queue.num_jobs)
        self.metrics.watch("waiting_questions", "Questions that wait for a batch", lambda: self.queue.num_waiting)
        self.metrics.watch("reserved_tokens", "Tokens of open requests", lambda: self.queue.reserved_tokens)
        self.metrics.watch("ready", "Whether new requests are taken", lambda: self.is_ready)

    @property
    def is_alive(self) -> bool:
        """Whether the worker thread runs, and no test question has failed."""
        return self.queue.is_alive and not self.has_failed

    @property
    def is_ready(self) -> bool:
        """Whether every run has answered a question, and new requests are taken."""
        return self._is_warm and not self.is_draining and self.queue.is_alive

    @property
    def is_idle(self) -> bool:
        """Whether no request is open."""
        return self.queue.num_jobs == 0

    def start(self) -> None:
        """Start the worker thread."""
        self.queue.start()

    async def warm_up(self) -> None:
        """Ask every run a question; the service is ready when all have answered, and not alive if one cannot."""
        try:
            await self._ask_every_run()
        except Exception as error:
            self.has_failed = True
            logger.error("not ready: a test question failed: %s", error)
            return
        self._is_warm = True
        logger.info("ready: %s", ", ".join(run.name for run in self.registry.runs))

    async def _ask_every_run(self) -> None:
        for run in self.registry.runs:
            for question in (_WARM_UP, *run.questions[:1]):
                asked = AskedQuestion(question, question.options, ())
                request = ParsedRequest(run.name, "A text.", (asked,))
                job, answered = self.opened("warm-up", time.monotonic() + _WARM_UP_TIMEOUT_S)
                try:
                    await self.answers(job, answered, self.registry.find(run.name), request, refuses=False)
                finally:
                    self.queue.close(job)

    def drain(self) -> None:
        """Refuse new requests from now on; those that are open are answered."""
        self.is_draining = True
        self.queue.drain()

    def stop(self) -> None:
        """End the threads."""
        self.drain()
        self.queue.stop()
        self._encoder.shutdown(cancel_futures=True)

    def opened(self, client: str, deadline: float) -> tuple[Job, asyncio.Event]:
        """A new job, to be closed in any case, and the event that says that it is done.

        Raises:
            DrainingError, OverloadedError: see `RequestQueue.open`.
        """
        loop, done = asyncio.get_running_loop(), asyncio.Event()

        def set_done() -> None:
            loop.call_soon_threadsafe(done.set)

        return self.queue.open(client, deadline, set_done), done

    async def answers(
        self, job: Job, done: asyncio.Event, model: Model, request: ParsedRequest, *, refuses: bool
    ) -> list[Answered]:
        """Tokenize a request's questions, queue them, and wait for the replies.

        Args:
            job: a new job.
            done: its event.
            model: the model that the request names.
            request: its questions.
            refuses: whether a question that cannot be answered gets a reason instead of failing the request.

        Raises:
            HttpError: the request cannot be answered.
        """
        tickets: dict[int, Ticket] = {}
        reasons: dict[int, str] = {}
        for asked in request.questions:
            try:
                ask = await self._encoded(asked, model, request, job.client)
            except (ConfigError, DataError) as error:
                if not refuses:
                    raise InvalidRequestError(str(error), asked.location) from error
                reasons[id(asked)] = str(error)
                continue
            tickets[id(asked)] = self.queue.add(job, ask, model.run.num_members if model.member is None else 1)
        if tickets:
            self.queue.submit(job, model.run)
            await done.wait()
        if job.error is not None:
            raise job.error
        return [
            Answered(asked, tickets[id(asked)].reply if id(asked) in tickets else None, reasons.get(id(asked), ""))
            for asked in request.questions
        ]

    async def _encoded(self, asked: AskedQuestion, model: Model, request: ParsedRequest, client: str) -> EncodedAsk:
        """A question's tokens, made in the encoder thread, where the questions of all requests take turns."""
        most = self.limits.max_state_tokens
        if len(request.state) > _CHARACTERS_PER_TOKEN * most:
            raise StateTooLongError(
                f"the state has {len(request.state):,} characters, over {most:,} tokens; shorten it"
            )
        partition = "" if self.options.share_states else f"{client}\0{request.partition}"
        ask = Asked(request.state, asked.question, model.member, partition, request.early_exit)
        encoded = await asyncio.get_running_loop().run_in_executor(self._encoder, model.run.engine.encode, ask)
        tokens = encoded.row.state or len(encoded.row.prefix)
        if tokens > most:
            raise StateTooLongError(f"the state has {tokens:,} tokens, over {most:,}; shorten it")
        return encoded

    def _on_batch(self, batch: Sequence[Ticket], seconds: float) -> None:
        self.metrics.batch_questions.observe(len(batch))
        self.metrics.batch_seconds.observe(seconds)

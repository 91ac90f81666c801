"""What happens to a POST request: body, parsing, queue, response; deadlines, and clients that leave."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Coroutine, Sequence

from fastapi import Request, Response
from fastapi.responses import JSONResponse
from starlette.requests import ClientDisconnect

from lorchestra.errors import printable
from lorchestra.server.bodies import parse_json, read_body
from lorchestra.server.errors import (
    DeadlineError,
    EngineError,
    HttpError,
    InvalidRequestError,
    TimeLimitError,
    UnsupportedMediaError,
    without_texts,
)
from lorchestra.server.registry import Model
from lorchestra.server.service import Service
from lorchestra.server.wire import Answered, ParsedRequest, WireFormat, usage

logger = logging.getLogger(__name__)

DEADLINE_HEADER = "x-deadline-ms"
_CLIENT_LEFT = 499
"""The status of a response that nobody reads."""


class Endpoint:
    """A route that answers questions in one wire format.

    Args:
        service: answers them.
        wire: the format.
    """

    def __init__(self, service: Service, wire: WireFormat) -> None:
        self._service = service
        self._wire = wire

    async def __call__(self, request: Request) -> Response:
        """The response to a request; a request that cannot be answered gets an error in the format's shape."""
        return await responded(request, self._service, self._wire, self._respond(request, time.monotonic()))

    async def _respond(self, request: Request, started: float) -> Response:
        service = self._service
        limit_s = service.limits.timeout
        job, done = service.opened(_client(request), started + limit_s)
        try:
            parsed = self._parsed(request, await read_body(request.stream(), service.limits))
            model = service.registry.find(parsed.model)
            late: HttpError = TimeLimitError(f"no answer within {limit_s:g} s; ask less at once, or try again later")
            deadline_ms = _deadline_ms(request, parsed)
            if deadline_ms is not None and deadline_ms / 1000 < limit_s:
                job.deadline = started + deadline_ms / 1000
                late = DeadlineError(f"no answer within {deadline_ms:g} ms, which was your deadline")
            work = service.answers(job, done, model, parsed, refuses=self._wire.refuses)
            answered = await _unless_gone(request, work, job.deadline - time.monotonic(), late)
        finally:
            service.queue.close(job)
        self._count(answered, model)
        return JSONResponse(self._wire.response(model.name, answered))

    def _parsed(self, request: Request, body: bytes) -> ParsedRequest:
        media = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if media.startswith("multipart/"):
            raise UnsupportedMediaError(
                "the body is multipart, which carries images; the base reads text only: send JSON"
            )
        parsed = self._wire.parse(parse_json(body, self._service.limits.max_json_depth), self._service.limits)
        if self._service.options.log_texts:
            logger.info("state: %s", printable(parsed.state))
            for asked in parsed.questions:
                logger.info("question: %s", printable(str(asked.question.to_dict())))
        return parsed

    def _count(self, answered: Sequence[Answered], model: Model) -> None:
        metrics = self._service.metrics
        tokens = usage(answered)
        metrics.tokens.inc(tokens.input_tokens)
        metrics.cached_tokens.inc(tokens.cached)
        for one in answered:
            if one.reply is None:
                metrics.refusals.inc()
                continue
            answer = one.reply.answer
            metrics.answers.labels(model.name, str(bool(answer.trained)).lower(), answer.decision or "none").inc()
            if model.member is None:
                metrics.questions.count(model.run.name, one.reply)


async def responded(
    request: Request, service: Service, wire: WireFormat, work: Coroutine[object, object, Response]
) -> Response:
    """The response that some work returns, or that of the error it raises; counted and logged."""
    started = time.monotonic()
    metrics, route = service.metrics, request.url.path
    try:
        response = await work
    except HttpError as error:
        response = error_response(wire, error)
    except ClientDisconnect:
        metrics.disconnects.inc()
        response = Response(status_code=_CLIENT_LEFT)
    except Exception as error:
        logger.error("%s failed: %s", route, without_texts(error))
        response = error_response(wire, EngineError("the server failed at this request"))
    seconds = time.monotonic() - started
    metrics.requests.labels(route, str(response.status_code)).inc()
    metrics.seconds.labels(route).observe(seconds)
    logger.info("%s %d %.3f s %s", route, response.status_code, seconds, request.scope.get("client_name", ""))
    return response


def error_response(wire: WireFormat, error: HttpError) -> Response:
    """An error in a wire format's shape."""
    status, body = wire.error(error)
    return _with_headers(JSONResponse(body, status), error)


def _with_headers(response: Response, error: HttpError) -> Response:
    if error.retry_after_s is not None:
        response.headers["retry-after"] = str(math.ceil(error.retry_after_s))
    if error.is_final:
        response.headers["x-should-retry"] = "false"
    if error.http_status == 401:
        response.headers["www-authenticate"] = "Bearer"
    if error.close:
        response.headers["connection"] = "close"
    return response


def _client(request: Request) -> str:
    """Whose request it is: the name of its key, or its address where there are no keys."""
    name = request.scope.get("client_name")
    return name or (request.client.host if request.client is not None else "")


def _deadline_ms(request: Request, parsed: ParsedRequest) -> float | None:
    """The client's deadline: the earlier one, if both the body and the header have one.

    Raises:
        InvalidRequestError: the header is not a positive number.
    """
    header = request.headers.get(DEADLINE_HEADER)
    if header is None:
        return parsed.deadline_ms
    try:
        value = float(header)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise InvalidRequestError(
            f"the header {DEADLINE_HEADER} is {header[:60]!r}; send a positive number of milliseconds"
        )
    return value if parsed.deadline_ms is None else min(value, parsed.deadline_ms)


async def _unless_gone(
    request: Request, work: Coroutine[object, object, list[Answered]], timeout_s: float, late: HttpError
) -> list[Answered]:
    """The result of some work, which is cancelled when the client leaves or the time is over.

    Raises:
        ClientDisconnect: the client left.
        HttpError: of the work, or `late`.
    """
    worker = asyncio.ensure_future(work)
    watcher = asyncio.ensure_future(_disconnect(request))
    try:
        await asyncio.wait({worker, watcher}, timeout=max(0.0, timeout_s), return_when=asyncio.FIRST_COMPLETED)
        if worker.done():
            return worker.result()
        if watcher.done():
            raise ClientDisconnect
        raise late
    finally:
        worker.cancel()
        watcher.cancel()
        await asyncio.gather(worker, watcher, return_exceptions=True)


async def _disconnect(request: Request) -> None:
    """Wait until the client has closed the connection; the body has been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass

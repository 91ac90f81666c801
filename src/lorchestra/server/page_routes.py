"""The page at `/`, and the routes that only it needs: similar training rows, and corrections of answers."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from importlib.resources import files

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse

from lorchestra.data.states import state_text
from lorchestra.data.typed_rows import answer_index
from lorchestra.errors import InputError
from lorchestra.questions import Question
from lorchestra.server.bodies import parse_json, read_body
from lorchestra.server.corrections import Correction, Corrections
from lorchestra.server.endpoint import responded
from lorchestra.server.errors import ForbiddenError, InvalidRequestError, NotFoundError, UnsupportedMediaError
from lorchestra.server.registry import ServedRun
from lorchestra.server.service import Service
from lorchestra.server.systemone import SystemOne
from lorchestra.server.wire import JsonObject, member_of, typed

_FILES = {
    "/": ("index.html", "text/html"),
    "/page/page.css": ("page.css", "text/css"),
    "/page/main.js": ("main.js", "text/javascript"),
    "/page/form.js": ("form.js", "text/javascript"),
    "/page/answers.js": ("answers.js", "text/javascript"),
    "/page/dom.js": ("dom.js", "text/javascript"),
    "/page/icon.svg": ("icon.svg", "image/svg+xml"),
}
PATHS = tuple(_FILES)
"""Paths of the page's files. They need no key: they are the same in every installation and hold no data of a run, and
a browser cannot send a key with the address that a person types."""
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none';"
        " form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-cache",
}
"""Headers of the page's files. With trusted types, a browser refuses every attempt to insert text as HTML."""
_NUM_SIMILAR = 5
_MAX_CHARACTERS = 2000
"""Characters of a training row that are shown."""


def add_page(app: FastAPI, service: Service, corrections: Corrections | None) -> None:
    """Add the page and its routes to an app."""
    for path, (name, media_type) in _FILES.items():
        content = files("lorchestra.server").joinpath("page", name).read_bytes()
        app.add_api_route(path, _file(content, media_type), methods=["GET", "HEAD"], include_in_schema=False)

    async def similar(request: Request) -> Response:
        """The training rows that are most similar to a state, if the server shows training rows."""
        return await responded(request, service, SystemOne(), _similar(request, service))

    async def correct(request: Request) -> Response:
        """Save the right answer to a trained question, if the server saves corrections."""
        return await responded(request, service, SystemOne(), _correct(request, service, corrections))

    app.add_api_route("/v1/x_similar", similar, methods=["POST"])
    app.add_api_route("/v1/x_corrections", correct, methods=["POST"], status_code=201)


async def _similar(request: Request, service: Service) -> Response:
    values = await _body(request, service)
    run = service.registry.find(member_of(values, "model", str, ())).run
    index, state = run.similar, _state(values)
    if index is None:
        raise NotFoundError("the server shows no training rows; it would with --show-training-rows")
    if isinstance(index, str):
        return JSONResponse({"rows": [], "reason": index})
    rows = await asyncio.to_thread(index.nearest, state, _NUM_SIMILAR)
    shown = [{**asdict(row), "text": _shortened(row.text)} for row in rows]
    return JSONResponse({"rows": shown, "reason": None})


async def _correct(request: Request, service: Service, corrections: Corrections | None) -> Response:
    values = await _body(request, service)
    if corrections is None:
        raise NotFoundError("the server saves no corrections; it would with --corrections FILE")
    run = service.registry.find(member_of(values, "model", str, ())).run
    correction = _correction(values, run, request.scope.get("client_name", ""))
    await asyncio.to_thread(corrections.save, correction)
    return JSONResponse({"saved": True}, 201)


def _file(content: bytes, media_type: str) -> Callable[[], Awaitable[Response]]:
    async def respond() -> Response:
        return Response(content, media_type=media_type, headers=HEADERS)

    return respond


async def _body(request: Request, service: Service) -> JsonObject:
    """The JSON object in a request's body.

    Raises:
        HttpError: it is none, or a page of another site may have sent it.
    """
    _check_same_site(request, is_open=service.options.keys.is_open)
    body = await read_body(request.stream(), service.limits)
    return typed(parse_json(body, service.limits.max_json_depth), dict, ())


def _check_same_site(request: Request, *, is_open: bool) -> None:
    """Refuse requests that a browser sends for a page of another site; these routes show texts and write a file.

    A browser asks the server before it sends JSON for another site, and no such request is allowed. A site that gives
    its name the address of this server is not another site to the browser, but cannot have a key; where none is
    needed, only names that a site cannot have are accepted.

    Raises:
        UnsupportedMediaError, ForbiddenError: the media type is not JSON; the server is addressed by a name.
    """
    media = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media != "application/json":
        raise UnsupportedMediaError("send the header Content-Type: application/json")
    host = request.url.hostname or ""
    if is_open and host != "localhost" and not _is_address(host):
        raise ForbiddenError(
            f"a server without keys does this only at its IP address or at localhost, not at {host[:100]!r}; use one of"
            " these, or start it with --api-keys"
        )


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _state(values: JsonObject) -> str:
    state = member_of(values, "state", (str, dict, list), ())
    try:
        text = state_text(state)
    except InputError as error:
        raise UnsupportedMediaError(f"state: {error}", ("state",)) from None
    if not text.strip():
        raise InvalidRequestError("state is empty; send a text", ("state",))
    return text


def _correction(values: JsonObject, run: ServedRun, client: str) -> Correction:
    questions = {question.name: question for question in run.questions}
    name = member_of(values, "question", str, ())
    if name not in questions:
        raise InvalidRequestError(
            f"question is {name[:60]!r}; corrections are for what the run was trained on: {', '.join(questions)[:200]}",
            ("question",),
        )
    question = questions[name]
    predicted = values.get("prediction")
    return Correction(
        _state(values),
        question,
        _answer(question, values, "answer"),
        None if predicted is None else _answer(question, values, "prediction"),
        client,
    )


def _answer(question: Question, values: JsonObject, key: str) -> int:
    value = member_of(values, key, (str, bool), ())
    index = answer_index(question, value)
    if index is None:
        raise InvalidRequestError(f"{key} is {str(value)[:60]!r}, which is no option of {question.name!r}", (key,))
    return index


def _shortened(text: str) -> str:
    return text if len(text) <= _MAX_CHARACTERS else f"{text[:_MAX_CHARACTERS]} ..."

"""The ASGI app: routes, keys, and errors of routes that do not exist."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from lorchestra.server import openapi, page_routes
from lorchestra.server.corrections import Corrections
from lorchestra.server.decisions import Decisions
from lorchestra.server.endpoint import Endpoint, error_response
from lorchestra.server.errors import HttpError, NotFoundError, UnauthenticatedError
from lorchestra.server.keys import Keys
from lorchestra.server.metrics import CONTENT_TYPE
from lorchestra.server.registry import ServedRun
from lorchestra.server.service import Service, ServiceOptions
from lorchestra.server.systemone import SystemOne
from lorchestra.server.wire import WireFormat

_OPEN_PATHS = ("/health/live", *page_routes.PATHS)
"""Paths that need no key."""


def create_app(
    runs: Sequence[ServedRun], options: ServiceOptions | None = None, *, corrections: str | None = None
) -> FastAPI:
    """An ASGI app that serves runs; its `state.service` is the `Service`.

    Args:
        runs: what is served.
        options: see `ServiceOptions`.
        corrections: the file to which corrected answers are appended; None if the page is not to offer that.

    Raises:
        ConfigError: the runs' names are not unique, or their corrections cannot be saved.
    """
    options = options or ServiceOptions()
    service = Service(runs, options)
    app = FastAPI(
        title="lorchestra",
        version=version("lorchestra"),
        description="Decisions of LoRA ensembles, with calibrated probabilities.",
        lifespan=_lifespan,
    )
    app.state.service = service
    for path, wire, extra in (
        ("/v1/systemone", SystemOne(), openapi.SYSTEMONE),
        ("/v1/decisions", Decisions(), openapi.DECISIONS),
    ):
        app.add_api_route(path, Endpoint(service, wire).__call__, methods=["POST"], openapi_extra=extra, name=path[4:])
    saved = None if corrections is None else Corrections(corrections, runs)
    _add_reports(app, service, saves_corrections=saved is not None)
    page_routes.add_page(app, service, saved)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(HttpError, _on_http_error)
    app.add_middleware(_RequireKey, keys=options.keys)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    service: Service = app.state.service
    service.start()
    warm_up = asyncio.ensure_future(service.warm_up())
    try:
        yield
    finally:
        warm_up.cancel()
        await asyncio.gather(warm_up, return_exceptions=True)
        await asyncio.get_running_loop().run_in_executor(None, service.stop)


def _add_reports(app: FastAPI, service: Service, *, saves_corrections: bool) -> None:
    """The routes that only report."""

    @app.get("/v1/models")
    async def models() -> JSONResponse:
        """All models: runs, their members and bases."""
        return JSONResponse(service.registry.to_dict())

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> JSONResponse:
        """One model."""
        return JSONResponse(service.registry.entry(name))

    @app.get("/v1/x_runs")
    async def runs() -> JSONResponse:
        """The runs, with the questions they were trained on."""
        shown = [run.to_dict() for run in service.registry.runs]
        return JSONResponse({"runs": shown, "saves_corrections": saves_corrections})

    @app.get("/health/live")
    async def live() -> JSONResponse:
        """Whether the process can answer at all; if not, restart it."""
        return JSONResponse({"alive": service.is_alive}, 200 if service.is_alive else 503)

    @app.get("/health/ready")
    async def ready() -> JSONResponse:
        """Whether to send requests here: every run has answered a question, and the server is not shutting down."""
        return JSONResponse({"ready": service.is_ready}, 200 if service.is_ready else 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        """Metrics in Prometheus's text format."""
        return Response(service.metrics.text(), media_type=CONTENT_TYPE)


def _shape(path: str) -> WireFormat:
    """The wire format in which errors of a path are written."""
    return Decisions() if path.startswith(("/v1/decisions", "/v1/models/")) else SystemOne()


async def _on_http_exception(request: Request, error: Exception) -> Response:
    """An unknown path or method."""
    assert isinstance(error, HTTPException)
    failure = NotFoundError(f"{request.method} {request.url.path}: {error.detail}; see /docs")
    failure.http_status = error.status_code
    response = error_response(_shape(request.url.path), failure)
    response.headers.update(error.headers or {})
    return response


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HttpError)
    return error_response(_shape(request.url.path), error)


class _RequireKey:
    """Middleware that admits requests with a key, and writes the client's name into the scope."""

    def __init__(self, app: ASGIApp, keys: Keys) -> None:
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer it with an error."""
        if scope["type"] == "http" and scope["path"] not in _OPEN_PATHS:
            try:
                scope["client_name"] = self._keys.client(Headers(scope=scope).get("authorization"))
            except UnauthenticatedError as error:
                await error_response(_shape(scope["path"]), error)(scope, receive, send)
                return
        await self._app(scope, receive, send)

"""The server process: it listens, drains at a signal, and exits."""

from __future__ import annotations

import asyncio
import logging
import socket
from types import FrameType

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from lorchestra.errors import ConfigError
from lorchestra.server.service import Service

logger = logging.getLogger(__name__)

_GRACE_S = 10
"""Seconds in which responses must have been read once the last answer is computed."""


def serve(app: FastAPI, host: str, port: int) -> None:
    """Serve an app until SIGTERM or Ctrl-C, and then until the requests it has taken are answered.

    Meanwhile new requests get status 503 and `/health/ready` is false, so that a load balancer sends them elsewhere. A
    second signal ends the process at once.

    Raises:
        ConfigError: the address cannot be used.
    """
    listener = listen(host, port)
    shown = f"[{host}]" if ":" in host else host
    logger.info("serving on http://%s:%d", shown, listener.getsockname()[1])
    DrainingServer(app).run(sockets=[listener])


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens on an address.

    Raises:
        ConfigError: the address cannot be used.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=1024)
    except (OSError, OverflowError) as error:
        raise ConfigError(f"--host {host} --port {port}: cannot be used ({error}); choose another") from error


class DrainingServer(uvicorn.Server):
    """uvicorn, which would stop listening at the first signal, and end by it instead of with exit code 0."""

    def __init__(self, app: FastAPI) -> None:
        service: Service = app.state.service
        config = uvicorn.Config(
            app,
            http=_impatient_protocol(service.limits.body_timeout),
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=_GRACE_S,
        )
        super().__init__(config)
        self._service = service
        self._draining = False

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Drain at the first signal, exit at the second."""
        if self._draining:
            self.should_exit = self.force_exit = True
        self._draining = True

    async def on_tick(self, counter: int) -> bool:
        """Whether to exit: every tenth of a second."""
        if self._draining and not self._service.is_draining:
            logger.info("draining: %d requests are being answered", self._service.queue.num_jobs)
            self._service.drain()
        if self._draining and self._service.is_idle:
            self.should_exit = True
        return await super().on_tick(counter)


def _impatient_protocol(patience_s: float) -> type[H11Protocol]:
    """uvicorn's protocol, which by itself waits for ever for a request's headers."""

    class Impatient(H11Protocol):
        """Closes a connection that has not begun a request in one to two times `patience_s`."""

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            """Start to look at the connection from time to time."""
            super().connection_made(transport)
            self._seen = self.cycle
            self._timer = self.loop.call_later(patience_s, self._look)

        def connection_lost(self, exc: Exception | None) -> None:
            """Stop looking."""
            self._timer.cancel()
            super().connection_lost(exc)

        def _look(self) -> None:
            is_waiting = self.cycle is None or self.cycle.response_complete
            if is_waiting and self.cycle is self._seen:
                self.transport.close()
                return
            self._seen = self.cycle
            self._timer = self.loop.call_later(patience_s, self._look)

    return Impatient

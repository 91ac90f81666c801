"""The server process: it listens, drains at a signal, and exits."""

from __future__ import annotations

import logging
import socket
from types import FrameType

import uvicorn
from fastapi import FastAPI

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
        config = uvicorn.Config(
            app, log_config=None, access_log=False, server_header=False, timeout_graceful_shutdown=_GRACE_S
        )
        super().__init__(config)
        self._service: Service = app.state.service
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

"""A connection to a Ray cluster, and how its nodes are divided among workers."""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from lorchestra.errors import ConfigError, LorchestraError

CONNECT_S = 5.0
"""How long an address may take to accept a connection."""


class ClusterError(LorchestraError):
    """The cluster cannot be reached, has no room, or lost the same work again and again."""

    exit_code = 1


@dataclass(frozen=True)
class WorkerShape:
    """What every worker of a job gets: whole CPUs, as many threads, and at most one GPU."""

    number: int
    num_cpus: int
    num_gpus: int


@contextmanager
def connection(address: str | None) -> Iterator[None]:
    """Connected to Ray for the time of the block; an existing connection of this process is used and kept.

    Args:
        address: `host:port` of the cluster's head, or "auto" for the cluster that this machine belongs to. By default
            that of the environment variable RAY_ADDRESS; without one, Ray is started on this machine for the block.

    Raises:
        ConfigError: Ray is not installed, or the address is not one of these.
        ClusterError: nothing answers there.
    """
    if importlib.util.find_spec("ray") is None:
        raise ConfigError("--engine ray: needs the extra ray: pip install 'lorchestra[ray]'")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a Ray that is started here reports to no one
    import ray

    if ray.is_initialized():
        yield
        return
    address = address or os.environ.get("RAY_ADDRESS") or None
    if address not in (None, "auto", "local"):
        _check_answers(address)
    try:
        started = {"include_dashboard": False} if address in (None, "local") else {}
        with _kept_handlers():
            ray.init(address=address, log_to_driver=False, logging_level="ERROR", **started)
    except (ConnectionError, RuntimeError, ValueError) as error:
        what = "--engine ray: Ray cannot be started here" if address is None else f"--address {address}: no connection"
        reason = " ".join(str(error).split())
        raise ClusterError(f"{what} ({reason}); ray start --head starts a cluster on a machine") from error
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _kept_handlers() -> Iterator[None]:
    """Restore the handlers of stop signals, which Ray replaces: at SIGTERM it would abort the process."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _check_answers(address: str) -> None:
    """Refuse an address that does not accept a connection: Ray itself would wait for minutes."""
    host, colon, port = address.rpartition(":")
    if "://" in address:
        raise ConfigError(
            f"--address {address}: a client's address; start the command on a node of the cluster, or with ray job"
            " submit, and give auto or HOST:PORT"
        )
    if not (colon and host and port.isdecimal() and int(port) < 2**16):
        raise ConfigError(f"--address {address}: is neither HOST:PORT nor auto; Ray's port is 6379 unless changed")
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_S).close()
    except OSError as error:
        raise ClusterError(
            f"--address {address}: does not answer ({error.strerror or error}); check that ray start --head runs there"
        ) from error


def worker_shape(number: int | None, *, gpus: bool = True) -> WorkerShape:
    """The largest equal workers that the nodes of the connected cluster have room for.

    Args:
        number: of workers; by default one per GPU, or one per node of a cluster without GPUs.
        gpus: whether they may use GPUs.

    Raises:
        ConfigError: the cluster has no room for as many.
    """
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    cpus = [int(node.get("CPU", 0)) for node in nodes]
    graphics = [int(node.get("GPU", 0)) if gpus else 0 for node in nodes]
    return divided(cpus, graphics, number)


def divided(cpus: Sequence[int], gpus: Sequence[int], number: int | None) -> WorkerShape:
    """`worker_shape` of nodes with so many CPUs and GPUs."""
    has_gpus = any(gpus)

    def room(num_cpus: int) -> int:
        pairs = zip(cpus, gpus, strict=True)
        return sum(min(cpu // num_cpus, gpu) if has_gpus else cpu // num_cpus for cpu, gpu in pairs)

    most = room(1)
    if number is None:
        number = most if has_gpus else sum(cpu > 0 for cpu in cpus)
    if number > most or most == 0:
        what = "GPUs" if has_gpus else "CPUs"
        raise ConfigError(f"--workers {number}: the cluster has {what} for {most}; give fewer, or add nodes")
    return WorkerShape(number, max(c for c in range(1, max(cpus) + 1) if room(c) >= number), int(has_gpus))

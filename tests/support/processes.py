"""Processes as torchrun starts them, forked from a server that has imported everything."""

import os
import socket
import traceback

from commands import Command, context


def environments(size):
    """The variables of each process of a group on this machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "test"}
    sizes = {"WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size)}
    return [shared | sizes | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(size)]


def start_commands(commands, directory):
    """Start one command per process of a group; `commands` are their arguments."""
    started = []
    for rank, (arguments, environment) in enumerate(zip(commands, environments(len(commands)), strict=True)):
        folder = directory / f"rank_{rank}"
        folder.mkdir(parents=True, exist_ok=True)
        started.append(Command(*arguments, directory=folder, environment=environment))
    return started


def in_processes(size, function, timeout=120):
    """Call `function(rank)` in each process of a group; returns its results, or exceptions' names and texts, by rank.

    A process that is killed has the result None. The function must be importable.
    """
    queue = context().Queue()
    processes = [
        context().Process(target=_call, args=(queue, function, rank, environment))
        for rank, environment in enumerate(environments(size))
    ]
    try:
        for process in processes:
            process.start()
        for process in processes:
            process.join(timeout)
            assert process.exitcode is not None, f"still running after {timeout} s"
        results = dict(queue.get(timeout=timeout) for process in processes if process.exitcode == 0)
    finally:
        for process in processes:
            process.kill()
            process.join()
    return [results.get(rank) for rank in range(size)]


def _call(queue, function, rank, environment):
    os.environ.update(environment)
    try:
        result = function(rank)
    except Exception as error:
        traceback.print_exc()
        result = [type(error).__name__, str(error)]
    queue.put((rank, result))
    queue.close()
    queue.join_thread()

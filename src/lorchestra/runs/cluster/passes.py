"""The packed passes of a sweep as tasks of a Ray cluster: each leaves its results in the sweep's directory."""

from __future__ import annotations

import signal
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, TypeVar, cast

from lorchestra.errors import CheckpointError, ConfigError, DataError, Interrupted
from lorchestra.runs.build import torch_threads
from lorchestra.runs.cluster.connection import ClusterError, WorkerShape
from lorchestra.runs.cluster.pool import raised_there, reason_of
from lorchestra.runs.sweep.engine import Outcomes, PassJob, PassOutcome, run_pass
from lorchestra.runs.sweep.points import Point
from lorchestra.runs.sweep.settle import settle_points
from lorchestra.store.safe_paths import inside
from lorchestra.store.workspace import SWEEP
from lorchestra.training.callbacks import Callback

if TYPE_CHECKING:
    import ray

_MOST_RETRIES = 3
"""How often a task is repeated whose worker or node is lost."""
_POLL_S = 0.5
_STOP_S = 600.0
"""How long to wait for the checkpoints of tasks that are to stop."""

T = TypeVar("T")


@dataclass(frozen=True)
class RayEngine:
    """Passes at the same time, as many as there are workers; those of lost workers are repeated from their files.

    Attributes:
        shape: the workers, of the cluster that this process is connected to.
    """

    shape: WorkerShape

    def settle(self, root: Path, points: Sequence[Point], callback: Callback) -> list[Point]:
        """See `settle_points`: one task."""
        task = self._task(_settle)
        start = partial(task.remote, root.absolute(), list(points), self.shape.num_cpus)
        ((_, settled),) = _results([(None, start)], 1, callback)
        if isinstance(settled, Exception):
            raise settled
        return cast("list[Point]", settled)

    def outcomes(self, jobs: Sequence[PassJob], callback: Callback) -> Outcomes:
        """The passes in the order in which they are done; each caches its trunk for itself."""
        # a process that has trained holds memory that it does not give back
        task = self._task(_run_pass, max_calls=1)

        def start(job: PassJob) -> ray.ObjectRef:
            callback.on_status(job.names, "training")
            return task.remote(replace(job, root=job.root.absolute()), self.shape.num_cpus)

        tasks = [(job, partial(start, job)) for job in jobs]
        with closing(_results(tasks, self.shape.number, callback)) as results:
            for job, outcome in results:
                yield job, cast(PassOutcome, outcome)

    def _task(self, function: Callable[..., object], **options: int) -> ray.remote_function.RemoteFunction:
        import ray

        options |= {"num_cpus": self.shape.num_cpus, "num_gpus": self.shape.num_gpus, "max_retries": _MOST_RETRIES}
        return ray.remote(**options)(function)


def _results(
    tasks: Sequence[tuple[T, Callable[[], ray.ObjectRef]]], most: int, callback: Callback
) -> Generator[tuple[T, object], None, None]:
    """The results of tasks as they are done, at most so many at a time; bad input counts as a result.

    If this ends early, the running tasks are asked to stop, and have when it returns.
    """
    import ray

    left = deque(tasks)
    running: dict[ray.ObjectRef, T] = {}
    try:
        while left or running:
            if callback.should_stop():
                raise Interrupted
            while left and len(running) < most:
                tag, start = left.popleft()
                running[start()] = tag
            done, _ = ray.wait(list(running), timeout=_POLL_S)
            for reference in done:
                yield running.pop(reference), _result(reference)
    finally:
        for reference in running:
            ray.cancel(reference)  # a KeyboardInterrupt there
        if running:
            ray.wait(list(running), num_returns=len(running), timeout=_STOP_S)


def _result(reference: ray.ObjectRef) -> object:
    """The result of a task, or the error if its input is bad.

    Raises:
        ClusterError: its worker was lost again and again.
    """
    import ray
    from ray.exceptions import RayError, RayTaskError

    try:
        return ray.get(reference)
    except RayTaskError as error:
        cause = raised_there(error)
        if isinstance(cause, ConfigError | DataError):
            return cause
        raise cause from None
    except RayError as error:
        raise ClusterError(
            f"a pass was lost {_MOST_RETRIES + 1} times; is there enough memory on the nodes? The last:"
            f" {reason_of(error)}"
        ) from error


def _settle(root: Path, points: Sequence[Point], num_threads: int) -> list[Point]:
    with _in_task(root, num_threads) as callback:
        return settle_points(root, points, callback)


def _run_pass(job: PassJob, num_threads: int) -> dict[str, str]:
    with _in_task(job.root, num_threads) as callback:
        return run_pass(job, inside(job.root, "trunks", job.pack.key), trunks_in_memory=True, callback=callback)


class _StopAtInterrupt(Callback):
    """Asks to stop after an interrupt signal, as Ray sends to a cancelled task."""

    requested = False

    def should_stop(self) -> bool:
        """Whether there was one."""
        return self.requested

    def request(self, number: int, frame: FrameType | None) -> None:
        """The handler of the signal."""
        self.requested = True


@contextmanager
def _in_task(root: Path, num_threads: int) -> Iterator[Callback]:
    """In a task, with so many threads of torch; what it yields asks to stop when the task is cancelled.

    Raises:
        CheckpointError: this node does not see the sweep's directory.
    """
    import ray

    if not inside(root, SWEEP.marker).exists():
        node = ray.util.get_node_ip_address()
        raise CheckpointError(f"--out {root}: is not seen by node {node}; use a file system that all nodes see")
    callback = _StopAtInterrupt()
    before = signal.signal(signal.SIGINT, callback.request)
    try:
        with torch_threads(num_threads):
            yield callback
    finally:
        signal.signal(signal.SIGINT, before)

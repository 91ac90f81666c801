"""Actors of a Ray cluster that answer calls in any order; the calls of one that is lost are repeated by others."""

from __future__ import annotations

import logging
import re
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, TypeVar

from lorchestra.errors import LorchestraError, printable
from lorchestra.runs.cluster.connection import ClusterError

if TYPE_CHECKING:
    import ray

logger = logging.getLogger(__name__)

_IN_FLIGHT = 2
"""Calls of a worker at a time: it computes one, and the arguments of the next are on their way."""
_MOST_LOSSES = 3
"""Workers that may be lost over the same call, or one after the other before they are ready."""
_REPORT_AFTER_S = 30.0

_COLOR = re.compile(r"\x1b\[\d*m")

C = TypeVar("C")


@dataclass
class _Worker(Generic[C]):
    actor: ray.actor.ActorHandle
    ready: bool = False
    calls: list[C] = field(default_factory=list)
    """In the order in which it answers them."""


class WorkerPool(Generic[C]):
    """Workers of one job; they end with the block.

    Ray would restart an actor, too, and repeat its calls; but these would wait for its restart, which may need a node
    that is gone for good, while other workers are idle.

    Args:
        start: starts an actor; its method `load` is called first.
        submit: hands a call to an actor; returns Ray's reference to the result.
        number: of workers.
    """

    def __init__(
        self,
        start: Callable[[], ray.actor.ActorHandle],
        submit: Callable[[ray.actor.ActorHandle, C], ray.ObjectRef],
        number: int,
    ) -> None:
        self._start_actor, self._submit, self._number = start, submit, number
        self._pending: dict[ray.ObjectRef, tuple[_Worker[C], C | None]] = {}
        self._workers: list[_Worker[C]] = []
        self._again: deque[C] = deque()
        self._losses: dict[C, int] = {}
        self._losses_while_loading = 0

    def __enter__(self) -> WorkerPool[C]:
        """Workers start with the first call."""
        return self

    def __exit__(self, *unused: object) -> None:
        """End all workers."""
        for worker in self._workers:
            self._end(worker)

    def results(self, calls: Iterator[C]) -> Iterator[tuple[C, object]]:
        """All calls with their results, as they come; `calls` is read as far ahead as there are workers.

        Raises:
            LorchestraError: the first error of a call.
            ClusterError: workers are lost again and again.
        """
        import ray

        left = self._fill(calls)
        while left or any(worker.calls for worker in self._workers):
            done, _ = ray.wait(list(self._pending), timeout=_REPORT_AFTER_S)
            if not done and not any(worker.ready for worker in self._workers):
                logger.info("waiting for a worker: no node has room for one, or the base is still being loaded")
            for reference in done:
                if reference in self._pending:  # else its worker was lost with another call
                    yield from self._result(reference)
            left = self._fill(calls)

    def _fill(self, calls: Iterator[C]) -> bool:
        """Hand out calls until all workers have enough; returns whether there may be more."""
        while True:
            free = [worker for worker in self._workers if worker.ready and len(worker.calls) < _IN_FLIGHT]
            if self._workers and not free:
                return True
            call = self._again.popleft() if self._again else next(calls, None)
            if call is None:
                return False
            if not self._workers:
                self._again.append(call)
                for _ in range(self._number):
                    self._start()
                return True
            worker = min(free, key=lambda one: len(one.calls))
            worker.calls.append(call)
            self._pending[self._submit(worker.actor, call)] = worker, call

    def _result(self, reference: ray.ObjectRef) -> Iterator[tuple[C, object]]:
        import ray
        from ray.exceptions import NodeDiedError, OutOfMemoryError, RayActorError, RayTaskError, WorkerCrashedError

        worker, call = self._pending.pop(reference)
        try:
            result = ray.get(reference)
        except (RayActorError, OutOfMemoryError, NodeDiedError, WorkerCrashedError) as error:
            self._replace(worker, error)
            return
        except RayTaskError as error:
            raise raised_there(error) from None
        if call is None:
            worker.ready, self._losses_while_loading = True, 0
            return
        worker.calls.remove(call)
        self._losses.pop(call, None)
        yield call, result

    def _start(self) -> None:
        worker: _Worker[C] = _Worker(self._start_actor())
        self._workers.append(worker)
        self._pending[worker.actor.load.remote()] = worker, None

    def _replace(self, worker: _Worker[C], error: Exception) -> None:
        """Start another worker for a lost one, and repeat its calls.

        Raises:
            ClusterError: too many were lost over the same call.
        """
        reason = reason_of(error)
        logger.info(f"a worker was lost; its work is repeated ({reason})")
        if worker.calls:
            # the first is the one that it was computing
            losses = self._losses[worker.calls[0]] = self._losses.get(worker.calls[0], 0) + 1
        else:
            losses = self._losses_while_loading = self._losses_while_loading + 1
        if losses >= _MOST_LOSSES:
            when = f"while it answered {worker.calls[0]}" if worker.calls else "before it was ready"
            raise ClusterError(
                f"{losses} workers were lost, each {when}; is there enough memory on the nodes? The last: {reason}"
            )
        self._pending = {ref: entry for ref, entry in self._pending.items() if entry[0] is not worker}
        self._workers.remove(worker)
        self._end(worker)
        self._again.extend(worker.calls)
        self._start()

    def _end(self, worker: _Worker[C]) -> None:
        import ray

        ray.kill(worker.actor)


def reason_of(error: Exception) -> str:
    """An error of Ray on one line, without colors and, if it is long, without its middle."""
    return printable(_COLOR.sub("", str(error)), 600)


def raised_there(error: Exception) -> Exception:
    """The error that a task or an actor has raised, without Ray's traceback if it is one that users can fix."""
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, LorchestraError) else error

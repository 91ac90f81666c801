"""A group of threads instead of processes: what a training does with a group, without starting processes."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor

import torch

from lorchestra.distributed import Group
from lorchestra.errors import LostProcessError


class _Exchange:
    """What the threads of a group hand each other, by call."""

    def __init__(self, size):
        self.size, self.calls, self.changed, self.is_over = size, {}, threading.Condition(), False

    def all(self, call, rank, value):
        with self.changed:
            values = self.calls.setdefault(call, {})
            values[rank] = value
            self.changed.notify_all()
            self.changed.wait_for(lambda: len(values) == self.size or self.is_over, timeout=300)
            if len(values) < self.size:
                raise LostProcessError("another thread has ended")
            return [values[rank] for rank in range(self.size)]

    def end(self):
        with self.changed:
            self.is_over = True
            self.changed.notify_all()


class ThreadGroup(Group):
    """One thread's view of its group; values travel as JSON, as between processes."""

    def __init__(self, rank, exchange):
        self.rank, self.size, self._exchange, self._calls = rank, exchange.size, exchange, 0

    def gather(self, value):
        return [json.loads(text) for text in self._all(json.dumps(value))]

    def gather_tensors(self, tensor):
        return self._all(tensor.detach().clone())

    def rows_to_first(self, rows):
        parts = self.gather_tensors(rows)
        return torch.cat(parts) if self.is_first else rows

    def _all(self, value):
        self._calls += 1
        return self._exchange.all(self._calls, self.rank, value)


def thread_groups(size):
    """The views of a group's threads."""
    exchange = _Exchange(size)
    return [ThreadGroup(rank, exchange) for rank in range(size)]


def in_threads(groups, action):
    """Call `action(rank)` in one thread per group's member; returns results, or exceptions, by rank."""

    def run(group):
        try:
            return action(group.rank)
        except Exception as error:
            group._exchange.end()
            return error

    with ThreadPoolExecutor(len(groups)) as pool:
        return list(pool.map(run, groups))

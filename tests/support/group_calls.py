"""What processes of a group do in tests: functions that they can import."""

import os
import signal
import time

import torch

from lorchestra.distributed import process_group
from lorchestra.errors import CheckpointError, DataError


def exchange(rank):
    """All calls of a group, with values that differ by process."""
    with process_group() as group:
        mine = {"rank": rank, "text": "Überschrift 電影 " * (1 + 1000 * rank), "nan": float("nan"), "none": None}
        tensors = [
            torch.arange(4.0 + 4 * rank, dtype=dtype).view(-1, 2) + rank
            for dtype in (torch.float64, torch.bfloat16, torch.int64)
        ]
        gathered = [[part.double().tolist() for part in group.gather_tensors(tensor)] for tensor in tensors]
        empty = group.gather_tensors(torch.ones(rank, 3))
        return {
            "rank": [group.rank, group.size, group.is_first, list(group.block(5))],
            "values": [
                [part["rank"], len(part["text"]), str(part["nan"]), part["none"]] for part in group.gather(mine)
            ],
            "tensors": gathered,
            "empty": [list(part.shape) for part in empty],
            "to first": group.rows_to_first(tensors[1]).double().tolist(),
            "any": [group.any(rank == 1), group.any(False)],
            "first": group.first(lambda: ["only", os.environ["RANK"]]),
            "sharing": group.sharing(torch.device("cpu")),
        }


def fail_in_first(rank):
    """The first process's error reaches all."""
    with process_group() as group:
        try:
            group.first(_full)
        except CheckpointError as error:
            caught = str(error)
        return [caught, group.gather(rank)]  # in step afterwards


def _full():
    raise CheckpointError("the disk is full")


def fail_in_all(rank):
    """All processes have the same error."""
    with process_group():
        raise DataError("rows.csv: no rows")


def fail_in_second(rank):
    """One process has an error while the others wait for it."""
    with process_group() as group:
        group.gather(rank)
        if rank == 1:
            raise DataError("rows.csv: no rows")
        group.gather(rank)


def bug_in_second(rank):
    """As `fail_in_second`, with an error that is none of ours."""
    with process_group() as group:
        if rank == 1:
            raise ZeroDivisionError("a bug")
        group.gather(rank)


def killed_second(rank):
    """One process is killed while the other waits for it."""
    with process_group() as group:
        group.gather(rank)
        if rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        started = time.monotonic()
        try:
            group.gather(rank)
        finally:
            assert time.monotonic() - started < 60

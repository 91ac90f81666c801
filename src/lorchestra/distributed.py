"""The processes of a training: torchrun starts them, and the members are split over them.

Every process holds the base and a contiguous block of the members. What travels between them is on the host, through
gloo: small values as JSON, and tensors. The first process (rank 0) is the only one that writes the run directory's
records. One process is a group as well, in which nothing travels: the code of a job is the same for both.

The calls of a `Group` are collective: all processes make the same calls in the same order.
"""

from __future__ import annotations

import itertools
import json
import os
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

import lorchestra.errors
from lorchestra.errors import ConfigError, Interrupted, LorchestraError, LostProcessError, ReportedError

TIMEOUT = timedelta(minutes=30)
"""How long a process waits for the others before it counts them as lost; a process that ends is noticed at once."""
_MEMBERS = "members"
_ERRORS = "lorchestra/errors"

T = TypeVar("T")


class Group:
    """The processes that train together: this class is one process alone."""

    rank = 0
    """Index of this process."""
    size = 1
    """Number of processes."""

    @property
    def is_first(self) -> bool:
        """Whether this process writes the records and prints."""
        return self.rank == 0

    def block(self, number: int) -> range:
        """This process's part of `number` members."""
        return self.blocks(number)[self.rank]

    def blocks(self, number: int) -> list[range]:
        """The processes' parts of `number` members: contiguous, and of sizes that differ by at most one."""
        bounds = [rank * number // self.size for rank in range(self.size + 1)]
        return [range(start, stop) for start, stop in itertools.pairwise(bounds)]

    def sharing(self, device: torch.device) -> int:
        """Number of processes that share a device's memory."""
        return 1

    def gather(self, value: T) -> list[T]:
        """The processes' values, by rank, in every process.

        They must be JSON values (NaN included); tuples may arrive as lists.
        """
        return [value]

    def gather_tensors(self, tensor: Tensor) -> list[Tensor]:
        """The processes' tensors, by rank, in every process; they may differ in their first dimension."""
        return [tensor]

    def rows_to_first(self, rows: Tensor) -> Tensor:
        """In the first process, the rows of all of them, `[sum of rows, ..]`, on the host; in the others, theirs."""
        return rows

    def any(self, value: bool) -> bool:
        """Whether the value is true in any process."""
        return any(self.gather(value))

    def first(self, action: Callable[[], T]) -> T:
        """Run an action in the first process alone; its result, a JSON value, is returned in all.

        Its error is raised in all, too, so that they handle it alike. For actions of seconds: the others wait.
        """
        result, failure = None, None
        if self.is_first:
            try:
                result = action()
            except Exception as error:
                failure = error
        name, text = (None, "") if failure is None else (type(failure).__name__, str(failure))
        sent, name, text = self.gather((result, name, text))[0]
        if failure is not None:
            raise failure
        if name is not None:
            raise _same_error(name, text)
        return sent  # type: ignore[return-value]  # what the first process has returned


def _same_error(name: str, text: str) -> Exception:
    """The error that the first process has raised, as far as it is one of ours."""
    error_class = getattr(lorchestra.errors, name, None)
    if isinstance(error_class, type) and issubclass(error_class, LorchestraError | Interrupted):
        return error_class(text)
    return ReportedError(f"the first process failed: {name}: {text}")


ALONE = Group()
"""One process."""


class ProcessGroup(Group):
    """Several processes of one machine, connected by torch.distributed.

    Raises:
        LostProcessError: by every call, if another process has ended or does not answer.
    """

    def __init__(self) -> None:
        # one axis so far; the base is whole in every process
        mesh = init_device_mesh("cpu", (dist.get_world_size(),), mesh_dim_names=(_MEMBERS,))
        self._group = mesh.get_group(_MEMBERS)
        self.rank, self.size = mesh.get_local_rank(_MEMBERS), mesh.size()

    def sharing(self, device: torch.device) -> int:
        """All of them on a CPU; on CUDA, those with the same GPU."""
        return self.size if device.type == "cpu" else -(-self.size // torch.cuda.device_count())

    def gather(self, value: T) -> list[T]:
        """Send the value as JSON."""
        data = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        lengths = self._lengths(len(data))
        padded = torch.zeros(max(lengths), dtype=torch.uint8)
        padded[: len(data)] = data
        parts = [torch.empty_like(padded) for _ in range(self.size)]
        with _noticing_loss(self.size):
            dist.all_gather(parts, padded, group=self._group)
        return [json.loads(part[:length].numpy().tobytes()) for part, length in zip(parts, lengths, strict=True)]

    def gather_tensors(self, tensor: Tensor) -> list[Tensor]:
        """Send the tensors' bytes; all results are on the host."""
        data = _as_bytes(tensor)
        lengths = self._lengths(len(data))
        parts = [data if rank == self.rank else torch.empty(n, dtype=torch.uint8) for rank, n in enumerate(lengths)]
        with _noticing_loss(self.size):
            for rank, part in enumerate(parts):
                if len(part):
                    dist.broadcast(part, group=self._group, group_src=rank)
        return [part.view(tensor.dtype).view(-1, *tensor.shape[1:]) for part in parts]

    def rows_to_first(self, rows: Tensor) -> Tensor:
        """Send the rows' bytes to the first process alone."""
        data = _as_bytes(rows)
        lengths = self._lengths(len(data))
        with _noticing_loss(self.size):
            if not self.is_first:
                dist.send(data, group=self._group, group_dst=0)
                return rows
            joined = torch.empty(sum(lengths), dtype=torch.uint8)
            mine, *others = joined.split(lengths)
            mine.copy_(data)
            for rank, part in enumerate(others, 1):
                dist.recv(part, group=self._group, group_src=rank)
        return joined.view(rows.dtype).view(-1, *rows.shape[1:])

    def _lengths(self, length: int) -> list[int]:
        lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
        with _noticing_loss(self.size):
            dist.all_gather(lengths, torch.tensor([length]), group=self._group)
        return [int(number) for number in lengths]


def _as_bytes(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8)


@contextmanager
def _noticing_loss(size: int) -> Iterator[None]:
    """Turn a failed transfer into the error that says what it means."""
    try:
        yield
    except RuntimeError as error:
        if "gloo" not in str(error):  # its errors have no class
            raise
        raise LostProcessError(
            f"another of the {size} processes of this training has ended or did not answer; torchrun reports which one."
            " Start it again with --if-exists resume"
        ) from error


@contextmanager
def process_group() -> Iterator[Group]:
    """The group of the processes that torchrun has started; of one process without torchrun.

    Of an error that ends the block in several processes, or in one and thereby in the others, the process that is first
    raises it unchanged, and the others a `ReportedError`: so there is one message. On CUDA, each process uses another
    GPU, as long as there are enough.

    Raises:
        ConfigError: the processes are on several machines.
    """
    if not dist.is_torchelastic_launched() or os.environ["WORLD_SIZE"] == "1":
        yield ALONE
        return
    if platform.system() == "Linux":  # they are on one machine, and nobody else can connect to them
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    store, rank, size = next(rendezvous("env://", timeout=TIMEOUT))
    # after a restart by torchrun, the store still has the addresses of the processes before it, and their error
    store = PrefixStore(f"attempt_{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    try:
        _check_machine(size)
        if torch.cuda.is_available():
            torch.cuda.set_device(rank % torch.cuda.device_count())
        with _noticing_loss(size):
            dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=TIMEOUT)
        yield ProcessGroup()
    except (Interrupted, ReportedError):
        raise
    except Exception as error:
        if _is_first_error(store):
            raise
        exit_code = error.exit_code if isinstance(error, LorchestraError) else ReportedError.exit_code
        raise ReportedError(f"another process has reported an error; here: {error}", exit_code) from error
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def _check_machine(size: int) -> None:
    local = os.environ["LOCAL_WORLD_SIZE"]
    if local != str(size):
        raise ConfigError(
            f"torchrun: {size} processes on several machines, {local} on this one; a training runs on one machine:"
            " start it with --nnodes 1"
        )


def _is_first_error(store: Store) -> bool:
    """Whether no other process has reported an error; true if that cannot be known."""
    try:
        return store.add(_ERRORS, 1) == 1
    except RuntimeError:
        return True

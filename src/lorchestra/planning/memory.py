"""How much memory is used, was used at most, and is free: of the GPU where the base is on one, else of this machine."""

from __future__ import annotations

import ctypes
import platform
from pathlib import Path

import torch

_PROC = Path("/proc")
_CGROUPS = Path("/sys/fs/cgroup")
_NO_LIMIT = 1 << 60
"""Control groups of version 1 say "no limit" by a number near 2^63."""


def peak_bytes() -> int:
    """The most memory used so far: of the GPU where there is one, else resident memory of this process."""
    if _on_gpu():
        return torch.cuda.max_memory_allocated()
    # Not `ru_maxrss` on Linux: a process inherits the value that its parent had when it was started.
    status = _status("VmHWM")
    if status is not None:
        return status
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if platform.system() == "Darwin" else peak * 1024


def used_bytes() -> int | None:
    """What `peak_bytes` is the most of, now; None where the system does not say."""
    return torch.cuda.memory_allocated() if _on_gpu() else _status("VmRSS")


def restart_peak() -> bool:
    """Let `peak_bytes` count from now on; False where the system has no way to.

    What was freed before is given back to the system first: else what the allocator keeps would count as used.
    """
    if _on_gpu():
        torch.cuda.reset_peak_memory_stats()
        return True
    # glibc's; other C libraries have no such function, and give back by themselves
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if platform.system() == "Linux" else None
    if trim is not None:
        trim(0)
    try:
        (_PROC / "self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def free_bytes(device: torch.device) -> int | None:
    """Bytes that can still be had without swapping, within the control group's limit; None where unknown."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    found = [_available(), *(_group_room(group) for group in _own_groups())]
    return min((number for number in found if number is not None), default=None)


def _on_gpu() -> bool:
    return torch.cuda.is_available() and torch.cuda.is_initialized()


def _status(name: str) -> int | None:
    return _kilobytes(_PROC / "self/status", name)


def _available() -> int | None:
    return _kilobytes(_PROC / "meminfo", "MemAvailable")


def _kilobytes(path: Path, name: str) -> int | None:
    """The value of a line `name: 123 kB`, in bytes."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), None)


def _own_groups() -> list[Path]:
    """Directories of the control groups that bound this process; within a container its own seems to be the root."""
    groups = [_CGROUPS, _CGROUPS / "memory"]
    try:
        lines = (_PROC / "self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return groups
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers in ("", "memory"):
            top = groups[bool(controllers)]
            own = top / path.lstrip("/")
            groups += [own, *(parent for parent in own.parents if top in parent.parents)]
    return groups


def _group_room(group: Path) -> int | None:
    """Limit less use; file pages that were not used lately do not count, since the system drops them when it must."""
    for limit_file, use_file, idle in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        try:
            limit = int((group / limit_file).read_text(encoding="ascii"))
            use = int((group / use_file).read_text(encoding="ascii"))
            stat = dict(line.split() for line in (group / "memory.stat").read_text(encoding="ascii").splitlines())
        except (OSError, ValueError):  # no such group, or the limit is "max"
            continue
        if limit < _NO_LIMIT:
            return max(0, limit - use + int(stat.get(idle, 0)))
    return None

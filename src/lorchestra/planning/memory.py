"""Used, peak and free memory: of the GPU if the base is on one, else of this machine."""

from __future__ import annotations

import ctypes
import platform
from pathlib import Path

import torch

_PROC = Path("/proc")
_CGROUPS = Path("/sys/fs/cgroup")
_NO_LIMIT = 1 << 60
"""Version 1 control groups express "no limit" as a number near 2^63."""


def peak_bytes() -> int:
    """Peak memory so far: allocated on the GPU if one is in use, else resident memory of this process."""
    if _on_gpu():
        return torch.cuda.max_memory_allocated()
    # not `ru_maxrss` on Linux: a process inherits its parent's value
    status = _status("VmHWM")
    if status is not None:
        return status
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if platform.system() == "Darwin" else peak * 1024


def used_bytes() -> int | None:
    """Current memory, in the sense of `peak_bytes`; None if the system does not report it."""
    return torch.cuda.memory_allocated() if _on_gpu() else _status("VmRSS")


def restart_peak() -> bool:
    """Reset the peak that `peak_bytes` reports; False if the system cannot.

    Freed memory is returned to the system first: what the allocator caches would count as used.
    """
    if _on_gpu():
        torch.cuda.reset_peak_memory_stats()
        return True
    # glibc only; other C libraries have no such function and return memory without it
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if platform.system() == "Linux" else None
    if trim is not None:
        trim(0)
    try:
        (_PROC / "self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def free_bytes(device: torch.device) -> int | None:
    """Bytes that can be allocated without swapping, within the control group's limit; None if unknown."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    limits = [_available(), *(_group_room(group) for group in _control_groups())]
    return min((limit for limit in limits if limit is not None), default=None)


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


def _control_groups() -> list[Path]:
    """Directories of the control groups that limit this process; in a container, the process sees its group as root."""
    groups = [_CGROUPS, _CGROUPS / "memory"]
    try:
        lines = (_PROC / "self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return groups
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers in ("", "memory"):
            top = groups[bool(controllers)]
            group = top / path.lstrip("/")
            groups += [group, *(parent for parent in group.parents if top in parent.parents)]
    return groups


def _group_room(group: Path) -> int | None:
    """Limit minus use; inactive file pages do not count as used, since the system drops them under pressure."""
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

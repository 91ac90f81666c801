"""What work costs: passes of the base, and memory."""

from __future__ import annotations

import platform
from contextlib import suppress
from pathlib import Path

import torch

from lorchestra.engine.trainer import Trainer
from lorchestra.models.ensemble import EnsembleModel


def peak_bytes() -> int:
    """The most memory used so far: of the GPU where there is one, else resident memory of this process."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated()
    # Not `ru_maxrss` on Linux: a process inherits the value that its parent had when it was started.
    status = Path("/proc/self/status")
    if status.exists():
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if platform.system() == "Darwin" else peak * 1024


def reset_peak_bytes() -> None:
    """Let `peak_bytes` count from now on; where the system does not offer that, it goes on counting from the start."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()
        return
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets the peak resident set size


def training_base_passes(trainer: Trainer) -> float:
    """Work in units of one pass of the whole base over the training rows, forward passes of training only."""
    model = trainer.model
    trunk = model.trunk_layers / model.num_layers
    rows_seen = trainer.state.tokens / sum(row.num_tokens for row in trainer.rows.train)
    kl = 1.0 if trainer.regularize.kl_beta > 0 else 0.0
    return round(rows_seen * (1 - trunk) + (trunk if model.trunk_layers else 0.0) + kl * (1 - trunk), 3)


def prediction_base_passes(model: EnsembleModel, num_passes: int) -> float:
    """The same for predicting rows under `num_passes` members or draws: layers below the adapters run once."""
    trunk = model.trunk_layers / model.num_layers
    return round(trunk + num_passes * (1 - trunk), 3)

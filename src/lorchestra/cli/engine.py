"""Where a job computes: in this process, or on a Ray cluster."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lorchestra.errors import ConfigError


@dataclass(frozen=True)
class EngineArguments:
    """Where the work is done: here, or on a Ray cluster (extra ray)."""

    engine: Literal["local", "ray"] = "local"
    """local: in this process. ray: by workers on a Ray cluster. Everything that the command reads and writes must then
    be on a file system that all nodes see under the same paths."""
    address: str | None = None
    """With --engine ray: HOST:PORT of the cluster's head, or auto for the cluster that this machine belongs to.
    Default: that of RAY_ADDRESS; without it, Ray is started on this machine for this command."""
    workers: int | None = None
    """With --engine ray: how many workers, each with a base; CPUs are divided among them. Default: one per GPU, or one
    per node if the cluster has none."""

    def check(self) -> None:
        """Refuse options that need a cluster without one.

        Raises:
            ConfigError: names the option.
        """
        if self.workers is not None and self.workers < 1:
            raise ConfigError(f"--workers: {self.workers} is less than 1")
        for option, value in (("--address", self.address), ("--workers", self.workers)):
            if value is not None and self.engine == "local":
                raise ConfigError(f"{option} {value}: needs --engine ray")

"""The conditions of a measurement: base, rows, members, rounds and the machine."""

from __future__ import annotations

import copy
import os
import platform
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lorchestra.config.adapt import AdaptConfig, BaseConfig
from lorchestra.inference.pipeline import CPU_TOKEN_BUDGET
from lorchestra.models.loading import load_base
from lorchestra.models.patching import text_config

TARGETS: dict[str, str | tuple[str, ...]] = {"q+v": ("q_proj", "v_proj"), "all linear": "all-linear"}
RANK, ALPHA, LR = 8, 32.0, 1e-4


@dataclass(frozen=True)
class Setting:
    """The settings of one run of the benchmark."""

    base: str = "smollm2-135m"
    members: tuple[int, ...] = (1, 2, 5, 10, 20)
    """Numbers of members M of the packed ways."""
    main: int = 5
    """The M at which figures are compared in detail; PEFT is measured with as many members (q+v, all layers)."""
    batch: int = 8
    """Rows per member and optimizer step, and rows per padded batch."""
    mean: int = 75
    """Mean tokens of a row."""
    prefix: int = 400
    """Tokens that all rows share, in the cases with a shared prefix; the rest of a row has an eighth as many."""
    token_budget: int = CPU_TOKEN_BUDGET
    rounds: int = 3
    quick: bool = False

    def members_of(self, targets: str) -> tuple[int, ...]:
        """Fewer if all linear maps are adapted: otherwise the benchmark would take more than half an hour."""
        if targets == "q+v":
            return self.members
        return tuple(sorted({self.members[0], self.main, self.members[-1]}))

    def peft_members(self, targets: str, layers: str) -> int:
        """How many members the PEFT ways are timed with: the time per member does not depend on it."""
        return self.main if (targets, layers) == ("q+v", "all layers") and not self.quick else min(2, self.main)

    def rounds_of(self, members: int, targets: str) -> int:
        """At most two if steps are long: these average over many micro-batches."""
        return min(self.rounds, 2) if members > self.main or targets != "q+v" else self.rounds


class Base:
    """The base on the CPU; every way gets separate modules with the same weights."""

    def __init__(
        self,
        name: str,
        dtype: Literal["float32", "bfloat16"] = "float32",
        quantization: Literal["none", "nf4", "int8"] = "none",
    ) -> None:
        loaded = load_base(BaseConfig(name=name, device="cpu", dtype=dtype, quantization=quantization))
        self._model = loaded.model
        self.vocab_size: int = text_config(self._model).vocab_size
        self.num_layers: int = text_config(self._model).num_hidden_layers
        self.context_length = loaded.context_length

    def modules(self) -> Any:
        """A copy of the modules with shared weights, so that the base exists once for all ways."""
        shared = {id(weight): weight for weight in self._model.parameters()}
        return copy.deepcopy(self._model, shared)

    @property
    def layers(self) -> dict[str, str]:
        """`adapt.layers` by its name in the table."""
        return {"all layers": "all", "last third": f"last:{max(1, self.num_layers // 3)}"}

    def adapt(self, members: int, targets: str, layers: str) -> AdaptConfig:
        """The members' configuration, by the table's names of targets and layers."""
        return AdaptConfig(
            members=members, r=RANK, lora_alpha=ALPHA, target_modules=TARGETS[targets], layers=self.layers[layers]
        )


def log(text: str) -> None:
    """Print progress to stderr."""
    print(text, file=sys.stderr, flush=True)


def num_cpus() -> int:
    """Number of CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processor() -> str:
    """The CPU's name, as far as the system reports it."""
    info = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.*)", info.read_text()) if info.exists() else []
    return names[0].strip() if names else platform.machine()


def hardware() -> str:
    """The machine as part of a file name, such as 2cpu_amd-epyc-7763."""
    plain = re.sub(r"\((r|tm)\)|processor|cpu|\d+-core|@.*", " ", processor().lower())
    return f"{num_cpus()}cpu_" + re.sub(r"[^a-z0-9]+", "-", plain).strip("-")

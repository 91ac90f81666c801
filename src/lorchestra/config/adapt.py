"""Settings of the base model and of the adapters on it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar, Literal

from lorchestra.config.mappings import check_magnitudes
from lorchestra.errors import ConfigError

_MAX_THREADS = 1024
_MOST = 10_000
"""Upper bound of members and of rank; what fits into memory is less, and is checked when the members are created."""


@dataclass(frozen=True)
class BaseConfig:
    """The frozen LLM."""

    name: str = "smollm2-135m"
    """Hub id, local directory with safetensors, .gguf file, or smollm2-135m (needs no network)."""
    revision: str | None = None
    """Hub revision: branch, tag or commit."""
    dtype: Literal["auto", "float32", "bfloat16", "float64"] = "auto"
    """Data type of the base; auto is bfloat16 on CUDA and on a CPU whose products are clearly faster in it (measured
    when a run starts, and saved with it), else float32. Adapters and losses are float32 or wider."""
    quantization: Literal["none", "nf4", "int8"] = "none"
    """Store the layers' linear maps in fewer bits, for bases that would not fit: nf4 (4 bits, with double
    quantization) or int8 (8 bits, weights only), both by bitsandbytes. A checkpoint that it stored is read as it is."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device to compute on; auto is CUDA if available."""
    threads: int | None = None
    """CPU threads; default: torch's choice. Saved with the run, as bit-identical results need the same count."""


@dataclass(frozen=True)
class AdaptConfig:
    """Number, shape and layers of the LoRA members. PEFT's lora_dropout and layers_to_transform are also accepted."""

    members: int = 5
    """Number of LoRA members M in the ensemble."""
    r: int = 8
    """Rank of each adapter."""
    lora_alpha: float = 32.0
    """The adapter's product B A x is scaled by lora_alpha / r."""
    use_rslora: bool = False
    """Scale by lora_alpha / sqrt(r) instead (rsLoRA), so that higher ranks do not learn more slowly."""
    init_lora_weights: Literal[True, "gaussian", "orthogonal", "pissa", "loftq"] = True
    """Initialization of A and B as in PEFT: True (A uniform, B zero), gaussian (A normal, B zero),
    orthogonal (B A zero), pissa (the r principal components of each frozen weight, minus a
    frozen copy of them: all members start as the base and differ by data order and dropout
    only; saved as plain LoRA of rank 2 r), loftq (the r principal components of what quantizing
    each weight changed: members start nearer to the base before it was quantized, and differ in
    init_std_b, data order and dropout)."""
    init_scale: float = 1.0
    """Factor of the initial A."""
    init_std_b: float = 0.0
    """Standard deviation of a normally distributed initial B; with 0, B = 0 and members start as the base."""
    target_modules: str | tuple[str, ...] = ("q_proj", "v_proj")
    """Linear layers to adapt, as in PEFT: names or their suffixes, one regular expression for full
    names, or all-linear."""
    layers: str = "all"
    """Decoder layers to adapt: all, last:K, or a list such as [0, 5, 11]. Layers below the first are computed once."""
    trunk_memory_gb: float = 4.0
    """Maximum GB of hidden states below the first adapted layer to cache in memory; the rest is cached in a file."""
    trunk_dtype: Literal["auto", "bfloat16", "float16"] = "auto"
    """Data type of the hidden states cached in training; auto is the base's. The effect on predictions is measured."""
    dropout: float = 0.0
    """Dropout on the adapter's input in training, in [0, 1)."""
    same_init: bool = False
    """Give all members the same initial A (ablation: members then differ by data order only)."""
    order: Literal["own", "same", "bootstrap", "folds"] = "own"
    """Training rows: own (all rows, in a separate order per member), same (one order for all
    members; ablation: members then differ by initialization only), bootstrap (each member draws
    as many rows with replacement: bagging), folds (each leaves out one of M disjoint parts of
    the rows, drawn by the run seed: cross-validation; one member alone leaves out nothing)."""

    ALIASES: ClassVar[Mapping[str, str]] = MappingProxyType(
        {"lora_dropout": "dropout", "layers_to_transform": "layers"}
    )
    """PEFT's names of settings, accepted in recipes and on the command line; saved under the names above."""
    REFUSED: ClassVar[Mapping[str, str]] = MappingProxyType(
        {
            "modules_to_save": "members are low-rank adapters only, and share every other weight of the base; leave it"
            " out, or name linear layers in adapt.target_modules"
        }
    )
    """PEFT's settings that are refused, with the reason."""

    @property
    def scaling(self) -> float:
        """The factor of B A x."""
        return self.lora_alpha / (math.sqrt(self.r) if self.use_rslora else self.r)

    @property
    def stored_r(self) -> int:
        """Rank of a member in memory and on disk; with PiSSA, this includes its frozen initial adapter."""
        return 2 * self.r if self.init_lora_weights == "pissa" else self.r

    @property
    def shares_init(self) -> bool:
        """Whether all members have the same initial A and B."""
        alike = self.init_lora_weights == "pissa" or (self.init_lora_weights == "loftq" and self.init_std_b == 0)
        return self.same_init or alike


def check_base(base: BaseConfig) -> None:
    """Check that settings are in range, before anything is loaded.

    Raises:
        ConfigError: names the field and its value.
    """
    check_magnitudes(base, "base")
    if base.quantization not in ("none", "nf4", "int8"):
        raise ConfigError(f"base.quantization: {base.quantization!r} is not none, nf4 or int8")
    if base.threads is not None and not 1 <= base.threads <= _MAX_THREADS:
        raise ConfigError(f"base.threads: {base.threads} is not in [1, {_MAX_THREADS}]")


def check_adapt(adapt: AdaptConfig) -> None:
    """Check that settings are in range, before anything is loaded.

    Raises:
        ConfigError: names the field and its value.
    """
    check_magnitudes(adapt, "adapt")
    if adapt.members < 1:
        raise ConfigError(f"adapt.members: {adapt.members} is less than 1; one member is one LoRA")
    if not 0 < adapt.lora_alpha < math.inf:
        raise ConfigError(f"adapt.lora_alpha: {adapt.lora_alpha} is not a finite number above 0")
    if adapt.r < 1:
        raise ConfigError(f"adapt.r: {adapt.r} is less than 1")
    if not 0 <= adapt.trunk_memory_gb < math.inf:
        raise ConfigError(f"adapt.trunk_memory_gb: {adapt.trunk_memory_gb} is not a finite number from 0 up")
    if adapt.trunk_dtype not in ("auto", "bfloat16", "float16"):
        raise ConfigError(f"adapt.trunk_dtype: {adapt.trunk_dtype!r} is not auto, bfloat16 or float16")
    for name, value in {"members": adapt.members, "r": adapt.r}.items():
        if value > _MOST:
            raise ConfigError(f"adapt.{name}: {value} is more than {_MOST}")
    if adapt.order not in ("own", "same", "bootstrap", "folds"):
        raise ConfigError(f"adapt.order: {adapt.order!r} is not own, same, bootstrap or folds")
    if not 0 <= adapt.dropout < 1:
        raise ConfigError(f"adapt.dropout: {adapt.dropout} is not in [0, 1)")
    if not 0 < adapt.init_scale < math.inf:
        raise ConfigError(f"adapt.init_scale: {adapt.init_scale} is not a finite number above 0")
    if not 0 <= adapt.init_std_b < math.inf:
        raise ConfigError(f"adapt.init_std_b: {adapt.init_std_b} is not a finite number from 0 up")
    if adapt.init_std_b > 0 and adapt.init_lora_weights == "orthogonal":
        raise ConfigError(
            f"adapt.init_std_b: {adapt.init_std_b}, but orthogonal initialization sets B itself; leave one of them out"
        )
    if adapt.init_lora_weights == "pissa":
        for name, default in {"init_scale": 1.0, "init_std_b": 0.0}.items():
            if getattr(adapt, name) != default:
                raise ConfigError(
                    f"adapt.{name}: {getattr(adapt, name)}, but adapt.init_lora_weights: pissa is not random: it takes"
                    " A and B from the base's weights; leave one of them out"
                )
    if adapt.init_lora_weights == "loftq" and adapt.init_scale != 1.0:
        raise ConfigError(
            f"adapt.init_scale: {adapt.init_scale}, but adapt.init_lora_weights: loftq takes A from the base's weights;"
            " leave one of them out"
        )
    if adapt.init_lora_weights == "orthogonal" and adapt.r % 2:
        raise ConfigError(f"adapt.init_lora_weights: orthogonal needs an even rank; adapt.r is {adapt.r}")

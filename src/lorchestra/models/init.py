"""Members' adapters: rank, scaling and dropout of each, and the initial values of A and B.

A and B are drawn by the members' seeds, or start at the product of rank r that is closest to a matrix: with PiSSA
(arXiv 2404.02948) the frozen weight, with LoftQ (arXiv 2310.08659, one iteration) what quantizing the weight changed.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lorchestra.config.adapt import AdaptConfig, check_adapt
from lorchestra.errors import ConfigError
from lorchestra.models.quantized import dense_weight, original_weight
from lorchestra.models.targets import LinearMap, features, is_transposed
from lorchestra.nn.adapters import StackedAdapters
from lorchestra.nn.seeding import derive_seed

_FROM_WEIGHTS = ("pissa", "loftq")
"""Starts that are computed from the base's weights."""


@dataclass(frozen=True)
class AdapterSettings:
    """One member's adapter; members share the adapted modules and nothing else."""

    seed: int
    """Seed of A (and of B, if it is drawn)."""
    r: int
    """The stored rank; rows of A and columns of B beyond it are zero and stay zero."""
    scaling: float
    """The factor of B A x: lora_alpha / r, or lora_alpha / sqrt(r) with rsLoRA."""
    dropout: float = 0.0
    """Dropout on the adapter's input while training, in [0, 1)."""
    init_lora_weights: Literal[True, "gaussian", "orthogonal", "pissa", "loftq"] = True
    """As `AdaptConfig.init_lora_weights`."""
    init_scale: float = 1.0
    """As `AdaptConfig.init_scale`."""
    init_std_b: float = 0.0
    """As `AdaptConfig.init_std_b` (Init[AB] of arXiv 2505.23194)."""

    @property
    def trained_r(self) -> int:
        """How many rows of A and columns of B are trained, the first ones: with PiSSA, half of them."""
        return self.r // 2 if self.init_lora_weights == "pissa" else self.r

    @property
    def as_saved(self) -> AdapterSettings:
        """The settings of the saved folder: there all are plain LoRA, and loading does not recompute the start."""
        return dataclasses.replace(self, init_lora_weights=True) if self.init_lora_weights in _FROM_WEIGHTS else self


def member_seed(seed: int, member: int) -> int:
    """The seed of all random streams of a member."""
    return derive_seed(seed, "member", member)


def make_adapter_settings(adapt: AdaptConfig, seed: int) -> tuple[AdapterSettings, ...]:
    """The settings of members that differ in their seeds alone.

    Args:
        adapt: the shape.
        seed: run seed; member m's seed derives from it and m (with `same_init`, from it and 0).
    """
    return tuple(
        AdapterSettings(
            seed=member_seed(seed, 0 if adapt.same_init else m),
            r=adapt.stored_r,
            scaling=adapt.scaling,
            dropout=adapt.dropout,
            init_lora_weights=adapt.init_lora_weights,
            init_scale=adapt.init_scale,
            init_std_b=adapt.init_std_b,
        )
        for m in range(adapt.members)
    )


def check_adapter_settings(adapt: AdaptConfig, settings: Sequence[AdapterSettings]) -> None:
    """Refuse members' settings that are out of range.

    Raises:
        ConfigError: names the member, the field and its value.
    """
    for m, member in enumerate(settings):
        names = ("r", "dropout", "init_lora_weights", "init_scale", "init_std_b")
        try:
            check_adapt(dataclasses.replace(adapt, **{name: getattr(member, name) for name in names}))
        except ConfigError as error:
            raise ConfigError(f"member {m}: {error}") from error
        if member.init_lora_weights == "pissa" and member.r % 2:
            raise ConfigError(f"member {m}: r: {member.r} is odd; with pissa, half of the stored rank is frozen")
        if not 0 < member.scaling < math.inf:
            raise ConfigError(f"member {m}: scaling: {member.scaling} is not a finite number above 0")


@torch.no_grad()
def principal_pair(weight_OI: Tensor, rank: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """A `[R, I]` and B `[O, R]` whose product is the matrix of that rank closest to the weight (Eckart and Young).

    `A = sqrt(S_r) V_r^T` and `B = U_r sqrt(S_r)` of the largest R singular values, in descending order: the first rows
    and columns are the pair of any lower rank. Signs of singular vectors are arbitrary: here the largest entry of each
    left one is positive, so that the pair does not depend on the algorithm.

    Args:
        weight_OI: the weight.
        rank: R, at most the smaller of O and I.
        dtype: number format of the decomposition and of the result.
    """
    U_OK, S_K, V_KI = torch.linalg.svd(weight_OI.to(dtype), full_matrices=False)
    U_OR, V_RI, root_R = U_OK[:, :rank], V_KI[:rank], S_K[:rank].sqrt()
    largest_R = U_OR.gather(0, U_OR.abs().argmax(dim=0, keepdim=True))[0]
    sign_R = torch.where(largest_R < 0, -1.0, 1.0).to(dtype)
    return (sign_R * root_R)[:, None] * V_RI, U_OR * (sign_R * root_R)


def init_adapters(
    adapters: StackedAdapters, linears: Sequence[tuple[str, LinearMap]], settings: Sequence[AdapterSettings]
) -> None:
    """Set all members' initial values.

    Args:
        adapters: their parameters, changed in place.
        linears: the adapted maps by name, in the adapters' order.
        settings: one per member.

    Raises:
        ConfigError: a start from the weights at a rank above a map's; LoftQ on a base that was not quantized here.
    """
    of_weights: dict[str, dict[int, AdapterSettings]] = {how: {} for how in _FROM_WEIGHTS}
    for m, member in enumerate(settings):
        how = member.init_lora_weights
        if how in ("pissa", "loftq"):
            of_weights[how][m] = member
        if how != "pissa":  # of LoftQ's start, the noise in B is drawn here
            drawn = True if how == "loftq" else how
            adapters.initialize(m, member.seed, drawn, rank=member.r, scale=member.init_scale, std_B=member.init_std_b)
    if of_weights["pissa"]:
        _init_at_principal(adapters, linears, of_weights["pissa"])
    if of_weights["loftq"]:
        _init_at_quantization_error(adapters, linears, of_weights["loftq"])


def _init_at_principal(
    adapters: StackedAdapters, linears: Sequence[tuple[str, LinearMap]], settings: Mapping[int, AdapterSettings]
) -> None:
    """PiSSA: one decomposition per map for all members, cut to each member's rank and divided by its scaling."""
    most = _highest_rank("pissa", linears, settings)
    for piece, (_, linear) in zip(adapters.slices, linears, strict=True):
        weight = dense_weight(linear)
        weight_OI = weight.t() if is_transposed(linear) else weight
        A, B = principal_pair(weight_OI, most, adapters.values.dtype)
        for m, member in settings.items():
            share, rank = 1 / math.sqrt(member.scaling), member.trained_r
            adapters.init_with_frozen_copy(m, piece, A[:rank] * share, B[:, :rank] * share)
    for rank in {member.trained_r for member in settings.values()}:
        adapters.freeze_from(rank, [m for m, member in settings.items() if member.trained_r == rank])


def _init_at_quantization_error(
    adapters: StackedAdapters, linears: Sequence[tuple[str, LinearMap]], settings: Mapping[int, AdapterSettings]
) -> None:
    """LoftQ: as `_init_at_principal`, of the original minus the quantized weight, and added to each member's noise."""
    most = _highest_rank("loftq", linears, settings)
    for piece, (_, linear) in zip(adapters.slices, linears, strict=True):
        error_OI = original_weight(linear).to(adapters.values.device) - dense_weight(linear)
        A, B = principal_pair(error_OI, most, adapters.values.dtype)
        for m, member in settings.items():
            share, rank = 1 / math.sqrt(member.scaling), member.r
            adapters.view(adapters.values[m], piece, "A")[:rank] = A[:rank] * share
            adapters.view(adapters.values[m], piece, "B")[:, :rank] += B[:, :rank] * share


def _highest_rank(how: str, linears: Sequence[tuple[str, LinearMap]], settings: Mapping[int, AdapterSettings]) -> int:
    """The highest rank that is trained, which every map must have."""
    most = max(member.trained_r for member in settings.values())
    for name, linear in linears:
        if most > min(features(linear)):
            raise ConfigError(
                f"adapt.init_lora_weights: {how} has no {most} singular values of {name}, a map from"
                f" {features(linear)[0]} to {features(linear)[1]} features; set adapt.r to at most"
                f" {min(features(linear))}, or leave the map out of adapt.target_modules"
            )
    return most

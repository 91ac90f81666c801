"""What a member's adapter has of its own: rank, scaling, dropout, and how it is drawn at the start.

The principal part of a weight matrix as a product of two factors: where PiSSA starts A and B (arXiv 2404.02948).

Where members' A and B start: drawn by their seeds, or (PiSSA) at the principal part of the frozen weights.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from lorchestra.config.adapt import AdaptConfig, check_adapt
from lorchestra.errors import ConfigError
from lorchestra.models.targets import features, is_transposed
from lorchestra.nn.adapters import StackedAdapters
from lorchestra.nn.seeding import derive_seed


@dataclass(frozen=True)
class AdapterSettings:
    """One member's adapter. Members on one base share the adapted modules, and nothing else."""

    seed: int
    """Where the draw of A (and of B, where it is drawn) starts from."""
    r: int
    """Its rank as it is stored; rows of A and columns of B that others have beyond it are zero and stay zero."""
    scaling: float
    """The factor of B A x: lora_alpha / r, or lora_alpha / sqrt(r) with rsLoRA."""
    dropout: float = 0.0
    """Dropout on the adapter's input while training, in [0, 1)."""
    init_lora_weights: Literal[True, "gaussian", "orthogonal", "pissa"] = True
    """Start of A and B, as `AdaptConfig.init_lora_weights`."""
    init_scale: float = 1.0
    """As `AdaptConfig.init_scale`."""
    init_std_b: float = 0.0
    """As `AdaptConfig.init_std_b` (Init[AB] of arXiv 2505.23194)."""

    @property
    def trained_r(self) -> int:
        """How many of its rows of A and columns of B are trained, the first ones: with PiSSA, half of them."""
        return self.r // 2 if self.init_lora_weights == "pissa" else self.r

    @property
    def as_saved(self) -> AdapterSettings:
        """What a folder holds of it: PiSSA is plain LoRA there, and its start need not be computed to read one."""
        return dataclasses.replace(self, init_lora_weights=True) if self.init_lora_weights == "pissa" else self


def member_seed(seed: int, member: int) -> int:
    """The seed from which all of a member's streams derive."""
    return derive_seed(seed, "member", member)


def make_adapter_settings(adapt: AdaptConfig, seed: int) -> tuple[AdapterSettings, ...]:
    """The adapters of an ensemble whose members differ by their seeds alone.

    Args:
        adapt: their shape.
        seed: run seed; member m's draw derives from it and m (or from it alone with `same_init`).
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
    """Refuse members' own settings out of range.

    Raises:
        ConfigError: names the member, the field and its value.
    """
    for m, own in enumerate(settings):
        names = ("r", "dropout", "init_lora_weights", "init_scale", "init_std_b")
        try:
            check_adapt(dataclasses.replace(adapt, **{name: getattr(own, name) for name in names}))
        except ConfigError as error:
            raise ConfigError(f"member {m}: {error}") from error
        if own.init_lora_weights == "pissa" and own.r % 2:
            raise ConfigError(f"member {m}: r: {own.r} is odd; with pissa, half of the stored rank is the frozen start")
        if not 0 < own.scaling < math.inf:
            raise ConfigError(f"member {m}: scaling: {own.scaling} is not a finite number above 0")


@torch.no_grad()
def principal_pair(weight_OI: Tensor, rank: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """A `[R, I]` and B `[O, R]` whose product is the matrix of that rank nearest to the weight (Eckart and Young).

    `A = sqrt(S_r) V_r^T` and `B = U_r sqrt(S_r)` of the largest R singular values, in descending order: the first rows
    and columns are the pair of any lower rank. A singular vector's sign is free; here the largest entry of each left
    one is positive, so that the pair does not depend on how the decomposition was computed.

    Args:
        weight_OI: the weight.
        rank: R, at most the smaller of O and I.
        dtype: number format to decompose in, and of the result.
    """
    U_OK, S_K, V_KI = torch.linalg.svd(weight_OI.to(dtype), full_matrices=False)
    U_OR, V_RI, root_R = U_OK[:, :rank], V_KI[:rank], S_K[:rank].sqrt()
    largest_R = U_OR.gather(0, U_OR.abs().argmax(dim=0, keepdim=True))[0]
    sign_R = torch.where(largest_R < 0, -1.0, 1.0).to(dtype)
    return (sign_R * root_R)[:, None] * V_RI, U_OR * (sign_R * root_R)


def init_adapters(
    adapters: StackedAdapters, linears: Sequence[tuple[str, Any]], settings: Sequence[AdapterSettings]
) -> None:
    """Put all members where their training starts.

    Args:
        bank: their parameters.
        linears: the adapted maps by name, in the bank's order.
        adapters: what each member has of its own.

    Raises:
        ConfigError: PiSSA at a rank that a map does not have.
    """
    principal = {}
    for m, own in enumerate(settings):
        if own.init_lora_weights == "pissa":
            principal[m] = own
        else:
            adapters.initialize(
                m, own.seed, own.init_lora_weights, rank=own.r, scale=own.init_scale, std_B=own.init_std_b
            )
    if principal:
        _init_at_principal(adapters, linears, principal)


def _init_at_principal(
    adapters: StackedAdapters, linears: Sequence[tuple[str, Any]], settings: Mapping[int, AdapterSettings]
) -> None:
    """One decomposition a map for all members, cut to each one's rank and divided by its scaling."""
    most = max(own.trained_r for own in settings.values())
    for name, linear in linears:
        if most > min(features(linear)):
            raise ConfigError(
                f"adapt.init_lora_weights: pissa has no {most} singular values of {name}, a map from"
                f" {features(linear)[0]} to {features(linear)[1]} features; take adapt.r of at most"
                f" {min(features(linear))}, or leave it out of adapt.target_modules"
            )
    for piece, (_, linear) in zip(adapters.slices, linears, strict=True):
        weight_OI = linear.weight.t() if is_transposed(linear) else linear.weight
        A, B = principal_pair(weight_OI, most, adapters.values.dtype)
        for m, own in settings.items():
            share = 1 / math.sqrt(own.scaling)
            adapters.init_with_frozen_copy(m, piece, A[: own.trained_r] * share, B[:, : own.trained_r] * share)
    for rank in {own.trained_r for own in settings.values()}:
        adapters.freeze_from(rank, [m for m, own in settings.items() if own.trained_r == rank])

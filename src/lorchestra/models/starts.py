"""Where members' A and B start: drawn by their seeds, or (PiSSA) at the principal part of the frozen weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from lorchestra.core.bank import AdapterBank
from lorchestra.core.principal import principal_pair
from lorchestra.errors import ConfigError
from lorchestra.models.members import MemberAdapter
from lorchestra.models.targets import features, is_transposed


def start_members(bank: AdapterBank, linears: Sequence[tuple[str, Any]], adapters: Sequence[MemberAdapter]) -> None:
    """Put all members where their training starts.

    Args:
        bank: their parameters.
        linears: the adapted maps by name, in the bank's order.
        adapters: what each member has of its own.

    Raises:
        ConfigError: PiSSA at a rank that a map does not have.
    """
    principal = {}
    for m, own in enumerate(adapters):
        if own.init_lora_weights == "pissa":
            principal[m] = own
        else:
            bank.initialize(m, own.seed, own.init_lora_weights, rank=own.r, scale=own.init_scale, std_B=own.init_std_b)
    if principal:
        _start_at_principal(bank, linears, principal)


def _start_at_principal(
    bank: AdapterBank, linears: Sequence[tuple[str, Any]], adapters: Mapping[int, MemberAdapter]
) -> None:
    """One decomposition a map for all members, cut to each one's rank and divided by its scaling."""
    most = max(own.trained_r for own in adapters.values())
    for name, linear in linears:
        if most > min(features(linear)):
            raise ConfigError(
                f"adapt.init_lora_weights: pissa has no {most} singular values of {name}, a map from"
                f" {features(linear)[0]} to {features(linear)[1]} features; take adapt.r of at most"
                f" {min(features(linear))}, or leave it out of adapt.target_modules"
            )
    for piece, (_, linear) in zip(bank.slices, linears, strict=True):
        weight_OI = linear.weight.t() if is_transposed(linear) else linear.weight
        A, B = principal_pair(weight_OI, most, bank.values.dtype)
        for m, own in adapters.items():
            share = 1 / math.sqrt(own.scaling)
            bank.start_beside(m, piece, A[: own.trained_r] * share, B[:, : own.trained_r] * share)
    for rank in {own.trained_r for own in adapters.values()}:
        bank.freeze_from(rank, [m for m, own in adapters.items() if own.trained_r == rank])

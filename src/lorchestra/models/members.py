"""What a member's adapter has of its own: rank, scaling, dropout, and how it is drawn at the start."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from lorchestra.core.seeding import derive_seed
from lorchestra.errors import ConfigError
from lorchestra.models.config import AdaptConfig, check_adapt


@dataclass(frozen=True)
class MemberAdapter:
    """One member's adapter. Members on one base share the adapted modules, and nothing else."""

    seed: int
    """Where the draw of A (and of B, where it is drawn) starts from."""
    r: int
    """Its rank; the rows of A and columns of B that members of a higher rank have beyond it are zero and stay zero."""
    scaling: float
    """The factor of B A x: lora_alpha / r, or lora_alpha / sqrt(r) with rsLoRA."""
    dropout: float = 0.0
    """Dropout on the adapter's input while training, in [0, 1)."""
    init_lora_weights: Literal[True, "gaussian", "orthogonal"] = True
    """Start of A and B, as `AdaptConfig.init_lora_weights`."""
    init_scale: float = 1.0
    """What the draw of A is multiplied by."""
    init_std_b: float = 0.0
    """Standard deviation of B's first entries, drawn from a normal distribution (Init[AB] of arXiv 2505.23194); with 0
    B is as `init_lora_weights` says, and the member starts as the base."""


def member_seed(seed: int, member: int) -> int:
    """The seed from which all of a member's streams derive."""
    return derive_seed(seed, "member", member)


def member_adapters(adapt: AdaptConfig, seed: int) -> tuple[MemberAdapter, ...]:
    """The adapters of an ensemble whose members differ by their seeds alone.

    Args:
        adapt: their shape.
        seed: run seed; member m's draw derives from it and m (or from it alone with `same_init`).
    """
    return tuple(
        MemberAdapter(
            seed=member_seed(seed, 0 if adapt.same_init else m),
            r=adapt.r,
            scaling=adapt.scaling,
            dropout=adapt.dropout,
            init_lora_weights=adapt.init_lora_weights,
        )
        for m in range(adapt.members)
    )


def check_adapters(adapt: AdaptConfig, adapters: Sequence[MemberAdapter]) -> None:
    """Refuse members' own settings out of range.

    Raises:
        ConfigError: names the member, the field and its value.
    """
    for m, own in enumerate(adapters):
        try:
            check_adapt(
                dataclasses.replace(adapt, r=own.r, dropout=own.dropout, init_lora_weights=own.init_lora_weights)
            )
        except ConfigError as error:
            raise ConfigError(f"member {m}: {error}") from error
        for name, value in {"scaling": own.scaling, "init_scale": own.init_scale}.items():
            if not 0 < value < math.inf:
                raise ConfigError(f"member {m}: {name}: {value} is not a finite number above 0")
        if not 0 <= own.init_std_b < math.inf:
            raise ConfigError(f"member {m}: init_std_b: {own.init_std_b} is not a finite number from 0 up")
        if own.init_std_b > 0 and own.init_lora_weights == "orthogonal":
            raise ConfigError(
                f"member {m}: init_std_b: {own.init_std_b}, but the orthogonal start draws B itself; take 0"
            )

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
    def as_saved(self) -> MemberAdapter:
        """What a folder holds of it: PiSSA is plain LoRA there, and its start need not be computed to read one."""
        return dataclasses.replace(self, init_lora_weights=True) if self.init_lora_weights == "pissa" else self


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
            r=adapt.stored_r,
            scaling=adapt.scaling,
            dropout=adapt.dropout,
            init_lora_weights=adapt.init_lora_weights,
            init_scale=adapt.init_scale,
            init_std_b=adapt.init_std_b,
        )
        for m in range(adapt.members)
    )


def check_adapters(adapt: AdaptConfig, adapters: Sequence[MemberAdapter]) -> None:
    """Refuse members' own settings out of range.

    Raises:
        ConfigError: names the member, the field and its value.
    """
    for m, own in enumerate(adapters):
        names = ("r", "dropout", "init_lora_weights", "init_scale", "init_std_b")
        try:
            check_adapt(dataclasses.replace(adapt, **{name: getattr(own, name) for name in names}))
        except ConfigError as error:
            raise ConfigError(f"member {m}: {error}") from error
        if own.init_lora_weights == "pissa" and own.r % 2:
            raise ConfigError(f"member {m}: r: {own.r} is odd; with pissa, half of the stored rank is the frozen start")
        if not 0 < own.scaling < math.inf:
            raise ConfigError(f"member {m}: scaling: {own.scaling} is not a finite number above 0")

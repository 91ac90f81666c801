"""Keys and values of first tokens that all rows have in common: computed once a member, seen by every later row.

In prediction parameters stand still, so a long common prefix (instructions, few-shot examples) goes through the model
once, and not once a micro-batch. It takes `2 * G * d` numbers a token, layer and member.
"""

from __future__ import annotations

from torch import Tensor, nn


class PrefixCache:
    """What attention layers have kept of a prefix, by layer and member.

    Args:
        tokens: the prefix.
    """

    def __init__(self, tokens: tuple[int, ...]) -> None:
        self.tokens = tokens
        self._kept: dict[tuple[nn.Module, int], tuple[Tensor, Tensor]] = {}

    def __len__(self) -> int:
        """Its tokens."""
        return len(self.tokens)

    def keep(self, layer: nn.Module, member: int, key: Tensor, value: Tensor) -> None:
        """Keep a member's keys and values `[1, G, P, d]`, as the layer hands them to attention."""
        self._kept[layer, member] = key.clone(), value.clone()

    def of(self, layer: nn.Module, member: int) -> tuple[Tensor, Tensor]:
        """A member's keys and values in one attention layer.

        Raises:
            ValueError: none were kept.
        """
        if (layer, member) not in self._kept:
            raise ValueError(f"no keys of the prefix were kept for member {member} in this layer")
        return self._kept[layer, member]

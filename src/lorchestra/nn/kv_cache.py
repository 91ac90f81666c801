"""Keys and values of first tokens that all rows have in common: computed once per member, seen by every later row.

While parameters do not change (prediction), a long common prefix (instructions, few-shot examples) goes through the
model once, and not once per micro-batch. It takes `2 * G * d` numbers per token, layer and member.
"""

from __future__ import annotations

from torch import Tensor, nn


class PrefixCache:
    """Keys and values of a prefix, per attention layer and member.

    Args:
        tokens: the prefix.
    """

    def __init__(self, tokens: tuple[int, ...]) -> None:
        self.tokens = tokens
        self._cached: dict[tuple[nn.Module, int], tuple[Tensor, Tensor]] = {}

    def __len__(self) -> int:
        """Number of its tokens."""
        return len(self.tokens)

    def store(self, layer: nn.Module, member: int, key: Tensor, value: Tensor) -> None:
        """Cache a member's keys and values `[1, G, P, d]`, as the layer passes them to attention."""
        self._cached[layer, member] = key.clone(), value.clone()

    def get(self, layer: nn.Module, member: int) -> tuple[Tensor, Tensor]:
        """A member's keys and values in one attention layer.

        Raises:
            ValueError: none are cached.
        """
        if (layer, member) not in self._cached:
            raise ValueError(f"no keys of the prefix are cached for member {member} in this layer")
        return self._cached[layer, member]

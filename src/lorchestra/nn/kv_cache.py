"""KV cache of a prefix that several rows share: instructions and few-shot examples of all rows, or one state.

While parameters do not change (prediction), the prefix goes through the model once per member, not once per
micro-batch. The cache takes `2 * G * d` numbers per token, layer and member.
"""

from __future__ import annotations

from torch import Tensor, nn


class PrefixCache:
    """Keys and values of the prefix `tokens`, per attention layer and member."""

    def __init__(self, tokens: tuple[int, ...]) -> None:
        self.tokens = tokens
        self.members: frozenset[int] = frozenset()
        """The members for which all layers are cached; others have to be computed."""
        self._cached: dict[tuple[nn.Module, int], tuple[Tensor, Tensor]] = {}

    def __len__(self) -> int:
        """Number of tokens P in the prefix."""
        return len(self.tokens)

    @property
    def num_bytes(self) -> int:
        """Size of all keys and values."""
        return sum(key.nbytes + value.nbytes for key, value in self._cached.values())

    def store(self, layer: nn.Module, member: int, key: Tensor, value: Tensor) -> None:
        """Cache a member's keys and values `[1, G, P, d]` in the form in which the layer passes them to attention."""
        self._cached[layer, member] = key.clone(), value.clone()

    def get(self, layer: nn.Module, member: int) -> tuple[Tensor, Tensor]:
        """A member's cached keys and values of one attention layer.

        Raises:
            ValueError: the prefix was not prefilled for this member.
        """
        if (layer, member) not in self._cached:
            raise ValueError(f"no keys of the prefix are cached for member {member} in this layer")
        return self._cached[layer, member]

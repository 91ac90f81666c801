"""KV cache of a prefix that several rows share: instructions and few-shot examples of all rows, or one state.

While parameters do not change (prediction), the prefix goes through the model once per member, not once per
micro-batch. The cache takes `2 * G * d` numbers per token, layer and member.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor, nn


class PrefixCache:
    """Keys and values of the prefix `tokens`, per attention layer and member."""

    def __init__(self, tokens: tuple[int, ...]) -> None:
        self.tokens = tokens
        self.members: frozenset[int] = frozenset()
        """Of a state's cache: the members for which all layers are cached; others have to be computed."""
        self.start = 0
        """Number of first tokens whose keys and values come from another state; see `start_from`."""
        self._cached: dict[tuple[nn.Module, int], tuple[Tensor, Tensor]] = {}

    def __len__(self) -> int:
        """Number of tokens P in the prefix."""
        return len(self.tokens)

    @property
    def num_bytes(self) -> int:
        """Size of all keys and values."""
        return sum(key.nbytes + value.nbytes for key, value in self._cached.values())

    def start_from(self, other: PrefixCache, length: int) -> None:
        """Take over the keys and values of another cache's first `length` tokens, which are the same here.

        The cache is then not complete for any member: `store` adds the rest of the tokens.
        """
        self.start = length
        self._cached = {key: (k[:, :, :length], v[:, :, :length]) for key, (k, v) in other._cached.items()}

    def keep(self, members: Collection[int]) -> None:
        """Forget the keys and values of other members."""
        self._cached = {key: pair for key, pair in self._cached.items() if key[1] in members}

    def clear(self) -> None:
        """Forget all keys and values."""
        self.start, self.members, self._cached = 0, frozenset(), {}

    def store(self, layer: nn.Module, member: int, key: Tensor, value: Tensor) -> None:
        """Cache a member's keys and values `[1, G, P, d]` in the form in which the layer passes them to attention.

        They are those of the tokens from `start` on.
        """
        if not self.start:
            self._cached[layer, member] = key.clone(), value.clone()
            return
        first = self._cached[layer, member]
        self._cached[layer, member] = (
            torch.cat([first[0][:, :, : self.start], key], dim=2),
            torch.cat([first[1][:, :, : self.start], value], dim=2),
        )

    def get(self, layer: nn.Module, member: int) -> tuple[Tensor, Tensor]:
        """A member's cached keys and values of one attention layer; only those that it started with, if it has not
        been completed for the member since.

        Raises:
            ValueError: the prefix was not prefilled for this member.
        """
        if (layer, member) not in self._cached:
            raise ValueError(f"no keys of the prefix are cached for member {member} in this layer")
        key, value = self._cached[layer, member]
        if self.start and member not in self.members:
            return key[:, :, : self.start], value[:, :, : self.start]
        return key, value

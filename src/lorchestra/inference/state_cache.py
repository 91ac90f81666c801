"""Keys and values of states that were asked about, kept for further questions about them.

A state goes through the model once: the layers below the first adapted one once for all members, the others once per
member. The least recently used states are dropped when all of them take more than a number of bytes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Sequence

from lorchestra.nn.kv_cache import PrefixCache
from lorchestra.nn.packing import BASE
from lorchestra.types import EncodedExample


class CachedState:
    """The keys and values of one state: `trunk` below the first adapted layer, and `members` above it."""

    def __init__(self, tokens: tuple[int, ...]) -> None:
        self.trunk, self.members = PrefixCache(tokens), PrefixCache(tokens)

    @property
    def num_bytes(self) -> int:
        """Size of the keys and values."""
        return self.trunk.num_bytes + self.members.num_bytes

    def holds(self, members: Collection[int]) -> bool:
        """Whether nothing of the state has to be computed for these members."""
        return self.members.members.issuperset(members)

    def prepare(self, members: Collection[int]) -> None:
        """Have the state's trunk computed if a member is new, whose layers start from its hidden states."""
        if not self.holds(members):
            self.trunk.members = frozenset()

    def complete(self, members: Collection[int]) -> None:
        """Mark the state as computed for these members."""
        self.trunk.members = frozenset({BASE})
        self.members.members |= frozenset(members)


class StateCache:
    """States by their tokens, least recently used first.

    Args:
        max_bytes: most bytes of all keys and values between passes; a pass adds those of its states. 0 keeps none.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self._states: OrderedDict[tuple[str, tuple[int, ...]], CachedState] = OrderedDict()

    def __len__(self) -> int:
        """Number of states."""
        return len(self._states)

    def of(self, row: EncodedExample, partition: str) -> CachedState | None:
        """The state of a row in a partition, new if it is not cached; None for rows without one."""
        if not row.state or not self.max_bytes:
            return None
        key = (partition, row.prefix[: row.state])
        if key not in self._states:
            self._states[key] = CachedState(key[1])
        self._states.move_to_end(key)
        return self._states[key]

    def trim(self) -> None:
        """Drop states that no pass has completed, as after an error, and others until the rest fits."""
        for key in [key for key, state in self._states.items() if not state.members.members]:
            del self._states[key]
        sizes = {key: state.num_bytes for key, state in self._states.items()}
        self.num_bytes = sum(sizes.values())
        for key, size in sizes.items():
            if self.num_bytes <= self.max_bytes:
                break
            del self._states[key]
            self.num_bytes -= size


def rows_in_order(rows: Sequence[EncodedExample], partitions: Sequence[str]) -> list[int]:
    """Indices of rows in an order that depends on their content alone, with questions about one state together."""

    def key(index: int) -> tuple[object, ...]:
        row = rows[index]
        return (partitions[index], row.prefix[: row.state], row.prefix, row.choices)

    return sorted(range(len(rows)), key=key)

"""Keys and values of states that were asked about, kept for further questions about them.

A state goes through the model once: the layers below the first adapted one once for all members, the others once per
member. One that starts as another does (a growing conversation) is computed from where they differ. The least
recently used states are dropped when all of them take more than a number of bytes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Sequence

from lorchestra.choice_tree import num_common
from lorchestra.nn.kv_cache import PrefixCache
from lorchestra.nn.packing import BASE, MIN_SHARED_PREFIX
from lorchestra.types import EncodedExample


class CachedState:
    """The keys and values of one state: `trunk` below the first adapted layer, and `members` above it."""

    def __init__(self, tokens: tuple[int, ...]) -> None:
        self.trunk, self.members = PrefixCache(tokens), PrefixCache(tokens)
        self._started: frozenset[int] = frozenset()

    @property
    def num_bytes(self) -> int:
        """Size of the keys and values."""
        return self.trunk.num_bytes + self.members.num_bytes

    def holds(self, members: Collection[int]) -> bool:
        """Whether nothing of the state has to be computed for these members."""
        return self.members.members.issuperset(members)

    def start_for(self, members: Collection[int]) -> int:
        """Number of first tokens that need not be computed for these members, while the others do."""
        return self.members.start if self._started.issuperset(members) else 0

    def num_known(self, members: Collection[int]) -> int:
        """Number of the state's tokens that need not be computed for these members."""
        return len(self.members) if self.holds(members) else self.start_for(members)

    def start_from(self, other: CachedState, length: int) -> None:
        """Take over the keys and values of another state's first `length` tokens, which are the same."""
        self.trunk.start_from(other.trunk, length)
        self.members.start_from(other.members, length)
        self._started = other.members.members

    def prepare(self, members: Collection[int]) -> None:
        """Have the state's trunk computed if a member is new, whose layers start from its hidden states."""
        if self.holds(members):
            return
        if self.members.start and not self.start_for(members):
            self.trunk.clear()
            self.members.clear()
        self.trunk.members = frozenset()

    def complete(self, members: Collection[int]) -> None:
        """Mark the state as computed for these members."""
        if self.members.start:
            self.members.keep(members)
        self.trunk.members = frozenset({BASE})
        self.members.members |= frozenset(members)
        self.trunk.start = self.members.start = 0


class StateCache:
    """States by their tokens, least recently used first.

    Args:
        max_bytes: most bytes of all keys and values between passes; a pass adds those of its states. 0 keeps none.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self._states: OrderedDict[tuple[str, tuple[int, ...]], CachedState] = OrderedDict()

    def of(self, row: EncodedExample, partition: str) -> CachedState | None:
        """The state of a row in a partition, new if it is not cached; None for rows without one."""
        if not row.state or not self.max_bytes:
            return None
        key = (partition, row.prefix[: row.state])
        state = self._states.get(key)
        if state is None:
            state = CachedState(key[1])
            other, length = self._longest_start(*key)
            if other is not None and length >= MIN_SHARED_PREFIX:
                state.start_from(other, length)
            self._states[key] = state
        self._states.move_to_end(key)
        return state

    def _longest_start(self, partition: str, tokens: tuple[int, ...]) -> tuple[CachedState | None, int]:
        """The cached state of a partition that shares the most first tokens, and their number: less than all."""
        best, longest = None, 0
        for (owner, others), state in self._states.items():
            if owner == partition and state.members.members:
                shared = min(num_common(tokens, others), len(tokens) - 1)
                if shared > longest:
                    best, longest = state, shared
        return best, longest

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

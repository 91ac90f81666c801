"""Which rows each member sees in which optimizer step: a function of its settings and the step alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from lorchestra.nn.packing import Item
from lorchestra.nn.seeding import derive_seed, permutation
from lorchestra.training.members import MemberSettings, steps_per_epoch
from lorchestra.types import EncodedExample


class MemberSampler:
    """The rows of every member's steps.

    Args:
        settings: the members'.
        rows: the training rows.
        batch_size: rows a member sees in one step.
    """

    def __init__(self, settings: Sequence[MemberSettings], rows: Sequence[EncodedExample], batch_size: int) -> None:
        self.settings = settings
        self.batch_size = batch_size
        self._rows_of = [rows if own.rows is None else [rows[e] for e in own.rows] for own in settings]
        self.steps_per_epoch = steps_per_epoch(batch_size, len(self._rows_of[0]))
        # a batch has masks for all of its rows or for none; a member whose rate is zero drops nothing all the same
        self.dropout = any(own.adapter.dropout > 0 for own in settings)

    def rows(self, member: int, step: int) -> list[EncodedExample]:
        """A member's rows in one step."""
        epoch, place = divmod(step, self.steps_per_epoch)
        rows = self._rows_of[member]
        order = permutation(len(rows), self.settings[member].order_seed, "order", epoch)
        return [rows[e] for e in order[place * self.batch_size : (place + 1) * self.batch_size]]

    def items(self, members: Sequence[int], step: int) -> list[Item]:
        """The rows of some members in one step, with the seeds of their dropout masks."""
        items: list[Item] = []
        for m in members:
            seen: Counter[int] = Counter()
            for row in self.rows(m, step):
                again = (seen[row.row],) if seen[row.row] else ()  # a row that a bootstrap repeats: a mask of its own
                names = ("dropout", step, row.row, *again)
                seed = derive_seed(self.settings[m].dropout_seed, *names) if self.dropout else None
                items.append(Item(m, row, seed, len(items)))
                seen[row.row] += 1
        return items

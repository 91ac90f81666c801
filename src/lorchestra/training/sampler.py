"""The rows of each member in each optimizer step, a function of its settings and the step alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from lorchestra.errors import ConfigError
from lorchestra.nn.packing import Item, same_state
from lorchestra.nn.seeding import derive_seed, permutation
from lorchestra.training.members import MemberSettings, steps_per_epoch
from lorchestra.types import EncodedExample


def units_of(rows: Sequence[EncodedExample]) -> list[list[EncodedExample]]:
    """The rows that are drawn together: consecutive typed questions about one state, and every other row alone."""
    units: list[list[EncodedExample]] = []
    for row in rows:
        if units and same_state(row, units[-1][-1]):
            units[-1].append(row)
        else:
            units.append([row])
    return units


def unit_sizes(rows: Sequence[EncodedExample]) -> list[int]:
    """The number of rows of each of `units_of`."""
    return [len(unit) for unit in units_of(rows)]


class MemberSampler:
    """Draws every member's rows for each step.

    Args:
        settings: one per member.
        rows: the training rows.
        batch_size: rows per member and step; typed questions about one state count as one row, as in the file.

    Raises:
        ConfigError: members have no rows, or different numbers of steps per epoch.
    """

    def __init__(self, settings: Sequence[MemberSettings], rows: Sequence[EncodedExample], batch_size: int) -> None:
        self.settings = settings
        self.batch_size = batch_size
        self._units_of = [
            units_of(rows if member.rows is None else [rows[e] for e in member.rows]) for member in settings
        ]
        step_counts = {steps_per_epoch(batch_size, len(units)) for units in self._units_of}
        if len(step_counts) > 1 or 0 in step_counts:
            raise ConfigError(
                "rows: members of one pass need the same number of steps per epoch, but these have"
                f" {', '.join(map(str, sorted(step_counts)))}; give each the same number of rows, one or more"
            )
        (self.steps_per_epoch,) = step_counts
        # all rows of a batch have masks, or none; with a rate of zero a mask drops nothing
        self.dropout = any(member.adapter.dropout > 0 for member in settings)

    def units(self, member: int, step: int) -> list[list[EncodedExample]]:
        """What one member draws in one step; see `units_of`."""
        epoch, index = divmod(step, self.steps_per_epoch)
        units = self._units_of[member]
        order = permutation(len(units), self.settings[member].order_seed, "order", epoch)
        return [units[u] for u in order[index * self.batch_size : (index + 1) * self.batch_size]]

    def rows(self, member: int, step: int) -> list[EncodedExample]:
        """One member's rows in one step."""
        return [row for unit in self.units(member, step) for row in unit]

    def items(self, members: Sequence[int], step: int, first: int = 0) -> list[Item]:
        """Rows of some members in one step, with the seeds of their dropout masks.

        `first` is the member that is the model's first: the items count from it.
        """
        items: list[Item] = []
        for m in members:
            counts: Counter[int] = Counter()
            for row in self.rows(m, step):
                repeat = (counts[row.row],) if counts[row.row] else ()  # a repeated row (bootstrap) has another mask
                names = ("dropout", step, row.row, *repeat)
                seed = derive_seed(self.settings[m].dropout_seed, *names) if self.dropout else None
                items.append(Item(m - first, row, seed, len(items)))
                counts[row.row] += 1
        return items

"""Stop requests and results that the processes of a training share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from lorchestra.distributed import Group
from lorchestra.training.callbacks import Callback, CallbackList


class JointStop(CallbackList):
    """A callback that requests a stop in all processes of a group once it does in one of them.

    Its questions are collective: for work in which all processes ask equally often.
    """

    def __init__(self, callback: Callback, group: Group) -> None:
        super().__init__([callback])
        self.group = group

    def should_stop(self) -> bool:
        """Whether a stop is requested in any process."""
        return self.group.any(super().should_stop())

    def should_finish(self) -> bool:
        """Whether any process requests to finish."""
        return self.group.any(super().should_finish())


def as_lists(values: Mapping[str, Tensor]) -> dict[str, list[float]]:
    """Values by member, `[M]` each, in the form in which they are gathered."""
    return {name: values_M.tolist() for name, values_M in values.items()}


def over_members(parts: Sequence[Mapping[str, list[float]]], blocks: Sequence[range]) -> dict[str, list[float]]:
    """The processes' values by member, joined; 0 for the members of a process that has no value of that name."""
    names = dict.fromkeys(name for part in parts for name in part)
    return {
        name: [value for part, block in zip(parts, blocks, strict=True) for value in part.get(name, [0.0] * len(block))]
        for name in names
    }


def led(group: Group, callback: Callback, action: Callable[[Callback], None]) -> None:
    """Let the first process alone do work that may take hours; it ends in all processes at the same time.

    The others answer whenever the work asks whether to stop. So a stop request in any process stops it, and neither
    side waits longer than between two such questions.

    Args:
        group: the processes.
        callback: of this process; the work reports to that of the first.
        action: the work, with the callback that it asks.

    Raises:
        Interrupted: a stop was requested.
        Exception: the work's error, in all processes (see `Group.first`).
    """
    leader = _Leader(callback, group)
    if group.is_first:
        group.first(lambda: leader.lead(action))
        return
    while leader.follow():
        pass
    group.first(lambda: None)


class _Leader(CallbackList):
    """The first process's callback while the others follow."""

    def __init__(self, callback: Callback, group: Group) -> None:
        super().__init__([callback])
        self.group = group

    def should_stop(self) -> bool:
        """Whether a stop is requested in any process; the answers of the others arrive with its question."""
        asked = self.group.gather([True, super().should_stop()])
        return any(wanted for _, wanted in asked)

    def lead(self, action: Callable[[Callback], None]) -> None:
        """Do the work, then let the others know."""
        try:
            action(self)
        finally:
            self.group.gather([False, False])

    def follow(self) -> bool:
        """Answer one question; false if the work has ended."""
        return bool(self.group.gather([False, super().should_stop()])[0][0])

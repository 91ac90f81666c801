"""What one forward pass is, and where the patched modules of a model find it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from torch import Tensor

from lorchestra.nn.packing import Packing


@dataclass(frozen=True)
class ForwardContext:
    """One forward pass over a packed batch: which layers run, on what, and which outputs are read."""

    packing: Packing
    keep: Tensor
    """int64 `[K]`: packed positions whose outputs are read; the last MLP and the head compute no others."""
    first_layer: int = 0
    """Decoder layers below this one are skipped."""
    last_layer: int | None = None
    """Decoder layers from this one on are skipped, and what came out below is captured; None skips none."""
    hidden: Tensor | None = None
    """`[1, N, D]`: what the first layer that runs gets instead of the output of the one below."""
    option_ids: Tensor | None = None
    """int64 `[U]`: vocabulary rows that the head computes; None for all."""
    head_states: Tensor | None = None
    """`[B, D]`: what the head gets instead of the last layer's output."""
    capture_head: bool = False
    """Whether what the head gets is captured."""
    checkpointing: bool = False
    """Whether each layer is recomputed in the backward pass."""
    captured: list[Tensor] = field(default_factory=list)
    """What the pass captured."""


class ContextSlot:
    """Where the modules of one model find the context of the pass under way.

    A plain object, not a thread-local: a checkpointed layer is recomputed on autograd's own thread.
    """

    def __init__(self) -> None:
        self.current: ForwardContext | None = None
        self.returns_tuple = False
        """Whether this architecture's layers return a tuple, as seen in the last layer that ran."""

    @property
    def packing(self) -> Packing | None:
        """The packing of the pass under way."""
        return None if self.current is None else self.current.packing

    @contextmanager
    def use(self, context: ForwardContext | None) -> Iterator[None]:
        """Make this the pass under way, and restore the one before afterwards, errors included."""
        before, self.current = self.current, context
        try:
            yield
        finally:
            self.current = before

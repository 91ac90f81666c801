"""The settings of one forward pass, and the slot from which a model's patched modules read them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from torch import Tensor

from lorchestra.nn.layout import Packing


@dataclass(frozen=True)
class ForwardContext:
    """One forward pass over a packed batch: which layers run, on which input, and which outputs are read."""

    packing: Packing
    keep: Tensor
    """int64 `[K]`: packed positions whose outputs are read; the last MLP and the head compute no others."""
    first_layer: int = 0
    """Decoder layers below this one are skipped."""
    last_layer: int | None = None
    """Decoder layers from this one on are skipped; None runs all."""
    capture_inputs: frozenset[int] = frozenset()
    """Decoder layers whose inputs are captured, in ascending order."""
    hidden: Tensor | None = None
    """`[1, N, D]`: input of the first layer that runs, instead of the output of the skipped layers."""
    option_ids: Tensor | None = None
    """int64 `[U]`: vocabulary rows that the head computes; None for all."""
    head_states: Tensor | None = None
    """`[B, D]`: input of the output head, instead of the last layer's output."""
    capture_head: bool = False
    """Whether the input of the head is captured."""
    checkpointing: bool = False
    """Whether each layer is recomputed in the backward pass."""
    captured: list[Tensor] = field(default_factory=list)
    """Captured hidden states."""


class ContextSlot:
    """Holds the context of the current pass for the patched modules of one model.

    Not thread-local: a checkpointed layer is recomputed on autograd's thread.
    """

    def __init__(self) -> None:
        self.current: ForwardContext | None = None
        self.returns_tuple = False
        """Whether the last layer that ran returned a tuple: architectures differ, and skipped layers must match."""

    @property
    def packing(self) -> Packing | None:
        """The packing of the current pass; None outside a pass."""
        return None if self.current is None else self.current.packing

    @contextmanager
    def use(self, context: ForwardContext | None) -> Iterator[None]:
        """Make `context` the current one within a `with` block, and restore the previous one afterwards."""
        previous, self.current = self.current, context
        try:
            yield
        finally:
            self.current = previous

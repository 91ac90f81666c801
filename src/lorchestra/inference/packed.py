"""The loop that plans micro-batches, packs them and runs the model; shared by training and inference."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from lorchestra.models.ensemble import EnsembleModel, OutputKind
from lorchestra.nn.kv_cache import PrefixCache
from lorchestra.nn.packing import Item, PackedBatch, pack, plan_micro_batches

if TYPE_CHECKING:
    from lorchestra.inference.trunk import TrunkCache


def run_packed(
    model: EnsembleModel,
    items: Sequence[Item],
    token_budget: int,
    outputs: OutputKind | Callable[[PackedBatch], OutputKind] = "log_probs",
    *,
    shared: int = 0,
    prefix: PrefixCache | None = None,
    trunk: TrunkCache | None = None,
) -> Iterator[tuple[PackedBatch, Tensor]]:
    """Yield each packed micro-batch of `items` with the model's outputs for it.

    Everything that runs the model uses this loop: a training step calls `backward` on each output, predictions copy it.
    Items are sorted by member first; `Item.index` assigns results to the caller's items. A micro-batch runs when the
    next result is requested, so a caller should drop its outputs before that to free their graph.

    Args:
        model: the ensemble.
        items: (member, row) pairs in any order.
        token_budget: most tokens of a micro-batch, unless a single row has more.
        outputs: kind of output (see `EnsembleModel.forward`), or a function that returns it for a batch.
        shared: number of first tokens that all rows share; they are computed once per member and micro-batch.
        prefix: cached keys and values of these tokens, which are then not computed at all.
        trunk: cached hidden states of the rows below the first adapted layer; None runs all layers.
    """
    for planned in plan_micro_batches(items, token_budget, shared, prefix):
        batch = pack(planned, model.device, shared, prefix)
        kind = outputs(batch) if callable(outputs) else outputs
        yield batch, model.forward(batch, kind, hidden=None if trunk is None else trunk.gather(batch))

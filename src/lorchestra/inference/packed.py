"""The one loop that plans micro-batches, packs them and runs the model."""

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
    """Run items through the model in packed micro-batches; each is yielded with its outputs as soon as it is done.

    Items come back sorted by member, so `Item.index` says where a result belongs. Gradients are recorded where the
    caller has them on.

    Args:
        model: the ensemble.
        items: rows for members, in any order.
        token_budget: most tokens of a micro-batch.
        outputs: see `EnsembleModel.forward`; or a function that chooses them for a batch.
        shared: first tokens that all rows have in common, computed once per member and micro-batch.
        prefix: these tokens with cached keys and values: then they are not computed at all.
        trunk: cached trunks of the rows; None runs the whole model.
    """
    for planned in plan_micro_batches(items, token_budget, shared, prefix):
        batch = pack(planned, model.device, shared, prefix)
        kind = outputs(batch) if callable(outputs) else outputs
        yield batch, model.forward(batch, kind, hidden=None if trunk is None else trunk.gather(batch))

"""The load probe: does this architecture give the same answers packed as it does row by row?

Attention functions see only what the model hands them. Some architectures mix tokens by other means (convolutions,
state spaces, position biases); packing would silently mix rows there, so every base is tried once before it is used.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lorchestra.core.packing import BASE, Item, PackedBatch, pack
from lorchestra.errors import ConfigError
from lorchestra.models.ensemble import EnsembleModel
from lorchestra.models.surgery import text_config
from lorchestra.types import EncodedExample

_LENGTHS = (5, 17, 30)


@torch.no_grad()
def probe(ensemble: EnsembleModel) -> float:
    """Compare packed rows with the same rows one by one through stock attention, and trunk plus top with the whole.

    The rows are random tokens; the last is longer than any sliding window the model has.

    Returns:
        The largest difference found, relative to the largest logit.

    Raises:
        ConfigError: the difference is more than rounding; says which of the two comparisons failed.
    """
    batch = _probe_batch(ensemble)
    reference = torch.cat([_stock_logits(ensemble, item.example.prefix) for item in batch.items])
    scale = reference.abs().max().item()
    tolerance = {torch.float64: 1e-9, torch.float32: 1e-3}.get(_dtype(ensemble), 5e-2) * max(scale, 1e-6)
    name = type(ensemble.model).__name__
    packed = _packed_logits(ensemble, batch, None)
    difference = (packed - reference).abs().max().item()
    if not difference <= tolerance:
        raise ConfigError(
            f"base.name: {name} cannot be used: packed rows differ from rows run one by one by {difference:.3g} (logits"
            f" up to {scale:.3g}); this architecture mixes tokens by other means than plain causal attention"
        )
    if ensemble.trunk_layers > 0:
        hidden = ensemble.trunk(batch)
        cut = (_packed_logits(ensemble, batch, hidden) - packed).abs().max().item()
        if not cut <= tolerance:
            raise ConfigError(
                f"adapt.layers: {ensemble.adapt.layers!r} cannot be used with {name}: computing the layers below once"
                f" changes the answers by {cut:.3g}; use adapt.layers: all"
            )
        difference = max(difference, cut)
    return difference / max(scale, 1e-6)


def _dtype(ensemble: EnsembleModel) -> torch.dtype:
    return next(ensemble.model.parameters()).dtype


def _probe_batch(ensemble: EnsembleModel) -> PackedBatch:
    config = text_config(ensemble.model)
    window = getattr(config, "sliding_window", None) or 0
    generator = torch.Generator().manual_seed(0)
    items = []
    for row, length in enumerate((*_LENGTHS[:-1], max(_LENGTHS[-1], window + 3))):
        tokens = torch.randint(0, config.vocab_size, (length,), generator=generator).tolist()
        items.append(Item(BASE, EncodedExample(row, tuple(tokens), ((0,), (1,)), None)))
    return pack(items, ensemble.device)


def _packed_logits(ensemble: EnsembleModel, batch: PackedBatch, hidden: Tensor | None) -> Tensor:
    """Logits over the vocabulary at every row's last token, `[B, V]`."""
    return ensemble.logits(batch, hidden, option_ids=None).float()


def _stock_logits(ensemble: EnsembleModel, tokens: tuple[int, ...]) -> Tensor:
    """The same from transformers alone, `[1, V]`."""
    model: Any = ensemble.model
    packed_attention = model.config._attn_implementation
    model.set_attn_implementation(ensemble.stock_attention)
    try:
        ids = torch.tensor([tokens], device=ensemble.device)
        return model(input_ids=ids, use_cache=False, logits_to_keep=1).logits[0].float()
    finally:
        model.set_attn_implementation(packed_attention)

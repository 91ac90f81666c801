"""The load probe: does this architecture give the same answers packed as row by row?

An attention function sees only what the model passes to it. Some architectures mix tokens by other means (convolutions,
state spaces, position biases), and packing would silently mix rows. So every base is tested once before it is used.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from lorchestra.errors import ConfigError, LorchestraError
from lorchestra.models.ensemble import EnsembleModel
from lorchestra.models.patching import text_config
from lorchestra.models.support import ADVICE
from lorchestra.nn.lora import MemberLoRALinear
from lorchestra.nn.packing import BASE, Item, PackedBatch, pack
from lorchestra.types import EncodedExample

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_LENGTHS = (5, 17, 30)
_WINDOWS = ("sliding_window", "attention_chunk_size", "window_size", "local_attention", "attention_window")


@torch.no_grad()
def probe(ensemble: EnsembleModel) -> float:
    """Compare packed rows with single rows through stock attention, and trunk plus top layers with the whole model.

    The rows are random tokens, some with choices of several tokens that share the row's prefix; the last is longer than
    any sliding window the model has.

    Returns:
        The largest difference, relative to the largest logit.

    Raises:
        ConfigError: the difference exceeds rounding, or the model or an adapted map cannot run packed at all; names
            the comparison that failed.
    """
    batch = _probe_batch(ensemble)
    name = type(ensemble.model).__name__
    with _refusing(f"base.name: {name} cannot be used: it fails on a row of plain tokens"):
        reference = torch.cat([_stock_logits(ensemble, item.example) for item in batch.items])
    scale = reference.abs().max().item()
    tolerance = _tolerance(ensemble) * max(scale, 1e-6)
    with _refusing(f"base.name: {name} cannot be used: it fails on packed rows", ADVICE), _all_tokens(ensemble, batch):
        packed = _packed_logits(ensemble, batch, None)
        if packed.shape != reference.shape:
            raise ValueError(f"the head returned logits {list(packed.shape)}, not {list(reference.shape)}")
    difference = (packed - reference).abs().max().item()
    if not difference <= tolerance:
        raise ConfigError(
            f"base.name: {name} cannot be used: packed rows differ from rows run one by one by {difference:.3g} (logits"
            f" up to {scale:.3g}), so its layers mix tokens by other means than causal attention; {ADVICE}"
        )
    if ensemble.trunk_layers > 0:
        difference = max(difference, _try_trunk(ensemble, batch, packed, tolerance))
    return difference / max(scale, 1e-6)


def _try_trunk(ensemble: EnsembleModel, batch: PackedBatch, packed: Tensor, tolerance: float) -> float:
    refused = f"adapt.layers: {ensemble.adapt.layers!r} cannot be used with {type(ensemble.model).__name__}: "
    with _refusing(f"{refused}computing the layers below once fails", "use adapt.layers: all"):
        cut = (_packed_logits(ensemble, batch, ensemble.forward(batch, "trunk")) - packed).abs().max().item()
    if not cut <= tolerance:
        raise ConfigError(
            f"{refused}computing the layers below once changes the answers by {cut:.3g}; use adapt.layers: all"
        )
    return cut


@contextlib.contextmanager
def _refusing(what: str, advice: str = "use another base") -> Iterator[None]:
    """Turn any exception of the model's code into a refusal of the model."""
    try:
        yield
    except (LorchestraError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        lines = str(error).strip().splitlines() or ["no message"]
        raise ConfigError(f"{what} ({type(error).__name__}: {lines[0]}); {advice}") from error


@contextlib.contextmanager
def _all_tokens(ensemble: EnsembleModel, batch: PackedBatch) -> Iterator[None]:
    """Refuse adapted maps that do not get every token: which tokens are a member's would be unknown there."""
    hooks = []
    for name, module in ensemble.model.named_modules():
        if not isinstance(module, MemberLoRALinear):
            continue

        def check(_: nn.Module, inputs: tuple[Tensor, ...], name: str = name) -> None:
            received, total = inputs[0].shape[:-1].numel(), batch.packing.num_tokens
            if received != total:
                raise ConfigError(
                    f"adapt.target_modules: {name!r} cannot be adapted: it gets {received} of a batch's {total}"
                    " tokens, like one of several experts; leave it out"
                )

        hooks.append(module.register_forward_pre_hook(check))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _tolerance(ensemble: EnsembleModel) -> float:
    """Bound on rounding, relative to the largest logit; mixed-up rows differ by much more than 0.01.

    In float64, too, float32 rounds: the models' norms, routing and eager softmax compute in it.
    """
    dtype = next(ensemble.model.parameters()).dtype
    return {torch.float64: 1e-5, torch.float32: 1e-3}.get(dtype, 5e-2)


def _probe_batch(ensemble: EnsembleModel) -> PackedBatch:
    vocab_size = text_config(ensemble.model).vocab_size
    generator = torch.Generator().manual_seed(0)

    def tokens(length: int) -> tuple[int, ...]:
        return tuple(torch.randint(0, vocab_size, (length,), generator=generator).tolist())

    lengths = (*_LENGTHS[:-1], max(_LENGTHS[-1], _longest_window(ensemble) + 3))
    choices = [((0,), (1,)), (tokens(4), tokens(3), (2,)), ((3,), tokens(3))]
    rows = zip(lengths, choices, strict=True)
    return pack(
        [Item(BASE, EncodedExample(row, tokens(length), texts, None)) for row, (length, texts) in enumerate(rows)],
        ensemble.device,
    )


def _longest_window(ensemble: EnsembleModel) -> int:
    """The longest sliding window, or 0; windows as long as the context do not count."""
    config = text_config(ensemble.model)
    context = getattr(config, "max_position_embeddings", None) or 0
    windows = [getattr(config, name, None) for name in _WINDOWS]
    return max((w for w in windows if isinstance(w, int) and w + 10 < context), default=0)


def _packed_logits(ensemble: EnsembleModel, batch: PackedBatch, hidden: Tensor | None) -> Tensor:
    """Logits over the vocabulary at every position that scores a choice, `[K, V]`."""
    return _widened(ensemble.forward(batch, "logits", hidden=hidden))


def _stock_logits(ensemble: EnsembleModel, example: EncodedExample) -> Tensor:
    """The same for one row by transformers alone; each choice of several tokens takes a separate pass."""
    model: PreTrainedModel = ensemble.model
    packed_attention = model.config._attn_implementation
    model.set_attn_implementation(ensemble.stock_attention)
    inputs = [choice[:-1] for choice in example.choices if len(choice) > 1] or [()]
    rows: list[Tensor] = []
    try:
        for tokens in inputs:
            ids = torch.tensor([[*example.prefix, *tokens]], device=ensemble.device)
            logits = _widened(model(input_ids=ids, use_cache=False, logits_to_keep=len(tokens) + 1).logits[0])
            rows.append(logits[1:] if rows else logits)
    finally:
        model.set_attn_implementation(packed_attention)
    return torch.cat(rows)


def _widened(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))

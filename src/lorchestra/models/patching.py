"""The gated MLP of a frozen decoder layer, `down(silu(gate(x)) * up(x))`, saving less for the backward pass.

Autograd by itself saves three tensors of the MLP's width: what silu was given, and both factors of the product. Two are
enough, since silu is cheap to do again. For the form see Shazeer, arXiv 2002.05202.

What is done to a loaded transformers model, and nothing else: its source stays as it is.

Some modules get another `forward`: each decoder layer (a gate that can skip it, feed it cached hidden states, or
checkpoint it), gated MLPs (which save less for the backward pass), the last layer's MLP (which computes the positions
that are read afterwards, and no other), the output head (which can compute chosen vocabulary rows only), and each
adapted linear map, which is replaced by a `MemberLoRALinear` around it.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lorchestra.errors import ConfigError
from lorchestra.nn.lora import MemberLoRALinear, PackingSlot


class _GatedProduct(torch.autograd.Function):
    """`silu(gate) * up`, from which the backward pass keeps gate and up only."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        """Any shape, the same for both."""
        ctx.save_for_backward(gate, up)
        return F.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of gate and up."""
        (grad,) = grad_outputs
        gate, up = ctx.saved_tensors
        grad_up = F.silu(gate).mul_(grad)
        return torch.ops.aten.silu_backward(grad * up, gate), grad_up


def gated_product(gate: Tensor, up: Tensor) -> Tensor:
    """`silu(gate) * up`, elementwise."""
    return _GatedProduct.apply(gate, up)


@dataclass
class PassSlot(PackingSlot):
    """The state of the pass under way, read by all gates of one model."""

    first_layer: int = 0
    """Decoder layers below this one are skipped."""
    last_layer: int | None = None
    """Decoder layers from this one on are skipped; None skips none."""
    hidden: Tensor | None = None
    """`[1, N, D]`: what the first layer that runs is fed instead of what comes from below."""
    captured: Tensor | None = None
    """`[1, N, D]`: what came out below `last_layer`, where it is set."""
    keep: Tensor | None = None
    """`[K]`: packed positions whose outputs are read; None where all are."""
    option_ids: Tensor | None = None
    """`[U]`: vocabulary rows that the head computes; None for all."""
    checkpointing: bool = False
    """Recompute each layer in the backward pass."""
    as_tuple: bool = False
    """Whether this architecture's layers hand their output on in a tuple, as seen in the last layer that ran."""


def text_config(model: nn.Module) -> Any:
    """The configuration of the text model: of composite models, the part with decoder layers."""
    config: Any = model.config
    return config.get_text_config()


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    """The list of decoder layers of a causal language model.

    Raises:
        ConfigError: no list of `num_hidden_layers` modules in it.
    """
    wanted = text_config(model).num_hidden_layers
    get_decoder = getattr(model, "get_decoder", None)
    roots = (
        model if get_decoder is None else get_decoder(),
        model,
    )  # the text part first: a vision part has layers, too
    for module in itertools.chain.from_iterable(root.modules() for root in roots):
        if isinstance(module, nn.ModuleList) and len(module) == wanted:
            return module
    raise ConfigError(
        f"base.name: {type(model).__name__} has no list of {wanted} decoder layers;"
        " only decoder-only models can be adapted"
    )


def gate_layers(layers: nn.ModuleList, slot: PassSlot) -> None:
    """Put a gate before every decoder layer."""
    for index, layer in enumerate(layers):
        layer.forward = _gated(layer.forward, index, slot)


def _gated(original: Callable[..., Any], index: int, slot: PassSlot) -> Callable[..., Any]:
    def forward(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        if slot.last_layer == index:
            slot.captured = hidden_states
        if index < slot.first_layer or (slot.last_layer is not None and index >= slot.last_layer):
            return (hidden_states,) if slot.as_tuple else hidden_states
        if slot.hidden is not None and index == slot.first_layer:
            hidden_states = slot.hidden
        if slot.checkpointing:
            run = checkpoint(
                original, hidden_states, *args, use_reentrant=False, context_fn=lambda: _recompute(slot), **kwargs
            )
        else:
            run = original(hidden_states, *args, **kwargs)
        slot.as_tuple = isinstance(run, tuple)
        return run

    return forward


def _recompute(
    slot: PassSlot,
) -> tuple[contextlib.AbstractContextManager[None], contextlib.AbstractContextManager[None]]:
    """Contexts for a checkpointed layer: plain forward, and a recompute that sees the packing of *its* forward."""
    then = slot.packing, slot.keep

    @contextlib.contextmanager
    def restored() -> Iterator[None]:
        now = slot.packing, slot.keep
        slot.packing, slot.keep = then
        try:
            yield
        finally:
            slot.packing, slot.keep = now

    return contextlib.nullcontext(), restored()


def slim_gated_mlps(layers: nn.ModuleList) -> None:
    """Let gated MLPs with silu save two tensors for the backward pass, not three (see `models.patching`).

    A module is known by its parts and by what it computes: where `down_proj(silu(gate_proj(x)) * up_proj(x))` is not
    bit for bit what its own code gives, it is left alone.
    """
    for module in layers.modules():
        parts = {name for name, _ in module.named_children()}
        if parts == {"gate_proj", "up_proj", "down_proj", "act_fn"} and _is_gated_mlp(module):
            module.forward = _slim_forward(module)


def _slim_forward(module: Any) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        return module.down_proj(gated_product(module.gate_proj(x), module.up_proj(x)))

    return forward


@torch.no_grad()
def _is_gated_mlp(module: Any) -> bool:
    if not all(isinstance(part, nn.Linear | MemberLoRALinear) for part in (module.gate_proj, module.down_proj)):
        return False
    weight = module.gate_proj.weight
    source = torch.Generator().manual_seed(0)
    x = torch.randn(1, 3, weight.shape[1], generator=source).to(weight)
    try:
        return torch.equal(module(x), _slim_forward(module)(x))
    except (TypeError, RuntimeError):  # it is called otherwise
        return False


def restrict_last_mlp(layer: nn.Module, slot: PassSlot) -> None:
    """Let the last decoder layer's MLP compute only the positions that are read afterwards.

    Behind the last attention every token goes its own way, so what an MLP makes of the other tokens is never seen; that
    of a mixture of experts, too, since each token is routed by itself. The MLP is left alone where it has adapters
    (their spans are those of all tokens), has another name than `mlp`, or is called with more than the hidden states.
    """
    mlp = getattr(layer, "mlp", None)
    if not isinstance(mlp, nn.Module) or any(isinstance(module, MemberLoRALinear) for module in mlp.modules()):
        return
    original = mlp.forward

    def forward(hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        packing, keep = slot.packing, slot.keep
        if packing is None or keep is None or args or kwargs or hidden.shape[:-1] != (1, packing.num_tokens):
            return original(hidden, *args, **kwargs)
        out = original(hidden[:, keep])
        first, *routing = (
            out if isinstance(out, tuple) else (out,)
        )  # experts may hand on their routing, which nobody reads
        if not isinstance(first, Tensor) or first.shape[:-1] != (1, len(keep)):
            return original(hidden)
        whole = first.new_zeros(1, packing.num_tokens, first.shape[-1]).index_copy(1, keep, first)
        return whole if first is out else (whole, *routing)

    mlp.forward = forward


def restrict_head(head: nn.Module, slot: PassSlot) -> None:
    """Let the output head compute only the slot's option rows, where they are set."""
    original = head.forward

    def forward(hidden: Tensor) -> Tensor:
        if slot.option_ids is None:
            return original(hidden)
        weight: Any = head.weight
        bias: Any = getattr(head, "bias", None)
        return F.linear(hidden, weight[slot.option_ids], None if bias is None else bias[slot.option_ids])

    head.forward = forward


def parse_layers(text: str, num_layers: int) -> list[int]:
    """The decoder layers that `all`, `last:K` or `[0, 5, 11]` names, ascending.

    Raises:
        ConfigError: another form, a K or an index out of range.
    """
    cleaned = text.strip()
    if cleaned == "all":
        return list(range(num_layers))
    try:
        if cleaned.startswith("last:"):
            count = int(cleaned.removeprefix("last:"))
            indices = list(range(num_layers - count, num_layers))
            valid = 1 <= count <= num_layers
        else:
            indices = sorted({int(part) for part in cleaned.strip("[]").split(",")})
            valid = bool(indices) and indices[0] >= 0 and indices[-1] < num_layers
    except ValueError:
        raise ConfigError(f"adapt.layers: {text!r} is none of all, last:K or a list such as [0, 5, 11]") from None
    if not valid:
        raise ConfigError(
            f"adapt.layers: {text!r} is out of range; the base has {num_layers} layers, 0 to {num_layers - 1}"
        )
    return indices


def replace_module(root: nn.Module, name: str, replacement: nn.Module) -> None:
    """Put `replacement` where `root` has the submodule called `name`."""
    parent, _, leaf = name.rpartition(".")
    setattr(root.get_submodule(parent), leaf, replacement)

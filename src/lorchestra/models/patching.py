"""Patches of a loaded transformers model; its source is not modified.

Each adapted linear layer is wrapped in a `MemberLoRALinear`, and some modules get another `forward`:

- each decoder layer can be skipped, get cached hidden states as its input, or be checkpointed;
- gated MLPs save less for the backward pass;
- the last layer's MLP computes only the positions that are read;
- the output head can compute selected vocabulary rows only.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lorchestra.errors import ConfigError
from lorchestra.models.quantized import dense_weight
from lorchestra.nn.context import ContextSlot
from lorchestra.nn.lora import MemberLoRALinear

_Output = Tensor | tuple[object, ...]
"""What a module returns: architectures differ in whether there is more than the hidden states."""


class _GatedProduct(torch.autograd.Function):
    """`silu(gate) * up`, saving two tensors for the backward pass: silu is recomputed.

    Plain autograd saves a third one, `silu(gate)`. The gated MLP is `down(silu(gate(x)) * up(x))`: Shazeer, arXiv
    2002.05202.
    """

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        """Gate and up have the same shape."""
        ctx.save_for_backward(gate, up)
        return F.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gradients of gate and up."""
        (grad,) = grad_outputs
        gate, up = ctx.saved_tensors
        grad_up = F.silu(gate).mul_(grad)
        return torch.ops.aten.silu_backward(grad * up, gate), grad_up


def gated_product(gate: Tensor, up: Tensor) -> Tensor:
    """`silu(gate) * up`, elementwise."""
    return _GatedProduct.apply(gate, up)


def text_config(model: nn.Module) -> Any:
    """The transformers config of the text model, which in composite models is the part with the decoder layers."""
    config: Any = model.config
    return config.get_text_config()


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    """The list of decoder layers of a causal language model.

    Raises:
        ConfigError: the model has no list of `num_hidden_layers` modules.
    """
    num_layers = text_config(model).num_hidden_layers
    get_decoder = getattr(model, "get_decoder", None)
    # the text model first: a vision model has layers, too
    roots = (model if get_decoder is None else get_decoder(), model)
    for module in itertools.chain.from_iterable(root.modules() for root in roots):
        if isinstance(module, nn.ModuleList) and len(module) == num_layers:
            return module
    raise ConfigError(
        f"base.name: {type(model).__name__} has no list of {num_layers} decoder layers;"
        " only decoder-only models can be adapted"
    )


def gate_layers(layers: nn.ModuleList, slot: ContextSlot) -> None:
    """Make every decoder layer follow the slot's context: skip it, replace its input, or checkpoint it."""
    for index, layer in enumerate(layers):
        layer.forward = _gated(layer.forward, index, slot)


def _gated(original: Callable[..., _Output], index: int, slot: ContextSlot) -> Callable[..., _Output]:
    def forward(hidden_states: Tensor, *args: object, **kwargs: Any) -> _Output:
        context = slot.current
        if context is None:
            return original(hidden_states, *args, **kwargs)
        if index in context.capture_inputs:
            context.captured.append(hidden_states)
        if index < context.first_layer or (context.last_layer is not None and index >= context.last_layer):
            return (hidden_states,) if slot.returns_tuple else hidden_states
        if context.hidden is not None and index == context.first_layer:
            hidden_states = context.hidden
        if context.checkpointing:
            # the layer is recomputed in the backward pass, when the slot may hold the context of another pass
            contexts = lambda: (contextlib.nullcontext(), slot.use(context))  # noqa: E731
            out = checkpoint(original, hidden_states, *args, use_reentrant=False, context_fn=contexts, **kwargs)
        else:
            out = original(hidden_states, *args, **kwargs)
        slot.returns_tuple = isinstance(out, tuple)
        return out

    return forward


def slim_gated_mlps(layers: nn.ModuleList) -> None:
    """Make gated MLPs with silu save two tensors for the backward pass instead of three.

    A module is recognized by its submodules and its result: it is patched only if
    `down_proj(silu(gate_proj(x)) * up_proj(x))` equals its original output bit for bit.
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
    if not all(isinstance(linear, nn.Linear | MemberLoRALinear) for linear in (module.gate_proj, module.down_proj)):
        return False
    gate = getattr(module.gate_proj, "base", module.gate_proj)
    source = torch.Generator().manual_seed(0)
    # of quantized maps the weight is stored in another number format and shape than it has
    x = torch.randn(1, 3, gate.in_features, generator=source).to(dense_weight(gate))
    try:
        return torch.equal(module(x), _slim_forward(module)(x))
    except (TypeError, RuntimeError):  # it takes other arguments
        return False


def restrict_last_mlp(layer: nn.Module, slot: ContextSlot) -> None:
    """Make the last decoder layer's MLP compute only the positions that are read.

    After the last attention, tokens do not interact, so the MLP's outputs at other positions are never used; mixtures
    of experts are no exception, since they route each token separately. MLPs with adapters (whose spans refer to all
    tokens), with another name than `mlp`, or with more arguments than the hidden states are not patched.
    """
    mlp = getattr(layer, "mlp", None)
    if not isinstance(mlp, nn.Module) or any(isinstance(module, MemberLoRALinear) for module in mlp.modules()):
        return
    original: Callable[..., _Output] = mlp.forward

    def forward(hidden: Tensor, *args: object, **kwargs: object) -> _Output:
        context = slot.current
        if context is None or args or kwargs or hidden.shape[:-1] != (1, context.packing.num_tokens):
            return original(hidden, *args, **kwargs)
        num_tokens, keep = context.packing.num_tokens, context.keep
        out = original(hidden[:, keep])
        # experts may also return their routing, which is not read
        first, *routing = out if isinstance(out, tuple) else (out,)
        if not isinstance(first, Tensor) or first.shape[:-1] != (1, len(keep)):
            return original(hidden)
        whole = first.new_zeros(1, num_tokens, first.shape[-1]).index_copy(1, keep, first)
        return whole if first is out else (whole, *routing)

    mlp.forward = forward


def restrict_head(head: nn.Module, slot: ContextSlot) -> None:
    """Make the output head follow the slot's context: capture or replace its input, compute its option rows only."""
    original = head.forward

    def forward(hidden: Tensor) -> Tensor:
        context = slot.current
        if context is None:
            return original(hidden)
        if context.capture_head:
            context.captured.append(hidden)
        if context.head_states is not None:
            hidden = context.head_states[None]
        if context.option_ids is None:
            return original(hidden)
        weight: Any = head.weight
        bias: Any = getattr(head, "bias", None)
        return F.linear(hidden, weight[context.option_ids], None if bias is None else bias[context.option_ids])

    head.forward = forward


def parse_layers(text: str, num_layers: int) -> list[int]:
    """Indices of the decoder layers in `all`, `last:K` or a list such as `[0, 5, 11]`, ascending.

    Raises:
        ConfigError: another form, or K or an index out of range.
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
        raise ConfigError(f"adapt.layers: {text!r} is not all, last:K or a list such as [0, 5, 11]") from None
    if not valid:
        raise ConfigError(
            f"adapt.layers: {text!r} is out of range; the base has {num_layers} layers, 0 to {num_layers - 1}"
        )
    return indices


def replace_module(root: nn.Module, name: str, replacement: nn.Module) -> None:
    """Replace the submodule `name` of `root`."""
    parent, _, leaf = name.rpartition(".")
    setattr(root.get_submodule(parent), leaf, replacement)

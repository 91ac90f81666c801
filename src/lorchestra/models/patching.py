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
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lorchestra.errors import ConfigError
from lorchestra.nn.context import ContextSlot
from lorchestra.nn.lora import MemberLoRALinear


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


def gate_layers(layers: nn.ModuleList, slot: ContextSlot) -> None:
    """Put a gate before every decoder layer."""
    for index, layer in enumerate(layers):
        layer.forward = _gated(layer.forward, index, slot)


def _gated(original: Callable[..., Any], index: int, slot: ContextSlot) -> Callable[..., Any]:
    def forward(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        context = slot.current
        if context is None:
            return original(hidden_states, *args, **kwargs)
        if context.last_layer == index:
            context.captured.append(hidden_states)
        if index < context.first_layer or (context.last_layer is not None and index >= context.last_layer):
            return (hidden_states,) if slot.returns_tuple else hidden_states
        if context.hidden is not None and index == context.first_layer:
            hidden_states = context.hidden
        if context.checkpointing:
            # the layer is recomputed during the backward pass, when another pass may be under way
            contexts = lambda: (contextlib.nullcontext(), slot.use(context))  # noqa: E731
            out = checkpoint(original, hidden_states, *args, use_reentrant=False, context_fn=contexts, **kwargs)
        else:
            out = original(hidden_states, *args, **kwargs)
        slot.returns_tuple = isinstance(out, tuple)
        return out

    return forward


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


def restrict_last_mlp(layer: nn.Module, slot: ContextSlot) -> None:
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
        context = slot.current
        if context is None or args or kwargs or hidden.shape[:-1] != (1, context.packing.num_tokens):
            return original(hidden, *args, **kwargs)
        num_tokens, keep = context.packing.num_tokens, context.keep
        out = original(hidden[:, keep])
        first, *routing = (
            out if isinstance(out, tuple) else (out,)
        )  # experts may hand on their routing, which nobody reads
        if not isinstance(first, Tensor) or first.shape[:-1] != (1, len(keep)):
            return original(hidden)
        whole = first.new_zeros(1, num_tokens, first.shape[-1]).index_copy(1, keep, first)
        return whole if first is out else (whole, *routing)

    mlp.forward = forward


def restrict_head(head: nn.Module, slot: ContextSlot) -> None:
    """Let the output head compute only the context's option rows, on its states and captured, where these are set."""
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

"""Which architectures can be packed, judged by their modules before anything is run.

Packing keeps rows apart in attention alone. Layers that mix tokens by other means would mix rows, and attention with
more than a plain causal mask would get other scores. The load probe (`probe`) detects that by running the model; what
the modules show is refused here, with the reason.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from lorchestra.errors import ConfigError
from lorchestra.models.gguf import quiet_transformers
from lorchestra.models.patching import decoder_layers, text_config

_PACKED_LAYERS = {"full_attention", "sliding_attention", "sparse", "dense"}
_MIXING = {
    "linear_attention": "carry a state from token to token (linear attention or a state space)",
    "conv": "mix neighboring tokens by a convolution",
    "hybrid": "carry a state from token to token in addition to their attention",
    "hybrid_sliding": "carry a state from token to token in addition to their attention",
    "chunked_attention": "attend within chunks at fixed positions, which packed attention does not know",
}
_NON_CAUSAL = "its attention sees later tokens (it is an encoder)"


def check_architecture(model: nn.Module) -> None:
    """Refuse a model that packing would get wrong.

    Raises:
        ConfigError: names the architecture and the obstacle.
    """
    reason = _reason(model)
    if reason is not None:
        raise ConfigError(f"base.name: {type(model).__name__} cannot be used: {reason}; {ADVICE}")


ADVICE = "take a decoder-only model that mixes tokens by causal attention alone, such as Llama, Qwen3, Gemma or GPT-2"
"""The end of messages that refuse an architecture."""


def set_attention(model: nn.Module, name: str) -> None:
    """Make the model compute attention by the function registered as `name`.

    Raises:
        ConfigError: its attention does not go through transformers' interface.
    """
    with quiet_transformers():  # it only warns if this fails
        model.set_attn_implementation(name)  # type: ignore[operator]
    if text_config(model)._attn_implementation != name:
        raise ConfigError(
            f"base.name: {type(model).__name__} cannot be used: its attention does not go through transformers'"
            f" attention interface, so rows cannot be kept apart; {ADVICE}"
        )


def _reason(model: nn.Module) -> str | None:
    config = text_config(model)
    if getattr(model.config, "is_encoder_decoder", False):
        return "it is an encoder with a decoder"
    if _has_alibi(model):
        return "it adds a distance bias to its attention scores (ALiBi), which packed attention does not support"
    layers = decoder_layers(model)
    kinds = getattr(config, "layer_types", None) or []
    other = [(index, kind) for index, kind in enumerate(kinds) if kind not in _PACKED_LAYERS]
    if other:
        kind = other[0][1]
        what = _MIXING.get(kind, "attend in a way that packed attention does not support")
        return f"its {kind!r} layers ({_listed(i for i, k in other if k == kind)}) {what}"
    for name, module in layers.named_modules():
        if isinstance(module, nn.Conv1d):
            return f"its layers mix neighboring tokens by a convolution ({name} is a {type(module).__name__})"
        if getattr(module, "is_causal", None) is False and "cross" not in name:
            return _NON_CAUSAL
    if getattr(model, "_is_stateful", False):
        return "its layers carry a state from token to token"
    return None


def _has_alibi(model: nn.Module) -> bool:
    """Judged by the setting (Falcon), or by a method that builds the biases (Bloom, MPT)."""
    kinds = {type(module) for module in model.modules()}
    return bool(getattr(text_config(model), "alibi", False)) or any("alibi" in name for k in kinds for name in vars(k))


def _listed(numbers: Iterable[int]) -> str:
    shown = [str(number) for number in numbers]
    return ", ".join(shown if len(shown) <= 6 else [*shown[:6], "..."])

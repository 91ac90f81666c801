"""Cheap fingerprints of a base and of a tokenizer: adapters are never loaded onto the wrong ones unnoticed."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from lorchestra.errors import CheckpointError
from lorchestra.models.quantized import dense_weight, quantized_maps

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NUM_SAMPLES = 257
"""Values sampled from each parameter, evenly spaced, including the first and the last."""

# What parameter shapes do not determine. A fixed list: fields that later versions of transformers add to their configs
# must not change the digest.
_ARCHITECTURE_FIELDS = (
    "model_type",
    "hidden_act",
    "hidden_activation",
    "hidden_size",
    "intermediate_size",
    "vocab_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "rms_norm_eps",
    "layer_norm_eps",
    "layer_norm_epsilon",
    "rope_parameters",
    "sliding_window",
    "layer_types",
    "num_experts",
    "num_local_experts",
    "num_experts_per_tok",
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "query_pre_attn_scalar",
    "embedding_multiplier",
    "residual_multiplier",
    "attention_multiplier",
    "logits_scaling",
    "tie_word_embeddings",
)

# without pad_token_id: loading fills in a missing one, and packed rows have no padding
_SPECIAL_IDS = ("bos_token_id", "eos_token_id", "unk_token_id", "sep_token_id", "cls_token_id", "mask_token_id")


def model_digest(model: nn.Module) -> str:
    """SHA-256 over architecture fields, parameter names and shapes, and some values of each parameter.

    A checkpoint has the same digest in every number format it is loaded in: values are hashed as bfloat16, the coarsest
    of them, and rounding float32 or float64 weights to bfloat16 gives what loading them as bfloat16 gives. Changes
    below bfloat16's resolution, or between the samples, go unnoticed. Tied weights count once. Of quantized weights the
    dequantized values count: quantized in another way, a base has another digest.

    Args:
        model: a transformers causal language model without adapters.

    Returns:
        64 hexadecimal digits.
    """
    text_config = model.config.get_text_config()  # type: ignore[union-attr,operator]
    fields = {name: getattr(text_config, name, None) for name in _ARCHITECTURE_FIELDS}
    digest = hashlib.sha256()
    digest.update(_canonical({name: value for name, value in fields.items() if value is not None}))
    quantized = {f"{name}.weight": module for name, module in quantized_maps(model)}
    for name, parameter in sorted(model.named_parameters()):
        values = dense_weight(quantized[name]) if name in quantized else parameter
        digest.update(_canonical([name, list(values.shape)]))
        digest.update(_sample(values))
    return digest.hexdigest()


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 over everything that affects tokenization: the serialized tokenizer, special ids, the chat template.

    Truncation and padding are left out: they are the state of earlier calls, not part of the tokenizer.

    Args:
        tokenizer: a transformers tokenizer with a fast backend.

    Returns:
        64 hexadecimal digits.

    Raises:
        CheckpointError: the tokenizer has no fast backend.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise CheckpointError(
            f"{tokenizer.name_or_path}: the tokenizer ({type(tokenizer).__name__}) has no fast version. "
            "Use a base with a tokenizer.json."
        )
    serialized = json.loads(backend.to_str())
    for switch in ("truncation", "padding"):
        serialized.pop(switch, None)
    content = {
        "tokenizer": serialized,
        "special_ids": {name: getattr(tokenizer, name) for name in _SPECIAL_IDS},
        "chat_template": tokenizer.chat_template,
    }
    return hashlib.sha256(_canonical(content)).hexdigest()


def _sample(parameter: Tensor) -> bytes:
    """Evenly spaced values of a tensor, first and last included, as bytes in bfloat16."""
    flat = parameter.detach().reshape(-1)
    count = min(flat.numel(), NUM_SAMPLES)
    if count == 0:
        return b""
    # in integers: a float step would miss the last of very many values
    indices = torch.arange(count, device=flat.device) * (flat.numel() - 1) // max(count - 1, 1)
    values = flat[indices]
    if not values.is_floating_point():
        return values.to("cpu", torch.int64).numpy().tobytes()
    return values.to(torch.bfloat16).cpu().view(torch.int16).numpy().tobytes()


def _canonical(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode() + b"\n"

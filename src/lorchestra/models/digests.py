"""Cheap fingerprints of a base and of a tokenizer, so that adapters are never put on the wrong ones unnoticed."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch
from torch import Tensor, nn

from lorchestra.errors import CheckpointError

NUM_SAMPLES = 257
"""Values looked at in each parameter, evenly spaced, the first and the last among them."""

# What shapes do not tell about a decoder. A fixed list, so that a field which a later transformers adds to its configs
# does not change the digest of a model that has not changed.
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

# pad_token_id is not among them: a missing one is filled in on loading, and packed rows hold no padding.
_SPECIAL_IDS = ("bos_token_id", "eos_token_id", "unk_token_id", "sep_token_id", "cls_token_id", "mask_token_id")


def model_digest(model: nn.Module) -> str:
    """Return a SHA-256 over architecture fields, parameter names, shapes and some values of each parameter.

    The same checkpoint has the same digest in whatever number format it was loaded: values are compared as bfloat16,
    the coarsest format a base is loaded in, and float32 or float64 weights rounded to bfloat16 are exactly what loading
    them as bfloat16 gives. A change too small for bfloat16, or between the samples, is not seen. Tied weights count
    once.

    Args:
        model: a transformers causal language model without adapters.

    Returns:
        64 hexadecimal digits.
    """
    text_config = model.config.get_text_config()  # type: ignore[union-attr,operator]
    fields = {name: getattr(text_config, name, None) for name in _ARCHITECTURE_FIELDS}
    digest = hashlib.sha256()
    digest.update(_canonical({name: value for name, value in fields.items() if value is not None}))
    for name, parameter in sorted(model.named_parameters()):
        digest.update(_canonical([name, list(parameter.shape)]))
        digest.update(_sample(parameter))
    return digest.hexdigest()


def tokenizer_digest(tokenizer: Any) -> str:
    """Return a SHA-256 over all that decides how a text is cut: the serialized tokenizer, special ids, chat template.

    Truncation and padding are left out: they are switches a caller leaves behind, not part of the tokenizer.

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
            "Use a base that comes with a tokenizer.json."
        )
    serialized = json.loads(backend.to_str())
    for switch in ("truncation", "padding"):
        serialized.pop(switch, None)
    facts = {
        "tokenizer": serialized,
        "special_ids": {name: getattr(tokenizer, name) for name in _SPECIAL_IDS},
        "chat_template": tokenizer.chat_template,
    }
    return hashlib.sha256(_canonical(facts)).hexdigest()


def _sample(parameter: Tensor) -> bytes:
    """Evenly spaced values of a tensor, first and last included, as the bytes of their bfloat16 form."""
    flat = parameter.detach().reshape(-1)
    count = min(flat.numel(), NUM_SAMPLES)
    if count == 0:
        return b""
    # Whole-number arithmetic: a float step would miss the last of very many values.
    places = torch.arange(count, device=flat.device) * (flat.numel() - 1) // max(count - 1, 1)
    values = flat[places]
    if not values.is_floating_point():
        return values.to("cpu", torch.int64).numpy().tobytes()
    return values.to(torch.bfloat16).cpu().view(torch.int16).numpy().tobytes()


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode() + b"\n"

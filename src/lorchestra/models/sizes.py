"""Sizes that a base declares, checked against its weights before a model is built.

A configuration of a few bytes can declare a million layers, or tables beyond any memory, and transformers builds the
model before it reads the weights. The weight files bound what is plausible.
"""

from __future__ import annotations

import json
import re
import reprlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeGuard

from safetensors import SafetensorError, safe_open

from lorchestra.errors import CheckpointError

_INDEX = "model.safetensors.index.json"
_WEIGHTS = "model.safetensors"
_LAYERS = frozenset(
    {
        *("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_decoder_layers", "num_encoder_layers"),
        *("decoder_layers", "encoder_layers", "block_count"),
    }
)
_WIDTHS = frozenset(
    {
        *("hidden_size", "n_embd", "d_model", "dim", "embedding_length", "word_embed_proj_dim"),
        *("intermediate_size", "n_inner", "ffn_dim", "d_ff", "ffn_hidden_size", "feed_forward_length"),
        *("moe_intermediate_size", "shared_expert_intermediate_size", "vocab_size"),
        *("num_attention_heads", "n_head", "n_heads", "num_key_value_heads", "attention.head_count"),
        *("attention.head_count_kv", "head_dim", "attention.key_length", "attention.value_length", "kv_lora_rank"),
        *("q_lora_rank", "num_experts", "num_local_experts", "n_routed_experts", "expert_count"),
    }
)
_POSITIONS = frozenset({"max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "context_length"})
_MAX_POSITIONS = 2**30
"""Tokens of context: no base has that many, and some build tables over them."""
_PACKED = 32
"""How many values of a quantized weight one element of its tensor may pack."""
_IN_LIST = re.compile(r"(?:^|\.)([0-9]{1,9})\.")
_LONGEST_LIST = 100_000


def check_sizes(start: str, directory: Path) -> None:
    """Refuse a directory whose config.json declares sizes beyond its weights.

    Missing and damaged files are ignored here: loading reports them.

    Args:
        start: the start of the message.
        directory: the base's directory.

    Raises:
        CheckpointError: names the field, its value and the bound.
    """
    try:
        config = json.loads((directory / "config.json").read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return
    shapes = weight_shapes(directory)
    if not isinstance(config, dict) or not shapes:
        return
    packed = _PACKED if "quantization_config" in config else 1
    check_declared(f"{start}: {directory / 'config.json'}", _fields(config), shapes, packed)


def check_declared(
    where: str, fields: Iterable[tuple[str, object]], shapes: Mapping[str, Sequence[int]], packed: int = 1
) -> None:
    """Refuse declared sizes beyond those of the weights.

    Args:
        where: the file, for the message.
        fields: dotted names and values; the last part of a name is its meaning.
        shapes: tensor shapes by name.
        packed: how many values one element of a tensor may pack.

    Raises:
        CheckpointError: names the field, its value and the bound.
    """
    layers = 1 + max((int(index) for name in shapes for index in _IN_LIST.findall(name)), default=-1)
    widest = packed * max((size for shape in shapes.values() for size in shape), default=0)
    limits = dict.fromkeys(_LAYERS, (layers, f"the weights have {layers} layers"))
    limits |= dict.fromkeys(_WIDTHS, (widest, f"the longest axis of its weights is {widest:,}"))
    limits |= dict.fromkeys(_POSITIONS, (_MAX_POSITIONS, "no base has that many"))
    for full, value in fields:
        name = full if full in limits else full.rpartition(".")[2]
        if isinstance(value, list):
            if len(value) > _LONGEST_LIST:
                raise CheckpointError(f"{where}: {full} is a list of {len(value):,} values, which no base has.")
            value = max((size for size in value if _is_size(size)), default=0)
        if name not in limits or not _is_size(value):
            continue
        most, reason = limits[name]
        if value > most or (name in _LAYERS and value < 1):
            wrong = f"{full} is {reprlib.repr(value)}, but {reason}"
            raise CheckpointError(f"{where}: {wrong}. Copy or download the base again.")


def _is_size(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _fields(config: Mapping[str, object], path: str = "") -> Iterator[tuple[str, object]]:
    for key, value in config.items():
        full = f"{path}.{key}" if path else key
        if isinstance(value, dict):
            yield from _fields(value, full)
        else:
            yield full, value


def weight_shapes(directory: Path) -> dict[str, tuple[int, ...]]:
    """The shapes of all weights of a base by name, from the file headers; empty if files are missing or damaged."""
    try:
        return {name: tuple(shape) for name, shape in _shapes(directory)}
    except (OSError, ValueError, RecursionError, SafetensorError, KeyError, AttributeError, TypeError):
        return {}


def _shapes(directory: Path) -> Iterator[tuple[str, Sequence[int]]]:
    files = [_WEIGHTS]
    if not (directory / _WEIGHTS).is_file():
        files = sorted(set(json.loads((directory / _INDEX).read_text("utf-8"))["weight_map"].values()))
    for file in files:
        with safe_open(directory / file, framework="numpy") as tensors:
            for name in tensors.keys():  # noqa: SIM118
                yield name, tensors.get_slice(name).get_shape()

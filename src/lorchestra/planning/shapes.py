"""Shapes of Llama-like bases: what a base's configuration says, without its weights."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from lorchestra.errors import CheckpointError, ConfigError, did_you_mean
from lorchestra.store.safe_paths import typed_path
from lorchestra.types import Json

ATTENTION_INPUTS = ("q_proj", "k_proj", "v_proj")
GATED_INPUTS = ("gate_proj", "up_proj")
_KINDS = ("llama", "mistral", "qwen2")
"""Values of `model_type` with the linear maps, norms and gated MLP that are counted here."""


@dataclass(frozen=True)
class BaseShape:
    """Sizes of a decoder with rotary grouped-query attention and a gated MLP in every layer.

    Source: Llama, Touvron et al., arXiv 2302.13971; grouped queries: Ainslie et al., arXiv 2305.13245.
    """

    name: str
    num_layers: int
    hidden_size: int
    """D."""
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    """V."""
    tied: bool
    """Whether the output head's weight is that of the embeddings."""
    biased: tuple[str, ...] = ()
    """Linear maps with a bias."""

    @property
    def attention_size(self) -> int:
        """Width of the queries of all heads."""
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Width of the keys of all heads."""
        return self.num_kv_heads * self.head_dim

    @property
    def maps(self) -> dict[str, tuple[int, int]]:
        """`(in, out)` of each linear map of a layer."""
        width, inner = self.hidden_size, self.intermediate_size
        return {
            "q_proj": (width, self.attention_size),
            "k_proj": (width, self.kv_size),
            "v_proj": (width, self.kv_size),
            "o_proj": (self.attention_size, width),
            "gate_proj": (width, inner),
            "up_proj": (width, inner),
            "down_proj": (inner, width),
        }

    @property
    def num_parameters(self) -> int:
        """All weights; a tied head counts once."""
        maps = self.maps
        biases = sum(maps[name][1] for name in self.biased)
        layer = sum(inputs * outputs for inputs, outputs in maps.values()) + biases + 2 * self.hidden_size
        embeddings = self.vocab_size * self.hidden_size
        return self.num_layers * layer + self.hidden_size + embeddings * (1 if self.tied else 2)

    def adapter_parameters(self, adapted: Collection[str], num_layers: int, rank: int) -> int:
        """P: parameters of a member with adapters on the maps `adapted` of `num_layers` layers."""
        maps = self.maps
        return num_layers * rank * sum(sum(maps[name]) for name in adapted)

    def weight_shapes(self) -> dict[str, tuple[int, int]]:
        """Shapes `(out, in)` of all layers' linear maps, by the names that Llama's weights have."""
        return {
            f"model.layers.{layer}.{name}.weight": (outputs, inputs)
            for layer in range(self.num_layers)
            for name, (inputs, outputs) in self.maps.items()
        }


def _llama(name: str, layers: int, sizes: tuple[int, int], heads: tuple[int, int], vocab: int, tied: bool) -> BaseShape:
    return BaseShape(name, layers, *sizes, *heads, sizes[0] // heads[0], vocab, tied)


PUBLIC_SHAPES: Mapping[str, BaseShape] = MappingProxyType(
    {
        shape.name: shape
        for shape in (
            _llama("smollm2-135m", 30, (576, 1536), (9, 3), 49_152, True),
            _llama("llama-3.2-1b", 16, (2048, 8192), (32, 8), 128_256, True),
            _llama("llama-3.1-8b", 32, (4096, 14_336), (32, 8), 128_256, False),
            _llama("llama-3.1-70b", 80, (8192, 28_672), (64, 8), 128_256, False),
        )
    }
)
"""Shapes by name.

Source: `config.json` of HuggingFaceTB/SmolLM2-135M-Instruct, meta-llama/Llama-3.2-1B, meta-llama/Llama-3.1-8B and
meta-llama/Llama-3.1-70B on the Hugging Face Hub; Llama 3's sizes also in Grattafiori et al., arXiv 2407.21783, table 3.
"""


def read_shape(name: str) -> BaseShape:
    """The shape that a name of `PUBLIC_SHAPES`, a base's directory or its `config.json` stands for.

    Raises:
        ConfigError: neither exists, or the configuration is not that of a Llama-like base.
    """
    if name in PUBLIC_SHAPES:
        return PUBLIC_SHAPES[name]
    path = Path(typed_path(name))
    file = path / "config.json" if path.is_dir() else path
    if not file.is_file():
        advice = did_you_mean(name, tuple(PUBLIC_SHAPES))
        raise ConfigError(
            f"--bases: {name!r} is no file, no directory with a config.json, and no known shape; {advice}"
        )
    try:
        fields = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"--bases: {file} cannot be read as JSON ({error})") from error
    return shape_from_config(name, fields)


def shape_from_config(name: str, fields: Json) -> BaseShape:
    """The shape that the fields of a `config.json` declare.

    Raises:
        ConfigError: another architecture, or a field that is missing or no positive whole number.
    """
    kind = fields.get("model_type") if isinstance(fields, dict) else None
    if kind not in _KINDS:
        raise ConfigError(
            f"--bases: {name} has model_type {kind!r}; counted are {', '.join(_KINDS)}. For another one that this"
            " machine holds, use lorchestra plan without --what-if"
        )

    def size(field: str, default: object = None) -> int:
        value = fields.get(field)
        value = default if value is None else value
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ConfigError(f"--bases: {name}: {field} is {value!r}, not a whole number from 1 up")
        return value

    heads = size("num_attention_heads")
    attention = ATTENTION_INPUTS if kind == "qwen2" else (*ATTENTION_INPUTS, "o_proj")
    has_biases = kind == "qwen2" or bool(fields.get("attention_bias", False))
    mlp = (*GATED_INPUTS, "down_proj") if fields.get("mlp_bias", False) else ()
    return BaseShape(
        name=name,
        num_layers=size("num_hidden_layers"),
        hidden_size=size("hidden_size"),
        intermediate_size=size("intermediate_size"),
        num_heads=heads,
        num_kv_heads=size("num_key_value_heads", heads),
        head_dim=size("head_dim", size("hidden_size") // heads),
        vocab_size=size("vocab_size"),
        tied=bool(fields.get("tie_word_embeddings", False)),
        biased=(*(attention if has_biases else ()), *mlp),
    )

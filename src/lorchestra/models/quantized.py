"""Quantized bases: linear maps stored in 4 or 8 bits, and computed with as plain products of the dequantized weights.

bitsandbytes quantizes and stores them; transformers calls it while it loads. Its products are not used: on some
processors, the one for 4 bits changes the layout of the weights at the first pass without gradients, and has no
gradients from then on; the one for 8 bits (LLM.int8) rounds its inputs, and picks the columns that it does not round by
all tokens of a pass, so that members would depend on each other. Here a weight is dequantized once per pass of a
packed batch, whatever its number of members, and again in the backward pass; nothing of it is kept in between.

Sources: NF4 and double quantization: Dettmers et al., QLoRA, arXiv 2305.14314; int8 by output channel: Dettmers et al.,
arXiv 2208.07339.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import util
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from lorchestra.config.adapt import BaseConfig
from lorchestra.errors import CheckpointError, ConfigError
from lorchestra.models.directories import bitsandbytes_settings

if TYPE_CHECKING:
    from transformers.utils.quantization_config import QuantizationConfigMixin


# imported by PEFT, too, wherever it is installed: it then warns that kernels are missing, which are not used here
logging.getLogger("bitsandbytes.backends").setLevel(logging.ERROR)

_Weight: TypeAlias = Any
"""A weight of bitsandbytes, or a plain one: the package has no types."""


def quantization_of(base: BaseConfig, directory: Path) -> str | None:
    """How the base's linear maps will be stored: as configured, or as its checkpoint already stores them.

    Args:
        base: the base's settings.
        directory: where its weights are.

    Returns:
        nf4, int8 or, for a checkpoint, fp4; None for plain weights.

    Raises:
        ConfigError: the setting contradicts the checkpoint, or `base.dtype` is float64.
        CheckpointError: bitsandbytes is not installed.
    """
    stored = stored_quantization(directory)
    chosen = None if base.quantization == "none" else base.quantization
    if stored is not None and chosen not in (None, stored):
        raise ConfigError(
            f"base.quantization: {chosen}, but the weights of {base.name!r} are stored as {stored}; leave it out, or"
            " give the model that they were made from"
        )
    quantization = stored or chosen
    if quantization is None:
        return None
    if base.dtype == "float64":
        raise ConfigError(f"base.dtype: float64, but the base is quantized ({quantization}); use float32 or bfloat16")
    _require_packages(quantization)
    return quantization


def stored_quantization(directory: Path) -> str | None:
    """How a checkpoint already stores its linear maps (nf4, fp4 or int8), None for plain weights.

    Other kinds have been refused (`check_directory`).
    """
    try:
        settings = bitsandbytes_settings(json.loads((directory / "config.json").read_text("utf-8")))
    except (OSError, ValueError, RecursionError):  # loading reports it
        return None
    if settings is None:
        return None
    return "int8" if settings.get("load_in_8bit") else str(settings.get("bnb_4bit_quant_type", "fp4"))


def quantization_config(quantization: str) -> QuantizationConfigMixin:
    """What tells transformers to quantize while it loads plain weights.

    Args:
        quantization: nf4 (blocks of 64 weights, their scales quantized to 8 bits) or int8 (a scale per output).
    """
    from transformers import BitsAndBytesConfig

    if quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)


def use_dense_products(model: nn.Module, dtype: torch.dtype) -> None:
    """Let quantized maps compute with dequantized weights, and everything else have a number format.

    Args:
        model: as transformers loaded it in float32, changed in place.
        dtype: number format of computation.
    """
    quantized = dict(quantized_maps(model))
    for name, module in model.named_modules():
        if name in quantized:
            module.forward = _dense_forward(module)
            if module.bias is not None:
                module.bias.data = module.bias.data.to(dtype)
            continue
        for parameter in module.parameters(recurse=False):
            parameter.data = parameter.data.to(dtype)
        # frequencies of rotary embeddings stay float32, as transformers keeps them
        persistent = module._buffers.keys() - module._non_persistent_buffers_set
        for key in persistent:
            buffer = module._buffers[key]
            if buffer is not None and buffer.is_floating_point():
                module._buffers[key] = buffer.to(dtype)


@dataclass(frozen=True)
class WeightSource:
    """Where the plain weights of a quantized map are."""

    directory: Path
    name: str

    def read(self) -> Tensor:
        """The weight `[O, I]` in float32.

        Raises:
            ConfigError: the files have no weight of this name.
        """
        index = self.directory / "model.safetensors.index.json"
        file = "model.safetensors"
        if not (self.directory / file).is_file():
            file = json.loads(index.read_text("utf-8"))["weight_map"].get(self.name, "")
        try:
            with safe_open(self.directory / file, framework="pt") as tensors:
                return tensors.get_tensor(self.name).float()
        except (OSError, SafetensorError) as error:
            raise ConfigError(
                f"adapt.init_lora_weights: loftq needs the weight {self.name}, which the files in {self.directory} do"
                " not have under this name; choose another initialization"
            ) from error


def remember_sources(model: nn.Module, directory: Path) -> None:
    """Let `original_weight` find the weights that quantized maps were made from."""
    for name, module in quantized_maps(model):
        module.source = WeightSource(directory, f"{name}.weight")  # type: ignore[assignment]


def original_weight(module: nn.Module) -> Tensor:
    """The weight `[O, I]` of a quantized map before it was quantized, in float32 on the CPU.

    Raises:
        ConfigError: it was not quantized here, or its files have other names.
    """
    source = getattr(module, "source", None)
    if not isinstance(source, WeightSource):
        raise ConfigError(
            "adapt.init_lora_weights: loftq needs the weights before they were quantized, which this base does not"
            " have; give the model that it was made from, with base.quantization nf4 or int8"
        )
    return source.read()


def is_quantized(module: nn.Module) -> bool:
    """Whether a module is a linear map with quantized weights."""
    # its own weight: maps with members refer to that of the map inside
    return type(module._parameters.get("weight")).__name__ in _DEQUANTIZE


def quantized_maps(model: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    """`(name, module)` of every linear map with quantized weights."""
    return ((name, module) for name, module in model.named_modules() if is_quantized(module))


def dense_weight(module: nn.Module, dtype: torch.dtype | None = None) -> Tensor:
    """The weight of a linear map as a plain tensor, in the shape that it is stored in: `[O, I]` for `nn.Linear`.

    Args:
        module: the map.
        dtype: number format of a dequantized weight, float32 by default; plain ones are returned as they are.
    """
    weight: _Weight = module.weight
    dequantize = _DEQUANTIZE.get(type(weight).__name__)
    return weight if dequantize is None else dequantize(weight, dtype or torch.float32)


def dense_shape(module: nn.Module) -> tuple[int, ...]:
    """The shape of a linear map's weight, without dequantizing it."""
    weight: _Weight = module.weight
    return tuple(weight.quant_state.shape if type(weight).__name__ == "Params4bit" else weight.shape)


def plain_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that are not quantized weights."""
    quantized = {id(module.weight) for _, module in quantized_maps(model)}
    return [one for one in model.parameters() if id(one) not in quantized]


def stored_bytes(model: nn.Module, dtype: torch.dtype | None = None) -> int:
    """Bytes of the frozen parameters, with the scales of quantized ones.

    Args:
        model: the base.
        dtype: count plain parameters as if they were in this number format; by default as they are.
    """
    plain = sum(
        one.nbytes if dtype is None else one.numel() * dtype.itemsize
        for one in plain_parameters(model)
        if not one.requires_grad
    )
    return plain + sum(part.nbytes for _, module in quantized_maps(model) for part in _parts(module.weight))


def num_weights(model: nn.Module) -> int:
    """Number of frozen weights, however many of them one element of a tensor stores."""
    plain = sum(one.numel() for one in plain_parameters(model) if not one.requires_grad)
    return plain + sum(torch.Size(dense_shape(module)).numel() for _, module in quantized_maps(model))


def dequantize(model: nn.Module, dtype: torch.dtype) -> None:
    """Replace quantized maps by plain ones with the dequantized weights, in place, as a model to be saved.

    Args:
        model: a base without members.
        dtype: number format of the weights.
    """
    for name, module in list(quantized_maps(model)):
        rows, columns = dense_shape(module)
        plain = nn.Linear(columns, rows, bias=module.bias is not None, device="meta")
        plain.weight = nn.Parameter(dense_weight(module, dtype), requires_grad=False)
        plain.bias = module.bias
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, plain)
    config: Any = model.config
    for part in (config, config.get_text_config()):
        if hasattr(part, "quantization_config"):
            del part.quantization_config
    for mark in ("hf_quantizer", "quantization_method", "is_quantized", "is_loaded_in_4bit", "is_loaded_in_8bit"):
        vars(model).pop(mark, None)


class _DenseProduct(torch.autograd.Function):
    """`x W^T + bias` with a weight that is dequantized for it, and again for the gradient of x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, module: nn.Module) -> Tensor:
        """Map `[.., I] -> [.., O]`."""
        ctx.module = module
        return F.linear(x, dense_weight(module, x.dtype), module.bias)  # type: ignore[arg-type]

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        """Return the gradient of x."""
        (grad,) = grad_outputs
        return grad @ dense_weight(ctx.module, grad.dtype), None


def _dense_forward(module: nn.Module) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        return _DenseProduct.apply(x, module)

    return forward


def _from_4_bits(weight: _Weight, dtype: torch.dtype) -> Tensor:
    from bitsandbytes import functional  # heavy; only needed here

    state = weight.quant_state
    state.dtype = dtype  # the number format of the result
    return functional.dequantize_4bit(weight.data, state)


def _from_int8(weight: _Weight, dtype: torch.dtype) -> Tensor:
    return (weight.data * (weight.SCB / 127)[:, None]).to(dtype)


_DEQUANTIZE: Mapping[str, Callable[[_Weight, torch.dtype], Tensor]] = {
    "Params4bit": _from_4_bits,
    "Int8Params": _from_int8,
}
"""By the name of the weight's type: bitsandbytes is imported only for bases that need it."""


def _parts(parameter: _Weight) -> Iterator[Tensor]:
    """The plain tensors that a quantized parameter consists of."""
    yield parameter.data
    if type(parameter).__name__ == "Int8Params":
        yield parameter.SCB
        return
    state = parameter.quant_state
    while state is not None:
        yield state.absmax
        state = state.state2 if state.nested else None


def _require_packages(quantization: str) -> None:
    missing = next((name for name in ("bitsandbytes", "accelerate") if util.find_spec(name) is None), None)
    if missing is not None:
        raise CheckpointError(
            f"base.quantization: {quantization} needs the package {missing}, which is not installed:"
            " pip install 'lorchestra[quant]'"
        )

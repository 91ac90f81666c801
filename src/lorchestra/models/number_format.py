"""The number format that `base.dtype: auto` stands for: on a CPU, the one whose products are fastest there.

Whether a processor computes bfloat16 products natively, and how much faster, cannot be looked up: of two processors of
one family one computes them four times as fast as float32, the other half as fast.
"""

from __future__ import annotations

import dataclasses
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lorchestra.config.adapt import BaseConfig
from lorchestra.models.loading import base_device, base_directory
from lorchestra.models.sizes import weight_shapes

MARGIN = 1.5
"""How many times as fast bfloat16 must be: less is little for its rounding, and near 1 noise would decide."""
_SMALLEST = 2**18
"""Weights of the largest linear map below which the time of a base is not spent in products."""
_NUM_SHAPES = 3
_MAX_FLOP = 2.5e9
"""Multiplications and additions of one product; wider maps are cut to fewer outputs."""
_MIN_OUTPUTS = 256
_SECONDS = 0.5
_MIN_REPEATS, _MAX_REPEATS = 3, 12
_IN_LAYERS = re.compile(r"(?:^|\.)[0-9]+\.")
# not the time in which other processes run; on Windows that clock ticks 64 times a second
_clock = time.perf_counter if os.name == "nt" else time.process_time

Shape = tuple[int, int]


@dataclass(frozen=True)
class ProductRates:
    """Measured speed of a base's products, in 1e9 multiplications and additions per second of one core."""

    float32: float
    bfloat16: float

    @property
    def fastest(self) -> str:
        """bfloat16 where it is `MARGIN` times as fast, else float32."""
        return "bfloat16" if self.bfloat16 >= MARGIN * self.float32 else "float32"

    def to_dict(self) -> dict[str, float]:
        """As saved with a run."""
        return {"float32": round(self.float32, 1), "bfloat16": round(self.bfloat16, 1)}

    def sentence(self) -> str:
        """The choice with both figures."""
        figures = f"{self.bfloat16:.0f} GFLOP/s per core against {self.float32:.0f} in float32"
        rule = "" if self.fastest == "bfloat16" else f", which is less than {MARGIN:g} times as fast"
        return f"base.dtype: auto is {self.fastest} here: this base's products in bfloat16 reach {figures}{rule}"


def automatic_dtype(base: BaseConfig, num_tokens: int) -> tuple[str, ProductRates | None]:
    """The number format for a new job, with the rates that decided it where some were measured.

    On CUDA it is bfloat16. On a CPU it is float32, or bfloat16 if products of the base's weights with `num_tokens`
    tokens are clearly faster in it; bases too small for that to matter are not measured.

    Raises:
        ConfigError, CheckpointError: the base does not exist (see `load_base`).
    """
    if base_device(base).type == "cuda":
        return "bfloat16", None
    shapes = product_shapes(weight_shapes(base_directory(base)))
    if not shapes:
        return "float32", None
    rates = product_rates(shapes, num_tokens)
    return rates.fastest, rates


def with_dtype(base: BaseConfig, dtype: str) -> BaseConfig:
    """The settings with a number format that is one of the setting's values."""
    return dataclasses.replace(base, dtype=dtype)  # type: ignore[arg-type]


def product_shapes(weights: Mapping[str, tuple[int, ...]]) -> dict[Shape, int]:
    """Shapes and numbers of the layers' linear maps that most of the arithmetic is in; none for a tiny base.

    Args:
        weights: shapes of all weights by name.
    """
    layers = [shape for name, shape in weights.items() if len(shape) == 2 and _IN_LAYERS.search(name)]
    counts: Counter[Shape] = Counter((shape[0], shape[1]) for shape in layers)
    if max((rows * columns for rows, columns in counts), default=0) < _SMALLEST:
        return {}
    largest = sorted(counts, key=lambda shape: (-shape[0] * shape[1] * counts[shape], shape))
    return {shape: counts[shape] for shape in largest[:_NUM_SHAPES]}


def product_rates(shapes: Mapping[Shape, int], num_tokens: int) -> ProductRates:
    """Measure products of `num_tokens` tokens with weights of these shapes `[O, I]`, in about half a second.

    Each is the product of a forward pass and that of a backward pass to the input. The formats take turns, and the
    least time of each product counts: a busy machine only adds to it.
    """
    flop = {shape: 4 * num_tokens * _outputs(shape, num_tokens) * shape[1] for shape in shapes}
    seconds = dict.fromkeys((torch.float32, torch.bfloat16), 0.0)
    for shape, count in shapes.items():
        weight = torch.ones(_outputs(shape, num_tokens), shape[1])
        for dtype, least in _least_times(weight, num_tokens, _SECONDS / len(shapes)).items():
            seconds[dtype] += count * least
    total = sum(flop[shape] * count for shape, count in shapes.items())
    return ProductRates(*(total / seconds[dtype] / 1e9 for dtype in (torch.float32, torch.bfloat16)))


def _outputs(shape: Shape, num_tokens: int) -> int:
    return min(shape[0], max(_MIN_OUTPUTS, int(_MAX_FLOP / (2 * num_tokens * shape[1]))))


@torch.no_grad()
def _least_times(weight_OI: Tensor, num_tokens: int, seconds: float) -> dict[torch.dtype, float]:
    """The least time of both products per format; at least three repetitions, the first of which is a warm-up."""
    outputs, inputs = weight_OI.shape
    least: dict[torch.dtype, float] = {}
    products: dict[torch.dtype, Callable[[], object]] = {}
    for dtype in (torch.float32, torch.bfloat16):
        weight, x = weight_OI.to(dtype), torch.ones(num_tokens, inputs, dtype=dtype)
        grad = torch.ones(num_tokens, outputs, dtype=dtype)
        products[dtype] = lambda weight=weight, x=x, grad=grad: (F.linear(x, weight), grad @ weight)  # type: ignore[misc]
    started = time.perf_counter()
    for repeat in range(_MAX_REPEATS):
        for dtype, compute in products.items():
            before = _clock()
            compute()
            taken = max(_clock() - before, 1e-9)
            if repeat > 0:
                least[dtype] = min(taken, least.get(dtype, taken))
        if repeat + 1 >= _MIN_REPEATS and time.perf_counter() - started > seconds:
            break
    return least

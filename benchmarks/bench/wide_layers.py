"""Passes through a few layers of wide bases, whose weights need not exist: CPU time next to the cost model.

All weights of a kind are one number, since time does not depend on them.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import transformers

from bench.rows import make_rows
from bench.setting import log
from lorchestra.config.adapt import AdaptConfig
from lorchestra.models.ensemble import EnsembleModel
from lorchestra.models.number_format import product_rates, product_shapes
from lorchestra.nn.packing import Item, PackedBatch, pack
from lorchestra.planning.pass_cost import PassCost, count_batch
from lorchestra.planning.shapes import PUBLIC_SHAPES, BaseShape
from lorchestra.planning.what_if import ELEMENT_BYTES_PER_S
from lorchestra.runs.build import torch_threads

LAYERS, VOCABULARY, REPEATS = 3, 8000, 3
NAMES = ("smollm2-135m", "llama-3.2-1b", "llama-3.1-8b")
ADAPTED = ("q_proj", "v_proj")


@dataclass(frozen=True)
class Wide:
    """One pass: its least CPU seconds, the prediction, and the share of element-wise operations in that."""

    name: str
    dtype: str
    what: str
    measured: float
    predicted: float
    elementwise: float


def make_ensemble(shape: BaseShape, dtype: torch.dtype) -> EnsembleModel:
    """One member on all layers of a Llama with made-up weights."""
    config = transformers.LlamaConfig(
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_kv_heads,
        vocab_size=shape.vocab_size,
        tie_word_embeddings=True,
    )
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(config)
    model = model.to_empty(device="cpu").to(dtype)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.fill_(1.0 if "norm" in name else 0.01)
    model.model.rotary_emb = transformers.models.llama.modeling_llama.LlamaRotaryEmbedding(config)
    return EnsembleModel(model.eval(), AdaptConfig(members=1, target_modules=ADAPTED), 0)


def measure(names: Sequence[str] = NAMES) -> Iterator[Wide]:
    """Training and evaluation passes of about 600 tokens, in both formats; speeds of products measured next to each."""
    batch = pack([Item(0, row) for row in make_rows(8, 75, VOCABULARY)])
    with torch_threads(1):
        for name in names:
            shape = dataclasses.replace(PUBLIC_SHAPES[name], num_layers=LAYERS, vocab_size=VOCABULARY, tied=True)
            for dtype in (torch.float32, torch.bfloat16):
                yield from _measure(shape, dtype, batch)


def _measure(shape: BaseShape, dtype: torch.dtype, batch: PackedBatch) -> Iterator[Wide]:
    """Both passes of one base in one format."""
    counts, which = count_batch(batch), str(dtype).removeprefix("torch.")
    model = make_ensemble(shape, dtype)
    cost = PassCost(shape, ADAPTED, tuple(range(LAYERS)), 8, dtype.itemsize)
    rates = [product_rates(product_shapes(shape.weight_shapes()), counts.tokens)]
    seconds: dict[str, list[float]] = {"training": [], "evaluation": []}
    for _ in range(REPEATS):
        seconds["training"].append(_cpu_seconds(lambda: model.forward(batch).sum().backward()))
        with torch.no_grad():
            seconds["evaluation"].append(_cpu_seconds(lambda: model.forward(batch)))
    rates.append(product_rates(product_shapes(shape.weight_shapes()), counts.tokens))
    flop = 1e9 * sum(getattr(one, which) for one in rates) / len(rates)
    for what, work in (("training", cost.training(counts)), ("evaluation", cost.forward(counts))):
        moved = work.moved_bytes / ELEMENT_BYTES_PER_S
        predicted, least = work.flop / flop + moved, min(seconds[what])
        log(f"{shape.name}, {which}, {what}: {least:.2f} s, predicted {predicted:.2f} s")
        yield Wide(shape.name, which, what, least, predicted, moved / predicted)


def _cpu_seconds(run: Callable[[], object]) -> float:
    started = time.process_time()
    run()
    return time.process_time() - started


def table(wide: list[Wide]) -> list[str]:
    """As Markdown."""
    lines = [
        "| layers of | format | pass | measured, s | predicted, s | ratio | of that element-wise |",
        "|" + 7 * "---|",
    ]
    for one in wide:
        figures = f"{one.measured:.2f} | {one.predicted:.2f} | {one.predicted / one.measured:.2f}"
        lines.append(f"| {one.name} | {one.dtype} | {one.what} | {figures} | {100 * one.elementwise:.0f} % |")
    return lines

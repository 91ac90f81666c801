"""Cost of a packed pass by arithmetic: products, element-wise traffic and bytes saved for the backward pass.

Counted is what the passes of a Llama-like base really do here: products once over all tokens, a gradient of each input
above the first adapter and of no frozen weight, the last MLP at the positions that are read only, and a head that
computes the rows that score choices. So a count needs a base's shape and a batch's layout, and no weights.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from lorchestra.nn.packing import PackedBatch
from lorchestra.planning.shapes import ATTENTION_INPUTS, GATED_INPUTS, BaseShape

FULL_BYTES = 4
"""Norms, adapters and log-probabilities are in float32 in every number format, as is attention on a CPU."""
_ALL_TOKENS = (*ATTENTION_INPUTS, "o_proj")
_BACKWARD = 2
"""Element-wise traffic of a backward pass over that of the forward pass."""
_FLASH_BACKWARD = 2.5
"""Products of attention's backward over its forward pass: the scores are computed again (Dao et al., 2205.14135)."""
_UPDATE_NUMBERS = 16
"""Numbers read and written per parameter in an update: norm of the gradient, AdamW's moments, the parameter."""


@dataclass(frozen=True)
class BatchCounts:
    """What the cost of a packed pass depends on; sums over its micro-batches."""

    tokens: int
    pairs: int
    """Visible (query, key) pairs, where a choice's tokens see their prompt."""
    copied_keys: int
    """Keys that are copied behind each other for segments that see others."""
    masked_pairs: int
    """Pairs of queries and keys of these segments, each with an entry in a mask."""
    reads: int
    """Positions whose outputs are used."""
    options: int | None
    """Rows of the output head that are computed, summed over micro-batches; None for the whole vocabulary."""
    batches: int = 1

    def logits(self, vocab_size: int) -> int:
        """Outputs of the head."""
        return self.reads * vocab_size if self.options is None else self.reads * self.options // self.batches


def count_batch(batch: PackedBatch) -> BatchCounts:
    """The counts of a packed micro-batch, which may lack choices: then nothing is read."""
    pairs = copied = masked = 0
    segments = batch.packing.merged_segments
    for segment in segments:
        length = segment.stop - segment.start
        before = sum(segments[index].stop - segments[index].start for index in segment.context)
        pairs += length * before + length * (length + 1) // 2
        if segment.sees_others:
            copied += before + length
            masked += length * (before + length)
    if not all(item.example.choices for item in batch.items):
        return BatchCounts(batch.packing.num_tokens, pairs, copied, masked, 0, 1)
    scoring = batch.scoring
    options = None if scoring.option_ids is None else len(scoring.option_ids)
    return BatchCounts(batch.packing.num_tokens, pairs, copied, masked, len(scoring.keep), options)


def sum_counts(counts: Iterable[BatchCounts]) -> BatchCounts:
    """The counts of several micro-batches together."""
    every = list(counts)
    options = [one.options for one in every]
    return BatchCounts(
        tokens=sum(one.tokens for one in every),
        pairs=sum(one.pairs for one in every),
        copied_keys=sum(one.copied_keys for one in every),
        masked_pairs=sum(one.masked_pairs for one in every),
        reads=sum(one.reads for one in every),
        options=None if None in options else sum(number for number in options if number is not None),
        batches=sum(one.batches for one in every),
    )


@dataclass(frozen=True)
class Arithmetic:
    """Work of a pass: floating-point operations of products, and bytes that element-wise operations read and write."""

    flop: float
    moved_bytes: float

    def __add__(self, other: Arithmetic) -> Arithmetic:
        """The work of both."""
        return Arithmetic(self.flop + other.flop, self.moved_bytes + other.moved_bytes)

    def seconds(self, flop_per_s: float, bytes_per_s: float) -> float:
        """Products and element-wise operations take turns: their times add."""
        return self.flop / flop_per_s + self.moved_bytes / bytes_per_s


@dataclass(frozen=True)
class PassCost:
    """Costs of the passes of members with adapters of one rank on the same maps and layers of a base."""

    shape: BaseShape
    adapted: tuple[str, ...]
    """Names of the adapted linear maps."""
    layers: tuple[int, ...]
    """Adapted layers, ascending."""
    rank: int
    element_bytes: int
    """Bytes of a number in the base's format."""

    @property
    def trunk_layers(self) -> int:
        """Layers below the first adapted one."""
        return self.layers[0]

    @property
    def parameters(self) -> int:
        """P, per member."""
        return self.shape.adapter_parameters(self.adapted, len(self.layers), self.rank)

    @property
    def base_bytes(self) -> int:
        """Bytes of the base's weights."""
        return self.shape.num_parameters * self.element_bytes

    def trunk(self, counts: BatchCounts) -> Arithmetic:
        """Forward pass of the layers below the first adapted one, the same for all members."""
        return _times(self.trunk_layers, self._layer(counts, counts.tokens))

    def states(self, counts: BatchCounts, num_layers: int) -> Arithmetic:
        """Forward pass of the base's first layers."""
        return _times(num_layers, self._layer(counts, counts.tokens))

    def forward(self, counts: BatchCounts, *, of_base: bool = False) -> Arithmetic:
        """Forward pass from the first adapted layer up, with the head; `of_base` without adapters."""
        whole = _times(self.shape.num_layers - self.trunk_layers - 1, self._layer(counts, counts.tokens))
        last = self._layer(counts, counts.tokens if self._adapts_last_mlp else counts.reads)
        total = whole + last + self._head(counts)
        return total if of_base else total + self._adapters(counts)

    def training(self, counts: BatchCounts, *, checkpointing: bool = False) -> Arithmetic:
        """Forward and backward pass; under gradient checkpointing with a second forward pass."""
        forward = self.forward(counts)
        again = forward if checkpointing else Arithmetic(0, 0)
        moved = _BACKWARD * forward.moved_bytes
        return forward + again + Arithmetic(self._backward_flop(counts), moved)

    def update(self) -> Arithmetic:
        """Gradient clipping and AdamW of one member."""
        return Arithmetic(0, FULL_BYTES * _UPDATE_NUMBERS * self.parameters)

    def saved_bytes(self, counts: BatchCounts) -> int:
        """Bytes that a forward pass saves for its backward pass, without gradient checkpointing."""
        shape, element = self.shape, self.element_bytes
        width, attention, tokens = shape.hidden_size, shape.attention_size, counts.tokens
        above = shape.num_layers - self.trunk_layers
        inputs = self._input_gradients()
        norm = FULL_BYTES * tokens * (width + 1)
        # of the first layer's norms, those whose input has a gradient; and the one before the head
        total = norm * (2 * above - 1 + (inputs["gate_proj"] > 0))
        keys = FULL_BYTES * 2 * shape.kv_size * (tokens + counts.copied_keys)
        others = FULL_BYTES * (2 * attention + shape.num_heads) * tokens + FULL_BYTES * counts.masked_pairs
        attends = above if inputs["o_proj"] else above - 1
        total += attends * (keys + others)
        total += 2 * element * shape.head_dim * tokens * (attends > 0)
        gated = 2 * element * shape.intermediate_size
        rows = [tokens] * (above - 1) + [tokens if self._adapts_last_mlp else counts.reads]
        total += gated * sum(rows[0 if inputs["down_proj"] else 1 :])
        total += 0 if self._adapts_last_mlp else element * width * counts.reads
        stored = sum(shape.maps[group[0]][0] for group in _GROUPS if set(group) & set(self.adapted))
        total += len(self.layers) * tokens * (element * stored + FULL_BYTES * self.rank * len(self.adapted))
        head = FULL_BYTES * counts.logits(shape.vocab_size) if counts.options is None else 0
        return total + head

    @property
    def _adapts_last_mlp(self) -> bool:
        """Whether the last layer's MLP has adapters, and so computes all tokens."""
        return self.layers[-1] == self.shape.num_layers - 1 and not set(self.adapted) <= set(_ALL_TOKENS)

    def _layer(self, counts: BatchCounts, mlp_rows: int) -> Arithmetic:
        """Forward pass of a layer whose MLP computes `mlp_rows` positions."""
        shape = self.shape
        width, inner = shape.hidden_size, shape.intermediate_size
        attention, kv = shape.attention_size, shape.kv_size
        products = 2 * counts.tokens * (2 * width * attention + 2 * width * kv) + 2 * mlp_rows * 3 * width * inner
        scores = 4 * attention * counts.pairs
        # two norms of seven numbers per feature and two residual sums of three; the rotary embedding of queries and
        # keys; copies of the attention's output; silu and its product; keys and values behind each other
        numbers = counts.tokens * (20 * width + 9 * (attention + kv) + 4 * attention) + 5 * inner * mlp_rows
        numbers += 4 * kv * counts.copied_keys + counts.masked_pairs
        return Arithmetic(products + scores, FULL_BYTES * numbers)

    def _head(self, counts: BatchCounts) -> Arithmetic:
        logits = counts.logits(self.shape.vocab_size)
        return Arithmetic(2 * self.shape.hidden_size * logits, FULL_BYTES * 4 * logits)

    def _adapters(self, counts: BatchCounts) -> Arithmetic:
        """Forward pass of the low-rank products: the input is read, the output read and written."""
        flop = numbers = 0
        for name in self.adapted:
            inputs, outputs = self.shape.maps[name]
            flop += 2 * self.rank * (inputs + outputs)
            numbers += inputs + 2 * outputs
        tokens = len(self.layers) * counts.tokens
        return Arithmetic(tokens * flop, FULL_BYTES * tokens * numbers)

    def _backward_flop(self, counts: BatchCounts) -> float:
        """Operations of the backward pass: gradients of inputs, and of A and B."""
        shape, total = self.shape, 2.0 * self.shape.hidden_size * counts.logits(self.shape.vocab_size)
        last = shape.num_layers - 1
        for layer in range(self.trunk_layers, shape.num_layers):
            first = layer == self.trunk_layers
            needed = self._input_gradients() if first else dict.fromkeys(shape.maps, True)
            for name, (inputs, outputs) in shape.maps.items():
                in_last_mlp = layer == last and name not in _ALL_TOKENS and not self._adapts_last_mlp
                rows = counts.reads if in_last_mlp else counts.tokens
                total += 2 * inputs * outputs * rows * needed[name]
                if name in self.adapted and layer in self.layers:
                    total += 2 * self.rank * rows * (2 * outputs + (1 + needed[name]) * inputs)
            if needed["o_proj"]:
                total += 4 * _FLASH_BACKWARD * shape.attention_size * counts.pairs
        return total

    def _input_gradients(self) -> dict[str, bool]:
        """Whether each map's input in the first adapted layer has a gradient: whether an adapter is before it."""
        below = False
        result: dict[str, bool] = {}
        for group in _GROUPS:
            result |= dict.fromkeys(group, below)
            below = below or bool(set(group) & set(self.adapted))
        return result


_GROUPS = (ATTENTION_INPUTS, ("o_proj",), GATED_INPUTS, ("down_proj",))
"""Linear maps of a layer with the same input, in the order of the forward pass."""


def _times(number: int, work: Arithmetic) -> Arithmetic:
    return Arithmetic(number * work.flop, number * work.moved_bytes)

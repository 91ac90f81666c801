"""The number of operations that a training step with adapters on all layers needs, for Llama-like decoders."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from torch import nn

from lorchestra.nn.packing import PackedBatch

ATTENTION_INPUTS = ("q_proj", "k_proj", "v_proj")
_ALL_TOKENS = ("k_proj", "v_proj")


@dataclass(frozen=True)
class Shape:
    """A decoder's sizes, as far as the count depends on them."""

    num_layers: int
    width: int
    maps: Mapping[str, tuple[int, int]]
    """(in, out) of each linear map of a layer: q_proj, k_proj, v_proj, o_proj and the MLP's."""

    @property
    def attention_width(self) -> int:
        """Number of query heads times their size."""
        return self.maps["q_proj"][1]


@dataclass(frozen=True)
class Work:
    """The work of one micro-batch."""

    tokens: int
    """Tokens; a prefix that rows share counts once per member."""
    pairs: int
    """Visible (query, key) pairs of causal attention."""
    read_tokens: int
    """Tokens whose outputs are used: the positions that score choices."""
    read_pairs: int
    """Pairs whose query is one of them."""
    options: int
    """Needed rows of the output head."""


def shape_of(layer: nn.Module, num_layers: int) -> Shape:
    """The sizes of a decoder with layers like this one, without adapters.

    Raises:
        ValueError: the inputs of its attention have other names than Llama's.
    """
    maps = {
        name.rpartition(".")[2]: (module.in_features, module.out_features)
        for name, module in layer.named_modules()
        if isinstance(module, nn.Linear)
    }
    if not {*ATTENTION_INPUTS, "o_proj"} <= maps.keys():
        raise ValueError(f"the count is for layers with q_proj, k_proj, v_proj and o_proj, not {sorted(maps)}")
    return Shape(num_layers, maps["q_proj"][0], maps)


def work_of(batch: PackedBatch) -> Work:
    """The work of a packed micro-batch."""
    sees = []
    for segment in batch.packing.segments:
        before = sum(batch.packing.segments[i].stop - batch.packing.segments[i].start for i in segment.context)
        sees += [before + offset + 1 for offset in range(segment.stop - segment.start)]
    keep = batch.scoring.keep.tolist()
    assert batch.scoring.option_ids is not None  # every choice here is one token
    return Work(len(sees), sum(sees), len(keep), sum(sees[k] for k in keep), len(batch.scoring.option_ids))


def training_flops(shape: Shape, work: Work, adapted: Collection[str], rank: int) -> int:
    """Floating-point operations (a multiplication and an addition are two) of forward and backward of `work`.

    Counts only what the adapters' gradients provably need, and only products (no norms, softmax, rotary embedding,
    optimizer):

    - frozen maps: forward, and the gradient of the input; never the weight's;
    - in the first layer, nothing below is trainable, so the inputs of q, k and v need no gradient, nor do keys or
      values that are not adapted;
    - in the last layer, only the read tokens need a query, an attention output, o_proj and the MLP; all tokens need
      keys and values;
    - the head: read tokens times the options' rows, forward and gradient of the input;
    - attention: two products forward (scores, output) and four backward, over visible pairs;
    - adapters: `A x` and `B A x` forward; backward the gradients of `A x`, A, B and, if needed, x.

    Adapters sit on the maps named in `adapted`, of all layers.

    Raises:
        ValueError: none of q, k and v is adapted: then less of the first layer's backward is needed.
    """
    if not set(adapted) & set(ATTENTION_INPUTS):
        raise ValueError(f"adapted maps {sorted(adapted)}: none of {ATTENTION_INPUTS} is adapted")
    total = 2 * 2 * shape.width * work.options * work.read_tokens
    for layer in range(shape.num_layers):
        is_first, is_last = layer == 0, layer == shape.num_layers - 1
        for name, (inputs, outputs) in shape.maps.items():
            rows = work.read_tokens if is_last and name not in _ALL_TOKENS else work.tokens
            input_gradient = not (is_first and name in ATTENTION_INPUTS)
            total += 2 * inputs * outputs * rows * (1 + input_gradient)
            if name in adapted:
                total += 2 * rank * rows * (3 * outputs + (2 + input_gradient) * inputs)
        pairs = work.read_pairs if is_last else work.pairs
        wanted = {name: name in adapted or not is_first for name in ATTENTION_INPUTS}
        scores_gradient = wanted["q_proj"] or wanted["k_proj"]
        total += 2 * shape.attention_width * pairs * (2 + sum(wanted.values()) + scores_gradient)
    return total


def steps_flops(shape: Shape, batches: Iterable[PackedBatch], adapted: Collection[str], rank: int) -> int:
    """`training_flops` of all micro-batches of a step."""
    return sum(training_flops(shape, work_of(batch), adapted, rank) for batch in batches)

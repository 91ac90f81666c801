"""Counts of a pass next to what the pass does: products by a dispatch mode, saved bytes by torch's hooks."""

import dataclasses

import pytest
import torch
import transformers
from torch.utils._python_dispatch import TorchDispatchMode

from lorchestra.choice_tree import choice_tree
from lorchestra.config.adapt import AdaptConfig
from lorchestra.models.ensemble import EnsembleModel
from lorchestra.nn.packing import Item, pack
from lorchestra.planning.measure import saved_bytes
from lorchestra.planning.pass_cost import Arithmetic, PassCost, count_batch, sum_counts
from lorchestra.planning.shapes import BaseShape
from lorchestra.types import EncodedExample

SHAPE = BaseShape("tiny", 4, 64, 112, 4, 2, 16, 301, False)
MEMBERS, RANK = 3, 2
CHOICES = {
    "letters": ((1,), (2,)),
    "texts": ((1, 2, 3), (2, 3), (4,)),
    "trees": ((1, 2, 3), (1, 3), (4, 5)),
}
ADAPTED = [("q_proj", "v_proj"), ("k_proj",), ("o_proj",), ("gate_proj",), ("down_proj",), tuple(SHAPE.maps)]


class Products(TorchDispatchMode):
    """Counts the floating-point operations of matrix products, attention's kernels excluded."""

    def __init__(self):
        super().__init__()
        self.flop = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.removeprefix("aten::")
        if name in ("mm", "addmm", "addmm_"):
            left, right = args[-2:] if name == "mm" else args[1:3]
            self.flop += 2 * left.shape[0] * left.shape[1] * right.shape[1]
        assert name not in ("bmm", "baddbmm", "matmul", "linear")
        return func(*args, **(kwargs or {}))


def make_model(adapted, layers="all", dtype=torch.float32, depth=4):
    config = transformers.LlamaConfig(
        hidden_size=64,
        intermediate_size=112,
        num_hidden_layers=depth,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=301,
    )
    model = transformers.LlamaForCausalLM(config).to(dtype)
    return EnsembleModel(model, AdaptConfig(members=MEMBERS, r=RANK, target_modules=adapted, layers=layers), 0)


def make_batch(kind, shared=0):
    choices = CHOICES[kind]
    tree = choice_tree(choices) if kind == "trees" else None
    front = tuple(range(100, 100 + shared))
    rows = [EncodedExample(i, (*front, *range(1, 15 + i)), choices, 0, tree=tree) for i in range(6)]
    return pack([Item(i // 2, row) for i, row in enumerate(rows)], "cpu", shared)


def make_cost(model, adapted):
    shape = dataclasses.replace(SHAPE, num_layers=model.num_layers)
    return PassCost(shape, adapted, tuple(model.layers), RANK, model.dtype.itemsize)


def hidden_of(model, batch):
    if model.trunk_layers == 0:
        return None
    return torch.randn(1, batch.packing.num_tokens, SHAPE.hidden_size, dtype=model.dtype)


def attention_flop(cost, counts, num_layers):
    """Operations of attention's forward kernels, which the dispatch mode does not count."""
    return 4 * cost.shape.attention_size * counts.pairs * num_layers


@pytest.mark.parametrize("kind", CHOICES)
@pytest.mark.parametrize("layers", ["all", "last:2", "[1, 2]"])
@pytest.mark.parametrize("adapted", ADAPTED, ids=lambda names: names[0] if len(names) < 7 else "all")
def test_products_are_those_of_the_real_passes(adapted, layers, kind):
    model, batch = make_model(adapted, layers), make_batch(kind)
    cost, counts = make_cost(model, adapted), count_batch(batch)
    above = SHAPE.num_layers - model.trunk_layers
    with Products() as forward:
        output = model.forward(batch, hidden=hidden_of(model, batch))
    kernels = attention_flop(cost, counts, above)
    assert cost.forward(counts).flop - kernels == forward.flop
    with Products() as backward:
        output.sum().backward()
    differentiated = above if adapted[0] in ("q_proj", "k_proj") else above - 1
    kernels += 2.5 * attention_flop(cost, counts, differentiated)
    assert cost.training(counts).flop - kernels == forward.flop + backward.flop


@pytest.mark.parametrize("kind", CHOICES)
def test_passes_of_the_trunk_and_of_the_base(kind):
    model, batch = make_model(("q_proj", "v_proj"), "last:1"), make_batch(kind)
    cost, counts = make_cost(model, ("q_proj", "v_proj")), count_batch(batch)
    with Products() as trunk, torch.no_grad():
        hidden = model.forward(batch, "trunk")
    head = 2 * SHAPE.hidden_size * SHAPE.vocab_size  # transformers' code ends with the head: at one position here
    assert cost.trunk(counts).flop - attention_flop(cost, counts, 3) == trunk.flop - head
    assert cost.states(counts, 3) == cost.trunk(counts)
    with Products() as adapted, torch.no_grad():
        model.forward(batch, hidden=hidden)
    low_rank = 2 * RANK * counts.tokens * sum(sum(SHAPE.maps[name]) for name in ("q_proj", "v_proj"))
    assert cost.forward(counts, of_base=True).flop + low_rank - attention_flop(cost, counts, 1) == adapted.flop


@pytest.mark.parametrize("shared", [0, 20])
@pytest.mark.parametrize("kind", CHOICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("layers", ["all", "last:2", "[1, 2]"])
@pytest.mark.parametrize("adapted", ADAPTED, ids=lambda names: names[0] if len(names) < 7 else "all")
def test_saved_bytes_are_those_of_the_real_pass(adapted, layers, dtype, kind, shared):
    """All but the indices of the scores, some hundred bytes per row."""
    if adapted == ("k_proj",) and dtype == torch.bfloat16:
        return  # attention is then in bfloat16 in the first layer, since its queries have no gradient
    model, batch = make_model(adapted, layers, dtype), make_batch(kind, shared)
    real = saved_bytes(model, batch, hidden_of(model, batch))
    missing = real - make_cost(model, adapted).saved_bytes(count_batch(batch))
    assert 0 <= missing < 330 * len(batch.items)
    assert missing < 0.01 * real


def test_checkpointing_repeats_the_forward_pass():
    model, batch = make_model(("q_proj", "v_proj")), make_batch("letters")
    cost, counts = make_cost(model, ("q_proj", "v_proj")), count_batch(batch)
    more = cost.training(counts, checkpointing=True).flop - cost.training(counts).flop
    assert more == cost.forward(counts).flop


def test_counts_of_several_batches_add():
    letters, texts = count_batch(make_batch("letters")), count_batch(make_batch("texts"))
    twice = sum_counts([letters, letters])
    assert (twice.tokens, twice.reads, twice.batches) == (2 * letters.tokens, 2 * letters.reads, 2)
    assert twice.logits(301) == 2 * letters.logits(301) == 2 * 6 * 2
    assert texts.logits(301) == texts.reads * 301
    both = sum_counts([letters, texts])
    assert (both.options, both.pairs) == (None, letters.pairs + texts.pairs)
    assert make_batch("texts").packing.num_tokens == texts.tokens


def test_pairs_are_counted_token_by_token():
    """Two rows of four and five prompt tokens; of the second, a choice of three tokens, of which two are inputs."""
    rows = [EncodedExample(0, (1, 2, 3, 4), ((1,), (2,)), 0), EncodedExample(1, (1, 2, 3, 4, 5), ((1, 2, 3), (2,)), 0)]
    counts = count_batch(pack([Item(0, row) for row in rows]))
    assert counts.tokens == 4 + 5 + 2
    assert counts.pairs == (1 + 2 + 3 + 4) + (1 + 2 + 3 + 4 + 5) + (6 + 7)
    assert (counts.copied_keys, counts.masked_pairs, counts.reads) == (7, 14, 4)
    without = dataclasses.replace(rows[0], choices=())
    assert count_batch(pack([Item(0, without)])).reads == 0


def test_times_of_products_and_traffic_add():
    assert Arithmetic(6, 8).seconds(3, 2) == 6
    assert Arithmetic(1, 2) + Arithmetic(3, 4) == Arithmetic(4, 6)

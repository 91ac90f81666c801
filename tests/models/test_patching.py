import weakref

import pytest
import torch
import transformers
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lorchestra.errors import ConfigError
from lorchestra.models.patching import (
    decoder_layers,
    gate_layers,
    parse_layers,
    replace_module,
    restrict_head,
    restrict_last_mlp,
    slim_gated_mlps,
)
from lorchestra.nn.context import ContextSlot, ForwardContext
from lorchestra.nn.packing import Item, pack
from lorchestra.types import EncodedExample


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("all", [0, 1, 2, 3, 4]),
        (" all ", [0, 1, 2, 3, 4]),
        ("last:1", [4]),
        ("last:2", [3, 4]),
        ("last:5", [0, 1, 2, 3, 4]),
        ("[0, 3]", [0, 3]),
        ("[3,0, 3]", [0, 3]),
        ("2", [2]),
    ],
)
def test_parse_layers(text, expected):
    assert parse_layers(text, 5) == expected


@pytest.mark.parametrize("text", ["last:0", "last:6", "last:-1", "[5]", "[-1]", "[0, 9]"])
def test_parse_layers_refuses_indices_out_of_range(text):
    with pytest.raises(ConfigError, match=r"adapt\.layers.*out of range; the base has 5 layers, 0 to 4") as caught:
        parse_layers(text, 5)
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize("text", ["", "first:2", "last:two", "[]", "[a]", "1.5"])
def test_parse_layers_refuses_other_forms(text):
    with pytest.raises(ConfigError, match=r"adapt\.layers.*not all, last:K or a list") as caught:
        parse_layers(text, 5)
    assert repr(text) in str(caught.value)


def test_decoder_layers_are_recognized_by_their_number(tiny_model):
    model = tiny_model(depth=3)
    assert decoder_layers(model) is model.model.layers


def test_a_model_without_decoder_layers_is_refused():
    model = nn.Sequential(nn.Linear(2, 2))
    model.config = transformers.LlamaConfig(num_hidden_layers=3)
    with pytest.raises(ConfigError, match=r"base\.name: Sequential has no list of 3 decoder layers"):
        decoder_layers(model)


def test_replace_module_changes_one_submodule(tiny_model):
    layer = tiny_model().model.layers[0]
    old, new = layer.self_attn.k_proj, nn.Identity()
    replace_module(layer, "self_attn.q_proj", new)
    assert layer.self_attn.q_proj is new
    assert layer.self_attn.k_proj is old


def context_of(**fields):
    """A forward context of one row."""
    return ForwardContext(pack([Item(0, EncodedExample(0, (1, 2), (), None))]).packing, torch.tensor([1]), **fields)


@pytest.mark.parametrize("bias", [True, False])
def test_restricted_head_computes_the_option_rows(bias):
    head, slot = nn.Linear(6, 20, bias=bias, dtype=torch.float64), ContextSlot()
    hidden = torch.randn(3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    full = head(hidden)
    restrict_head(head, slot)
    assert torch.equal(head(hidden), full)
    with slot.use(context_of(option_ids=torch.tensor([4, 0, 19]))):
        torch.testing.assert_close(head(hidden), full[:, [4, 0, 19]], rtol=0, atol=1e-14)
    assert torch.equal(head(hidden), full)
    with slot.use(context_of(capture_head=True)):
        assert torch.equal(head(hidden), full)
        assert slot.current.captured[0] is hidden
    with slot.use(context_of(head_states=hidden[:2])):
        torch.testing.assert_close(head(torch.zeros(1, 5, 6, dtype=torch.float64)), full[None, :2], rtol=0, atol=1e-14)


@pytest.mark.parametrize("targets", [("q_proj",), ("q_proj", "down_proj")], ids=["attention", "mlp adapted"])
def test_the_last_mlp_computes_read_positions_only(tiny_ensemble, packed, targets):
    """If it has no adapters; the results are those of the whole MLP."""
    ensemble = tiny_ensemble(depth=3, target_modules=targets)
    batch = packed[0]
    seen = {}
    for index, layer in enumerate(ensemble.model.model.layers):
        layer.mlp.gate_proj.register_forward_pre_hook(
            lambda module, inputs, index=index: seen.update({index: inputs[0].shape[1]})
        )
    narrow = ensemble.forward(batch)
    kept, whole = len(batch.scoring.keep), batch.packing.num_tokens
    assert kept < whole
    assert seen == {0: whole, 1: whole, 2: kept if targets == ("q_proj",) else whole}
    last = ensemble.model.model.layers[-1].mlp
    if "forward" in vars(last):
        del last.forward
    torch.testing.assert_close(ensemble.forward(batch), narrow, rtol=0, atol=1e-12)


class Experts(nn.Module):
    """An MLP with more outputs or inputs than the hidden states, as in some mixtures of experts."""

    def __init__(self, kind):
        super().__init__()
        self.kind, self.linear, self.widths = kind, nn.Linear(3, 3, dtype=torch.float64), []

    def forward(self, hidden, residual=None):
        self.widths.append(hidden.shape[1])
        out = self.linear(hidden).tanh() if residual is None else residual + self.linear(hidden)
        return {"pair": (out, out.sum(-1)), "dict": {"out": out}}.get(self.kind, out)


@pytest.mark.parametrize("kind", ["bare", "pair", "dict", "two arguments"])
def test_the_last_mlp_is_restricted_where_its_signature_is_known(kind):
    """With any other signature it runs on all tokens."""
    slot, layer = ContextSlot(), nn.Module()
    layer.mlp = Experts(kind)
    hidden = torch.randn(1, 7, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    extra = (hidden,) if kind == "two arguments" else ()
    whole = layer.mlp(hidden, *extra)
    restrict_last_mlp(layer, slot)
    packing = pack([Item(0, EncodedExample(0, (1, 2, 3, 4, 5, 6, 7), ((1,), (2,)), 0))]).packing
    slot.current = ForwardContext(packing, torch.tensor([2, 6]))
    layer.mlp.widths.clear()
    out = layer.mlp(hidden, *extra)
    assert layer.mlp.widths == {"bare": [2], "pair": [2], "dict": [2, 7], "two arguments": [7]}[kind]
    first, expected = {"pair": lambda: (out[0], whole[0]), "dict": lambda: (out["out"], whole["out"])}.get(
        kind, lambda: (out, whole)
    )()
    assert first.shape == hidden.shape
    torch.testing.assert_close(first[:, [2, 6]], expected[:, [2, 6]], rtol=0, atol=1e-14)
    if kind in ("bare", "pair"):
        assert not first[:, [0, 1, 3, 4, 5]].any()
    flat = layer.mlp(hidden[0], *(e[0] for e in extra))
    assert layer.mlp.widths[-1] == 3
    torch.testing.assert_close(flat[0] if kind == "pair" else flat["out"] if kind == "dict" else flat, expected[0])


class Layer(nn.Module):
    """Adds its number; returns a tensor or a tuple, as architectures do."""

    def __init__(self, number, as_tuple):
        super().__init__()
        self.number, self.as_tuple = number, as_tuple

    def forward(self, hidden, shift=0):
        out = hidden + self.number + shift
        return (out,) if self.as_tuple else out


@pytest.mark.parametrize("as_tuple", [False, True], ids=["bare", "tuple"])
def test_gates_skip_capture_and_replace_inputs(as_tuple):
    """Layers add 1, 10, 100, 1000; skipped ones return the same type as the others, from the first pass on."""
    layers, slot = nn.ModuleList(Layer(10**i, as_tuple) for i in range(4)), ContextSlot()
    gate_layers(layers, slot)

    def run(start):
        hidden = torch.full((1, 3, 2), float(start))
        for layer in layers:
            out = layer(hidden, shift=0)
            assert isinstance(out, tuple) is as_tuple
            hidden = out[0] if as_tuple else out
        assert hidden.shape == (1, 3, 2)
        return hidden[0, 0, 0].item()

    context = context_of(last_layer=2, capture_inputs=frozenset({2}))
    with slot.use(context):
        assert run(0) == 11
    (captured,) = context.captured
    assert captured[0, 0, 0] == 11
    with slot.use(context_of(first_layer=2, hidden=captured)):
        assert run(5) == 1111
    with slot.use(context_of()):
        assert run(0) == 1111
    assert run(0) == 1111


@pytest.fixture
def packed(letters, texts):
    """A batch of three members with dropout keys, and one of another shape for interleaving."""

    def build(rows, members, seed):
        return pack([Item(m, row, 1000 * m + 10 * seed + row.row) for m in members for row in rows])

    return build(texts, (0, 1, 2), 1), build(letters[:3], (1, 2), 2)


def loss(ensemble, batch, hidden=None):
    return -ensemble.forward(batch, hidden=hidden)[:, 0].sum()


@pytest.mark.parametrize("layers", ["all", "last:2"])
def test_checkpointing_gives_the_same_gradients(tiny_ensemble, packed, layers):
    """Bit for bit in float32, with dropout, with and without the trunk, and every layer runs twice."""
    ensemble = tiny_ensemble(dtype=torch.float32, depth=4, layers=layers, dropout=0.4)
    batch = packed[0]
    hidden = ensemble.forward(batch, "trunk") if ensemble.trunk_layers else None
    runs = []
    ensemble.model.model.layers[-1].mlp.down_proj.register_forward_pre_hook(lambda *_: runs.append(1))
    grads = []
    for checkpointing, wanted in ((False, 1), (True, 2)):
        ensemble.gradient_checkpointing = checkpointing
        ensemble.adapters.zero_grad()
        runs.clear()
        loss(ensemble, batch, hidden).backward()
        assert len(runs) == wanted
        grads.append(ensemble.adapters.grad.clone())
    assert grads[0].abs().max() > 0.1
    assert torch.equal(*grads)


@pytest.mark.parametrize("interleaved", ["other batch", "other batch without dropout", "trunk"])
def test_checkpointed_layers_are_recomputed_with_the_packing_of_their_pass(tiny_ensemble, packed, texts, interleaved):
    """Another packed pass between forward and backward does not affect the gradients."""
    ensemble = tiny_ensemble(dtype=torch.float32, depth=3, layers="last:2", dropout=0.4)
    batch, other = packed
    if interleaved == "other batch without dropout":
        other = pack([Item(item.member, item.example) for item in batch.items])
    loss(ensemble, batch).backward()
    expected = ensemble.adapters.grad.clone()
    ensemble.adapters.zero_grad()
    ensemble.gradient_checkpointing = True
    first = loss(ensemble, batch)
    if interleaved == "trunk":
        ensemble.forward(other, "trunk")
    else:
        with torch.no_grad():
            ensemble.forward(other)
    first.backward()
    assert torch.equal(ensemble.adapters.grad, expected)
    assert ensemble.slot.current is None


def test_two_checkpointed_passes_can_be_backpropagated_in_any_order(tiny_ensemble, packed):
    ensemble = tiny_ensemble(depth=2, dropout=0.4)
    expected = []
    for batch in packed:
        ensemble.adapters.zero_grad()
        loss(ensemble, batch).backward()
        expected.append(ensemble.adapters.grad.clone())
    ensemble.gradient_checkpointing = True
    losses = [loss(ensemble, batch) for batch in packed]
    for index in (0, 1):
        ensemble.adapters.zero_grad()
        losses[index].backward()
        torch.testing.assert_close(ensemble.adapters.grad, expected[index], rtol=0, atol=1e-12)


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of storages made under it that are still alive, and their peak."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self.known = weakref.WeakSet()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        old = {t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage.data_ptr() not in old and storage not in self.known:
                    self.known.add(storage)
                    self.now += storage.nbytes()
                    self.peak = max(self.peak, self.now)
                    weakref.finalize(storage, self.release, storage.nbytes())
        return out

    def release(self, size):
        self.now -= size


def test_checkpointing_needs_less_memory(tiny_ensemble, packed):
    """Between forward and backward one hidden state per layer is kept, and the peak is lower."""
    held, peaks = [], []
    ensemble = tiny_ensemble(dtype=torch.float32, depth=4, dropout=0.4)
    batch = packed[0]
    for checkpointing in (False, True):
        ensemble.gradient_checkpointing = checkpointing
        with LiveBytes() as counter:
            before = counter.now
            value = loss(ensemble, batch)
            held.append(counter.now - before)
            value.backward()
        peaks.append(counter.peak)
        del value
    hidden_bytes = batch.packing.num_tokens * 32 * 4
    assert held[0] > 4 * 10 * hidden_bytes
    assert 4 * hidden_bytes <= held[1] < 4 * 3 * hidden_bytes
    assert peaks[1] < 0.5 * peaks[0]


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_gated_mlps_save_less_and_compute_the_same(family, tiny_model):
    plain, slim = tiny_model(family), tiny_model(family)
    slim_gated_mlps(decoder_layers(slim))
    assert all("forward" in vars(layer.mlp) for layer in slim.model.layers)
    x = torch.randn(1, 6, 32, dtype=torch.float64, requires_grad=True)
    outputs = [model.model.layers[0].mlp(x) for model in (plain, slim)]
    assert torch.equal(*outputs)
    grads = [torch.autograd.grad(out.square().sum(), x)[0] for out in outputs]
    torch.testing.assert_close(*grads, rtol=0, atol=1e-12)


def test_other_mlps_are_not_patched(tiny_model):
    for settings in ({"hidden_act": "gelu"}, {"hidden_act": "relu"}):
        model = tiny_model(**settings)
        slim_gated_mlps(decoder_layers(model))
        assert not any("forward" in vars(layer.mlp) for layer in model.model.layers)
    model = tiny_model()
    kind = type(model.model.layers[0].mlp)
    twice = type("Twice", (kind,), {"forward": lambda self, x: 2 * kind.forward(self, x)})
    model.model.layers[0].mlp.__class__ = twice  # the same submodules, another function
    slim_gated_mlps(decoder_layers(model))
    assert ["forward" in vars(layer.mlp) for layer in model.model.layers] == [False, True]

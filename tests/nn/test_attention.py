import dataclasses
import math

import pytest
import torch

from lorchestra.choice_tree import choice_tree
from lorchestra.nn import attention, layout
from lorchestra.nn.attention import Scores, make_attention, packed_attention, varlen_attention
from lorchestra.nn.context import ContextSlot, ForwardContext
from lorchestra.nn.kv_cache import PrefixCache
from lorchestra.nn.layout import Packing, Segment
from lorchestra.nn.packing import Item, pack
from lorchestra.types import EncodedExample

D = 5


def packing_from(*segments: Segment, prefix=None, device="cpu") -> Packing:
    ids = torch.zeros(1, segments[-1].stop, dtype=torch.int64, device=device)
    return Packing(ids, ids, segments, (), None, prefix)


def trees_after(shared):
    """Two rows that share their first tokens, with trees of up to three levels."""
    choices = ((7, 1, 2, 3, 5), (7, 1, 2, 3, 6), (7, 1, 2, 4), (7, 8, 8, 1), (7, 8, 8, 2), (9, 1), (9, 2))
    trees = [choice_tree(choices), choice_tree(tuple((4, *choice) for choice in choices))]
    rows = [EncodedExample(e, (0, 0, e), (), None, tree=tree) for e, tree in enumerate(trees)]
    return pack([Item(0, row) for row in rows], shared=shared).packing


LAYOUTS = {
    "one segment": packing_from(Segment(0, 6)),
    "several segments": packing_from(Segment(0, 4), Segment(4, 5), Segment(5, 12)),
    "choices after a prefix": packing_from(Segment(0, 5), Segment(5, 6), Segment(6, 9, (0,)), Segment(9, 13, (0,))),
    "a chain of contexts": packing_from(Segment(0, 2), Segment(2, 5, (0,)), Segment(5, 7, (0, 1)), Segment(7, 11)),
    "trees of choices": trees_after(2),
}


def visible_positions(packing):
    """Per token, the packed positions it may see, in the order of its row."""
    visible = []
    for segment in packing.segments:
        context = [n for k in segment.context for n in range(packing.segments[k].start, packing.segments[k].stop)]
        visible += [[*context, *range(segment.start, n + 1)] for n in range(segment.start, segment.stop)]
    return visible


def naive_attention(query, key, value, packing, scale=None, window=None, softcap=None, sinks=None):
    """Attention in elementary operations, one token and one head at a time."""
    _, heads, tokens, width = query.shape
    per_group = heads // key.shape[1]
    scale = 1 / math.sqrt(width) if scale is None else scale
    outputs = []
    for head in range(heads):
        for n, positions in enumerate(visible_positions(packing)):
            seen = positions if window is None else positions[-window:]
            scores = torch.stack([scale * (query[0, head, n] * key[0, head // per_group, i]).sum() for i in seen])
            if softcap is not None:
                scores = softcap * torch.tanh(scores / softcap)
            weights = scores.exp()
            total = weights.sum() + (0 if sinks is None else sinks[head].exp())
            outputs.append(sum(w / total * value[0, head // per_group, i] for w, i in zip(weights, seen, strict=True)))
    return torch.stack(outputs).view(1, heads, tokens, width)


OPTIONS = {
    "plain": {},
    "scale": {"scale": 0.7},
    "window": {"window": 3},
    "window of one": {"window": 1},
    "softcap": {"softcap": 0.8},
    "softcap and window": {"softcap": 0.8, "window": 2, "scale": 1.3},
    "sinks": {"sinks": True},
    "sinks, softcap, window": {"sinks": True, "softcap": 1.5, "window": 3},
}


def given(options):
    """Options of `Scores`, and `batched`, as arguments."""
    others = {name: value for name, value in options.items() if name == "batched"}
    return {"scores": Scores(**{name: value for name, value in options.items() if name != "batched"})} | others


@pytest.mark.parametrize("batched", [False, True], ids=["one by one", "batched"])
@pytest.mark.parametrize("groups", [4, 2, 1])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
@pytest.mark.parametrize("packing", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_equals_naive_attention_forward_and_backward(packing, options, groups, batched, randn):
    n = packing.num_tokens
    inputs = [randn(1, 4, n, D), randn(1, groups, n, D), randn(1, groups, n, D)]
    if options.get("sinks"):
        options = {**options, "sinks": randn(4).requires_grad_()}
    inputs = [tensor.requires_grad_() for tensor in inputs]
    out = packed_attention(*inputs, packing, Scores(**options), batched=batched)
    expected = naive_attention(*inputs, packing, **options)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)
    weights = randn(*out.shape)
    leaves = [*inputs, *(value for name, value in options.items() if name == "sinks")]
    for grad, wanted in zip(
        *(torch.autograd.grad((result * weights).sum(), leaves) for result in (out, expected)), strict=True
    ):
        torch.testing.assert_close(grad, wanted, rtol=0, atol=1e-12)


# The same rows with all tokens on the axis, and with cached prefixes: tokens 0 to 3 for member 4, 7 to 10 for member 9.
WHOLE = packing_from(
    Segment(0, 3),
    Segment(3, 5, (0,)),
    Segment(5, 7, (0, 1)),
    Segment(7, 10),
    Segment(10, 14, (3,)),
    Segment(14, 17),
)
AFTER_CACHED = packing_from(
    Segment(0, 2, (), 4),
    Segment(2, 4, (0,), 4),
    Segment(4, 8, (), 9),
    Segment(8, 11),
    prefix=PrefixCache((1, 2, 3)),
)
UNSHARED = [3, 4, 5, 6, *range(10, 17)]


def cached_of(*tensors):
    parts = {4: slice(0, 3), 9: slice(7, 10)}
    return {(None, member): tuple(tensor[:, :, part] for tensor in tensors) for member, part in parts.items()}


@pytest.mark.parametrize("batched", [False, True], ids=["one by one", "batched"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_a_cached_prefix_acts_as_context(options, batched, randn):
    """Two members with different prefixes, a row without one, and choices after a row."""
    if options.get("sinks"):
        options = {**options, "sinks": randn(4)}
    inputs = [randn(1, heads, 17, D) for heads in (4, 2, 2)]
    expected = naive_attention(*inputs, WHOLE, **options)
    out = packed_attention(
        *(tensor[:, :, UNSHARED] for tensor in inputs),
        AFTER_CACHED,
        Scores(**options),
        batched=batched,
        cached=cached_of(*inputs[1:]),
    )
    torch.testing.assert_close(out, expected[:, :, UNSHARED], rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["plain", "scale"])
@pytest.mark.parametrize("length", [1, 2, 5, 13])
def test_a_long_segment_behind_a_context_needs_no_mask(name, length, randn, monkeypatch):
    """Outputs and gradients equal those with an explicit mask, whichever of the two is longer."""
    packing = packing_from(Segment(0, 4), Segment(4, 4 + length, (0,)))
    given = [randn(1, heads, 4 + length, D) for heads in (4, 2, 2)]
    results, calls, behind = [], [], attention._causal_behind
    monkeypatch.setattr(attention, "_causal_behind", lambda *args: calls.append(args[3]) or behind(*args))
    for long in (1_000, 1):
        monkeypatch.setattr(attention, "_LONG", long)
        inputs = [tensor.clone().requires_grad_() for tensor in given]
        out = packed_attention(*inputs, packing, Scores(**OPTIONS[name]), batched=False)
        out.square().sum().backward()
        results.append([out.detach(), *(tensor.grad for tensor in inputs)])
    assert calls == ([4] if length > 4 else [])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def reference_kernel(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale, window_size):
    """`varlen_attn` as documented, sequence by sequence; the causal mask is aligned at the last key."""
    left, right = window_size
    assert right == 0
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    queries, keys = cu_seq_q.diff().tolist(), cu_seq_k.diff().tolist()
    assert (max(queries), max(keys)) == (max_q, max_k)
    assert (sum(queries), sum(keys)) == (len(query), len(key))
    outputs = []
    parts = (query.split(queries), key.split(keys), value.split(keys))
    for q, k, v in zip(*(part for part in parts), strict=True):
        scores = torch.einsum("qhd,khd->hqk", q, k) * (q.shape[-1] ** -0.5 if scale is None else scale)
        back = len(k) - len(q) + torch.arange(len(q))[:, None] - torch.arange(len(k))
        seen = (back >= 0) if left == -1 else (back >= 0) & (back <= left)
        outputs.append(torch.einsum("hqk,khd->qhd", scores.masked_fill(~seen, -math.inf).softmax(-1), v))
    return torch.cat(outputs)


UNCAPPED = {name: options for name, options in OPTIONS.items() if not {"softcap", "sinks"} & set(options)}


@pytest.fixture(params=["one group", "small groups"])
def group_bounds(request, monkeypatch):
    """All segments in one call of the kernel, or at most two segments and few keys per call."""
    if request.param != "one group":
        monkeypatch.setattr(layout, "_MAX_SEGMENTS", 2)
        monkeypatch.setattr(layout, "_MAX_KEYS_PER_TOKEN", 0.5)
    return request.param


def afresh(packing):
    """The same packing without cached properties."""
    return dataclasses.replace(packing)


@pytest.mark.parametrize("groups", [4, 2])
@pytest.mark.parametrize("options", UNCAPPED.values(), ids=UNCAPPED.keys())
@pytest.mark.parametrize("packing", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_a_variable_length_kernel_equals_naive_attention(packing, options, groups, group_bounds, randn):
    inputs = [randn(1, heads, packing.num_tokens, D).requires_grad_() for heads in (4, groups, groups)]
    out = varlen_attention(*inputs, afresh(packing), Scores(**options), kernel=reference_kernel)
    expected = naive_attention(*inputs, packing, **options)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)
    weights = randn(*out.shape)
    grads = (torch.autograd.grad((result * weights).sum(), inputs) for result in (out, expected))
    for grad, wanted in zip(*grads, strict=True):
        torch.testing.assert_close(grad, wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("options", UNCAPPED.values(), ids=UNCAPPED.keys())
def test_a_variable_length_kernel_sees_a_cached_prefix(options, group_bounds, randn):
    inputs = [randn(1, heads, 17, D) for heads in (4, 2, 2)]
    expected = naive_attention(*inputs, WHOLE, **options)
    unshared = (tensor[:, :, UNSHARED] for tensor in inputs)
    out = varlen_attention(
        *unshared, afresh(AFTER_CACHED), Scores(**options), cached=cached_of(*inputs[1:]), kernel=reference_kernel
    )
    torch.testing.assert_close(out, expected[:, :, UNSHARED], rtol=0, atol=1e-12)


def test_groups_have_every_segment_once_and_bounded_keys():
    """A thousand rows after a cached prefix of 500 tokens: one group would have 13 keys per token of the batch."""
    segments = tuple(Segment(40 * row, 40 * row + 40, (), 0) for row in range(1000))
    packing = packing_from(*segments, prefix=PrefixCache(tuple(range(500))))
    assert [n for run in packing.segment_groups for n in range(1000)[run.segments]] == list(range(1000))
    assert [n for run in packing.segment_groups for n in range(40_000)[run.tokens]] == list(range(40_000))
    assert all(int(run.cu_seqlens_k[-1]) <= 3 * 40_000 for run in packing.segment_groups)
    assert len(packing.segment_groups) == 5
    assert len(packing_from(*(Segment(row, row + 1) for row in range(1100))).segment_groups) == 3
    assert len(LAYOUTS["a chain of contexts"].segment_groups) == 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@pytest.mark.parametrize("groups", [4, 2])
@pytest.mark.parametrize("options", UNCAPPED.values(), ids=UNCAPPED.keys())
@pytest.mark.parametrize("packing", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_half_precision_on_a_gpu_equals_naive_attention(packing, options, groups, randn):
    """The kernel itself, forward and backward, within some roundings of 2^-8."""
    n, width = packing.num_tokens, 16
    inputs = [randn(1, heads, n, width).bfloat16().double().requires_grad_() for heads in (4, groups, groups)]
    expected, weights = naive_attention(*inputs, packing, **options), randn(1, 4, n, width).bfloat16()
    wanted = torch.autograd.grad((expected * weights.double()).sum(), inputs)
    moved = [tensor.detach().bfloat16().cuda().requires_grad_() for tensor in inputs]
    out = packed_attention(*moved, packing_from(*packing.segments, device="cuda"), **given(options))
    grads = torch.autograd.grad((out * weights.cuda()).sum(), moved)
    for a, b in zip([out, *grads], [expected, *wanted], strict=True):
        assert (a.cpu().double() - b).abs().max() <= 2**-6 * b.abs().max().clamp(min=1)


@pytest.mark.parametrize("options", [{}, {"window": 3}, {"softcap": 0.8}], ids=["plain", "window", "softcap"])
def test_float32_equals_naive_attention_in_float64(options, randn):
    packing = LAYOUTS["choices after a prefix"]
    inputs = [randn(1, heads, packing.num_tokens, D) for heads in (4, 2, 2)]
    out = packed_attention(*(tensor.float() for tensor in inputs), packing, **given(options))
    torch.testing.assert_close(out.double(), naive_attention(*inputs, packing, **options), rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("options", [{}, {"window": 3}, {"softcap": 0.8}], ids=["plain", "window", "softcap"])
def test_training_in_half_precision_on_a_cpu_rounds_only_the_result(options, dtype, randn):
    n = len(UNSHARED)
    inputs = [randn(1, heads, n, D).to(dtype).requires_grad_() for heads in (4, 2, 2)]
    prefixes = cached_of(randn(1, 2, 17, D).to(dtype), randn(1, 2, 17, D).to(dtype))
    weights = randn(1, 4, n, D).to(dtype)
    results = []
    for float32 in (False, True):
        leaves = [tensor.detach().to(torch.float32 if float32 else dtype).requires_grad_() for tensor in inputs]
        seen = {which: tuple(t.to(leaves[0].dtype) for t in pair) for which, pair in prefixes.items()}
        out = packed_attention(*leaves, AFTER_CACHED, **given(options), cached=seen)
        grads = torch.autograd.grad(out, leaves, weights.to(out.dtype))
        results.append([tensor.to(dtype) for tensor in (out, *grads)])
    for half, full in zip(*results, strict=True):
        assert torch.equal(half, full)


@pytest.mark.parametrize("options", [{}, {"batched": True}, {"window": 2}, {"softcap": 0.8}, {"sinks": True}], ids=str)
def test_nan_in_one_row_affects_no_other_row(options, randn):
    """Forward and backward, with the NaN row packed first; the others are bit for bit the same without it."""
    packing = packing_from(Segment(0, 4), Segment(4, 6, (0,)), Segment(6, 9), Segment(9, 11, (2,)))
    clean = [randn(1, heads, 11, D) for heads in (4, 2, 2)]
    weights = randn(1, 4, 11, D)
    if options.get("sinks"):
        options = {"sinks": randn(4)}
    results = []
    for bad in (None, float("nan"), float("inf")):
        inputs = [tensor.clone() for tensor in clean]
        if bad is not None:
            for tensor in inputs:
                tensor[:, :, 1:3] = bad
        inputs = [tensor.requires_grad_() for tensor in inputs]
        out = packed_attention(*inputs, packing, **given(options))
        grads = torch.autograd.grad((out * weights).sum(), inputs)
        results.append([tensor[:, :, 6:] for tensor in (out, *grads)])
    assert out[:, :, 2].isnan().all()
    for dirty in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], dirty, strict=True))
    assert all(tensor.isfinite().all() for tensor in results[0])


@pytest.mark.parametrize("batched", [False, True], ids=["one by one", "batched"])
def test_nan_in_one_choice_affects_neither_its_prefix_nor_its_siblings(batched, randn):
    packing = packing_from(Segment(0, 3), Segment(3, 5, (0,)), Segment(5, 7, (0,)))
    inputs = [randn(1, 2, 7, D) for _ in range(3)]
    before = packed_attention(*inputs, packing, batched=batched)
    for tensor in inputs:
        tensor[:, :, 3:5] = float("nan")
    after = packed_attention(*inputs, packing, batched=batched)
    keep = [0, 1, 2, 5, 6]
    assert torch.equal(before[:, :, keep], after[:, :, keep])


def test_batches_have_similar_lengths_and_every_token_once(monkeypatch, randn):
    """Few kernels for many rows, and no more padding than tokens."""
    lengths = [3, 40, 5, 36, 4, 1, 21, 2, 11]
    stops = [sum(lengths[: i + 1]) for i in range(len(lengths))]
    packing = packing_from(*(Segment(stop - n, stop) for n, stop in zip(lengths, stops, strict=True)))
    assert sorted(torch.cat([bucket.tokens for bucket in packing.buckets]).tolist()) == list(range(sum(lengths)))
    assert [tuple(bucket.slots.shape) for bucket in packing.buckets] == [(3, 40), (1, 11), (3, 5), (2, 2)]
    shapes = []
    original = torch.nn.functional.scaled_dot_product_attention

    def counted(query, *args, **kwargs):
        shapes.append(tuple(query.shape))
        return original(query, *args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", counted)
    packed_attention(*(randn(1, 2, sum(lengths), D) for _ in range(3)), packing, batched=True)
    assert shapes == [(3, 2, 40, D), (1, 2, 11, D), (3, 2, 5, D), (2, 2, 2, D)]


class FakeModule(torch.nn.Module):
    scaling = 0.37


@pytest.fixture
def call(randn):
    """The registered function on random tensors; `call.reference` computes the expected result."""
    packing = LAYOUTS["several segments"]
    slot = ContextSlot()
    slot.current = ForwardContext(packing, torch.tensor([0]))
    attention = make_attention(slot)
    tensors = [randn(1, heads, packing.num_tokens, D) for heads in (4, 2, 2)]

    def run(**options):
        return attention(options.pop("module", FakeModule()), *tensors, **options)

    run.slot = slot
    run.reference = lambda **options: naive_attention(*tensors, packing, **options).transpose(1, 2)
    return run


def test_registered_function_follows_the_calling_convention(call):
    """`[1, N, H, d]` and no weights; the scale is the argument, else the module's, else the default."""
    out, weights = call(scaling=0.9)
    assert weights is None
    torch.testing.assert_close(out, call.reference(scale=0.9), rtol=0, atol=1e-12)
    torch.testing.assert_close(call()[0], call.reference(scale=0.37), rtol=0, atol=1e-12)
    torch.testing.assert_close(call(module=torch.nn.Module())[0], call.reference(), rtol=0, atol=1e-12)


def test_registered_function_applies_window_softcap_and_sinks(call, randn):
    sinks = randn(4)
    out, _ = call(scaling=0.9, sliding_window=2, softcap=0.7, s_aux=sinks)
    torch.testing.assert_close(out, call.reference(scale=0.9, window=2, softcap=0.7, sinks=sinks), rtol=0, atol=1e-12)


def test_unknown_arguments_and_masks_are_refused(call):
    expected = call(scaling=1.0)[0]
    assert torch.equal(call(scaling=1.0, alibi=None, position_ids=torch.zeros(1), use_cache=False)[0], expected)
    with pytest.raises(ValueError, match="alibi"):
        call(scaling=1.0, alibi=torch.zeros(1))
    with pytest.raises(ValueError, match="a mask"):
        call(scaling=1.0, attention_mask=torch.zeros(1))


@pytest.mark.parametrize("extra", [{"position_bias": torch.ones(1)}, {"is_causal": False}], ids=["bias", "not causal"])
def test_arguments_that_would_change_the_result_are_refused(call, extra):
    """Such as a bias on the scores, or attention to later tokens."""
    with pytest.raises(ValueError, match=next(iter(extra))):
        call(scaling=1.0, **extra)


def test_arguments_without_effect_are_accepted(call):
    assert torch.equal(call(scaling=1.0, is_causal=True, position_bias=None)[0], call(scaling=1.0)[0])


def test_refused_outside_a_packed_pass(call):
    call.slot.current = None
    with pytest.raises(RuntimeError, match="outside a packed pass"):
        call()

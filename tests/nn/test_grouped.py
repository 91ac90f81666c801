"""Grouped kernels compute the same as the loop over members, on a CPU and on a GPU."""

import gc
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from lorchestra.nn import lora as lora_module
from lorchestra.nn.context import ContextSlot, ForwardContext
from lorchestra.nn.lora import MemberLoRALinear, supports_grouped_mm
from lorchestra.nn.packing import BASE

I, O, R, M = 16, 24, 3, 4  # noqa: E741 - the axes' names
RATES = (0.0, 0.3, 0.6, 0.1)
ROWS = {
    "members": [(0, 3, None), (1, 2, None), (1, 4, None), (3, 1, None)],
    "members and base": [(BASE, 4, None), (0, 2, None), (2, 3, None)],
    "dropout": [(BASE, 2, 5), (0, 3, 10), (1, 2, 11), (1, 4, 12), (2, 5, 13), (3, 3, 14)],
}
DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")],
    ),
]


@pytest.fixture
def build(randn):
    """Builds a `MemberLoRALinear` with float32 adapters on a base of any number format and device."""

    def make(dtype, device="cpu", rates=RATES):
        base = nn.Linear(I, O, dtype=dtype).requires_grad_(False)
        for parameter in base.parameters():
            parameter.copy_(randn(*parameter.shape))
        A = [nn.Parameter(randn(R, I, dtype=torch.float32)) for _ in range(M)]
        B = [nn.Parameter(randn(O, R, dtype=torch.float32)) for _ in range(M)]
        scaling = (2.0, 0.5, 4.0, 1.0)
        layer = MemberLoRALinear(base, A, B, scaling=scaling, dropout=rates, slot=ContextSlot(), name="layers.0.q")
        return layer.to(device)

    return make


@pytest.fixture
def run(monkeypatch):
    """Output and gradients of x, A and B under a packing, with or without the grouped kernels."""

    def both(lora, packing, x, weights, grouped):
        monkeypatch.setattr(lora_module, "supports_grouped_mm", lambda *_: grouped)
        lora.slot.current = ForwardContext(packing, torch.tensor([0]))
        x = x.detach().requires_grad_()
        out = lora(x)
        leaves = [x, *lora.A, *lora.B]
        grads = torch.autograd.grad((out * weights).sum(), leaves, allow_unused=True)
        return [out, *grads]

    return both


@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS.keys())
def test_equals_the_loop_over_members(build, run, packing_of, randn, rows):
    packing, lora = packing_of(*rows), build(torch.float32)
    x, weights = (randn(1, packing.num_tokens, n, dtype=torch.float32) for n in (I, O))
    actual, expected = (run(lora, packing, x, weights, grouped) for grouped in (True, False))
    for a, b in zip(actual, expected, strict=True):
        assert (a is None) == (b is None)  # absent members have no gradient
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS.keys())
def test_half_precision_rounds_operands_but_not_sums(build, run, packing_of, randn, rows, device):
    """Within some roundings of 2^-8 of the loop in float32, relative to the largest value of each tensor."""
    packing, lora = packing_of(*rows), build(torch.bfloat16)
    x, weights = (randn(1, packing.num_tokens, n, dtype=torch.bfloat16) for n in (I, O))
    expected = run(lora, packing, x, weights, grouped=False)
    moved = packing_of(*rows, device=device)
    actual = run(lora.to(device), moved, x.to(device), weights.to(device), grouped=True)
    for a, b in zip(actual, expected, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            assert a.dtype == b.dtype
            assert (a.cpu() - b).abs().max() <= 2**-6 * b.abs().max()


@pytest.mark.parametrize("device", DEVICES)
def test_a_nan_member_affects_no_other(build, run, packing_of, randn, device):
    packing, lora = packing_of((0, 3, 1), (1, 2, 2), (2, 4, 3), device=device), build(torch.bfloat16, device)
    x, weights = (randn(1, 9, n, dtype=torch.bfloat16).to(device) for n in (I, O))
    results = []
    for value in (0.0, float("nan")):
        with torch.no_grad():
            lora.A[0].fill_(value)
        out, grad_x, *pairs = run(lora, packing, x, weights, grouped=True)
        results.append([out[:, 3:], grad_x[:, 3:], *(pairs[which + m] for which in (0, M) for m in (1, 2))])
    assert out[:, :3].isnan().all()
    assert all(torch.equal(clean, dirty) for clean, dirty in zip(*results, strict=True))


def test_saves_no_more_than_input_low_rank_product_and_adapters(build, packing_of, randn, monkeypatch):
    """The masked input is not saved for the backward pass."""
    monkeypatch.setattr(lora_module, "supports_grouped_mm", lambda *_: True)
    lora = build(torch.bfloat16, rates=(0.5,) * M)
    lora.slot.current = ForwardContext(packing_of((0, 20, 1), (1, 20, 2)), torch.tensor([0]))
    x = randn(1, 40, I, dtype=torch.bfloat16).requires_grad_()
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        lora(x)
    kept = {t.untyped_storage().data_ptr() for t in (x, lora.weight, lora.base.bias)}
    extra = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in saved}
    adapter_settings = 2 * 8 * (I + O) * 2  # two members, the rank rounded up to 8
    assert sum(n for pointer, n in extra.items() if pointer not in kept) <= 40 * 8 * 2 + adapter_settings + 2 * 4


def test_checkpointing_frees_the_input(build, packing_of, randn, monkeypatch):
    """Only saved tensors hold it: the mask is recomputed from the keys alone."""
    monkeypatch.setattr(lora_module, "supports_grouped_mm", lambda *_: True)
    lora = build(torch.bfloat16, rates=(0.5,) * M)
    lora.slot.current = ForwardContext(packing_of((0, 23, 1), (1, 18, 2)), torch.tensor([0]))

    def alive():
        return sum(type(thing) is torch.Tensor and thing.shape[-2:] == (41, I) for thing in gc.get_objects())

    start = randn(1, 41, O, dtype=torch.bfloat16).requires_grad_()
    before = alive()
    out = checkpoint(lambda given: lora(given[..., :I] * 2), start, use_reentrant=False)
    assert alive() == before
    out.sum().backward()
    assert start.grad.any()


@pytest.mark.parametrize(
    ("dtype", "width", "outputs", "groups", "capability", "suits"),
    [
        (torch.bfloat16, 64, 32, 5, (9, 0), True),
        (torch.bfloat16, 64, 32, 5, (10, 3), True),
        (torch.float16, 64, 32, 5, (9, 0), False),
        (torch.float32, 64, 32, 5, (9, 0), False),
        (torch.bfloat16, 60, 32, 5, (9, 0), False),
        (torch.bfloat16, 64, 36, 5, (9, 0), False),
        (torch.bfloat16, 64, 32, 1024, (9, 0), False),
        (torch.bfloat16, 64, 32, 5, (8, 0), False),
        (torch.bfloat16, 64, 32, 5, (12, 0), False),
    ],
)
def test_grouped_kernels_are_used_where_torch_has_them(dtype, width, outputs, groups, capability, suits, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    x = SimpleNamespace(is_cuda=True, dtype=dtype, shape=(7, width), device="cuda:0")
    assert supports_grouped_mm(x, outputs, groups) is suits
    assert not supports_grouped_mm(torch.zeros(7, 64, dtype=torch.bfloat16), 32, 5)  # a CPU

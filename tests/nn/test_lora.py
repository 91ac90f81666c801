import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lorchestra.nn.adapters import StackedAdapters
from lorchestra.nn.context import ContextSlot, ForwardContext
from lorchestra.nn.dropout import keep_mask, token_keys
from lorchestra.nn.layout import Span
from lorchestra.nn.lora import MemberLoRALinear, _Dropout, _PackedLoRA
from lorchestra.nn.optimizer import MemberAdamW
from lorchestra.nn.packing import BASE
from lorchestra.nn.seeding import derive_seed

I, O, R, M = 10, 7, 3, 4  # noqa: E741 - the axes' names
SCALING = (2.0, 0.5, 4.0, 1.0)
RATES = (0.0, 0.3, 0.6, 0.1)


@pytest.fixture
def build(randn):
    """Builds a `MemberLoRALinear` with random weights, biases, A and B."""

    def make(dtype=torch.float64, base_dtype=None, name="layers.0.q", dropout=(0.0,) * M, bias=True):
        base = nn.Linear(I, O, bias=bias, dtype=base_dtype or dtype).requires_grad_(False)
        for parameter in base.parameters():
            parameter.copy_(randn(*parameter.shape))
        A = [nn.Parameter(randn(R, I, dtype=dtype)) for _ in range(M)]
        B = [nn.Parameter(randn(O, R, dtype=dtype)) for _ in range(M)]
        return MemberLoRALinear(base, A, B, scaling=SCALING, dropout=dropout, slot=ContextSlot(), name=name)

    return make


def run(lora, packing, x):
    lora.slot.current = ForwardContext(packing, torch.tensor([0]))
    try:
        return lora(x)
    finally:
        lora.slot.current = None


def reference(lora, packing, x):
    """The layer in plain torch operations, token by token, with masks from the dropout keys."""
    rows = []
    for span in packing.spans:
        for n in range(span.start, span.stop):
            y = F.linear(x[0, n], lora.base.weight, lora.base.bias)
            if span.member != BASE:
                inputs, rate = x[0, n].to(lora.A[0].dtype), lora.dropout[span.member]
                if packing.dropout_keys is not None and rate > 0:
                    mask = keep_mask(packing.dropout_keys[n : n + 1], lora.module_seed, I, rate)[0]
                    inputs = torch.where(mask, inputs / (1 - rate), torch.zeros_like(inputs))
                A, B = lora.A[span.member], lora.B[span.member]
                y = y + lora.scaling[span.member] * (B @ (A @ inputs))
            rows.append(y)
    return torch.stack(rows)[None]


def gradients(out, x, lora, weights):
    leaves = [x, *lora.A, *lora.B]
    grads = torch.autograd.grad((out * weights).sum(), leaves, allow_unused=True)
    return [torch.zeros_like(leaf) if grad is None else grad for leaf, grad in zip(leaves, grads, strict=True)]


ROWS = {
    "members": [(0, 3, None), (1, 2, None), (1, 4, None), (3, 1, None)],
    "members and base": [(BASE, 4, None), (0, 2, None), (2, 3, None)],
    "dropout": [(BASE, 2, 5), (0, 3, 10), (1, 2, 11), (1, 4, 12), (2, 5, 13), (3, 3, 14)],
}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS.keys())
def test_equals_plain_torch_forward_and_backward(build, packing_of, randn, rows, bias):
    packing, lora = packing_of(*rows), build(dropout=RATES, bias=bias)
    x = randn(1, packing.num_tokens, I).requires_grad_()
    weights = randn(1, packing.num_tokens, O)
    out, expected = run(lora, packing, x), reference(lora, packing, x)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)
    for grad, wanted in zip(gradients(out, x, lora, weights), gradients(expected, x, lora, weights), strict=True):
        torch.testing.assert_close(grad, wanted, rtol=0, atol=1e-12)


def test_gradcheck_with_dropout(build, packing_of, randn):
    """Numerical derivatives of every input; a backward without the mask would not pass."""
    packing, lora = packing_of(*ROWS["dropout"]), build(dropout=RATES)
    spans = [span for span in packing.spans if span.member != BASE]
    drop = _Dropout(packing.dropout_keys, lora.module_seed, RATES)
    x = randn(packing.num_tokens, I).requires_grad_()
    weight = randn(O, I)
    pairs = [matrix for span in spans for matrix in (lora.A[span.member], lora.B[span.member])]

    def forward(x, *pairs):
        return _PackedLoRA.apply(F.linear(x, weight), x, spans, SCALING, drop, *pairs)

    assert torch.autograd.gradcheck(forward, (x, *pairs), atol=1e-7, rtol=1e-6)


def test_base_tokens_and_passes_without_packing_equal_the_frozen_layer_bit_for_bit(build, packing_of, randn):
    lora = build(torch.float32)
    packing = packing_of((BASE, 5, None), (BASE, 3, None))
    x = randn(1, 8, I, dtype=torch.float32)
    assert torch.equal(run(lora, packing, x), lora.base(x))
    assert torch.equal(run(lora, None, x), lora.base(x))
    assert torch.equal(lora(x[0, 0]), lora.base(x[0, 0]))
    mixed = packing_of((BASE, 5, None), (1, 3, None))
    assert torch.equal(run(lora, mixed, x)[:, :5], lora.base(x)[:, :5])
    assert not torch.isclose(run(lora, mixed, x)[:, 5:], lora.base(x)[:, 5:]).all()


def test_absent_members_get_no_gradient(build, packing_of, randn):
    lora, packing = build(), packing_of((1, 3, None), (3, 2, None))
    run(lora, packing, randn(1, 5, I)).sum().backward()
    for member in range(M):
        present = member in (1, 3)
        assert (lora.A[member].grad is not None) is present
        assert (lora.B[member].grad is not None) is present


def test_bfloat16_base_with_float32_adapters(build, packing_of, randn):
    """Equal to float32 arithmetic up to the rounding of the base's output and of the sum (eps 2^-8 each)."""
    lora, packing = build(torch.float32, torch.bfloat16, dropout=RATES), packing_of(*ROWS["dropout"])
    x = randn(1, packing.num_tokens, I).to(torch.bfloat16)
    out = run(lora, packing, x)
    assert out.dtype == torch.bfloat16
    wide = build(torch.float32, dropout=RATES)
    wide.load_state_dict({name: value.float() for name, value in lora.state_dict().items()})
    expected, base = run(wide, packing, x.float()), wide.base(x.float())
    assert ((out.float() - expected).abs() <= 2**-8 * (2 * expected.abs() + 2 * base.abs())).all()
    weights = randn(1, packing.num_tokens, O).to(torch.bfloat16)
    (out * weights).sum().backward()
    (expected * weights.float()).sum().backward()
    for member in range(M):
        for narrow, other in ((lora.A, wide.A), (lora.B, wide.B)):
            assert narrow[member].grad.dtype == torch.float32
            torch.testing.assert_close(narrow[member].grad, other[member].grad, rtol=1e-5, atol=1e-5)


def test_dropout_depends_on_the_keys_and_never_on_the_mode(build, packing_of, randn):
    x = randn(1, 6, I)
    lora, plain = build(dropout=(0.5,) * M), packing_of((0, 6, None))
    keyed = packing_of((0, 6, 77))
    off = reference(lora, plain, x)
    for mode in (True, False):
        lora.train(mode)
        torch.testing.assert_close(run(lora, plain, x), off, rtol=0, atol=1e-12)
        torch.testing.assert_close(run(lora, keyed, x), reference(lora, keyed, x), rtol=0, atol=1e-12)
    assert not torch.isclose(reference(lora, keyed, x), off).any()


def test_dropped_inputs_of_a_row_do_not_depend_on_the_other_rows(build, packing_of, randn):
    lora = build(dropout=RATES)
    x = randn(1, 4, I)
    alone = run(lora, packing_of((1, 4, 99)), x)
    others = randn(1, 9, I)
    crowd = packing_of((0, 5, 1), (1, 2, 2), (1, 4, 99), (2, 2, 3))
    packed = run(lora, crowd, torch.cat([others[:, :7], x, others[:, 7:]], dim=1))
    torch.testing.assert_close(packed[:, 7:11], alone, rtol=0, atol=1e-12)


def test_modules_of_different_names_have_different_masks(packing_of):
    """With an input of ones and A the identity, the output is the mask."""
    masks = {}
    for name in ("layers.0.q", "layers.0.v", "layers.1.q"):
        base = nn.Linear(64, 64, bias=False, dtype=torch.float64).requires_grad_(False)
        base.weight.zero_()
        eye = nn.Parameter(torch.eye(64, dtype=torch.float64))
        lora = MemberLoRALinear(base, [eye], [eye], scaling=[1.0], dropout=[0.5], slot=ContextSlot(), name=name)
        masks[name] = run(lora, packing_of((0, 6, 3)), torch.ones(1, 6, 64, dtype=torch.float64))
        assert set(masks[name].unique().tolist()) == {0.0, 2.0}
        expected = keep_mask(token_keys([3], [6]), derive_seed("dropout", name), 64, 0.5)
        assert torch.equal(masks[name][0], 2.0 * expected)
    first, second, third = masks.values()
    for a, b in ((first, second), (first, third), (second, third)):
        assert abs((a == b).double().mean() - 0.5) < 0.12  # 384 elements: 4.5 standard errors


def test_a_nan_member_packed_first_affects_no_other(build, packing_of, randn):
    rows = [(0, 3, 1), (1, 2, 2), (2, 4, 3)]
    x, weights = randn(1, 9, I), randn(1, 9, O)
    lora, results = build(dropout=RATES), []
    for value in (0.0, float("nan")):
        with torch.no_grad():
            lora.A[0].fill_(value)
        inputs = x.clone().requires_grad_()
        out = run(lora, packing_of(*rows), inputs)
        grads = gradients(out, inputs, lora, weights)
        results.append([out[:, 3:], grads[0][:, 3:], *(g for m in (1, 2) for g in (grads[1 + m], grads[1 + M + m]))])
    assert out[:, :3].isnan().all()
    assert all(torch.equal(clean, dirty) for clean, dirty in zip(*results, strict=True))


def test_zero_padding_is_a_lower_rank_and_remains_zero(packing_of, randn):
    """A rank-2 member padded to rank 5 trains as one of rank 2: padding has no gradient, so AdamW never changes it."""
    base = nn.Linear(I, O, dtype=torch.float64).requires_grad_(False)
    base.weight.data.copy_(randn(O, I))
    base.bias.data.copy_(randn(O))
    packing = packing_of((0, 4, 1), (0, 3, 2))
    x, target = randn(1, 7, I), randn(1, 7, O)
    trained = {}
    A0, B0 = randn(2, I), randn(O, 2)
    for rank in (2, 5):
        adapters = StackedAdapters(1, rank, [("q", I, O)], dtype=torch.float64)
        (A,), (B,) = adapters.parameters["q"]
        A.data[:2], B.data[:, :2] = A0, B0
        lora = MemberLoRALinear(base, [A], [B], scaling=[3.0], dropout=[0.2], slot=ContextSlot(), name="q")
        optimizer = MemberAdamW(adapters.values, adapters.is_B, [0.5])
        for _ in range(15):
            adapters.zero_grad()
            (run(lora, packing, x) - target).square().mean().backward()
            optimizer.step(adapters.grad, [0.05], [0])
        trained[rank] = A.detach(), B.detach()
    A, B = trained[5]
    assert not A[2:].any()
    assert not B[:, 2:].any()
    assert (A[:2] - A0).abs().mean() > 0.01
    torch.testing.assert_close(A[:2], trained[2][0], rtol=0, atol=1e-12)
    torch.testing.assert_close(B[:, :2], trained[2][1], rtol=0, atol=1e-12)


def test_saves_no_more_than_input_low_rank_product_and_adapters(build, packing_of, randn):
    """The masked input is not saved for the backward pass."""
    lora, packing = build(dropout=(0.5,) * M), packing_of((0, 20, 1), (1, 20, 2))
    x = randn(1, 40, I).requires_grad_()
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        run(lora, packing, x)
    kept = {t.untyped_storage().data_ptr() for t in (x, lora.weight, lora.base.bias, *lora.A, *lora.B)}
    extra = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in saved}
    assert sum(n for pointer, n in extra.items() if pointer not in kept) == 40 * R * 8


def test_weight_and_bias_are_the_frozen_ones(build):
    lora = build()
    assert lora.weight is lora.base.weight
    assert lora.bias is lora.base.bias
    assert not any(parameter.requires_grad for parameter in lora.base.parameters())


def test_parameters_are_selected_by_member_not_by_the_index_of_the_span(build, packing_of, randn):
    lora, packing = build(), packing_of((2, 2, None), (3, 2, None))
    assert packing.spans == (Span(2, 0, 2), Span(3, 2, 4))
    x = randn(1, 4, I)
    torch.testing.assert_close(run(lora, packing, x), reference(lora, packing, x), rtol=0, atol=1e-12)


def test_a_layer_that_gets_some_of_the_tokens_is_an_error(build, packing_of, randn):
    """Their members would be unknown."""
    packing = packing_of((0, 3, None), (1, 4, None))
    with pytest.raises(ValueError, match="got 5 of the batch's 7 tokens"):
        run(build(), packing, randn(1, 5, I))

import math

import peft
import pytest
import torch

from lorchestra.nn.adapters import StackedAdapters, decay_products

SHAPES = [("layers.0.q", 32, 24), ("layers.0.v", 32, 8), ("layers.1.q", 20, 24)]


def initialize(adapters, seeds, how=True, **settings):
    for member, seed in enumerate(seeds):
        adapters.initialize(member, seed, how, **settings)


@pytest.fixture
def adapters():
    return StackedAdapters(3, 4, SHAPES, dtype=torch.float64)


def test_views_tile_each_row_exactly_once(adapters):
    width = sum(4 * (in_features + out_features) for _, in_features, out_features in SHAPES)
    assert adapters.values.shape == adapters.grad.shape == (3, width)
    adapters.values.copy_(torch.arange(3 * width).view(3, width))
    for member in range(3):
        seen = []
        for name, in_features, out_features in SHAPES:
            A, B = (leaves[member] for leaves in adapters.parameters[name])
            assert A.shape == (4, in_features)
            assert B.shape == (out_features, 4)
            seen += [*A.flatten().tolist(), *B.flatten().tolist()]
        assert seen == adapters.values[member].tolist()


def test_is_b_marks_the_b_matrices(adapters):
    adapters.values.zero_()
    for _, Bs in adapters.parameters.values():
        for B in Bs:
            B.data.fill_(1.0)
    assert torch.equal(adapters.values, adapters.is_B.double().expand(3, -1))
    assert adapters.is_B.sum().item() == 4 * sum(out for *_, out in SHAPES)


def test_backward_adds_to_grad_and_zero_grad_keeps_the_buffers(adapters):
    A = adapters.parameters["layers.0.v"][0][1]
    B = adapters.parameters["layers.1.q"][1][2]
    for _ in range(2):
        ((3 * A).sum() + (5 * B).sum()).backward()
    for name, leaves in adapters.parameters.items():
        for which, expected in (("A", 6.0), ("B", 10.0)):
            for member, leaf in enumerate(leaves[which == "B"]):
                hit = (name, which, member) in {("layers.0.v", "A", 1), ("layers.1.q", "B", 2)}
                piece = next(piece for piece in adapters.slices if piece.name == name)
                assert (adapters.view(adapters.grad[member], piece, which) == (expected if hit else 0.0)).all()
                assert leaf.grad.data_ptr() == adapters.view(adapters.grad[member], piece, which).data_ptr()
    adapters.zero_grad()
    assert not adapters.grad.any()
    (7 * A).sum().backward()
    assert adapters.grad.sum().item() == 7 * A.numel()


def test_all_members_share_two_storages(adapters):
    leaves = [leaf for pair in adapters.parameters.values() for group in pair for leaf in group]
    assert {leaf.untyped_storage().data_ptr() for leaf in leaves} == {adapters.values.untyped_storage().data_ptr()}
    assert {leaf.grad.untyped_storage().data_ptr() for leaf in leaves} == {adapters.grad.untyped_storage().data_ptr()}


def test_initial_a_is_uniform_as_in_peft_and_b_zero():
    """PEFT draws A by `kaiming_uniform_(a=sqrt(5))`: uniform in +- 1/sqrt(in_features)."""
    adapters = StackedAdapters(2, 64, [("q", 100, 30), ("v", 400, 30)])
    initialize(adapters, [11, 12])
    for name, in_features in (("q", 100), ("v", 400)):
        bound = in_features**-0.5
        for A, B in zip(*adapters.parameters[name], strict=True):
            n = A.numel()
            assert A.abs().max() <= bound
            assert A.abs().max() > 0.99 * bound
            assert abs(A.mean()) < 4.5 * bound / math.sqrt(3 * n)
            # variance bound^2 / 3 of a uniform draw; its estimate has relative deviation sqrt(0.8 / n)
            assert A.var().item() == pytest.approx(bound**2 / 3, rel=4.5 * math.sqrt(0.8 / n))
            assert not B.any()
    reference = torch.nn.init.kaiming_uniform_(torch.empty(64, 100), a=math.sqrt(5))
    assert reference.abs().max().item() == pytest.approx(0.1, rel=0.01)


def test_gaussian_initialization_is_that_of_peft():
    """Normal with standard deviation 1/r, B zero."""
    adapters = StackedAdapters(2, 16, [("q", 400, 30)])
    initialize(adapters, [11, 12], "gaussian")
    for A, B in zip(*adapters.parameters["q"], strict=True):
        n = A.numel()
        assert abs(A.mean()) < 4.5 / 16 / math.sqrt(n)
        # the estimate of a normal draw's variance has relative deviation sqrt(2 / n)
        assert A.var().item() == pytest.approx(1 / 16**2, rel=4.5 * math.sqrt(2 / n))
        assert A.abs().max() > 3 / 16  # no uniform draw of this variance reaches that
        assert not B.any()
    assert not torch.equal(adapters.values[0], adapters.values[1])


def orthogonal_by_peft(rank, in_features, out_features):
    layer = torch.nn.Sequential(torch.nn.Linear(in_features, out_features, bias=False))
    config = peft.LoraConfig(r=rank, target_modules=["0"], init_lora_weights="orthogonal")
    lora = peft.get_peft_model(layer, config).base_model.model[0]
    return lora.lora_A["default"].weight.detach(), lora.lora_B["default"].weight.detach()


def test_orthogonal_initialization_is_that_of_peft():
    """A and B have entries of variance 1/200 and half the rank each, and B A is zero."""
    adapters = StackedAdapters(2, 8, [("q", 400, 300)])
    initialize(adapters, [11, 12], "orthogonal")
    drawn = [(A.detach(), B.detach()) for A, B in zip(*adapters.parameters["q"], strict=True)]
    for A, B in [*drawn, orthogonal_by_peft(8, 400, 300)]:
        assert A.shape == (8, 400)
        assert B.shape == (300, 8)
        assert (B @ A).abs().max() < 1e-6
        assert torch.linalg.matrix_rank(A) == torch.linalg.matrix_rank(B) == 4
        # R/2 independent normal draws a column, of total variance R/2 / 100: its estimate deviates by sqrt(2 / draws)
        for matrix, draws in ((A, 4 * 400), (B, 4 * 300)):
            assert matrix.pow(2).sum().item() == pytest.approx(draws / 100, rel=4.5 * math.sqrt(2 / draws))
            assert abs(matrix.sum()) < 4.5 * math.sqrt(8 * draws / 100)
    assert not torch.isclose(adapters.values[0], adapters.values[1]).any()


@pytest.mark.parametrize("how", [True, "gaussian", "orthogonal"])
def test_every_initialization_depends_on_seed_and_module_only(how):
    full, fewer = StackedAdapters(2, 4, SHAPES), StackedAdapters(1, 4, SHAPES[1:])
    initialize(full, [5, 6], how)
    initialize(fewer, [6], how)
    for name, *_ in SHAPES[1:]:
        for one, other in zip(fewer.parameters[name], full.parameters[name], strict=True):
            assert torch.equal(one[0], other[1])


def test_initial_values_of_a_member_and_module_depend_on_nothing_else():
    full = StackedAdapters(3, 4, SHAPES)
    initialize(full, [5, 6, 7])
    fewer = StackedAdapters(2, 4, SHAPES[1:])
    initialize(fewer, [7, 5])
    for name, *_ in SHAPES[1:]:
        assert torch.equal(fewer.parameters[name][0][0], full.parameters[name][0][2])
        assert torch.equal(fewer.parameters[name][0][1], full.parameters[name][0][0])


def test_members_and_modules_start_with_different_values():
    adapters = StackedAdapters(3, 4, [("a", 32, 8), ("b", 32, 8)])
    initialize(adapters, [5, 6, 7])
    draws = [A for As, _ in adapters.parameters.values() for A in As]
    for i, first in enumerate(draws):
        assert not any(torch.equal(first, other) for other in draws[:i])
        for other in draws[:i]:
            correlation = torch.corrcoef(torch.stack([first.flatten(), other.flatten()]))[0, 1]
            assert abs(correlation) < 4.5 / math.sqrt(128)


def test_initialize_overwrites_values_and_ignores_the_global_generator():
    adapters = StackedAdapters(1, 4, SHAPES)
    initialize(adapters, [5])
    first = adapters.values.clone()
    adapters.values.normal_()
    torch.manual_seed(99)
    state = torch.get_rng_state()
    initialize(adapters, [5])
    assert torch.equal(adapters.values, first)
    assert torch.equal(torch.get_rng_state(), state)


def test_float64_starts_from_the_same_values_as_float32(adapters):
    initialize(adapters, [1, 2, 3])
    narrow = StackedAdapters(3, 4, SHAPES)
    initialize(narrow, [1, 2, 3])
    assert torch.equal(adapters.values, narrow.values.double())


@pytest.mark.parametrize("how", [True, "gaussian", "orthogonal"])
def test_a_lower_rank_is_drawn_as_with_that_rank_and_padded_with_zeros(how):
    padded, narrow = StackedAdapters(1, 7, SHAPES), StackedAdapters(1, 4, SHAPES)
    padded.values.normal_()
    initialize(padded, [5], how, rank=4, scale=1.5)
    initialize(narrow, [5], how, scale=1.5)
    for name, *_ in SHAPES:
        (wide_A,), (wide_B,) = padded.parameters[name]
        (A,), (B,) = narrow.parameters[name]
        assert torch.equal(wide_A[:4], A)
        assert torch.equal(wide_B[:, :4], B)
        assert not wide_A[4:].any()
        assert not wide_B[:, 4:].any()


@pytest.mark.parametrize("how", [True, "gaussian", "orthogonal"])
def test_the_initial_scale_multiplies_a_only(how):
    one, three = StackedAdapters(1, 4, SHAPES), StackedAdapters(1, 4, SHAPES)
    initialize(one, [5], how)
    initialize(three, [5], how, scale=3.0)
    torch.testing.assert_close(three.values, torch.where(one.is_B, 1.0, 3.0) * one.values, rtol=1e-6, atol=0)


@pytest.mark.parametrize("how", [True, "gaussian"])
def test_a_drawn_b_is_normal_and_does_not_change_a(how):
    zero, drawn = StackedAdapters(1, 16, [("q", 40, 500)]), StackedAdapters(1, 16, [("q", 40, 500)])
    initialize(zero, [5], how)
    initialize(drawn, [5], how, std_B=0.02)
    (A,), (B,) = drawn.parameters["q"]
    assert torch.equal(A, zero.parameters["q"][0][0])
    n = B.numel()
    assert abs(B.mean()) < 4.5 * 0.02 / math.sqrt(n)
    assert B.var().item() == pytest.approx(0.02**2, rel=4.5 * math.sqrt(2 / n))
    assert B.abs().max() > 3 * 0.02
    # from a separate stream, so not correlated with A
    assert abs(torch.corrcoef(torch.stack([A.flatten(), B.flatten()[: A.numel()]]))[0, 1]) < 4.5 / math.sqrt(A.numel())


# Decay of the product


def test_decay_of_the_product_equals_autograd_on_the_dense_product(adapters, randn):
    """Penalty and gradient, added to existing gradients; one member has no decay, one a lower rank."""
    adapters.values.copy_(randn(*adapters.values.shape))
    for piece in adapters.slices:
        adapters.view(adapters.values[2], piece, "A")[2:] = 0
        adapters.view(adapters.values[2], piece, "B")[:, 2:] = 0
    before = randn(*adapters.grad.shape)
    adapters.grad.copy_(before)
    strengths, scaling = (0.3, 0.0, 2.0), (4.0, 1.0, 0.5)
    penalties = decay_products(adapters, strengths, scaling)
    for m in range(3):
        leaves = [leaf[m] for pair in adapters.parameters.values() for leaf in pair]
        products = [scaling[m] * B[m] @ A[m] for A, B in adapters.parameters.values()]
        wanted = 0.5 * strengths[m] * sum(product.square().sum() for product in products)
        assert penalties[m].item() == pytest.approx(wanted.item(), rel=1e-12)
        grads = torch.autograd.grad(wanted, leaves)
        flat = torch.cat([grad.flatten() for grad in grads])
        torch.testing.assert_close(adapters.grad[m] - before[m], flat, rtol=1e-11, atol=1e-11)
        assert (flat.abs().max().item() > 0.1) is (m != 1)
    for piece in adapters.slices:
        grad = adapters.grad[2] - before[2]
        assert adapters.view(grad, piece, "A")[2:].abs().max() < 1e-14
        assert adapters.view(grad, piece, "B")[:, 2:].abs().max() < 1e-14


def test_decay_of_the_product_does_not_depend_on_its_factors(adapters, randn):
    """The same penalty for 2 A and B / 2; by hand for one product of rank one."""
    adapters.values.copy_(randn(*adapters.values.shape))
    first = decay_products(adapters, [1.0] * 3, [1.0] * 3)
    adapters.values.mul_(torch.where(adapters.is_B, 0.5, 2.0).double())
    torch.testing.assert_close(decay_products(adapters, [1.0] * 3, [1.0] * 3), first, rtol=1e-12, atol=0)
    one = StackedAdapters(1, 1, [("q", 2, 3)], dtype=torch.float64)
    one.values.copy_(torch.tensor([[3.0, 4.0, 1.0, 2.0, 2.0]]))  # norms 5 and 3
    assert decay_products(one, [0.1], [2.0]).tolist() == pytest.approx([0.5 * 0.1 * 4 * 225])

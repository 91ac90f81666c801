"""The gated product equals plain autograd, with two saved tensors."""

import torch
import torch.nn.functional as F

from lorchestra.models.patching import gated_product


def saved_bytes(compute):
    storages = {}

    def pack(tensor):
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        compute()
    return sum(storages.values())


def test_value_and_gradients(randn):
    gate, up = randn(2, 5, 7).requires_grad_(), randn(2, 5, 7).requires_grad_()
    assert torch.equal(gated_product(gate, up), F.silu(gate) * up)
    assert torch.autograd.gradcheck(gated_product, (gate, up))
    weights = randn(2, 5, 7)
    grads = torch.autograd.grad((gated_product(gate, up) * weights).sum(), (gate, up))
    expected = torch.autograd.grad((F.silu(gate) * up * weights).sum(), (gate, up))
    for one, other in zip(grads, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-14)


def test_saves_two_tensors(randn):
    gate, up = randn(4, 8).requires_grad_(), randn(4, 8).requires_grad_()
    assert saved_bytes(lambda: gated_product(gate, up)) == 2 * gate.nbytes
    assert saved_bytes(lambda: F.silu(gate) * up) == 3 * gate.nbytes

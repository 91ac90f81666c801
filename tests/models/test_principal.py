"""The principal part of a matrix: known singular values, Eckart and Young, and determined signs."""

import pytest
import torch

from lorchestra.models.init import principal_pair

VALUES = torch.tensor([9.0, 4.0, 1.0, 0.25], dtype=torch.float64)


def matrix(rows=7, columns=5, seed=0):
    """A matrix with singular values `VALUES`, and zero."""
    source = torch.Generator().manual_seed(seed)

    def orthonormal(size):
        return torch.linalg.qr(torch.randn(size, 4, dtype=torch.float64, generator=source))[0]

    return orthonormal(rows) * VALUES @ orthonormal(columns).t()


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("shape", [(7, 5), (5, 7)])
def test_the_product_is_the_best_approximation_of_its_rank(rank, shape):
    """The distance is the root of the sum of squares of the remaining singular values."""
    weight = matrix(*shape)
    A, B = principal_pair(weight, rank, torch.float64)
    assert (A.shape, B.shape) == ((rank, shape[1]), (shape[0], rank))
    assert torch.linalg.matrix_norm(weight - B @ A).item() == pytest.approx(VALUES[rank:].square().sum().sqrt().item())
    roots = VALUES[:rank].diag()  # both factors have orthogonal vectors of the singular values' roots in length
    torch.testing.assert_close(A @ A.t(), roots, rtol=0, atol=1e-12)
    torch.testing.assert_close(B.t() @ B, roots, rtol=0, atol=1e-12)


def test_signs_and_lower_ranks():
    weight = matrix()
    A, B = principal_pair(weight, 3, torch.float64)
    assert (B.gather(0, B.abs().argmax(dim=0, keepdim=True)) > 0).all()
    for of_negative, of_positive in zip(principal_pair(-weight, 3, torch.float64), (-A, B), strict=True):
        torch.testing.assert_close(of_negative, of_positive, rtol=0, atol=1e-12)
    lower_A, lower_B = principal_pair(weight, 2, torch.float64)
    assert torch.equal(lower_A, A[:2])
    assert torch.equal(lower_B, B[:, :2])
    assert principal_pair(weight.bfloat16(), 2, torch.float32)[0].dtype == torch.float32

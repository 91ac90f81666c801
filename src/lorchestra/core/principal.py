"""The principal part of a weight matrix as a product of two factors: where PiSSA starts A and B (arXiv 2404.02948)."""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def principal_pair(weight_OI: Tensor, rank: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """A `[R, I]` and B `[O, R]` whose product is the matrix of that rank nearest to the weight (Eckart and Young).

    `A = sqrt(S_r) V_r^T` and `B = U_r sqrt(S_r)` of the largest R singular values, in descending order: the first rows
    and columns are the pair of any lower rank. A singular vector's sign is free; here the largest entry of each left
    one is positive, so that the pair does not depend on how the decomposition was computed.

    Args:
        weight_OI: the weight.
        rank: R, at most the smaller of O and I.
        dtype: number format to decompose in, and of the result.
    """
    U_OK, S_K, V_KI = torch.linalg.svd(weight_OI.to(dtype), full_matrices=False)
    U_OR, V_RI, root_R = U_OK[:, :rank], V_KI[:rank], S_K[:rank].sqrt()
    largest_R = U_OR.gather(0, U_OR.abs().argmax(dim=0, keepdim=True))[0]
    sign_R = torch.where(largest_R < 0, -1.0, 1.0).to(dtype)
    return (sign_R * root_R)[:, None] * V_RI, U_OR * (sign_R * root_R)

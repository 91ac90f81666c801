"""The adapter parameters of all members in one flat tensor `[M, P]`; each module's A and B are views into it.

One row is one member, so copying, freezing, clipping or saving a member is an operation on a row.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from lorchestra.nn.seeding import generator


@dataclass(frozen=True, slots=True)
class AdapterSlice:
    """The columns of one module's A `[R, I]` and B `[O, R]` in a member's row."""

    name: str
    rank: int
    in_features: int
    out_features: int
    start: int

    @property
    def middle(self) -> int:
        """The column after A, the first of B."""
        return self.start + self.rank * self.in_features

    @property
    def stop(self) -> int:
        """The column after B."""
        return self.middle + self.rank * self.out_features


class StackedAdapters:
    """The trainable parameters of M members and their gradients.

    The last columns are those of the members' classification heads, if there are any: `[C, D]`, trained like an A.

    Args:
        num_members: M.
        rank: R of every adapter; a member of lower rank has zero rows in A and zero columns in B, which stay zero.
        shapes: `(module name, in_features, out_features)` of every adapted module, in the model's order.
        dtype: number format of parameters and gradients.
        device: their device.
        head_shape: C and D of classification heads; None for none.
    """

    def __init__(
        self,
        num_members: int,
        rank: int,
        shapes: Sequence[tuple[str, int, int]],
        *,
        head_shape: tuple[int, int] | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        slices: list[AdapterSlice] = []
        for name, in_features, out_features in shapes:
            start = slices[-1].stop if slices else 0
            slices.append(AdapterSlice(name, rank, in_features, out_features, start))
        self.slices = tuple(slices)
        self.head_shape = head_shape
        self.num_members = num_members
        width = slices[-1].stop + (0 if head_shape is None else math.prod(head_shape))
        self.values = torch.zeros(num_members, width, dtype=dtype, device=device)
        self.grad = torch.zeros_like(self.values)
        self.is_B = torch.zeros(width, dtype=torch.bool, device=device)
        for piece in slices:
            self.is_B[piece.middle : piece.stop] = True
        self.frozen: dict[int, Tensor] = {}
        """Bool `[P]` by member: columns that are not trained. Members that are trained whole are absent."""
        self.parameters = {
            piece.name: tuple(self._leaves(partial(self.view, piece=piece, which=which)) for which in ("A", "B"))
            for piece in slices
        }
        self.heads = [] if head_shape is None else self._leaves(self.head)
        """One leaf per member, `[C, D]`."""

    def _leaves(self, view: Callable[[Tensor], Tensor]) -> list[nn.Parameter]:
        """One leaf per member, so that a member absent from a micro-batch costs nothing in its backward pass."""
        leaves = []
        for values, grad in zip(self.values, self.grad, strict=True):
            leaf = nn.Parameter(view(values))
            leaf.grad = view(grad)  # autograd adds to it in place
            leaves.append(leaf)
        return leaves

    def head(self, flat: Tensor) -> Tensor:
        """View the classification head `[.., C, D]` in a tensor with the layout of `values`, `[.., P]`."""
        assert self.head_shape is not None
        return flat[..., self.slices[-1].stop :].unflatten(-1, self.head_shape)

    def view(self, flat: Tensor, piece: AdapterSlice, which: str) -> Tensor:
        """View one module's A `[.., R, I]` or B `[.., O, R]` in a tensor with the layout of `values`, `[.., P]`."""
        if which == "A":
            return flat[..., piece.start : piece.middle].unflatten(-1, (piece.rank, piece.in_features))
        return flat[..., piece.middle : piece.stop].unflatten(-1, (piece.out_features, piece.rank))

    def zero_grad(self) -> None:
        """Set the gradients to zero, keeping the buffers that autograd adds to."""
        self.grad.zero_()

    def freeze_from(self, rank: int, members: Sequence[int]) -> None:
        """Freeze rows of A and columns of B from index `rank` on; `zero_frozen_grad` removes their gradients."""
        frozen_P = torch.zeros_like(self.is_B)
        for piece in self.slices:
            self.view(frozen_P, piece, "A")[rank:] = True
            self.view(frozen_P, piece, "B")[:, rank:] = True
        self.frozen |= dict.fromkeys(members, frozen_P)

    def zero_frozen_grad(self) -> None:
        """Zero the gradients of frozen columns, so that neither gradient norms nor the optimizer see them."""
        for member, frozen_P in self.frozen.items():
            self.grad[member].masked_fill_(frozen_P, 0.0)

    @torch.no_grad()
    def init_with_frozen_copy(self, member: int, piece: AdapterSlice, A: Tensor, B: Tensor) -> None:
        """Initialize one module of a member with A `[r, I]`, B `[O, r]` and a negated copy that cancels their product.

        The stored A is `[A; A]` and the stored B `[B, -B]`, so that the member starts at the base. PEFT converts PiSSA
        to plain LoRA in the same way; only the first half is trained.
        """
        r = len(A)
        stored_A, stored_B = (self.view(self.values[member], piece, which) for which in ("A", "B"))
        for stored in (stored_A, stored_B.t()):
            stored[2 * r :] = 0.0
        stored_A[:r], stored_A[r : 2 * r] = A, A
        stored_B[:, :r], stored_B[:, r : 2 * r] = B, -B

    @torch.no_grad()
    def initialize(
        self,
        member: int,
        seed: int,
        how: Literal[True, "gaussian", "orthogonal"] = True,
        *,
        rank: int | None = None,
        scale: float = 1.0,
        std_B: float = 0.0,
    ) -> None:
        """Draw one member's A and B such that B A is zero and the member starts at the base, unless `std_B` is given.

        A module's draw depends on the seed and the module's name alone: not on the other adapted modules, the other
        members or the rank of the stack.

        Args:
            member: index of the member.
            seed: seed of its draws.
            how: PEFT's `init_lora_weights`. True: A uniform in `+- 1 / sqrt(in_features)`; gaussian: A normal with
                standard deviation `1 / rank`; B is zero in both. orthogonal: see `_orthogonal_pair`.
            rank: the member's rank, by default R; rows of A and columns of B beyond it are zero.
            scale: factor on the drawn A.
            std_B: standard deviation of a normal draw of B, instead of zeros; ignored with orthogonal.
        """
        self.values[member].zero_()
        for piece in self.slices:
            r = piece.rank if rank is None else rank
            A = self.view(self.values[member], piece, "A")[:r]
            B = self.view(self.values[member], piece, "B")[:, :r]
            source = generator(seed, "init", piece.name)
            if how == "orthogonal":
                start_A, start_B = _orthogonal_pair(r, piece, source)
                A.copy_(start_A)
                B.copy_(start_B)
            elif how == "gaussian":
                A.copy_(torch.randn(A.shape, generator=source) / r)
            else:
                draw = torch.rand(A.shape, generator=source)
                A.copy_((2 * draw - 1) * piece.in_features**-0.5)
            if scale != 1.0:
                A.mul_(scale)
            if std_B > 0:
                B.copy_(torch.randn(B.shape, generator=generator(seed, "init B", piece.name)) * std_B)


@torch.no_grad()
def decay_products(adapters: StackedAdapters, strengths: Sequence[float], scaling: Sequence[float]) -> Tensor:
    """Add the gradient of `0.5 * strength_m * sum over modules of ||scaling_m B_m A_m||_F^2` to `adapters.grad`.

    LoRA adds the product B A to a weight, and scaling A up and B down by the same factor does not change it: decay of
    A and B penalizes that rescaling, decay of the product does not. The product is never formed:
    `||B A||_F^2 = tr(B'B A A')`, whose factors are `[R, R]`, with gradient `B'B A` for A and `B A A'` for B.

    Like the KL term, this decay is part of the objective (coupled) and goes through clipping and Adam's moments. A
    decoupled step would be stable only while `lr * strength * scaling^2` times the squared norm of A stays below 2,
    which cannot be checked before training.

    Args:
        adapters: parameters and gradients.
        strengths: one per member.
        scaling: `lora_alpha / r`, one per member.

    Returns:
        The penalties, float64 `[M]`.
    """
    factors = adapters.values.new_tensor([strength * s**2 for strength, s in zip(strengths, scaling, strict=True)])
    squares = torch.zeros(adapters.num_members, dtype=torch.float64, device=adapters.values.device)
    for piece in adapters.slices:
        A, B = adapters.view(adapters.values, piece, "A"), adapters.view(adapters.values, piece, "B")
        gram_A, gram_B = A @ A.mT, B.mT @ B
        squares += (gram_A * gram_B).sum(dim=(1, 2))
        adapters.view(adapters.grad, piece, "A").add_(factors[:, None, None] * (gram_B @ A))
        adapters.view(adapters.grad, piece, "B").add_(factors[:, None, None] * (B @ gram_A))
    return 0.5 * factors.double() * squares


def _orthogonal_pair(rank: int, piece: AdapterSlice, source: torch.Generator) -> tuple[Tensor, Tensor]:
    """A `[R, I]` and B `[O, R]` with normal entries in orthogonal halves of the R-dimensional space, so B A is zero.

    Drawn in float64, so that the product is zero up to the rounding of the parameters.

    Source: PEFT's `orthogonal_init`: alternate rows of a random rotation carry A and B, both divided by 10.
    """
    half = rank // 2

    def normal(rows: int, columns: int) -> Tensor:
        return torch.randn(rows, columns, generator=source, dtype=torch.float64)

    rotation, _ = torch.linalg.qr(normal(rank, rank))
    A = rotation[0::2].t() @ normal(half, piece.in_features) / 10
    B = normal(piece.out_features, half) @ rotation[1::2] / 10
    return A, B

"""Fixtures for tests of `nn`: rows, packings of given lengths, random tensors."""

import pytest
import torch

from lorchestra.nn.layout import Packing
from lorchestra.nn.packing import Item, pack
from lorchestra.types import EncodedExample


@pytest.fixture
def example():
    """Builds one encoded row; by default three prefix tokens and two single-token choices."""

    def build(row=0, prefix=(11, 12, 13), choices=((1,), (2,)), answer=0, divisors=None):
        return EncodedExample(row, tuple(prefix), tuple(map(tuple, choices)), answer, divisors)

    return build


@pytest.fixture
def packing_of(example):
    """Builds a packing from `(member, length, dropout seed or None)` of its rows."""

    def build(*rows: tuple[int, int, int | None], device: str = "cpu") -> Packing:
        items = [
            Item(member, example(row=index, prefix=range(length)), seed)
            for index, (member, length, seed) in enumerate(rows)
        ]
        return pack(items, device).packing

    return build


@pytest.fixture
def randn():
    """Builds normal float64 tensors from one seeded generator."""
    source = torch.Generator().manual_seed(20231000035)

    def draw(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
        return torch.randn(*shape, generator=source, dtype=torch.float64).to(dtype)

    return draw

"""The number format of `base.dtype: auto`: which products are measured, how, and what is decided from the rates."""

from __future__ import annotations

import itertools

import pytest
import torch

from lorchestra.config.adapt import BaseConfig
from lorchestra.errors import CheckpointError
from lorchestra.models import number_format
from lorchestra.models.number_format import ProductRates, automatic_dtype, product_rates, product_shapes
from lorchestra.models.sizes import weight_shapes


@pytest.mark.parametrize(("bfloat16", "expected"), [(150.0, "bfloat16"), (149.0, "float32"), (40.0, "float32")])
def test_bfloat16_needs_a_clear_margin(bfloat16, expected):
    rates = ProductRates(100.0, bfloat16)
    assert rates.fastest == expected
    sentence = rates.sentence()
    assert f"auto is {expected} here" in sentence
    assert f"{bfloat16:.0f} GFLOP/s per core against 100 in float32" in sentence
    assert rates.to_dict() == {"float32": 100.0, "bfloat16": bfloat16}


def test_the_maps_with_most_of_the_arithmetic_are_measured():
    weights = {"embed.weight": (49_000, 576), "norm.weight": (576,), "lm_head.weight": (49_000, 576)}
    for layer in range(3):
        start = f"model.layers.{layer}."
        weights |= {f"{start}norm.weight": (576,), f"{start}conv.weight": (576, 1, 4)}
        weights |= {f"{start}{name}.weight": (1536, 576) for name in ("gate", "up")}
        weights |= {f"{start}down.weight": (576, 1536), f"{start}k.weight": (192, 576), f"{start}q.weight": (576, 576)}
    assert product_shapes(weights) == {(1536, 576): 6, (576, 1536): 3, (576, 576): 3}


def test_bases_without_large_maps_are_not_measured():
    assert product_shapes({"layers.0.q.weight": (511, 512), "embed.weight": (49_000, 576)}) == {}
    assert product_shapes({"layers.0.q.weight": (512, 512)}) == {(512, 512): 1}
    assert product_shapes({}) == {}


def test_rates_are_arithmetic_by_least_time(monkeypatch):
    times = {(64, 32): (2.0, 1.0), (16, 8): (1.0, 4.0)}

    def least_times(weight, num_tokens, seconds):
        assert num_tokens == 10
        return dict(zip((torch.float32, torch.bfloat16), times[tuple(weight.shape)], strict=True))

    monkeypatch.setattr(number_format, "_least_times", least_times)
    rates = product_rates({(64, 32): 3, (16, 8): 1}, 10)
    flop = 4 * 10 * (3 * 64 * 32 + 16 * 8)
    assert rates.float32 * 1e9 == pytest.approx(flop / (3 * 2 + 1))
    assert rates.bfloat16 * 1e9 == pytest.approx(flop / (3 * 1 + 4))


def test_the_warm_up_and_interrupted_repetitions_do_not_count(monkeypatch):
    taken = itertools.chain([9.0, 9.0, 5.0, 2.0, 4.0, 3.0], itertools.repeat(7.0))  # float32 and bfloat16 in turns
    now = 0.0

    def readings():
        nonlocal now
        for duration in taken:
            yield now
            now += duration
            yield now

    clock = readings()
    monkeypatch.setattr(number_format, "_clock", lambda: next(clock))
    least = number_format._least_times(torch.ones(4, 4), 2, 0.0)
    assert least == {torch.float32: 4.0, torch.bfloat16: 2.0}


def test_wide_maps_are_cut_and_both_formats_are_measured():
    assert number_format._outputs((150_000, 4096), 640) < 1000
    assert number_format._outputs((1536, 576), 640) == 1536
    rates = product_rates({(40, 24): 2}, 8)
    assert 0 < rates.float32 < float("inf")
    assert 0 < rates.bfloat16 < float("inf")


def test_auto_follows_the_rates_and_cuda_is_not_measured(tiny_base, monkeypatch, fast_bfloat16):
    base = BaseConfig(name=str(tiny_base), device="cpu")
    assert automatic_dtype(base, 640) == ("bfloat16", ProductRates(100.0, 400.0))
    monkeypatch.setattr(number_format, "product_rates", lambda shapes, num_tokens: ProductRates(240.0, 131.0))
    assert automatic_dtype(base, 640) == ("float32", ProductRates(240.0, 131.0))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert automatic_dtype(BaseConfig(name="no/such-base"), 640) == ("bfloat16", None)


def test_a_tiny_base_is_float32_without_a_measurement(tiny_base, monkeypatch):
    monkeypatch.setattr(number_format, "product_rates", None)
    assert automatic_dtype(BaseConfig(name=str(tiny_base), device="cpu"), 640) == ("float32", None)


def test_a_missing_base_is_reported_as_when_loading(tmp_path):
    with pytest.raises(CheckpointError, match="there is no directory or file"):
        automatic_dtype(BaseConfig(name=str(tmp_path / "none"), device="cpu"), 640)


def test_shapes_of_damaged_weights_are_left_to_loading(tmp_path):
    assert weight_shapes(tmp_path) == {}
    (tmp_path / "model.safetensors").write_bytes(b"damaged")
    assert weight_shapes(tmp_path) == {}

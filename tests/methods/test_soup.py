"""The two averages of members: the mean of the products, and the product of the means."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lorchestra.methods import lora_ensemble, soup
from lorchestra.methods.contract import Meter
from lorchestra.methods.training import train_members
from lorchestra.nn.adapters import StackedAdapters

SHAPES = [("a", 7, 5), ("b", 4, 6)]


def product(adapters, row, piece):
    return adapters.view(row, piece, "B") @ adapters.view(row, piece, "A")


def test_the_product_average_is_the_mean_of_the_products():
    adapters = StackedAdapters(3, 2, SHAPES, dtype=torch.float64)
    adapters.values.copy_(
        torch.randn(adapters.values.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    )
    for members in ([0, 1, 2], [0, 2], [1]):
        wide = StackedAdapters(1, 2 * len(members), SHAPES, dtype=torch.float64)
        wide.values[0].copy_(soup.product_average(adapters, members))
        for piece, wide_piece in zip(adapters.slices, wide.slices, strict=True):
            mean = torch.stack([product(adapters, adapters.values[m], piece) for m in members]).mean(dim=0)
            torch.testing.assert_close(product(wide, wide.values[0], wide_piece), mean, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("use_rslora", [False, True])
def test_the_soup_predicts_as_a_base_with_the_mean_update(make_context, use_rslora):
    """The reference adds the scaled mean of the members' B A to the frozen weights and predicts with the base alone."""
    context, test = make_context(dtype="float64", adapt={"use_rslora": use_rslora})
    fitted = soup.fit(context, soup.Config(average="product"))
    assert fitted.predict(test, "test").num_members == 1

    training, members = train_members(context, Meter(), context.config)
    adapters, model = training.pipeline.model.adapters, training.pipeline.model.model
    with torch.no_grad():
        updates = {
            piece.name: torch.stack([product(adapters, adapters.values[m], piece) for m in members]).mean(dim=0)
            for piece in adapters.slices
        }
        for name, update in updates.items():
            model.get_submodule(name).base.weight += context.config.adapt.scaling * update
        adapters.values.zero_()
    merged = training.pipeline.predict_members(test, "test").log_probs_MEC[0]
    np.testing.assert_allclose(fitted.predict(test, "test").log_probs_MEC[0], merged, rtol=0, atol=1e-6)
    factors = soup.fit(context, soup.Config(average="factors")).predict(test, "test").log_probs_MEC[0]
    assert np.abs(factors - merged).max() > 1e-3


def test_the_factors_average_is_the_mean_of_the_parameters(make_context):
    context, test = make_context(dtype="float64")
    fitted = soup.fit(context, soup.Config(average="factors"))
    training, _ = train_members(context, Meter(), context.config)
    with torch.no_grad():
        training.values[1] = training.values.mean(dim=0)
    mean = training.pipeline.predict_members(test, "test").log_probs_MEC[1]
    np.testing.assert_allclose(fitted.predict(test, "test").log_probs_MEC[0], mean, rtol=0, atol=1e-5)


def test_stored_parameters(make_context):
    context, _ = make_context()
    ensemble = lora_ensemble.fit(context, lora_ensemble.Config()).cost
    product_soup = soup.fit(context, soup.Config(average="product")).cost
    factors_soup = soup.fit(context, soup.Config(average="factors")).cost
    assert product_soup.parameters == ensemble.parameters == 3 * factors_soup.parameters
    assert product_soup.predict_base_passes == factors_soup.predict_base_passes == 1.0
    assert product_soup.fit_base_passes == ensemble.fit_base_passes

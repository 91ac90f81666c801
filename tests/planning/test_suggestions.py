import dataclasses

import pytest

from lorchestra.planning.estimate import Footprint
from lorchestra.planning.suggestions import SuggestionInputs, suggest

NOW = SuggestionInputs(
    footprint=Footprint(process=10, base=20, adapters=40, training=160, activations=800, trunk=0),
    limit=530,
    members=10,
    token_budget=800,
    longest=50,
    largest=800,
    adapted_layers=10,
    num_layers=10,
    trunk=30,
    checkpointed=0.2,
)
"""1,030 bytes: 30 fixed, 20 per member, 1 per token of the budget, 100 per layer."""


def suggestions(inputs):
    return {change.option: (change.value, change.peak, change.fits) for change in suggest(inputs)}


def test_each_change_is_as_small_as_sufficient():
    assert suggestions(NOW) == {
        "train.token_budget": ("300", 530, True),
        "train.gradient_checkpointing": ("True", 390, True),
        "adapt.layers": ("last:4", 30 + 30 + 400, True),
        "adapt.members": ("1", 850, False),
    }


def test_useless_changes_are_not_suggested():
    minimal = dataclasses.replace(NOW, members=1, adapted_layers=1, longest=800, checkpointed=None)
    assert suggestions(minimal) == {}


def test_trunk_can_be_cached_on_disk():
    inputs = dataclasses.replace(NOW, footprint=dataclasses.replace(NOW.footprint, trunk=600), limit=1030)
    assert suggestions(inputs)["adapt.trunk_memory_gb"] == ("0", 1030, True)


@pytest.mark.parametrize(("limit", "fits"), [(40, True), (36, False)])
def test_if_no_single_change_fits_all_are_combined(limit, fits):
    """One member on one layer at the longest row: 30 + 0 + 2 + 5."""
    results = suggestions(dataclasses.replace(NOW, limit=limit))
    assert not any(ok for name, (_, _, ok) in results.items() if name != "all of these")
    assert results["all of these"] == ("", 37, fits)
    assert results["adapt.layers"] == ("last:1", 160, False)
    assert results["train.token_budget"] == ("50", 280, False)

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
"""1,030 bytes: 30 stay, 20 a member, 1 a token of the budget, 100 a layer."""


def found(setting):
    return {remedy.option: (remedy.value, remedy.peak, remedy.fits) for remedy in suggest(setting)}


def test_each_change_is_as_small_as_will_do():
    assert found(NOW) == {
        "train.token_budget": ("300", 530, True),
        "train.gradient_checkpointing": ("True", 390, True),
        "adapt.layers": ("last:4", 30 + 30 + 400, True),
        "adapt.members": ("1", 850, False),
    }


def test_what_cannot_help_is_not_named():
    alone = dataclasses.replace(NOW, members=1, adapted_layers=1, longest=800, checkpointed=None)
    assert found(alone) == {}


def test_cached_layers_can_go_to_the_disk():
    footprint = dataclasses.replace(NOW.footprint, trunk=600)
    assert found(dataclasses.replace(NOW, footprint=footprint, limit=1030))["adapt.trunk_memory_gb"] == (
        "0",
        1030,
        True,
    )


@pytest.mark.parametrize(("limit", "fits"), [(40, True), (36, False)])
def test_where_none_is_enough_alone_all_are_taken_together(limit, fits):
    """One member on one layer at the longest row: 30 + 0 + 2 + 5."""
    results = found(dataclasses.replace(NOW, limit=limit))
    assert not any(ok for name, (_, _, ok) in results.items() if name != "all of these")
    assert results["all of these"] == ("", 37, fits)
    assert results["adapt.layers"] == ("last:1", 160, False)
    assert results["train.token_budget"] == ("50", 280, False)

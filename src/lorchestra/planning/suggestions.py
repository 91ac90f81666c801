"""Changes that make a run fit into memory, with the resulting peak of each."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

from lorchestra.planning.estimate import Footprint


@dataclass(frozen=True)
class SuggestionInputs:
    """A run's footprint, and the sizes that determine it."""

    footprint: Footprint
    limit: int
    """Largest allowed peak, in bytes."""
    members: int
    token_budget: int
    longest: int
    """Tokens of the longest row."""
    largest: int
    """Tokens of the largest micro-batch."""
    adapted_layers: int
    num_layers: int
    trunk: int
    """Bytes of cached trunks in memory if lower layers had no adapters."""
    checkpointed: float | None
    """Activations under gradient checkpointing as a share of the current ones; None if it is already on."""


@dataclass(frozen=True)
class Suggestion:
    """A change and the resulting peak in bytes."""

    option: str
    value: str
    peak: int
    fits: bool


def suggest(now: SuggestionInputs) -> list[Suggestion]:
    """Single changes, each as small as sufficient or else as large as possible; if none fits, all of them combined."""
    changes = (
        _smaller_budget(now),
        _checkpointing(now),
        _trunk_on_disk(now),
        _fewer_layers(now),
        _fewer_members(now),
    )
    suggestions = [change for change in changes if change is not None]
    if suggestions and not any(change.fits for change in suggestions):
        suggestions.append(_all(now))
    return suggestions


def _suggestion(now: SuggestionInputs, option: str, value: str, footprint: Footprint) -> Suggestion:
    return Suggestion(option, value, footprint.peak, footprint.peak <= now.limit)


def _scaled(now: SuggestionInputs, **shares: float) -> Footprint:
    """The footprint with some parts scaled."""
    parts = {name: round(getattr(now.footprint, name) * share) for name, share in shares.items()}
    return dataclasses.replace(now.footprint, **parts)


def _best(now: SuggestionInputs, most: int, least: int, make: Callable[[int], Footprint]) -> int:
    """The largest number whose footprint fits, or `least`; the footprint must grow with the number."""
    low, high = least, most
    while low < high:
        middle = (low + high + 1) // 2
        if make(middle).peak <= now.limit:
            low = middle
        else:
            high = middle - 1
    return low


def _smaller_budget(now: SuggestionInputs) -> Suggestion | None:
    def make(budget: int) -> Footprint:
        return _scaled(now, activations=min(budget, now.largest) / now.largest)

    most = min(now.token_budget, now.largest)
    if now.longest >= most:
        return None
    budget = _best(now, most, now.longest, make)
    return _suggestion(now, "train.token_budget", str(budget), make(budget))


def _checkpointing(now: SuggestionInputs) -> Suggestion | None:
    if now.checkpointed is None or now.checkpointed >= 1:
        return None
    return _suggestion(now, "train.gradient_checkpointing", "True", _scaled(now, activations=now.checkpointed))


def _trunk_on_disk(now: SuggestionInputs) -> Suggestion | None:
    if now.footprint.trunk == 0:
        return None
    return _suggestion(now, "adapt.trunk_memory_gb", "0", dataclasses.replace(now.footprint, trunk=0))


def _layers(now: SuggestionInputs, number: int) -> Footprint:
    share = number / now.adapted_layers
    return dataclasses.replace(_scaled(now, activations=share, adapters=share, training=share), trunk=now.trunk)


def _fewer_layers(now: SuggestionInputs) -> Suggestion | None:
    if now.adapted_layers < 2:
        return None
    number = _best(now, now.adapted_layers - 1, 1, lambda layers: _layers(now, layers))
    return _suggestion(now, "adapt.layers", f"last:{number}", _layers(now, number))


def _members(now: SuggestionInputs, number: int) -> Footprint:
    share = number / now.members
    return _scaled(now, adapters=share, training=share)


def _fewer_members(now: SuggestionInputs) -> Suggestion | None:
    if now.members < 2:
        return None
    number = _best(now, now.members - 1, 1, lambda members: _members(now, members))
    return _suggestion(now, "adapt.members", str(number), _members(now, number))


def _all(now: SuggestionInputs) -> Suggestion:
    """One member on one layer at the smallest budget."""
    share = 1 / (now.members * now.adapted_layers)
    tokens = min(now.longest, now.largest) / now.largest
    shares = {"adapters": share, "training": share, "activations": tokens / now.adapted_layers}
    return _suggestion(now, "all of these", "", dataclasses.replace(_scaled(now, **shares), trunk=0))

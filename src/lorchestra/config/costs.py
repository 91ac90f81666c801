"""What wrong answers and a person cost, from a YAML file.

    ask: 1            # a person answers a row
    wrong: 10         # every confusion that is not listed; optional
    costs:            # ANSWER: {TRUTH: cost of giving this answer where that one is right}
      ham: {spam: 2}

Right answers cost nothing unless they are listed too. Costs are in any one unit, per row.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lorchestra.config.mappings import read_mapping
from lorchestra.errors import ConfigError, did_you_mean

_FIELDS = ("ask", "wrong", "costs")


@dataclass(frozen=True)
class Costs:
    """Cost of each answer for each truth, `matrix[answer][truth]`, and of asking a person; in the order of labels."""

    matrix: tuple[tuple[float, ...], ...]
    ask: float


def read_costs(path: str | Path, labels: Sequence[str]) -> Costs:
    """The costs in a file, for a label set.

    Raises:
        ConfigError: the file cannot be read, a label is unknown, a confusion is missing, a cost is not a number of at
            least 0, or a right answer costs more than a wrong one, as if answers and truths were exchanged.
    """
    return costs_of(read_mapping(path), labels, str(path))


def costs_of(values: Mapping[str, object], labels: Sequence[str], where: str) -> Costs:
    """The costs in a mapping of the file's form; `where` starts the messages.

    Raises:
        ConfigError: as `read_costs`.
    """
    for name in values:
        if name not in _FIELDS:
            raise ConfigError(f"{where}: {name} is unknown; {did_you_mean(str(name), _FIELDS)}")
    if "ask" not in values:
        raise ConfigError(f"{where}: ask is missing: what it costs if a person answers a row")
    ask = _cost(values["ask"], where, "ask")
    default = None if values.get("wrong") is None else _cost(values["wrong"], where, "wrong")
    given = _given(values.get("costs") or {}, labels, where)
    matrix = tuple(tuple(_entry(given, answer, truth, default, where) for truth in labels) for answer in labels)
    for t, truth in enumerate(labels):
        for a, answer in enumerate(labels):
            if matrix[a][t] < matrix[t][t]:
                raise ConfigError(
                    f"{where}: answering {answer!r} where {truth!r} is right costs {matrix[a][t]:g}, less than the"
                    f" right answer ({matrix[t][t]:g}); the first name is the answer, the second the truth: were they"
                    " exchanged?"
                )
    return Costs(matrix, ask)


def _given(costs: object, labels: Sequence[str], where: str) -> dict[tuple[str, str], float]:
    """The listed costs by answer and truth."""
    given: dict[tuple[str, str], float] = {}
    for answer, row in _mapping(costs, where, "costs").items():
        _check_label(answer, labels, where, f"costs.{answer}")
        for truth, value in _mapping(row, where, f"costs.{answer}").items():
            name = f"costs.{answer}.{truth}"
            _check_label(truth, labels, where, name)
            given[answer, truth] = _cost(value, where, name)
    return given


def _entry(given: Mapping[tuple[str, str], float], answer: str, truth: str, default: float | None, where: str) -> float:
    if (answer, truth) in given:
        return given[answer, truth]
    if answer == truth:
        return 0.0
    if default is None:
        raise ConfigError(
            f"{where}: costs.{answer}.{truth} is missing: what it costs to answer {answer!r} where {truth!r} is right;"
            " add it, or wrong: COST for all confusions that are not listed"
        )
    return default


def _mapping(value: object, where: str, name: str) -> dict[str, object]:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where}: {name} is {value!r:.60}, not costs by label, such as ham: {{spam: 2}}")
    return {_label(key): entry for key, entry in value.items()}


def _label(key: object) -> str:
    """A key as it is written: labels may look like numbers."""
    words = {True: "true", False: "false", None: "null"}
    if key is None or isinstance(key, bool):
        return words[key]
    return str(getattr(key, "written", key))


def _check_label(label: str, labels: Sequence[str], where: str, name: str) -> None:
    if label not in labels:
        raise ConfigError(f"{where}: {name}: {label!r} is not a label of the run; {did_you_mean(label, labels)}")


def _cost(value: object, where: str, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise ConfigError(f"{where}: {name} is {value!r:.60}, not a number of at least 0")
    return float(value)

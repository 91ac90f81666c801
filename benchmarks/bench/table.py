"""One table of all that was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from bench.timing import Way, largest_difference

WAYS = {
    "a0": "PEFT, one member after the other (`set_adapter`), padded batches, logits of all positions, as a stock loop"
    " does it",
    "a1": "PEFT, the same with the head at the answer position only",
    "b": "PEFT, a1 with batches of like lengths (in training other rows than a1, and other SGD noise)",
    "c": "PEFT, inference only: `adapter_names`, the rows of a batch of like lengths once for each member in one padded"
    " batch, head as a1",
    "base": "the base without adapters, one pass over the rows, padded batches, head as a1",
    "packed": "lorchestra; on the last third of the layers with the trunk below computed once a row",
}
REFERENCES = ("a0", "a1", "b", "c")
COLUMNS = ("case", "way", "M", "median (least to most)", *(f"over {key}" for key in REFERENCES))


@dataclass(frozen=True)
class Row:
    """A line of the table: a figure, and its ratio to the PEFT ways of the same case."""

    case: str
    way: str
    members: str
    figure: str
    ratios: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Section:
    """What one part of the benchmark adds: lines of the table, sentences below it, and numbers to check."""

    rows: Sequence[Row]
    notes: Sequence[str] = ()
    numbers: Mapping[str, float] = field(default_factory=dict)


def timed_rows(case: str, ways: Sequence[Way]) -> list[Row]:
    """Lines of ways that were timed in turn; each is compared with the PEFT ways on the same layers."""
    rows = []
    for way in ways:
        beside = {other.key: other for other in ways if other.layers == way.layers and other.key in REFERENCES}
        members = str(way.members) if way.key == "packed" else f"any ({way.members})" if beside else ""
        ratios = {key: way.median / other.median for key, other in beside.items()}
        place = case if not way.layers else f"{case}, {way.layers}"
        rows.append(Row(place, way.key, members, way.figure, ratios))
    return rows


def agreement(case: str, what: str, ways: Sequence[Way], keys: Sequence[str]) -> tuple[str, float]:
    """A sentence on how far packed and the PEFT ways of these keys, on the same rows, are apart; and how far."""
    pairs = [
        (one, other)
        for one in ways
        if one.key == "packed"
        for other in ways
        if other.layers == one.layers and other.key in keys
    ]
    differences = {(one.name, other.name): largest_difference(one, other) for one, other in pairs}
    worst = max(differences, key=lambda pair: differences[pair])
    sentence = f"{case}: largest difference of {what} between packed and PEFT, in {len(pairs)} comparisons of ways"
    return f"{sentence}: {differences[worst]:.1e} ({worst[0]} and {worst[1]}).", differences[worst]


def render(title: str, intro: Sequence[str], sections: Sequence[Section]) -> str:
    """The whole file, in Markdown."""
    lines = [f"# {title}", "", *(f"{text}\n" for text in intro)]
    lines += [*(f"- {key}: {meaning}" for key, meaning in WAYS.items()), ""]
    lines += ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    for row in (row for section in sections for row in section.rows):
        ratios = [f"{row.ratios[key]:.2f}" if key in row.ratios else "" for key in REFERENCES]
        lines.append("| " + " | ".join([row.case, row.way, row.members, row.figure, *ratios]) + " |")
    lines += [""] + [f"- {note}" for section in sections for note in section.notes]
    return "\n".join(lines) + "\n"

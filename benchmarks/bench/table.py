"""One table of all measurements."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from bench.timing import Way, largest_difference

WAYS = {
    "a0": "PEFT, one member after the other (`set_adapter`), padded batches, logits of all positions, as in a stock"
    " loop",
    "a1": "PEFT, the same with the head at the answer position only",
    "b": "PEFT, a1 with batches of similar lengths (in training, other rows than a1 and other SGD noise)",
    "c": "PEFT, inference only: `adapter_names`, the rows of a batch of similar lengths once per member in one padded"
    " batch, head as in a1",
    "base": "the base without adapters, one pass over the rows, padded batches, head as in a1",
    "packed": "lorchestra; on the last third of the layers with the trunk below computed once per row",
}
REFERENCES = ("a0", "a1", "b", "c")
COLUMNS = ("case", "way", "M", "median (min to max)", *(f"over {key}" for key in REFERENCES))


@dataclass(frozen=True)
class Row:
    """A line of the table: a figure, and its ratios to the PEFT ways of the same case."""

    case: str
    way: str
    members: str
    figure: str
    ratios: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Section:
    """One part of the benchmark: lines of the table, notes below it, and numbers for checks."""

    rows: Sequence[Row]
    notes: Sequence[str] = ()
    numbers: Mapping[str, float] = field(default_factory=dict)


def timed_rows(case: str, ways: Sequence[Way]) -> list[Row]:
    """Lines of ways timed in turn; each is compared with the PEFT ways on the same layers."""
    rows = []
    for way in ways:
        references = {other.key: other for other in ways if other.layers == way.layers and other.key in REFERENCES}
        members = str(way.members) if way.key == "packed" else f"any ({way.members})" if references else ""
        ratios = {key: way.median / other.median for key, other in references.items()}
        label = case if not way.layers else f"{case}, {way.layers}"
        rows.append(Row(label, way.key, members, way.figure, ratios))
    return rows


def agreement(case: str, what: str, ways: Sequence[Way], keys: Sequence[str]) -> tuple[str, float]:
    """The largest difference between packed and the PEFT ways of these keys on the same rows: sentence and value."""
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
    """The table as Markdown."""
    lines = [f"# {title}", "", *(f"{text}\n" for text in intro)]
    lines += [*(f"- {key}: {meaning}" for key, meaning in WAYS.items()), ""]
    lines += ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    for row in (row for section in sections for row in section.rows):
        ratios = [f"{row.ratios[key]:.2f}" if key in row.ratios else "" for key in REFERENCES]
        lines.append("| " + " | ".join([row.case, row.way, row.members, row.figure, *ratios]) + " |")
    lines += [""] + [f"- {note}" for section in sections for note in section.notes]
    return "\n".join(lines) + "\n"

"""Splits: which rows train, which stop and calibrate, which are only ever tested.

A row is known by its content, not by its place: two rows are duplicates where question and set of choices are equal
after folding of case, spaces and composed characters. What is held out depends on seed and content alone, so
reordering a file moves no row to another split.

Seeded draws of rows with even answers.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from lorchestra.errors import DataError
from lorchestra.nn.seeding import permutation
from lorchestra.types import Example

HELD_OUT_SHARE = 0.1
"""Share of the distinct training rows that each missing split is given, where nothing else is asked for."""

_GIVE = "give a file with --data.{0}, or add rows"


@dataclass(frozen=True)
class SplitReport:
    """What happened on the way to the splits.

    `num_rows` counts each split's rows. `held_out` names the splits taken from the training rows. `dropped` counts the
    rows that left a split because they duplicate a row of another: `{("train", "test"): 3}` left train.
    `repeated` counts the rows of each split that repeat an earlier row of the same split; they stay.
    """

    num_rows: Mapping[str, int]
    held_out: tuple[str, ...] = ()
    dropped: Mapping[tuple[str, str], int] = field(default_factory=dict)
    repeated: Mapping[str, int] = field(default_factory=dict)

    def sentences(self) -> tuple[str, ...]:
        """The same for people, one sentence a fact; empty where there is nothing to say but the sizes."""
        lines = [
            f"{split} is a stratified part of the training rows: {self.num_rows[split]:,} row(s)"
            for split in self.held_out
        ]
        lines += [
            f"{count} row(s) left {loser}, as {keeper} has them too" for (loser, keeper), count in self.dropped.items()
        ]
        lines += [f"{count} row(s) of {split} repeat another of its rows" for split, count in self.repeated.items()]
        return tuple(lines)


def make_splits(
    train: Sequence[Example],
    val: Sequence[Example] | None,
    test: Sequence[Example] | None,
    seed: int,
    *,
    share: float = HELD_OUT_SHARE,
    most: int | None = None,
    stratum: Callable[[Example], str] | None = None,
) -> tuple[dict[str, tuple[Example, ...]], SplitReport]:
    """The splits "train", "val" and "test", disjoint in content, rows in file order.

    A split that is None is held out from the training rows: a `share` of the distinct ones, at most `most`, stratified
    by `stratum`, by default the label (texts with labels) or answer index, rows with equal content together. Between
    given files a duplicate leaves train or validation, never test; between these two it leaves train.

    Raises: DataError where a given split is empty, nothing is left of one, or the rows are too few to hold out.
    """
    given = {"train": train, "val": val, "test": test}
    for split, rows in given.items():
        if rows is not None and not rows:
            raise DataError(f"the {split} split has no rows; {_GIVE.format(split)}")
    splits, dropped = drop_duplicates({split: rows for split, rows in given.items() if rows is not None})
    held_out = tuple(split for split in ("val", "test") if split not in splits)
    if held_out:
        parts = hold_out(splits["train"], held_out, seed, share, stratum, most)
        splits |= parts
    splits = {split: splits[split] for split in ("train", "val", "test")}
    repeated = {split: len(rows) - len({_content(row) for row in rows}) for split, rows in splits.items()}
    report = SplitReport(
        num_rows={split: len(rows) for split, rows in splits.items()},
        held_out=held_out,
        dropped=dropped,
        repeated={split: count for split, count in repeated.items() if count},
    )
    return splits, report


def drop_duplicates(
    given: Mapping[str, Sequence[Example]],
) -> tuple[dict[str, tuple[Example, ...]], dict[tuple[str, str], int]]:
    """The given ones of "train", "val" and "test" made disjoint in content, and how many rows left which for which.

    Raises: DataError where nothing is left of a split.
    """
    dropped: dict[tuple[str, str], int] = {}
    splits = {split: tuple(rows) for split, rows in given.items()}
    for loser, keeper in (("val", "test"), ("train", "test"), ("train", "val")):
        if loser in splits and keeper in splits:
            kept = _without(splits[loser], {_content(row) for row in splits[keeper]})
            if len(kept) < len(splits[loser]):
                dropped[loser, keeper] = len(splits[loser]) - len(kept)
            if not kept:
                message = f"every row left of {loser} is also in {keeper}"
                raise DataError(f"{message}; give other rows with --data.{loser}")
            splits[loser] = kept
    return splits, dropped


def split_digest(examples: Sequence[Example]) -> str:
    """SHA-256, in hex, of the rows in order, each an ASCII line of JSON: `["id", "question", ["choice", ...], answer]`.

    Where a row was read does not count.
    """
    digest = hashlib.sha256()
    for row in examples:
        digest.update(json.dumps([row.id, row.question, row.choices, row.answer]).encode("ascii") + b"\n")
    return digest.hexdigest()


def normalize_text(text: str) -> str:
    """Text with case, runs of spaces and composed characters folded, for finding duplicates.

    Compatibility forms stay apart: "10²" is not "102".
    """
    return " ".join(unicodedata.normalize("NFC", text).casefold().split())


# Rows of texts with labels all share one tuple of choices.
@lru_cache(maxsize=4096)
def _choice_set(choices: tuple[str, ...]) -> list[str]:
    return sorted({normalize_text(choice) for choice in choices})


def num_shared(rows: Sequence[Example], others: Sequence[Example]) -> int:
    """How many of the rows have the content of one of the others: the same question and set of choices."""
    contents = {_content(row) for row in others}
    return sum(_content(row) in contents for row in rows)


def _content(row: Example) -> str:
    """A digest that duplicates share."""
    parts = [normalize_text(row.question), _choice_set(row.choices)]
    return hashlib.sha256(json.dumps(parts).encode("ascii")).hexdigest()


def _without(rows: Sequence[Example], contents: Collection[str]) -> tuple[Example, ...]:
    return tuple(row for row in rows if _content(row) not in contents)


def _answer_stratum(row: Example) -> str:
    return "" if row.answer is None else f"{row.answer:09d}"


def hold_out(
    rows: Sequence[Example],
    names: Sequence[str],
    seed: int,
    share: float = HELD_OUT_SHARE,
    stratum: Callable[[Example], str] | None = None,
    most: int | None = None,
) -> dict[str, tuple[Example, ...]]:
    """A share of the distinct rows dealt to each of `names`, stratified (see `make_splits`), and the rest as "train".

    Raises: DataError where the rows are too few.
    """
    stratum = stratum or _answer_stratum
    strata: dict[str, str] = {}
    contents_of = [_content(row) for row in rows]
    for row, content in zip(rows, contents_of, strict=True):
        own = stratum(row)
        # Duplicates with different answers stay together, in the stratum of the smallest, whatever their order.
        strata[content] = min(strata.get(content, own), own)
    members: dict[str, list[str]] = defaultdict(list)
    for content, own in strata.items():
        members[own].append(content)
    for contents in members.values():
        contents.sort(key=lambda content: _draw(seed, content))
    wanted = round(share * len(strata))
    wanted = wanted if most is None else min(wanted, most)
    # Every label or answer keeps a row to learn from.
    spare = sum(len(contents) - 1 for contents in members.values())
    if wanted < 1 or spare < wanted * len(names):
        message = f"{len(strata)} distinct training rows in {len(members)} label(s) or answer(s) are too few"
        hints = " and ".join(_GIVE.format(name) for name in names)
        raise DataError(f"{message} to hold out {100 * share:g} % for {' and for '.join(names)}; {hints}")
    owner: dict[str, str] = {}
    for name in names:
        for own, count in _quotas(members, wanted, seed).items():
            for content in members[own][:count]:
                owner[content] = name
            members[own] = members[own][count:]
    parts: dict[str, list[Example]] = {name: [] for name in (*names, "train")}
    for row, content in zip(rows, contents_of, strict=True):
        parts[owner.get(content, "train")].append(row)
    return {name: tuple(part) for name, part in parts.items()}


def _draw(seed: int, content: str) -> str:
    return hashlib.sha256(f"{seed}:{content}".encode("ascii")).hexdigest()


def _quotas(members: Mapping[str, Sequence[str]], wanted: int, seed: int) -> dict[str, int]:
    """How many of each stratum's contents make up `wanted`, in proportion; none gives its last one.

    The largest remainders round up, and a seeded draw decides between equal ones. A tenth rounded down never is all of
    a stratum, so that only the rounding up has to spare the last one.
    """
    total = sum(len(contents) for contents in members.values())
    exact = {stratum: wanted * len(contents) / total for stratum, contents in members.items()}
    quotas = {stratum: int(share) for stratum, share in exact.items()}
    by_remainder = sorted(exact, key=lambda stratum: (quotas[stratum] - exact[stratum], _draw(seed, stratum)))
    while sum(quotas.values()) < wanted:
        for stratum in by_remainder:
            if quotas[stratum] < len(members[stratum]) - 1 and sum(quotas.values()) < wanted:
                quotas[stratum] += 1
    return quotas


def draw_stratified(rows: Sequence[Example], number: int, *stream: int | str) -> list[Example]:
    """`number` of the rows, drawn by the seed that `stream` names, with the answers as even as their numbers allow.

    They come dealt in turns, one of each answer; an answer with too few rows leaves its turns to the others.
    """
    by_answer: dict[int | None, list[Example]] = {}
    for place in permutation(len(rows), *stream):
        by_answer.setdefault(rows[place].answer, []).append(rows[place])
    turns = max((len(group) for group in by_answer.values()), default=0)
    dealt = [group[turn] for turn in range(turns) for group in by_answer.values() if turn < len(group)]
    return dealt[:number]

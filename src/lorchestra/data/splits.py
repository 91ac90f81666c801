"""Splits: rows to train on, to stop and calibrate with, and to test on; and draws with balanced answers.

Rows are identified by content, not position: two rows are duplicates if question and set of choices are equal after
folding case, spaces and composed characters. Held-out rows depend on seed and content only, so reordering a file does
not move rows between splits. Rows with typed questions are split by their state: all questions about it are in one
split.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from lorchestra.errors import DataError
from lorchestra.nn.seeding import permutation
from lorchestra.types import Example

HELD_OUT_SHARE = 0.1
"""Default share of the distinct training rows held out for each missing split."""

_GIVE = "give a file with --data.{0}, or add rows"


@dataclass(frozen=True)
class SplitReport:
    """How the splits were made.

    `num_rows` is the number of rows of each split. `held_out` are the splits taken from the training rows. `dropped`
    counts rows removed from a split as duplicates of another split's: `{("train", "test"): 3}` were removed from train.
    `repeated` counts the rows of each split that duplicate an earlier row of the same split; they stay. With typed
    questions `num_states` counts the states of each split, and rows are answers; it is empty for other rows.
    """

    num_rows: Mapping[str, int]
    held_out: tuple[str, ...] = ()
    dropped: Mapping[tuple[str, str], int] = field(default_factory=dict)
    repeated: Mapping[str, int] = field(default_factory=dict)
    num_states: Mapping[str, int] = field(default_factory=dict)

    def sentences(self) -> tuple[str, ...]:
        """The report as sentences for the user; empty if there is nothing to report except the sizes."""
        lines = [f"{split} is a stratified part of the training rows: {self._size(split)}" for split in self.held_out]
        rows, they = ("answer(s)", "their states") if self.num_states else ("row(s)", "they")
        lines += [
            f"{count} {rows} were removed from {loser}, as {they} are also in {keeper}"
            for (loser, keeper), count in self.dropped.items()
        ]
        lines += [f"{count} {rows} of {split} are duplicates within it" for split, count in self.repeated.items()]
        return tuple(lines)

    def _size(self, split: str) -> str:
        if not self.num_states:
            return f"{self.num_rows[split]:,} row(s)"
        return f"{self.num_states[split]:,} state(s) with {self.num_rows[split]:,} answers"


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

    A split that is None is held out from the training rows: a `share` of the distinct rows, at most `most`, stratified
    by `stratum` (default: the label or answer index), with duplicates together. Duplicates across given splits are
    removed from train and validation, never from test; those of train and validation are removed from train. With typed
    questions, share and maximum count states, which are stratified by their rarest answer.

    Raises: DataError if a given split is empty or becomes empty, or there are too few rows to hold out.
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
    repeated = {split: len(rows) - len({_same_answer(row) for row in rows}) for split, rows in splits.items()}
    typed = any(row.asked is not None for row in train)
    report = SplitReport(
        num_rows={split: len(rows) for split, rows in splits.items()},
        held_out=held_out,
        dropped=dropped,
        repeated={split: count for split, count in repeated.items() if count},
        num_states={split: len(set(map(split_key, rows))) for split, rows in splits.items()} if typed else {},
    )
    return splits, report


def drop_duplicates(
    given: Mapping[str, Sequence[Example]],
) -> tuple[dict[str, tuple[Example, ...]], dict[tuple[str, str], int]]:
    """The given splits of "train", "val" and "test", made disjoint in content, and the counts of `SplitReport.dropped`.

    Raises: DataError if no row of a split is left.
    """
    dropped: dict[tuple[str, str], int] = {}
    splits = {split: tuple(rows) for split, rows in given.items()}
    for loser, keeper in (("val", "test"), ("train", "test"), ("train", "val")):
        if loser in splits and keeper in splits:
            kept = _without(splits[loser], set(map(split_key, splits[keeper])))
            if len(kept) < len(splits[loser]):
                dropped[loser, keeper] = len(splits[loser]) - len(kept)
            if not kept:
                message = f"all remaining rows of {loser} are also in {keeper}"
                raise DataError(f"{message}; use other rows for --data.{loser}")
            splits[loser] = kept
    return splits, dropped


def split_digest(examples: Sequence[Example]) -> str:
    """SHA-256, in hex, of the rows in order, each an ASCII line of JSON: `["id", "question", ["choice", ...], answer]`.

    The rows' locations are not included. A line of a typed question ends with what an answer to it depends on.
    """
    digest = hashlib.sha256()
    for row in examples:
        asked = [] if row.asked is None else [row.asked.content]
        digest.update(json.dumps([row.id, row.question, row.choices, row.answer, *asked]).encode("ascii") + b"\n")
    return digest.hexdigest()


def normalize_text(text: str) -> str:
    """Text with case, runs of spaces and composed characters folded, to find duplicates.

    Compatibility characters are not folded: "10²" is not "102".
    """
    return " ".join(unicodedata.normalize("NFC", text).casefold().split())


# all rows of texts with labels share one tuple of choices
@lru_cache(maxsize=4096)
def _choice_set(choices: tuple[str, ...]) -> list[str]:
    return sorted({normalize_text(choice) for choice in choices})


def num_shared(rows: Sequence[Example], others: Sequence[Example]) -> int:
    """Number of rows with the same content (question and set of choices, or state) as one of the others."""
    keys = set(map(split_key, others))
    return sum(split_key(row) in keys for row in rows)


def content_digest(row: Example) -> str:
    """A digest of a row's content, 64 hex digits, that is the same for duplicates."""
    parts = [normalize_text(row.question), _choice_set(row.choices)]
    return hashlib.sha256(json.dumps(parts).encode("ascii")).hexdigest()


def split_key(row: Example) -> str:
    """A digest, 64 hex digits, that is the same for rows which must be in one split: their content, or their state."""
    if row.asked is None:
        return content_digest(row)
    return hashlib.sha256(json.dumps(["state", normalize_text(row.question)]).encode("ascii")).hexdigest()


def _same_answer(row: Example) -> tuple[str, str | None]:
    """Equal for rows that are duplicates."""
    return content_digest(row), None if row.asked is None else row.asked.name


def _without(rows: Sequence[Example], keys: Collection[str]) -> tuple[Example, ...]:
    return tuple(row for row in rows if split_key(row) not in keys)


def _answer_stratum(row: Example) -> str:
    return "" if row.answer is None else f"{row.answer:09d}"


def _rarest_first(rows: Sequence[Example]) -> Callable[[Example], str]:
    """Strata of answers to typed questions, of which the smallest is that of the rarest answer."""

    def answer_of(row: Example) -> str:
        return json.dumps([None if row.asked is None else row.asked.name, row.answer])

    counts = Counter(map(answer_of, rows))
    return lambda row: f"{counts[answer_of(row)]:012d} {answer_of(row)}"


def hold_out(
    rows: Sequence[Example],
    names: Sequence[str],
    seed: int,
    share: float = HELD_OUT_SHARE,
    stratum: Callable[[Example], str] | None = None,
    most: int | None = None,
) -> dict[str, tuple[Example, ...]]:
    """A stratified share of the distinct rows for each of `names` (see `make_splits`), and the rest as "train".

    Raises: DataError if there are too few rows.
    """
    typed = any(row.asked is not None for row in rows)
    stratum = stratum or (_rarest_first(rows) if typed else _answer_stratum)
    stratum_of: dict[str, str] = {}
    keys = [split_key(row) for row in rows]
    for row, key in zip(rows, keys, strict=True):
        # rows of one split with different answers are in the smallest stratum, independent of their order
        name = stratum(row)
        stratum_of[key] = min(stratum_of.get(key, name), name)
    wanted = round(share * len(stratum_of))
    wanted = wanted if most is None else min(wanted, most)
    strata = _strata(stratum_of, seed)
    if typed and _spare(strata) < wanted * len(names):  # many questions about few states
        strata = _strata(dict.fromkeys(stratum_of, ""), seed)
    if wanted < 1 or _spare(strata) < wanted * len(names):
        what = "states" if typed else "training rows"
        message = f"{len(stratum_of)} distinct {what} in {len(strata)} label(s) or answer(s) are too few"
        hints = " and ".join(_GIVE.format(name) for name in names)
        raise DataError(f"{message} to hold out {100 * share:g} % for {' and for '.join(names)}; {hints}")
    split_of: dict[str, str] = {}
    for name in names:
        for answers, count in _quotas(strata, wanted, seed).items():
            split_of |= dict.fromkeys(strata[answers][:count], name)
            strata[answers] = strata[answers][count:]
    parts: dict[str, list[Example]] = {name: [] for name in (*names, "train")}
    for row, key in zip(rows, keys, strict=True):
        parts[split_of.get(key, "train")].append(row)
    return {name: tuple(part) for name, part in parts.items()}


def _strata(stratum_of: Mapping[str, str], seed: int) -> dict[str, list[str]]:
    """The keys of each stratum, in the order in which they are held out."""
    strata: dict[str, list[str]] = defaultdict(list)
    for key, name in stratum_of.items():
        strata[name].append(key)
    for keys in strata.values():
        keys.sort(key=lambda key: _draw(seed, key))
    return strata


def _spare(strata: Mapping[str, Sequence[str]]) -> int:
    """How many keys can be held out if every stratum keeps one to train on."""
    return sum(len(keys) - 1 for keys in strata.values())


def _draw(seed: int, content: str) -> str:
    return hashlib.sha256(f"{seed}:{content}".encode("ascii")).hexdigest()


def _quotas(strata: Mapping[str, Sequence[str]], wanted: int, seed: int) -> dict[str, int]:
    """The number of contents to draw from each stratum: proportional, `wanted` in total, and never all of a stratum.

    The largest remainders are rounded up; a seeded draw breaks ties. A tenth rounded down is never a whole stratum, so
    only rounding up must leave one.
    """
    total = sum(len(contents) for contents in strata.values())
    exact = {stratum: wanted * len(contents) / total for stratum, contents in strata.items()}
    quotas = {stratum: int(share) for stratum, share in exact.items()}
    by_remainder = sorted(exact, key=lambda stratum: (quotas[stratum] - exact[stratum], _draw(seed, stratum)))
    while sum(quotas.values()) < wanted:
        for stratum in by_remainder:
            if quotas[stratum] < len(strata[stratum]) - 1 and sum(quotas.values()) < wanted:
                quotas[stratum] += 1
    return quotas


def draw_stratified(rows: Sequence[Example], number: int, *stream: int | str) -> list[Example]:
    """A random draw of `number` rows, seeded by `stream`, with the answers as balanced as possible.

    Rows are dealt in turns, one of each answer; an answer without rows left is skipped.
    """
    by_answer: dict[int | None, list[Example]] = {}
    for index in permutation(len(rows), *stream):
        by_answer.setdefault(rows[index].answer, []).append(rows[index])
    turns = max((len(group) for group in by_answer.values()), default=0)
    dealt = [group[turn] for turn in range(turns) for group in by_answer.values() if turn < len(group)]
    return dealt[:number]

"""Labels: their spelling, names and order, and warnings about likely mistakes."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import yaml

from lorchestra.data.layouts import show
from lorchestra.data.splits import normalize_text
from lorchestra.errors import ConfigError
from lorchestra.store.safe_paths import typed_path

_INVISIBLE = dict.fromkeys(map(ord, "\u200b\u2060\ufeff\u00ad"))
_JOINERS = "\u200c\u200d"
_INTEGER = re.compile(r"[+-]?\d{1,18}")
_WORDS_FOR_NOTHING = {"nan", "none", "na", "n/a", "null", "nil", "-1", "?", "<na>", "#n/a"}

_SHOWN, _EXAMPLES = 12, 3
# rows of a frequent label; if there is none, a label of a single row is not suspicious
_FREQUENT = 8


def clean_label(label: str) -> str:
    """A label without invisible differences: composed characters, plain spaces, stripped, no zero-width characters."""
    text = unicodedata.normalize("NFC", label).translate(_INVISIBLE)
    return "".join(" " if unicodedata.category(c) == "Zs" else c for c in text).strip().strip(_JOINERS)


def label_order(labels: Iterable[str]) -> list[str]:
    """Distinct labels, sorted by number if all are integers, else by their characters."""
    labels = set(labels)
    if all(_INTEGER.fullmatch(label) for label in labels):
        return sorted(labels, key=lambda label: (int(label), label))
    return sorted(labels)


def label_names(given: Sequence[str]) -> dict[str, str]:
    """Names by label, from `label=name` items or from one YAML or JSON file (a mapping, or a list of names from 0).

    Raises: ConfigError if an item or the file is neither.
    """
    if len(given) == 1 and "=" not in given[0]:
        return _names_in_file(given[0])
    names: dict[str, str] = {}
    for item in given:
        label, mark, name = item.partition("=")
        label, name = clean_label(label), clean_label(name)
        if not mark or not label or not name:
            raise ConfigError(f"--data.label-names: {show(item)} does not have the form label=name, as in 0=negative")
        if names.setdefault(label, name) != name:
            raise ConfigError(f"--data.label-names: {show(label)} has two names, {show(names[label])} and {show(name)}")
    return names


def _names_in_file(value: str) -> dict[str, str]:
    path = typed_path(value)
    try:
        content: object = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, yaml.YAMLError, RecursionError, LookupError, AttributeError) as error:
        message = f"--data.label-names: {show(value)} is neither label=name nor a readable file"
        raise ConfigError(f"{message} ({' '.join(str(error).split())[:200]})") from error
    if isinstance(content, list):
        content = dict(enumerate(content))
    pairs = list(content.items()) if isinstance(content, dict) else []
    if not pairs or not all(
        isinstance(item, str | int) and not isinstance(item, bool) for pair in pairs for item in pair
    ):
        message = f"--data.label-names: {path} is neither a mapping of labels to names nor a list of names"
        raise ConfigError(f"{message}; quote words that YAML reads as true or false (yes, no, on, off)")
    names = {clean_label(str(label)): clean_label(str(name)) for label, name in pairs}
    for label, name in names.items():
        if not label or not name or "=" in label:
            raise ConfigError(f"--data.label-names: {path}: {show(label)}: {show(name)} is not a label with its name")
    return names


@dataclass(frozen=True)
class LabelRules:
    """How the labels of a file become those of the task.

    `known` is the label set of the training rows, None while these are read. With `merge`, labels that differ only in
    case or spaces are merged. `plain` keeps spelling and order as in earlier versions.
    """

    known: tuple[str, ...] | None = None
    names: Mapping[str, str] = field(default_factory=dict)
    merge: bool = False
    plain: bool = False

    def spelled(self, label: str) -> str:
        """A label without invisible differences; unchanged if `plain`."""
        return label if self.plain else clean_label(label)

    def label_set(self, counts: Mapping[str, int]) -> tuple[tuple[str, ...], dict[str, str]]:
        """The label set in order, and the task's label for each spelling in `counts`."""
        if self.known is not None:
            known = {normalize_text(label): label for label in self.known} if self.merge else {}
            return self.known, {label: self._in_known(label, known) for label in counts}
        best: dict[str, str] = {}
        for label in sorted(counts, key=lambda label: (-counts[label], label)):
            best.setdefault(normalize_text(label) if self.merge else label, label)
        merged = {label: best[normalize_text(label)] if self.merge else label for label in counts}
        ordered = sorted(set(merged.values())) if self.plain else label_order(merged.values())
        named = tuple(dict.fromkeys(self.names.get(label, label) for label in ordered))
        if self.names and not all(map(_INTEGER.fullmatch, ordered)):  # named integers stay in order of the integers
            named = tuple(label_order(named))
        return named, {label: self.names.get(spelling, spelling) for label, spelling in merged.items()}

    def _in_known(self, label: str, folded: Mapping[str, str]) -> str:
        named = self.names.get(label, label)
        if self.known is not None and named not in self.known:
            return folded.get(normalize_text(named), named)
        return named


@dataclass
class LabelCensus:
    """Label counts of a training file; for each label also where its first row is, and that row's other cells."""

    path: str
    counts: Counter[str] = field(default_factory=Counter)
    respelled: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)
    nearby: dict[str, list[str]] = field(default_factory=dict)

    def add(self, raw: str, label: str, where: str, others: Iterable[object]) -> None:
        """Count a row's label; `others` are the row's other cells."""
        self.counts[label] += 1
        if raw != label:
            self.respelled[label] += 1
        if self.counts[label] == 1:
            self.first[label] = where
            self.nearby[label] = [clean_label(cell) for cell in others if isinstance(cell, str)]

    def summary(self, labels: Sequence[str], mapped: Mapping[str, str]) -> str:
        """The label set with counts, one sentence."""
        totals: Counter[str] = Counter()
        for label, count in self.counts.items():
            totals[mapped[label]] += count
        shown = ", ".join(f"{show(label)[1:-1]} ({totals[label]:,})" for label in labels[:_SHOWN])
        more = f", and {len(labels) - _SHOWN} more" if len(labels) > _SHOWN else ""
        return f"{self.path}: {sum(totals.values()):,} rows with {len(labels)} labels: {shown}{more}"

    def changes(self, mapped: Mapping[str, str]) -> Iterator[str]:
        """One sentence per change of the labels' spelling."""
        if self.respelled:
            shown = ", ".join(show(label) for label in list(self.respelled)[:_EXAMPLES])
            message = f"{self.path}: {self.respelled.total()} row(s) spell {shown} with invisible differences"
            yield f"{message} (surrounding blanks, zero-width characters, decomposed accents), which are ignored"
        spellings = defaultdict(list)
        for label, merged in mapped.items():
            spellings[merged].append(label)
        for merged, together in spellings.items():
            if len(together) > 1:
                shown = ", ".join(show(label) for label in sorted(together))
                yield f"{self.path}: {shown} are one label, {show(merged)}"

    def remarks(self, labels: Sequence[str], mapped: Mapping[str, str]) -> Iterator[str]:
        """One sentence per likely mistake."""
        yield from self._similar(labels)
        for label in labels:
            if label.strip().lower() in _WORDS_FOR_NOTHING:
                message = f"{self.path}: {self.counts[label]} row(s) have the label {show(label)}, which is a class"
                yield f"{message}; if it means no label, leave these rows out, or use --data.drop-unlabeled"
        yield from self._rare(mapped)
        if len(labels) > 20 and len(labels) * 3 > sum(self.counts.values()):
            message = f"{self.path}: {len(labels):,} labels in {sum(self.counts.values()):,} rows"
            yield f"{message}; is --data.fields.label the column of the class?"

    def _similar(self, labels: Sequence[str]) -> Iterator[str]:
        seen: dict[str, str] = {}
        for label in labels:
            other = seen.setdefault(" ".join(label.lower().split()), label)
            if other != label:
                message = f"{self.path}: labels {show(other)} and {show(label)} differ only in case or spaces"
                yield f"{message}; if they are the same, --data.clean-labels merges them"

    def _rare(self, mapped: Mapping[str, str]) -> Iterator[str]:
        """Labels of a single row among frequent ones: typos, and cells that slipped into the wrong column."""
        frequent = [label for label, count in self.counts.items() if count >= _FREQUENT]
        single = [label for label, count in self.counts.items() if count == 1 and mapped[label] == label]
        num_reported = 0
        for label in single if frequent else ():
            near = next((other for other in frequent if _one_edit(label, other)), None)
            slipped = next((other for other in self.nearby[label] if other in frequent), None)
            message = f"{self.first[label]}: only this row has the label {show(label)}"
            if slipped is not None:
                yield f"{message}, and another of its cells is {show(slipped)}: an unquoted delimiter in the text?"
            elif near is not None:
                yield f"{message}, which is close to {show(near)}; if it is a typo: --data.label-names {label}={near}"
            elif len(single) <= _EXAMPLES:
                yield f"{message}; if it is not a class, correct it or leave the row out"
            else:
                continue
            num_reported += 1
            if num_reported == 2 * _EXAMPLES:
                break
        if len(single) > num_reported and frequent and len(single) > _EXAMPLES:
            yield f"{self.path}: {len(single)} labels have only one row"


def _one_edit(one: str, other: str) -> bool:
    """Whether labels (not numbers) differ by one letter added, removed or changed, or by two swapped neighbors."""
    if abs(len(one) - len(other)) > 1 or max(len(one), len(other)) < 2 or one.isdigit() or other.isdigit():
        return False
    one, other = one.casefold(), other.casefold()
    start = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    a, b = one[start:], other[start:]
    return a[1:] == b[1:] or a[1:] == b or a == b[1:] or (a[:2] == b[1::-1] and a[2:] == b[2:] and len(a) > 1)


def contradictions(rows: Iterable[tuple[str, str, str]], path: str, part: str) -> Iterator[str]:
    """One sentence if the same text has several answers, with examples.

    Args:
        rows: text, answer and location of each row.
        path: the file.
        part: label or answer.
    """
    first: dict[bytes, str] = {}
    differing: dict[bytes, tuple[str, str, str]] = {}
    num = 0
    for text, answer, where in rows:
        key = hashlib.blake2b(normalize_text(text).encode("utf-8", "replace"), digest_size=16).digest()
        if first.setdefault(key, answer) != answer:
            num += 1
            if len(differing) < _EXAMPLES:
                differing.setdefault(key, (text, answer, where))
    if num:
        shown = "; ".join(
            f"{show(text)} ({show(first[key])}, and {show(answer)} at {where})"
            for key, (text, answer, where) in differing.items()
        )
        yield f"{path}: {num} row(s) have a different {part} than an earlier row with the same text: {shown}"

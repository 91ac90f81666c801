"""The arms: which members, draws or methods are mixed, and what they cost.

An arm has one or more replicates, such as four disjoint ensembles of five from twenty members; its metrics are their
mean. Every replicate has one temperature, and whatever is chosen is chosen, on the validation rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from lorchestra.metrics.predictive import FloatArray, apply_temperature, fit_temperature, mixture_log_probs
from lorchestra.metrics.scores import RowScores, nll, score_rows
from lorchestra.metrics.selection import greedy_selection
from lorchestra.metrics.temperature import regularized_temperature

from .trainings import DECAYS, DEPTH_MEMBERS, DEPTHS, POOL, Cell, Experiment, M, Members, depth_name

FROZEN_WEIGHTS = (0.0, 0.25, 0.5, 0.75)
"""Weights of the classifier on frozen states that are tried."""


@dataclass(frozen=True)
class Arm:
    """One line of a table: its replicates, and its cost in units of one LoRA."""

    key: str
    title: str
    trained: float
    """Trainings of one LoRA; the search of a strength is not counted."""
    served: float
    """Passes through the adapted layers per answer."""
    replicates: tuple[Members, ...]

    def scores(self) -> list[RowScores]:
        """The scaled mixture's scores of the test rows, per replicate."""
        return [score_rows(scaled(one), one.test_labels) for one in self.replicates]


def scaled(members: Members) -> FloatArray:
    """The mixture of the test rows `[E, C]`, with the temperature of the validation rows."""
    val = mixture_log_probs(members.val)
    fitted = regularized_temperature(val, members.val_labels, members.options)
    return apply_temperature(mixture_log_probs(members.test), fitted.T or 1.0)


def scaled_nll(members: Members) -> float:
    """NLL of the validation rows with the temperature that is best for them, which chooses among candidates."""
    val = mixture_log_probs(members.val)
    return nll(apply_temperature(val, fit_temperature(val, members.val_labels)), members.val_labels)


def some(members: Members, chosen: Sequence[int]) -> Members:
    """Some of the members, in this order; one may occur several times."""
    indices = list(chosen)
    return Members(
        members.val[indices], members.test[indices], members.val_labels, members.test_labels, members.options
    )


def joined(*parts: Members) -> Members:
    """The members of several parts as one ensemble."""
    first = parts[0]
    val, test = (np.concatenate([getattr(part, split) for part in parts]) for split in ("val", "test"))
    return Members(val, test, first.val_labels, first.test_labels, first.options)


def groups(members: Members, size: int) -> tuple[Members, ...]:
    """Disjoint ensembles of so many members."""
    return tuple(some(members, range(start, start + size)) for start in range(0, len(members.val) - size + 1, size))


def blended(members: Members, other: Members, weight: float) -> Members:
    """The members' mixture and another's, which gets this weight, as one distribution."""

    def blend(split: str) -> FloatArray:
        ours, others = (mixture_log_probs(getattr(one, split)) for one in (members, other))
        with np.errstate(divide="ignore"):
            weights = np.log([1 - weight, weight])
        return np.logaddexp(ours + weights[0], others + weights[1])[None]

    labels = members.val_labels, members.test_labels
    return Members(blend("val"), blend("test"), *labels, members.options)


def greedy(members: Members, size: int) -> Members:
    """So many members with repetition, each the one that lowers the mixture's validation NLL most."""
    return some(members, greedy_selection(members.val, members.val_labels, num_rounds=size).order)


def arms_of(experiment: Experiment, cell: Cell) -> list[Arm]:
    """The arms of a cell as far as they are trained."""

    def read(stage: str, name: str) -> Members | None:
        return experiment.read(cell, stage, name)

    pool = read("plain", "pool")
    assert pool is not None
    return [
        *_plain(pool),
        *_heads(read),
        *_with_frozen(pool, read),
        *_regularized(pool, read),
        *_others(read),
        *_mixed(pool, read),
        *_depths(pool, read),
    ]


Read = Callable[[str, str], Members | None]


def _plain(pool: Members) -> Iterator[Arm]:
    """One LoRA and ensembles of several sizes."""
    yield Arm("one", "one LoRA", 1, 1, groups(pool, 1))
    best = tuple(min(groups(five, 1), key=scaled_nll) for five in groups(pool, M))
    yield Arm("best", f"one LoRA, the best of {M} by validation", M, 1, best)
    for size in (2, M, 10, POOL):
        yield Arm(f"ensemble{size}", f"ensemble of {size}", size, size, groups(pool, size))


def _heads(read: Read) -> Iterator[Arm]:
    part = read("heads", "heads")
    if part is not None:
        yield Arm("one-heads", "one LoRA with a classification head", 1, 1, groups(part, 1))
        yield Arm("heads", "ensemble, classification heads", M, M, (part,))


def _with_frozen(pool: Members, read: Read) -> Iterator[Arm]:
    """Members mixed with the logistic regression on frozen states, whose weight is chosen by validation."""
    frozen = read("methods", "frozen")
    if frozen is None:
        return

    def chosen(members: Members) -> Members:
        return min((blended(members, frozen, weight) for weight in FROZEN_WEIGHTS), key=scaled_nll)

    yield Arm("one-frozen", "one LoRA with frozen states", 1, 1, tuple(map(chosen, groups(pool, 1))))
    for size in (M, POOL):
        title = f"ensemble of {size} with frozen states"
        yield Arm(f"ensemble{size}-frozen", title, size, size, tuple(map(chosen, groups(pool, size))))


def _regularized(pool: Members, read: Read) -> Iterator[Arm]:
    parts = {strength: read("regularized", f"decay{strength}") for strength in DECAYS}
    for strength, part in parts.items():
        if part is not None:
            yield Arm(f"decay{strength}", f"ensemble, decay of B {strength}", M, M, (part,))
            yield Arm(f"one-decay{strength}", f"one LoRA, decay of B {strength}", 1, 1, groups(part, 1))
    trained = [part for part in parts.values() if part is not None]
    if trained:
        best = min([groups(pool, M)[0], *trained], key=scaled_nll)
        yield Arm("decay", "ensemble, decay of B by validation (or none)", M, M, (best,))
    for name in ("kl0.1", "kl1"):
        part = read("regularized", name)
        if part is not None:
            yield Arm(name, f"ensemble, KL to the base {name[2:]}", M, M, (part,))


def _others(read: Read) -> Iterator[Arm]:
    """Controls of equal cost, other methods, and classifiers without adapters."""
    rows = [
        ("controls", "long", f"one LoRA, {M} times as long", M, 1),
        ("controls", "rank40", f"one LoRA, {M} times the rank", 1, 1),
        ("methods", "soup", "weight average", M, 1),
        ("methods", "snapshot", "snapshots", 1, M),
        ("methods", "swag", "SWAG", 1, M),
        ("methods", "laplace", "Laplace (diagonal)", 1, 1),
        ("methods", "batch_ensemble", "BatchEnsemble", M, M),
        ("methods", "last_layer", "last-layer ensemble", M, M),
        ("methods", "mc_dropout:dropout=0.1", "MC dropout", 1, M),
        ("methods", "blob", "BLoB", 1, M),
        ("methods", "tfidf", "TF-IDF + logistic regression", 0, 0),
        ("methods", "frozen", "frozen states + logistic regression", 0, 0),
        ("methods", "zero_shot", "the base, zero-shot", 0, 1),
    ]
    for stage, name, title, trained, served in rows:
        part = read(stage, name)
        if part is not None:
            yield Arm(name.partition(":")[0], title, trained, served, (part,))


def _depths(pool: Members, read: Read) -> Iterator[Arm]:
    """Ensembles of `DEPTH_MEMBERS` on more layers, at the rate that is best by validation."""
    yield Arm("depth-last6", "last 6 layers", DEPTH_MEMBERS, DEPTH_MEMBERS, groups(pool, DEPTH_MEMBERS))
    for layers, rates in DEPTHS.items():
        parts = [part for lr in rates if (part := read("depth", depth_name(layers, lr))) is not None]
        if len(parts) == len(rates):
            title = f"{layers.replace(':', ' ')} layers, best of {len(rates)} rates"
            yield Arm(f"depth-{layers}", title, DEPTH_MEMBERS, DEPTH_MEMBERS, (min(parts, key=scaled_nll),))


def _mixed(pool: Members, read: Read) -> Iterator[Arm]:
    """Ensembles whose members differ in more than a seed, all of `M` members."""
    for name, title in (
        ("bootstrap", "bootstrap rows"),
        ("folds", "each without another fifth of the rows"),
        ("scaled-a", "A five times as large"),
        ("random-b", "random B at the start (0.02)"),
        ("dropout", "dropout 0.1"),
    ):
        part = read("varied", name)
        if part is not None:
            yield Arm(name, title, M, M, (part,))
    pairs = {
        "ranks": ("ranks 2, 2, 8, 32, 32", "rank2", "rank32"),
        "rates": ("rates x 1/2, 1/2, 1, 2, 2", "lr-half", "lr-double"),
        "layers": ("layers last 3, 3, 6, 12, 12", "last3", "last12"),
        "maps": ("maps q+v, 2 k+o, 2 up+down", "maps-ko", "maps-mlp"),
    }
    plain = some(pool, [0])
    everything = [plain]
    for key, (title, *names) in pairs.items():
        parts = [part for name in names if (part := read("varied", name)) is not None]
        if len(parts) == len(names):
            yield Arm(key, title, M, M, (joined(plain, *parts),))
            everything.append(some(parts[-1], [0]))
    prompts = [part for index in range(3) if (part := read("prompts", f"prompt{index}")) is not None]
    if len(prompts) == 3:
        yield Arm("prompts", "four wordings, one twice", M, M, (joined(some(pool, [0, 1]), *prompts),))
        everything.append(prompts[0])
    if len(everything) > M:
        yield Arm("everything", "rank, rate, layers, maps and wording", M, M, (joined(*everything[1:]),))
    yield Arm("greedy", f"{M} of {POOL} chosen by validation", POOL, M, (greedy(pool, M),))

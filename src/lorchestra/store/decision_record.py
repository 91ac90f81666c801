"""The part of `calibration.json` that says how answers are decided: thresholds with their certificates, and sets."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from lorchestra.errors import CheckpointError
from lorchestra.metrics.conformal import METHODS
from lorchestra.metrics.decisions import Decisions
from lorchestra.metrics.monitoring import NUMBERS, Profile
from lorchestra.metrics.ranking import SIMPLE, Score
from lorchestra.store.schema import COUNT, NUMBER_OR_NULL, Each, Number, Pair, Shape
from lorchestra.types import Json

SHARE = Number(0, 1)
_SCORE = set(get_args(Score))
CERTIFICATE: dict[str, Shape] = {
    "class": (str, None),
    "threshold": NUMBER_OR_NULL,
    "coverage": SHARE,
    "coverage_interval": (Pair(SHARE), None),
    "error_bound": (SHARE, None),
    "errors": COUNT,
    "num_automated": COUNT,
    "num_rows": COUNT,
    "target_error": SHARE,
    "confidence": SHARE,
    "error_of": {"automated", "all"},
    "reason": (str, None),
    "rows_needed": (COUNT, None),
}
ROWS: dict[str, Shape] = {
    "source": str,
    "num_rows": COUNT,
    "num_reference": COUNT,
    "date": str,
    "look": COUNT,
    "num_repeated": COUNT,
    "earlier_risk": Number(0),
}
_COMBINED: dict[str, Shape] = {
    "means": [Number()],
    "scales": [Number()],
    "weights": [Number()],
    "intercept": Number(),
    "num_rows": COUNT,
}
_SETS: dict[str, Shape] = {
    "method": set(METHODS),
    "alpha": SHARE,
    "quantiles": [NUMBER_OR_NULL],
    "num_rows": [COUNT],
    "penalty": Number(0),
    "free_ranks": COUNT,
}
_POLICY: dict[str, Shape] = {
    "policy": str,
    "per_1000": Number(0),
    "interval": Pair(Number(0)),
    "expected_per_1000": Number(0),
    "share_asked": SHARE,
}
_COSTS: dict[str, Shape] = {
    "labels": [str],
    "costs": [[Number(0)]],
    "ask": Number(0),
    "confidence": SHARE,
    "policies": [_POLICY],
}
_CASCADE: dict[str, Shape] = {
    "num_first": COUNT,
    "num_members": COUNT,
    "first_threshold": NUMBER_OR_NULL,
    "second_threshold": NUMBER_OR_NULL,
    "share_first": SHARE,
    "share_second": SHARE,
    "mean_members": Number(0),
    "members_interval": Pair(Number(0)),
}
DECISIONS: dict[str, Shape] = {
    "score": _SCORE,
    "choice": {"score": _SCORE, "aurc": Each(Number(0)), "gain": Each(Pair(Number())), "reason": str},
    "rows": ROWS,
    "certificates": [CERTIFICATE],
    "combined": (_COMBINED, None),
    "sets": (_SETS, None),
    "set_sizes": ({"one": SHARE, "several": SHARE, "none": SHARE, "mean": Number(0)}, None),
    "costs": (_COSTS, None),
    "rows_digest": str,
    "row_digests": [str],
    "earlier_row_digests": [str],
    "cascade?": (_CASCADE, None),
    "reference?": (
        {
            "source": str,
            "numbers": {name: [Number()] for name in NUMBERS},
            "predicted": [COUNT],
            "losses": [Number()],
        },
        None,
    ),
}
"""The shape of `SavedDecisions.to_dict`."""


@dataclass(frozen=True)
class SavedDecisions:
    """Decisions, with digests of the content (`data.splits.content_digest`) of the rows that certified them.

    `earlier_row_digests` are those of rows that certified something for this run before, and are not among these.
    `reference` has what the model says about the certifying rows, with which later rows are compared.
    """

    decisions: Decisions
    row_digests: tuple[str, ...]
    earlier_row_digests: tuple[str, ...] = ()
    reference: Profile | None = None

    @property
    def seen(self) -> frozenset[str]:
        """Digests of all rows that have ever certified something for this run."""
        return frozenset(self.row_digests) | frozenset(self.earlier_row_digests)

    def to_dict(self) -> Json:
        """As `calibration.json` has it."""
        return self.decisions.to_dict() | {
            "rows_digest": hashlib.sha256("".join(self.row_digests).encode("ascii")).hexdigest(),
            "row_digests": list(self.row_digests),
            "earlier_row_digests": list(self.earlier_row_digests),
            "reference": None if self.reference is None else self.reference.to_dict(),
        }


def read_decisions(values: Json, path: Path, field: str) -> SavedDecisions:
    """Decisions of the shape `DECISIONS`.

    Raises:
        CheckpointError: their parts do not fit each other.
    """
    fault = _fault(values)
    if fault is not None:
        raise CheckpointError(f"{path}: {field}: {fault}; the file was changed or damaged")
    return SavedDecisions(
        Decisions.from_dict(_without_unknown(values)),
        tuple(values["row_digests"]),
        tuple(values["earlier_row_digests"]),
        None if values.get("reference") is None else Profile.from_dict(values["reference"]),
    )


def _fault(values: Json) -> str | None:
    """What does not fit, as a clause."""
    names = [one["class"] for one in values["certificates"]]
    combined, sets = values["combined"], values["sets"]
    if not names or (None in names and len(names) > 1):
        return "certificates are neither one for all rows nor one per class"
    if (combined is None) == (values["score"] == "combined"):
        return f"score is {values['score']}, and combined is {'missing' if combined is None else 'given'}"
    if combined is not None and {len(combined[name]) for name in ("means", "scales", "weights")} != {len(SIMPLE)}:
        return f"combined does not have {len(SIMPLE)} means, scales and weights"
    if combined is not None and min(combined["scales"]) <= 0:
        return "combined has a scale that is not above 0"
    if sets is not None and (not sets["quantiles"] or len(sets["quantiles"]) != len(sets["num_rows"])):
        return "sets do not have as many quantiles as num_rows"
    if (fault := _cascade_fault(values)) is not None:
        return fault
    reference = values.get("reference")
    if reference is not None and len({len(column) for column in reference["numbers"].values()}) > 1:
        return "reference does not have the same rows in all of its numbers"
    if values["rows"]["num_rows"] != len(values["row_digests"]):
        return f"rows.num_rows is {values['rows']['num_rows']}, but there are {len(values['row_digests'])} row_digests"
    return None


def _cascade_fault(values: Json) -> str | None:
    cascade = values.get("cascade")
    if cascade is None:
        return None
    if not 0 < cascade["num_first"] < cascade["num_members"]:
        return f"cascade.num_first is {cascade['num_first']}, and num_members {cascade['num_members']}"
    (first, *others) = values["certificates"]
    if others or first["class"] is not None or values["score"] != "max_prob" or values["sets"] is not None:
        return "a cascade has one certificate, the score max_prob and no sets"
    has_none = cascade["first_threshold"] is None and cascade["second_threshold"] is None
    if has_none != (first["threshold"] is None):
        return "cascade and certificate do not agree on whether there is a threshold"
    return None


def _without_unknown(values: Json) -> Json:
    """The values without fields of later versions."""
    known = {name: values[name] for name in DECISIONS if not name.endswith("?")}
    for name, shape in (("rows", ROWS), ("combined", _COMBINED), ("sets", _SETS)):
        if known[name] is not None:
            known[name] = {part: known[name][part] for part in shape}
    if values.get("cascade") is not None:
        known["cascade"] = {part: values["cascade"][part] for part in _CASCADE}
    known["choice"] = {name: known["choice"][name] for name in ("score", "aurc", "gain", "reason")}
    known["certificates"] = [{name: one[name] for name in CERTIFICATE} for one in known["certificates"]]
    return known

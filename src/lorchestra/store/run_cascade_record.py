"""The part of a run's `calibration.json` that has its cascade with a second run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lorchestra.errors import CheckpointError
from lorchestra.metrics.run_cascade import RunCascade
from lorchestra.store.decision_record import CERTIFICATE, ROWS, SHARE
from lorchestra.store.schema import NUMBER_OR_NULL, Number, Pair, Shape
from lorchestra.types import Json

_CERTIFICATE = {name: shape for name, shape in CERTIFICATE.items() if name != "class"}
RUN_CASCADE: dict[str, Shape] = {
    "second": str,
    "calibrations": str,
    "certificate": _CERTIFICATE,
    "rows": ROWS,
    "first_threshold": NUMBER_OR_NULL,
    "second_threshold": NUMBER_OR_NULL,
    "share_first": SHARE,
    "share_second": SHARE,
    "seconds": Pair(Number(0)),
    "mean_seconds": Number(0),
    "seconds_interval": Pair(Number(0)),
    "row_digests": [str],
    "earlier_row_digests": [str],
}
"""The shape of `SavedRunCascade.to_dict`."""


@dataclass(frozen=True)
class SavedRunCascade:
    """A cascade with a second run, with digests of the rows that certified it and of those that certified before."""

    cascade: RunCascade
    row_digests: tuple[str, ...]
    earlier_row_digests: tuple[str, ...] = ()

    @property
    def seen(self) -> frozenset[str]:
        """Digests of all rows that had certified something for the first run by then."""
        return frozenset(self.row_digests) | frozenset(self.earlier_row_digests)

    def to_dict(self) -> Json:
        """As `calibration.json` has it."""
        digests = {"row_digests": list(self.row_digests), "earlier_row_digests": list(self.earlier_row_digests)}
        return self.cascade.to_dict() | digests


def read_run_cascade(values: Json, path: Path, field: str) -> SavedRunCascade:
    """A cascade of the shape `RUN_CASCADE`.

    Raises:
        CheckpointError: its parts do not fit each other.
    """
    has_none = values["first_threshold"] is None and values["second_threshold"] is None
    if has_none != (values["certificate"]["threshold"] is None):
        raise CheckpointError(
            f"{path}: {field}: thresholds and certificate do not agree on whether there are any; the file was changed"
            " or damaged"
        )
    known = values | {
        "certificate": {name: values["certificate"][name] for name in _CERTIFICATE},
        "rows": {name: values["rows"][name] for name in ROWS},
    }
    digests = (tuple(values[name]) for name in ("row_digests", "earlier_row_digests"))
    return SavedRunCascade(RunCascade.from_dict(known), *digests)

"""`distill.json`: which ensemble taught a run's only member, on which rows, and how well it learned.

Written when the run starts, and again with its result when the run is finished.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from lorchestra.config.distill import DistillConfig
from lorchestra.errors import CheckpointError
from lorchestra.store.schema import COUNT, NUMBER_OR_NULL, Number, Shape, read_json
from lorchestra.types import Json

FORMAT_VERSION = 1

_SHAPE: Shape = {
    "format_version": int,
    "source": str,
    "ensemble": str,
    "calibration": str,
    "num_members": COUNT,
    "distill": {"direction": {"forward", "reverse"}, "answers_weight": Number(0)},
    "num_train": COUNT,
    "unlabeled": ({"source": str, "digest": str, "row_digests": [str]}, None),
    "result": (
        {
            "val_kl": NUMBER_OR_NULL,
            "strength": Number(0),
            "num_rows": COUNT,
            "correlation": NUMBER_OR_NULL,
            "r_squared": NUMBER_OR_NULL,
        },
        None,
    ),
}


@dataclass(frozen=True)
class UnlabeledRecord:
    """Further rows that the member was taught on: the file's name, the digest of all rows, and that of each content
    (`data.splits.content_digest`); rows that are to certify something must not be among them."""

    source: str
    digest: str
    row_digests: tuple[str, ...]


@dataclass(frozen=True)
class DistillResult:
    """How well the member learned, on the validation rows.

    `val_kl` is the mean KL divergence of the member, as it is, from the calibrated ensemble, in nats; the other fields
    are of the head that predicts mutual information (see `metrics.information.InformationFit`).
    """

    val_kl: float | None
    strength: float
    num_rows: int
    correlation: float | None
    r_squared: float | None

    def sentence(self) -> str:
        """The result in one sentence."""
        rank = "not defined" if self.correlation is None else f"{self.correlation:.2f}"
        kl = "" if self.val_kl is None else f"{self.val_kl:.4f} nats from the calibrated ensemble in the mean (KL); "
        return (
            f"on the validation rows, {kl}rank correlation of predicted and true mutual information {rank}"
            f" (head fitted on {self.num_rows:,} rows)"
        )


@dataclass(frozen=True)
class DistillRecord:
    """Where a distilled run comes from."""

    source: str
    """The directory of the ensemble's run, for people."""
    ensemble: str
    """Its digest (`EnsembleRecord.digest`)."""
    calibration: str
    """Digest of its calibration."""
    num_members: int
    distill: DistillConfig
    num_train: int
    """Its training rows."""
    unlabeled: UnlabeledRecord | None
    result: DistillResult | None = None

    def sentence(self) -> str:
        """Where the run comes from, in one line."""
        rows = f"{self.num_train:,} training rows"
        if self.unlabeled is not None:
            rows += f" and {len(self.unlabeled.row_digests):,} rows of {self.unlabeled.source}"
        direction = "KL(ensemble || member)" if self.distill.direction == "forward" else "KL(member || ensemble)"
        answers = f" + {self.distill.answers_weight:g} x cross-entropy" if self.distill.answers_weight else ""
        return (
            f"one LoRA, taught by the calibrated mixture of {self.num_members} members (digest {self.ensemble[:12]}) on"
            f" {rows}, {direction}{answers}; mutual information is predicted, not computed from members"
        )

    def to_dict(self) -> Json:
        """The record as `distill.json` has it."""
        return {"format_version": FORMAT_VERSION, **dataclasses.asdict(self)}

    @classmethod
    def read(cls, path: Path) -> DistillRecord:
        """The record in a file.

        Raises:
            CheckpointError: it is missing, damaged or of another format version.
        """
        values = read_json(path, _SHAPE)
        if values.pop("format_version") != FORMAT_VERSION:
            raise CheckpointError(f"{path}: is of another format version; use the version of lorchestra that wrote it")
        unlabeled, result = values["unlabeled"], values["result"]
        if unlabeled is not None:
            unlabeled = UnlabeledRecord(unlabeled["source"], unlabeled["digest"], tuple(unlabeled["row_digests"]))
        names = [field.name for field in dataclasses.fields(cls)[:-2]]
        fields: Json = {name: values[name] for name in names}
        fields["distill"] = DistillConfig(**{name: values["distill"][name] for name in ("direction", "answers_weight")})
        if result is not None:
            result = DistillResult(**{field.name: result[field.name] for field in dataclasses.fields(DistillResult)})
        return cls(**fields, unlabeled=unlabeled, result=result)

"""A run's certificates as `/v1/x_runs` reports them."""

from __future__ import annotations

from lorchestra.metrics.decisions import Decisions
from lorchestra.report.decisions import sentences


def certificate_entry(decisions: Decisions) -> dict[str, object]:
    """The guarantee in sentences, and per certificate (one, or one per predicted class) its numbers."""
    names = (None,) * len(decisions.certificates) if decisions.classes is None else decisions.classes
    keys = ("target_error", "confidence", "error_of", "coverage", "num_automated", "num_rows", "threshold", "reason")
    certificates = [
        {"class": name, **{key: getattr(one, key) for key in keys}}
        for name, one in zip(names, decisions.certificates, strict=True)
    ]
    guarantee, *more = sentences(decisions)
    return {"guarantee": guarantee, "sentences": more, "certificates": certificates}

"""`linear_probe.safetensors`: the classifier of frozen states that a run's members are mixed with.

Format 1: float64 tensors `mean` and `scale` `[F]`, `weights` `[S, F]`, `intercepts` `[S]`, `shares` `[2]` (the
probability of a label without training rows, and the probe's weight in the mixture); int64 `seen` `[S]` (labels with
training rows) and `layers` `[L]`; metadata `format_version`. `ensemble.json` has the file's checksum.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lorchestra.errors import CheckpointError
from lorchestra.metrics.linear_probe import LinearProbe
from lorchestra.store.arrays import check_floats, read_arrays, write_arrays

FORMAT_VERSION = "1"


def write_linear_probe(path: Path, probe: LinearProbe) -> str:
    """Write a probe; returns the SHA-256 of the file.

    Raises:
        CheckpointError: it cannot be written.
    """
    arrays = {
        "mean": probe.mean_F,
        "scale": probe.scale_F,
        "weights": probe.weights_SF,
        "intercepts": probe.intercepts_S,
        "shares": np.array([probe.unseen, probe.weight]),
        "seen": probe.seen_S,
        "layers": np.array(probe.layers, dtype=np.int64),
    }
    return write_arrays(path, arrays, FORMAT_VERSION)


def read_linear_probe(path: Path, sha256: str, num_labels: int, num_layers: int, hidden_size: int) -> LinearProbe:
    """The probe in a file.

    Args:
        path: the file, a path from `safe_paths.inside`.
        sha256: its checksum in the run's record.
        num_labels: C.
        num_layers: decoder layers of the base.
        hidden_size: width of its states.

    Raises:
        CheckpointError: it is missing, changed or damaged, or does not fit the run.
    """
    arrays, _ = read_arrays(path, sha256, FORMAT_VERSION)
    for name, limit in {"seen": num_labels, "layers": num_layers}.items():
        values = arrays.get(name, np.zeros(0))
        fits = values.ndim == 1 and values.dtype == np.int64 and 0 < len(values) <= limit
        ascending = fits and bool((np.diff(values.astype(np.int64)) > 0).all())
        if not ascending or values.min() < 0 or values.max() >= limit:
            raise CheckpointError(f"{path}: {name} is not ascending numbers from 0 to {limit - 1}; copy the run again")
    seen, layers = (arrays[name].astype(np.int64) for name in ("seen", "layers"))
    width, count = len(layers) * hidden_size, len(seen)
    shapes = {"mean": (width,), "scale": (width,), "weights": (count, width), "intercepts": (count,), "shares": (2,)}
    check_floats(path, arrays, shapes)
    mean, scale, weights, intercepts, shares = (arrays[name].astype(np.float64) for name in shapes)
    unseen, weight = map(float, shares)
    if not 0 < weight < 1 or not 0 < unseen < 1:
        raise CheckpointError(f"{path}: shares are not between 0 and 1; copy the run again")
    return LinearProbe(tuple(layers.tolist()), mean, scale, weights, intercepts, seen, num_labels, unseen, weight)

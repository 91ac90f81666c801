"""`information.safetensors`: the head with which a distilled run predicts mutual information.

Format 1: float64 tensors `mean`, `scale`, `weights`, each `[D]`, and `intercept` `[1]`; metadata `format_version`. D is
the width of the base's hidden states and one more. `ensemble.json` has the file's checksum.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lorchestra.metrics.information import InformationHead
from lorchestra.store.arrays import check_floats, read_arrays, write_arrays

FORMAT_VERSION = "1"


def write_information(path: Path, head: InformationHead) -> str:
    """Write a head; returns the SHA-256 of the file.

    Raises:
        CheckpointError: it cannot be written.
    """
    arrays = {"mean": head.mean_D, "scale": head.scale_D, "weights": head.weights_D}
    return write_arrays(path, arrays | {"intercept": np.array([head.intercept])}, FORMAT_VERSION)


def read_information(path: Path, sha256: str, num_features: int) -> InformationHead:
    """The head in a file.

    Args:
        path: the file, a path from `safe_paths.inside`.
        sha256: its checksum in the run's record.
        num_features: D.

    Raises:
        CheckpointError: it is missing, changed or damaged, or has another format version or width.
    """
    arrays, _ = read_arrays(path, sha256, FORMAT_VERSION)
    check_floats(path, arrays, dict.fromkeys(("mean", "scale", "weights"), (num_features,)) | {"intercept": (1,)})
    mean, scale, weights = (arrays[name].astype(np.float64) for name in ("mean", "scale", "weights"))
    return InformationHead(mean, scale, weights, float(arrays["intercept"].astype(np.float64)[0]))

"""`information.safetensors`: the head with which a distilled run predicts mutual information.

Format 1: float64 tensors `mean`, `scale`, `weights`, each `[D]`, and `intercept` `[1]`; metadata `format_version`. D is
the width of the base's hidden states and one more. `ensemble.json` has the file's checksum.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from lorchestra.errors import CheckpointError
from lorchestra.metrics.information import InformationHead
from lorchestra.store.atomic import atomic_path, sha256_file

FORMAT_VERSION = "1"
_TENSORS = ("mean", "scale", "weights", "intercept")


def write_information(path: Path, head: InformationHead) -> str:
    """Write a head; returns the SHA-256 of the file.

    Raises:
        CheckpointError: it cannot be written.
    """
    arrays = {"mean": head.mean_D, "scale": head.scale_D, "weights": head.weights_D}
    arrays["intercept"] = np.array([head.intercept])
    with atomic_path(path) as temporary:
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, temporary, _metadata())
    return sha256_file(path)


def _metadata() -> dict[str, str]:
    return {"format_version": FORMAT_VERSION}


def read_information(path: Path, sha256: str, num_features: int) -> InformationHead:
    """The head in a file.

    Args:
        path: the file, a path from `safe_paths.inside`.
        sha256: its checksum in the run's record.
        num_features: D.

    Raises:
        CheckpointError: it is missing, changed or damaged, or has another format version or width.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: missing; copy the run directory again, whole")
    if sha256_file(path) != sha256:
        raise CheckpointError(
            f"{path}: is not the file of this run (wrong checksum): it was changed or damaged; copy the run again"
        )
    try:
        with safe_open(path, framework="numpy") as file:
            version = (file.metadata() or {}).get("format_version")
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); copy the run again") from error
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"{path}: format_version is {version!r}, this version of lorchestra reads {FORMAT_VERSION}; use the version"
            " that wrote it"
        )
    shapes = {name: (num_features,) for name in _TENSORS} | {"intercept": (1,)}
    for name, shape in shapes.items():
        array = arrays.get(name)
        if array is None or array.shape != shape or array.dtype != np.float64 or not np.isfinite(array).all():
            raise CheckpointError(f"{path}: {name} is not float64 {list(shape)} of finite numbers; copy the run again")
    if (arrays["scale"] <= 0).any():
        raise CheckpointError(f"{path}: scale has numbers that are not above 0; copy the run again")
    return InformationHead(arrays["mean"], arrays["scale"], arrays["weights"], float(arrays["intercept"][0]))

"""Small safetensors files of named arrays with a format version, whose checksums are in a run's `ensemble.json`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from lorchestra.errors import CheckpointError
from lorchestra.store.atomic import atomic_path, sha256_file

Arrays = Mapping[str, NDArray[np.generic]]


def write_arrays(path: Path, arrays: Arrays, version: str, metadata: Mapping[str, str] = MappingProxyType({})) -> str:
    """Write arrays; returns the SHA-256 of the file.

    Raises:
        CheckpointError: it cannot be written.
    """
    with atomic_path(path) as temporary:
        contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
        save_file(contiguous, temporary, {"format_version": version, **metadata})
    return sha256_file(path)


def read_arrays(path: Path, sha256: str, version: str) -> tuple[dict[str, NDArray[np.generic]], dict[str, str]]:
    """The arrays and metadata of a file.

    Args:
        path: the file, a path from `safe_paths.inside`.
        sha256: its checksum in the run's record.
        version: the only format version that is read.

    Raises:
        CheckpointError: it is missing, changed or damaged, or has another format version.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: missing; copy the run directory again, whole")
    if sha256_file(path) != sha256:
        raise CheckpointError(
            f"{path}: is not the file of this run (wrong checksum): it was changed or damaged; copy the run again"
        )
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); copy the run again") from error
    if metadata.get("format_version") != version:
        raise CheckpointError(
            f"{path}: format_version is {metadata.get('format_version')!r}, this version of lorchestra reads {version};"
            " use the version that wrote it"
        )
    return arrays, metadata


def check_floats(path: Path, arrays: Arrays, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Check that float64 arrays have these shapes and finite numbers, and that `scale` is above 0.

    Raises:
        CheckpointError: names the file and the array.
    """
    for name, shape in shapes.items():
        array = arrays.get(name)
        if array is None or array.shape != shape or array.dtype != np.float64 or not np.isfinite(array).all():
            raise CheckpointError(f"{path}: {name} is not float64 {list(shape)} of finite numbers; copy the run again")
    if "scale" in shapes and (arrays["scale"] <= 0).any():  # type: ignore[operator]
        raise CheckpointError(f"{path}: scale has numbers that are not above 0; copy the run again")

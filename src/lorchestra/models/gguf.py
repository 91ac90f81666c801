"""GGUF files, converted once into a safetensors directory that loads in about a second.

Reading a GGUF is slow (a vocabulary of some hundred thousand strings, weights to unpack). So the first use writes a
safetensors directory to the user's cache, named after the file's digest, and later uses load that.
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
from typing import TYPE_CHECKING

import torch
import transformers

from lorchestra.errors import CheckpointError
from lorchestra.models.gguf_header import check_kind, read_header
from lorchestra.models.sizes import check_declared
from lorchestra.store.atomic import atomic_directory, discard_directory, sha256_file, sweep_leftovers
from lorchestra.store.disk import require_space

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

CONVERTER_VERSION = 1
"""Incremented when the conversion's output changes: older copies in caches are then ignored."""

# by default, transformers would ask at a terminal whether to run code next to the file
_OPTIONS = {"trust_remote_code": False, "local_files_only": True}

METADATA_NAME = "conversion.json"

# texts with letters, digits, spaces, line ends, accents, scripts, emoji and code that tokenizers split in many ways
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


def cache_root() -> Path:
    """The user's cache: `$LORCHESTRA_CACHE`, else `$XDG_CACHE_HOME/lorchestra`, else `~/.cache/lorchestra`.

    Raises:
        CheckpointError: there is no home directory and neither variable is set.
    """
    if path := os.environ.get("LORCHESTRA_CACHE"):
        return Path(path).expanduser().absolute()
    # the XDG specification: a relative path is to be ignored
    if (shared := os.environ.get("XDG_CACHE_HOME")) and Path(shared).is_absolute():
        return Path(shared) / "lorchestra"
    try:
        return Path.home() / ".cache" / "lorchestra"
    except RuntimeError as error:
        raise CheckpointError(
            "There is no home directory for the cache. Set LORCHESTRA_CACHE to a directory."
        ) from error


def converted_directory(gguf_file: Path, *, sha256: str | None = None) -> Path:
    """The safetensors directory with the model and tokenizer of a GGUF file, which is converted on first use.

    Weights are written as float32, which represents every GGUF format exactly. Interrupted and concurrent conversions
    are harmless: a directory appears complete or not at all, and the first one stays. A damaged copy is
    replaced.

    Args:
        gguf_file: the file.
        sha256: the file's digest, if known.

    Raises:
        CheckpointError: the file is not a GGUF file or of an unsupported kind, `gguf` is not installed, or the cache
            cannot be written.
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
            logger.info(f"The converted copy in {directory} is damaged ({damage}); converting again.")
            discard_directory(directory)
        _require_gguf()
        logger.info(f"Converting {gguf_file.name} into {directory}: done once, takes seconds to minutes.")
        try:
            with atomic_directory(directory) as temporary:
                _convert(gguf_file, temporary, sha256)
        except CheckpointError as error:
            if str(error).startswith(str(directory)):  # the disk, not the file
                raise CheckpointError(f"{error} Set LORCHESTRA_CACHE to use another cache directory.") from error
            raise
    return directory


def find_damage(directory: Path) -> str | None:
    """What is wrong with a converted directory, or None, judged by its files' sizes.

    A full disk, a cleanup tool or a power cut can remove or truncate files. Changed bytes in a file of the right size
    are not detected here: the digest of the loaded base covers them.
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
    """Silence transformers' warnings (and its progress bars, unless `progress`) within the block; errors stay.

    Also a lock: transformers patches its classes while it loads a model (`no_tie_weights`), and after two overlapping
    loads no model of the process ties its weights any more.
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
        raise CheckpointError(f"{gguf_file}: is a Git LFS pointer, not the file itself. Get it with `git lfs pull`.")
    if not start.startswith(b"GGUF"):
        raise CheckpointError(f"{gguf_file}: is not a GGUF file (it does not start with GGUF). Download it again.")


def _check_sizes(gguf_file: Path) -> None:
    """Refuse a file that declares more or wider layers than its tensors have, before a model is built."""
    try:
        header = read_header(gguf_file)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{gguf_file}: cannot be converted ({error}). It is damaged or truncated: download it again."
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
    """Write config, weights, tokenizer and `conversion.json` to an empty directory."""
    try:
        with quiet_transformers(), _parsed_once(), _bars_in_terminals_only():
            tokenizer, model = _read(gguf_file)
    except (MemoryError, CheckpointError):
        raise
    except Exception as error:
        if "GGMLQuantizationType" in str(error):
            raise CheckpointError(
                f"{gguf_file}: has weights in a format unknown to this version of the package gguf"
                f" ({_first_line(error)}); update it (pip install -U gguf), or give a directory with safetensors"
            ) from error
        raise CheckpointError(
            f"{gguf_file}: cannot be converted ({type(error).__name__}: {_first_line(error)}). It is damaged, or of an "
            "architecture that transformers cannot read from GGUF: give a directory with safetensors instead."
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


def _read(gguf_file: Path) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    """Tokenizer and dequantized float32 model of a GGUF file."""
    import gguf

    folder, name = str(gguf_file.parent), gguf_file.name
    # the same path that transformers passes, so that `_parsed_once` parses the file once
    check_kind(gguf_file, gguf.GGUFReader(os.path.join(folder, name)))
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, gguf_file=name, **_OPTIONS)
    options = {}
    if hasattr(transformers, "GgufConfig"):
        # newer versions keep the weights packed if they have a kernel
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=name, dtype=torch.float32, output_loading_info=True, **_OPTIONS, **options
    )
    if info["missing_keys"]:
        raise ValueError(f"no weights for {sorted(info['missing_keys'])[:3]}")
    # Transformers marks a model loaded from GGUF as quantized, and then refuses to save it. A fresh model of the same
    # config, made without memory on the meta device, takes over its weights.
    config = copy.deepcopy(model.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.name_or_path = ""
    with torch.device("meta"):
        fresh = type(model)(config)
    fresh.load_state_dict(model.state_dict(), assign=True)
    fresh.tie_weights()
    return tokenizer, fresh


def _check_saved_tokenizer(gguf_file: Path, tokenizer: PreTrainedTokenizerBase, directory: Path) -> None:
    """Check that the saved tokenizer, loaded as in every later run, tokenizes like the original."""
    with quiet_transformers():
        saved = transformers.AutoTokenizer.from_pretrained(str(directory), **_OPTIONS)
    for text in _PROBES:
        if saved(text)["input_ids"] != tokenizer(text)["input_ids"]:
            raise CheckpointError(
                f"{gguf_file}: its tokenizer changes when it is saved (for example on {text!r}), so the file "
                "cannot be converted. Give a directory with safetensors and tokenizer.json instead."
            )


@contextmanager
def _parsed_once() -> Iterator[None]:
    """Cache gguf's parsed file and its table of tensor names within the block.

    Transformers opens a new reader for the tokenizer, the config and the weights each, and builds the table once per
    submodule: more than half of the time. Both results depend on the arguments alone and are only read.
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
    """Disable transformers' progress bar outside terminals: in a file it would be a hundred lines."""
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
    """Whether the header can be read and its data end where the file ends."""
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

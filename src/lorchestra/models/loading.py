"""Loading a base: the embedded one, a GGUF file, a local directory or a model of the Hugging Face Hub.

Weights are read from safetensors (or GGUF) only, never from pickles, and no code of a repository is ever run.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import transformers
from safetensors import SafetensorError

from lorchestra.config.adapt import BaseConfig
from lorchestra.errors import CheckpointError, ConfigError
from lorchestra.models.digests import model_digest, tokenizer_digest
from lorchestra.models.directories import check_directory, is_near, looks_like_path, near_path
from lorchestra.models.gguf import converted_directory, quiet_transformers
from lorchestra.models.hub import EMBEDDED_NAME, embedded_directory, hub_directory
from lorchestra.models.quantized import (
    quantization_config,
    quantization_of,
    remember_sources,
    stored_quantization,
    use_dense_products,
)
from lorchestra.models.sizes import check_sizes
from lorchestra.store.safe_paths import typed_path

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

_OPTIONS = {"trust_remote_code": False, "local_files_only": True}
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}


@dataclass(frozen=True)
class LoadedBase:
    """A loaded base: frozen, in evaluation mode, without a key/value cache by default."""

    model: PreTrainedModel
    """The transformers causal language model."""
    tokenizer: PreTrainedTokenizerBase
    """Its tokenizer, with a pad token."""
    id: str
    """As recorded in a run: the embedded name, an absolute path or a hub id."""
    revision: str | None
    """The commit of a hub model; None for local ones."""
    path_for_peft: str
    """`base_model_name_or_path` of saved adapters: a directory or a hub id that transformers can load."""
    digest: str
    """See `model_digest`; the same in every number format."""
    tokenizer_digest: str
    """See `tokenizer_digest`."""
    dtype: torch.dtype
    """Number format of computation, and of the weights that are not quantized."""
    device: torch.device
    context_length: int
    """Maximum number of tokens in a row."""
    quantization: str | None = None
    """How the linear maps of its layers are stored (see `quantized`); None for plain weights."""

    @property
    def num_embeddings(self) -> int:
        """Number of input embeddings; the tokenizer may have more tokens."""
        return int(self.model.get_input_embeddings().weight.shape[0])


@dataclass(frozen=True)
class _Source:
    """A resolved name: always a directory on this machine."""

    id: str
    directory: Path
    path_for_peft: str
    revision: str | None = None


def load_base(config: BaseConfig) -> LoadedBase:
    """Load the base that `config` names, frozen, onto its device.

    A name is the embedded base, a path ending in .gguf, a local directory or a hub id, tried in this order.

    Args:
        config: name, revision, number format and device.

    Raises:
        ConfigError: a value is out of range, a revision is given for a local base, or there is no CUDA device.
        CheckpointError: the base does not exist, cannot be read or converted, or is not a complete causal language
            model.
    """
    device = base_device(config)
    dtype = _dtype(config, device)
    source = _resolve(config)
    check_sizes(f"base.name {source.id!r}", source.directory)
    quantization = quantization_of(config, source.directory)
    tokenizer, model = _load(source, dtype) if quantization is None else _load_quantized(source, dtype, device, config)
    text_config = model.config.get_text_config()
    if tokenizer.pad_token is None and tokenizer.eos_token is not None:
        tokenizer.pad_token = tokenizer.eos_token
    for part in (model.config, text_config):
        part.use_cache = False
    model.eval().requires_grad_(False)
    try:
        model.to(device)
    except torch.OutOfMemoryError as error:
        raise CheckpointError(
            f"base.name {config.name!r}: the weights do not fit into the memory of {device} as {dtype}. "
            "Set base.dtype bfloat16, base.quantization nf4 or base.device cpu, or use a smaller base."
        ) from error
    _log_unknown_tokens(config.name, tokenizer, model)
    return LoadedBase(
        model=model,
        tokenizer=tokenizer,
        id=source.id,
        revision=source.revision,
        path_for_peft=source.path_for_peft,
        digest=model_digest(model),
        tokenizer_digest=tokenizer_digest(tokenizer),
        dtype=dtype,
        device=device,
        context_length=_context_length(source, text_config, tokenizer),
        quantization=quantization,
    )


def load_tokenizer(config: BaseConfig) -> PreTrainedTokenizerBase:
    """The tokenizer of the base that `config` names, without loading its weights.

    Raises:
        ConfigError, CheckpointError: as `load_base`.
    """
    source = _resolve(config)
    check_sizes(f"base.name {source.id!r}", source.directory)
    with quiet_transformers():
        try:
            return _tokenizer(source)
        except MemoryError:
            raise
        except Exception as error:
            raise _cannot_load(source, error) from error


def absolute_base(config: BaseConfig) -> BaseConfig:
    """The settings with the base's path made absolute, if its name is a path."""
    name, path = config.name, _path(config.name)
    is_path = bool(name.strip()) and name != EMBEDDED_NAME and path.exists()
    return dataclasses.replace(config, name=str(path)) if is_path else config


def _path(name: str) -> Path:
    return Path(os.path.abspath(typed_path(name)))


def dtype_name(dtype: torch.dtype) -> str:
    """Name of a number format in settings and messages."""
    return str(dtype).removeprefix("torch.")


def base_directory(config: BaseConfig) -> Path:
    """The directory of the base that `config` names: converted, downloaded or as it is.

    Raises:
        ConfigError, CheckpointError: as `load_base`.
    """
    return _resolve(config).directory


def base_device(config: BaseConfig) -> torch.device:
    """The device that `config` names; auto is CUDA if available.

    Raises:
        ConfigError: an unknown device, or there is no CUDA device.
    """
    if config.device not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"base.device is {config.device!r}; it must be auto, cpu or cuda.")
    available = torch.cuda.is_available()
    if config.device == "cuda" and not available:
        raise ConfigError("base.device is cuda, but torch sees no CUDA device. Set base.device to auto or cpu.")
    return torch.device("cuda" if available and config.device != "cpu" else "cpu")


def _dtype(config: BaseConfig, device: torch.device) -> torch.dtype:
    if config.dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    if config.dtype not in _DTYPES:
        raise ConfigError(f"base.dtype is {config.dtype!r}; it must be auto, {', '.join(_DTYPES)}.")
    return _DTYPES[config.dtype]


def _resolve(config: BaseConfig) -> _Source:
    """Decide which of the four kinds of base a name is; converts a GGUF file, downloads a hub model."""
    name = config.name
    if not name.strip():
        raise ConfigError(f"base.name is empty. Give a hub id, a directory, a .gguf file or {EMBEDDED_NAME}.")
    path = _path(name)
    is_embedded, is_gguf = name == EMBEDDED_NAME, path.suffix.lower() == ".gguf"
    is_path = is_gguf or path.exists() or looks_like_path(name)
    if config.revision is not None and (is_embedded or is_path):
        raise ConfigError(
            f"base.revision is {config.revision!r}, but base.name {name!r} is not on the hub: only hub ids have "
            "revisions. Leave base.revision out."
        )
    if is_embedded:
        directory = embedded_directory()
        return _Source(name, directory, str(directory))
    if not is_path:
        if is_near(name, EMBEDDED_NAME):
            raise CheckpointError(f"base.name {name!r}: the embedded base is spelled {EMBEDDED_NAME!r}.")
        directory = hub_directory(name, config.revision)
        check_directory(name, directory)
        return _Source(name, directory, name, revision=directory.name)
    if not path.exists():
        kind = "file" if is_gguf else "directory or file"
        raise CheckpointError(
            f"base.name {name!r}: there is no {kind} {path}.{near_path(path)} Give a directory with safetensors, a "
            f".gguf file, a hub id or {EMBEDDED_NAME}, which needs no network."
        )
    if is_gguf and path.is_file():
        directory = converted_directory(path)
        return _Source(str(path), directory, str(directory))
    check_directory(name, path)
    if not looks_like_path(name):
        logger.info(f"base.name {name!r}: read as the directory {path}, not as a hub id; write ./{name} to be explicit")
    return _Source(str(path), path, str(path))


def _load(source: _Source, dtype: torch.dtype, **options: object) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    """Tokenizer and model as transformers loads them, on the CPU unless the options say otherwise."""
    with quiet_transformers():
        try:
            tokenizer = _tokenizer(source)
            model, info = transformers.AutoModelForCausalLM.from_pretrained(
                str(source.directory),
                dtype=dtype,
                use_safetensors=True,
                output_loading_info=True,
                **_OPTIONS,
                **options,
            )
        except MemoryError:
            raise
        except Exception as error:
            raise _cannot_load(source, error) from error
    if info["missing_keys"]:
        names = sorted(info["missing_keys"])
        raise CheckpointError(
            f"base.name {source.id!r}: {len(names)} weights are missing ({', '.join(names[:3])}, ...) and would be "
            "random. Use a complete causal language model."
        )
    return tokenizer, model


def _load_quantized(
    source: _Source, dtype: torch.dtype, device: torch.device, config: BaseConfig
) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    """Tokenizer and model, quantized from the weights in float32, so that the result does not depend on the format."""
    options: dict[str, object] = {"device_map": {"": str(device)}}
    if config.quantization != "none" and stored_quantization(source.directory) is None:
        options["quantization_config"] = quantization_config(config.quantization)
    tokenizer, model = _load(source, torch.float32, **options)
    use_dense_products(model, dtype)
    if "quantization_config" in options:
        remember_sources(model, source.directory)
    return tokenizer, model


def _tokenizer(source: _Source) -> PreTrainedTokenizerBase:
    directory = str(source.directory)
    config = transformers.AutoConfig.from_pretrained(directory, **_OPTIONS)
    # for some hub models, transformers chooses the tokenizer class by their id
    config.name_or_path = source.id
    return transformers.AutoTokenizer.from_pretrained(directory, config=config, **_OPTIONS)


def _cannot_load(source: _Source, error: Exception) -> CheckpointError:
    """An exception of transformers as one of ours, without advice that does not apply here."""
    text = str(error).strip()
    reason = f"{type(error).__name__}: {text.splitlines()[0] if text else 'no message'}"
    start = f"base.name {source.id!r}"
    if "trust_remote_code" in text:
        return CheckpointError(
            f"{start}: this model needs code of its repository, which is never run here. "
            "Use a model whose architecture is part of transformers."
        )
    if isinstance(error, SafetensorError):
        return CheckpointError(
            f"{start}: the weights in {source.directory} are damaged ({reason}). Copy or download them again."
        )
    return CheckpointError(
        f"{start}: {source.directory} cannot be loaded as a causal language model by transformers "
        f"{transformers.__version__} ({reason}). It must hold config.json, model.safetensors and tokenizer.json."
    )


def _log_unknown_tokens(name: str, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> None:
    """Log that some tokens have no embedding; rows that need one of them are refused when tokenized."""
    known = int(model.get_input_embeddings().weight.shape[0])
    number = max(tokenizer.get_vocab().values(), default=-1) + 1
    if number > known:
        logger.info(
            f"base.name {name!r}: its tokenizer has {number} tokens, but the model {known} embeddings; rows that need"
            " one of the others are refused (model.resize_token_embeddings in transformers adds embeddings)"
        )


def _context_length(source: _Source, text_config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase) -> int:
    length = getattr(text_config, "max_position_embeddings", None)
    # a tokenizer without a limit has 10**30
    if not isinstance(length, int) and tokenizer.model_max_length < 10**9:
        length = tokenizer.model_max_length
    if not isinstance(length, int) or length < 1:
        raise CheckpointError(
            f"base.name {source.id!r}: its config.json has no max_position_embeddings. Add it: the maximum number of "
            "tokens in a row."
        )
    return length

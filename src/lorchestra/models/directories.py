"""Checks of a base's directory, and suggestions for misspelled names."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping
from pathlib import Path

from lorchestra.errors import CheckpointError
from lorchestra.store.safe_paths import name_fault

_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_UNPACKED = ("mxfp4",)
"""Quantization methods whose weights transformers unpacks if it has no kernel for them."""
_QUANTIZERS = {"quantize_config.json": "gptq", "quant_config.json": "awq"}
"""Files that quantization tools wrote before config.json had a section for it."""
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


def check_directory(name: str, directory: Path) -> None:
    """Check that a directory has a config and safetensors weights, without reading the weights.

    Args:
        name: the value of base.name, for messages.
        directory: the directory it refers to.

    Raises:
        CheckpointError: it is a file, an adapter, incomplete, quantized, or has pickled weights only.
    """
    start = f"base.name {name!r}"
    if not directory.is_dir():
        raise CheckpointError(
            f"{start}: {directory} is a file. Give the directory with config.json and safetensors, or a .gguf file."
        )
    if (directory / "adapter_config.json").is_file():
        raise CheckpointError(f"{start}: {directory} {_adapter(directory)}")
    if not (directory / "config.json").is_file():
        raise CheckpointError(
            f"{start}: {directory} has no config.json.{_hint(directory)} "
            "Give a directory written by transformers' save_pretrained."
        )
    if (directory / _INDEX).is_file() and not (directory / _WEIGHTS).is_file():
        _check_shards(start, directory)
    elif not (directory / _WEIGHTS).is_file():
        raise CheckpointError(f"{start}: {directory} has no {_WEIGHTS}{_instead(directory)}")
    config = _read_json(start, directory / "config.json")
    if (how := _quantized(directory, config)) is not None:
        raise CheckpointError(
            f"{start}: the weights in {directory} are quantized ({how}), which is not supported. Give the model that it"
            " was made from (in float32, bfloat16 or float16), with base.quantization nf4 or int8 if it has to be"
            " small, or write a dequantized copy with the tool that quantized it."
        )
    explicit = config.get("transformers_weights")
    is_valid = str(explicit).endswith((".safetensors", ".safetensors.index.json")) and not name_fault(str(explicit))
    if explicit is not None and not is_valid:
        raise CheckpointError(
            f"{start}: {directory}/config.json names {explicit!r} as its weights (transformers_weights), which is not "
            "safetensors. Remove that line."
        )


def has_whole_weights(directory: Path) -> bool:
    """Whether a directory has the weights of a full model, as transformers saves them."""
    return (directory / _WEIGHTS).is_file() or (directory / _INDEX).is_file()


def _adapter(directory: Path) -> str:
    """The rest of the message about a directory with an adapter's configuration."""
    if not has_whole_weights(directory):
        base = _named_base(directory)
        return (
            f"has an adapter (adapter_config.json), not a base. Give the base it was trained on{base}; lorchestra"
            " import makes a member of the adapter."
        )
    return (
        "has an adapter (adapter_config.json) next to the weights of a full model, and transformers would load the"
        " adapter's base instead of them. To use the full weights (a merged or fully fine-tuned model), move"
        " adapter_config.json out of the directory; otherwise give the base that the adapter was trained on"
        f"{_named_base(directory)}."
    )


def _named_base(directory: Path) -> str:
    try:
        name = json.loads((directory / "adapter_config.json").read_text("utf-8"))["base_model_name_or_path"]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return ""
    return f", {name!r}" if isinstance(name, str) and name else ""


def bitsandbytes_settings(config: Mapping[str, object]) -> Mapping[str, object] | None:
    """How bitsandbytes stored a checkpoint's weights, which can be read; None for others.

    Args:
        config: its config.json.
    """
    settings = config.get("quantization_config")
    if not isinstance(settings, dict) or settings.get("quant_method", "bitsandbytes") != "bitsandbytes":
        return None
    return settings if settings.get("load_in_4bit") or settings.get("load_in_8bit") else None


def _quantized(directory: Path, config: Mapping[str, object]) -> str | None:
    """How a directory's weights are quantized; None if they are not, or in a way that can be read."""
    text_config = config.get("text_config")
    if bitsandbytes_settings(config) is not None:
        return None
    for part in (config, text_config if isinstance(text_config, dict) else {}):
        settings = part.get("quantization_config")
        if not isinstance(settings, dict) or not settings:
            continue
        method = settings.get("quant_method")
        if method is None:
            method = "bitsandbytes" if settings.keys() & {"load_in_4bit", "load_in_8bit"} else "quantization_config"
        if method not in _UNPACKED:
            bits = settings.get("bits") or (
                4 if settings.get("load_in_4bit") else 8 if settings.get("load_in_8bit") else 0
            )
            return f"{method}, {bits} bits" if bits else str(method)
    for name, method in _QUANTIZERS.items():
        if (directory / name).is_file():
            return f"{method}, according to {name}"
    return None


def looks_like_path(name: str) -> bool:
    """Whether a name cannot be a hub id (`name` or `owner/name`) and so must be a path."""
    return name.startswith((".", "/", "~")) or "\\" in name or name.endswith("/") or name.count("/") > 1


def near_path(path: Path) -> str:
    """` Did you mean ...?` with a similar entry of the nearest existing directory, or an empty string."""
    directory, wanted = path.parent, path.name
    while not directory.is_dir() and directory != directory.parent:
        directory, wanted = directory.parent, directory.name
    try:
        names = [entry.name for entry in directory.iterdir() if not entry.name.startswith(".")]
    except OSError:
        return ""
    near = difflib.get_close_matches(wanted, names, n=1)
    return f" Did you mean {directory / near[0]}?" if near else ""


def is_near(name: str, known: str) -> bool:
    """Whether `name` equals `known` up to case and punctuation."""
    plain, wanted = (re.sub(r"[^a-z0-9]", "", text.lower()) for text in (name, known))
    return plain == wanted


def _check_shards(start: str, directory: Path) -> None:
    weight_map = _read_json(start, directory / _INDEX).get("weight_map")
    if not isinstance(weight_map, dict):
        raise CheckpointError(f"{start}: {directory / _INDEX} has no weight_map. Copy or download it again.")
    shards = sorted({str(shard) for shard in weight_map.values()})
    for shard in shards:
        if (fault := name_fault(shard)) is not None:
            raise CheckpointError(
                f"{start}: {directory / _INDEX} lists the weights file {shard[:100]!r}, and that name {fault}."
                " Copy or download it again."
            )
    missing = [shard for shard in shards if not (directory / shard).is_file()]
    if missing:
        raise CheckpointError(
            f"{start}: {len(missing)} of {len(shards)} weight files listed in {_INDEX} are missing in {directory} "
            f"({', '.join(missing[:3])}). Copy or download them again."
        )


def _read_json(start: str, file: Path) -> dict[str, object]:
    try:
        content = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{start}: {file} cannot be read ({error}). Copy or download it again.") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{start}: {file} is not a JSON object. Copy or download it again.")
    return content


def _hint(directory: Path) -> str:
    """A suggestion for a directory without config.json."""
    ggufs = sorted(directory.glob("*.gguf"))
    if ggufs:
        return f" Did you mean the file {ggufs[0]}?"
    inside = sorted(directory.glob("*/config.json")) or sorted(directory.glob("snapshots/*/config.json"))
    return f" Did you mean {inside[0].parent}?" if inside else ""


def _instead(directory: Path) -> str:
    """The rest of the message about a directory without usable weights: what it has instead, and what to do."""
    pickles = sorted(file.name for pattern in _PICKLES for file in directory.glob(pattern))
    others = sorted(file.name for file in directory.glob("*.safetensors"))
    if others:
        return (
            f" and no {_INDEX}, only {', '.join(others[:3])}. Rename a single file to {_WEIGHTS}, or restore the index."
        )
    if pickles:
        return (
            f", only pickled weights ({', '.join(pickles[:3])}). Pickles can run any code when read, so they "
            "are not. If you trust the file, load it with transformers and save it again with save_pretrained."
        )
    return ". Copy or download the weights."

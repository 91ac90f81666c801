"""Checks of a directory that is to be a base, and guesses at what a wrong name was meant to be."""

from __future__ import annotations

import difflib
import json
import re
from pathlib import Path
from typing import Any

from lorchestra.errors import CheckpointError
from lorchestra.store.safe_paths import name_fault

_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_UNPACKED = ("mxfp4",)
"""Methods whose weights transformers turns into plain ones where it has no kernel for them."""
_QUANTIZERS = {"quantize_config.json": "gptq", "quant_config.json": "awq"}
"""Files that quantizing tools left next to the weights before config.json had a section for it."""
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


def check_directory(name: str, directory: Path) -> None:
    """Make sure that a directory holds a config and safetensors weights, by looking at its files alone.

    Args:
        name: the value of base.name, for messages.
        directory: the place it stands for.

    Raises:
        CheckpointError: it is a file, an adapter, incomplete, or holds pickled weights only.
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
            "Give a directory that transformers' save_pretrained wrote."
        )
    if (directory / _INDEX).is_file() and not (directory / _WEIGHTS).is_file():
        _check_shards(start, directory)
    elif not (directory / _WEIGHTS).is_file():
        raise CheckpointError(f"{start}: {directory} has no {_WEIGHTS}{_instead(directory)}")
    config = _read_json(start, directory / "config.json")
    if (how := _quantized(start, directory, config)) is not None:
        raise CheckpointError(
            f"{start}: the weights in {directory} are quantized ({how}), and members need plain ones to be trained,"
            " measured and merged on. Give the model that it was made from (in float32, bfloat16 or float16), or write"
            " a dequantized copy with the tool that quantized it."
        )
    explicit = config.get("transformers_weights")
    known = str(explicit).endswith((".safetensors", ".safetensors.index.json")) and name_fault(str(explicit)) is None
    if explicit is not None and not known:
        raise CheckpointError(
            f"{start}: {directory}/config.json names {explicit!r} as its weights (transformers_weights), which is not "
            "safetensors. Remove that line."
        )


def has_whole_weights(directory: Path) -> bool:
    """Whether a directory holds a whole model's weights as transformers saves them."""
    return (directory / _WEIGHTS).is_file() or (directory / _INDEX).is_file()


def _adapter(directory: Path) -> str:
    """The rest of the sentence about a directory with an adapter's configuration."""
    if not has_whole_weights(directory):
        base = _named_base(directory)
        return (
            f"holds an adapter (adapter_config.json), not a base. Give the base it was trained on{base}; lorchestra"
            " import makes a member of the adapter."
        )
    return (
        "holds an adapter (adapter_config.json) next to whole weights, and transformers would load the adapter's base"
        " in their place. Where the whole weights are meant (a merged or fully fine-tuned model), move"
        " adapter_config.json out of the directory; else give the base that the adapter was trained on"
        f"{_named_base(directory)}."
    )


def _named_base(directory: Path) -> str:
    try:
        name = json.loads((directory / "adapter_config.json").read_text("utf-8"))["base_model_name_or_path"]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return ""
    return f", {name!r}" if isinstance(name, str) and name else ""


def _quantized(start: str, directory: Path, config: dict[str, Any]) -> str | None:
    """How a directory's weights are quantized; None where they are plain, or transformers unpacks them by itself."""
    text_config = config.get("text_config")
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
            return f"{method}, by its {name}"
    return None


def looks_like_path(name: str) -> bool:
    """Whether a name cannot be a hub id (`name` or `owner/name`) and so must have been meant as a path."""
    return name.startswith((".", "/", "~")) or "\\" in name or name.endswith("/") or name.count("/") > 1


def near_path(path: Path) -> str:
    """Return ` Did you mean ...?` for an entry of the nearest existing directory, or an empty string."""
    place, wanted = path.parent, path.name
    while not place.is_dir() and place != place.parent:
        place, wanted = place.parent, place.name
    try:
        names = [entry.name for entry in place.iterdir() if not entry.name.startswith(".")]
    except OSError:
        return ""
    near = difflib.get_close_matches(wanted, names, n=1)
    return f" Did you mean {place / near[0]}?" if near else ""


def is_near(name: str, known: str) -> bool:
    """Whether `name` is `known` but for case and punctuation."""
    plain, wanted = (re.sub(r"[^a-z0-9]", "", text.lower()) for text in (name, known))
    return plain == wanted


def _check_shards(start: str, directory: Path) -> None:
    try:
        shards = sorted(set(_read_json(start, directory / _INDEX)["weight_map"].values()))
    except (KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{start}: {directory / _INDEX} has no weight_map. Copy or download it again.") from error
    for shard in shards:
        if (fault := name_fault(str(shard))) is not None:
            raise CheckpointError(
                f"{start}: {directory / _INDEX} names {str(shard)[:100]!r} as a file of weights, and that name {fault}."
                " Copy or download it again."
            )
    missing = [shard for shard in shards if not (directory / shard).is_file()]
    if missing:
        raise CheckpointError(
            f"{start}: {len(missing)} of {len(shards)} weight files named in {_INDEX} are missing in {directory} "
            f"({', '.join(missing[:3])}). Copy or download them again."
        )


def _read_json(start: str, file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{start}: {file} cannot be read ({error}). Copy or download it again.") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{start}: {file} is not a JSON object. Copy or download it again.")
    return content


def _hint(directory: Path) -> str:
    """Where a directory without config.json may have been meant to point."""
    ggufs = sorted(directory.glob("*.gguf"))
    if ggufs:
        return f" Did you mean the file {ggufs[0]}?"
    inside = sorted(directory.glob("*/config.json")) or sorted(directory.glob("snapshots/*/config.json"))
    return f" Did you mean {inside[0].parent}?" if inside else ""


def _instead(directory: Path) -> str:
    """The rest of the sentence about a directory without usable weights: what is there instead, and what to do."""
    pickles = sorted(file.name for pattern in _PICKLES for file in directory.glob(pattern))
    others = sorted(file.name for file in directory.glob("*.safetensors"))
    if others:
        return (
            f" and no {_INDEX}, only {', '.join(others[:3])}. Rename a single file to {_WEIGHTS}, or restore the index."
        )
    if pickles:
        return (
            f", only pickled weights ({', '.join(pickles[:3])}). A pickle can run any code when read, so none is. "
            "Where you trust the file, load it with transformers and write it again with save_pretrained."
        )
    return ". Copy or download the weights."

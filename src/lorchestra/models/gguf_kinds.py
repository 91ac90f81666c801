"""GGUF files that are no whole model with weights that can be unpacked: recognized by their header, with what to do."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from lorchestra.errors import CheckpointError

_PART = re.compile(r"-(\d{5})-of-(\d{5})$")
_INSTEAD = "give a directory with safetensors instead"
_KINDS = {
    "adapter": (
        "is a LoRA adapter, not a base: give the base it was trained on; to make a member of the adapter, import the"
        " PEFT folder that it was converted from (lorchestra import)"
    ),
    "mmproj": "is the vision part of a model (mmproj), not the model; give the .gguf file of the language model",
    "imatrix": "is an importance matrix for quantizing, not a model; give the .gguf file of the model",
}
"""By `general.type`."""


def check_kind(gguf_file: Path, reader: Any) -> None:
    """Refuse a file that is a part of a model, no model at all, or holds weights in a format that gguf cannot unpack.

    Args:
        gguf_file: the file, for messages.
        reader: gguf's `GGUFReader` of it.

    Raises:
        CheckpointError: says what the file is, and what to do.
    """
    kind = _value(reader, "general.type")
    if kind in _KINDS:
        raise CheckpointError(f"{gguf_file}: {_KINDS[kind]}")
    named = _PART.search(gguf_file.stem)
    count = _value(reader, "split.count") or (int(named[2]) if named else 0)
    if isinstance(count, int) and count > 1:
        number = int(named[1]) if named else (_value(reader, "split.no") or 0) + 1
        raise CheckpointError(
            f"{gguf_file}: is part {number} of {count} of a model in several files, which cannot be read; join them by"
            f" llama.cpp's tool (llama-gguf-split --merge PART_1 WHOLE.gguf), or {_INSTEAD}"
        )
    unknown = sorted(kind for kind in {tensor.tensor_type for tensor in reader.tensors} if not _unpacks(kind))
    if unknown:
        names = ", ".join(one.name for one in unknown)
        raise CheckpointError(
            f"{gguf_file}: holds weights quantized as {names}, which the package gguf cannot unpack; take the model as"
            f" F16, BF16, Q8_0 or Q4_K_M, or {_INSTEAD}"
        )


def _unpacks(kind: Any) -> bool:
    """Whether gguf can turn weights of this type into float32."""
    import gguf

    block = np.zeros((1, gguf.GGML_QUANT_SIZES[kind][1]), np.uint8)
    try:
        gguf.quants.dequantize(block, kind)
    except NotImplementedError:
        return False
    return True


def _value(reader: Any, key: str) -> Any:
    field = reader.fields.get(key)
    return None if field is None else field.contents()

"""The header of a GGUF file, read within the file's bounds: its numbers and the shapes of its tensors.

Counts in a header are what whoever wrote it chose; none is believed that the file is too short for.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md

GGUF files that are no whole model with weights that can be unpacked: recognized by their header, with what to do.
"""

from __future__ import annotations

import mmap
import re
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lorchestra.errors import CheckpointError

_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_TEXT, _ARRAY = 8, 9
_MAX_AXES = 8
_LONGEST_SHOWN = 4096
"""Numbers of an array that are read; longer ones (a vocabulary's scores) are only counted."""


@dataclass
class GgufHeader:
    """Metadata by key (texts of arrays left out), and tensors' shapes by name."""

    fields: dict[str, Any] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)


def read_header(path: Path) -> GgufHeader | None:
    """The header; None for a version whose layout is another (1, or of the other byte order).

    Raises:
        ValueError: it declares more than the file holds, or is damaged.
        OSError: the file cannot be read.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        reader = _Reader(data)
        reader.skip(4)
        version = reader.number("<I")
        if version not in (2, 3):
            return None
        num_tensors, num_fields = reader.number("<Q"), reader.number("<Q")
        header = GgufHeader()
        for _ in range(reader.checked(num_fields, 12, "metadata fields")):
            key = reader.text()
            header.fields[key] = reader.value(reader.number("<I"))
        for _ in range(reader.checked(num_tensors, 24, "tensors")):
            name = reader.text()
            axes = reader.number("<I")
            if axes > _MAX_AXES:
                raise ValueError(f"the tensor {name[:80]!r} has {axes} axes")
            header.shapes[name] = tuple(reader.number("<Q") for _ in range(axes))
            reader.skip(12)
        return header


class _Reader:
    """A position in the bytes of a file; nothing is read past their end."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data, self.place = data, 0

    def checked(self, number: int, least_bytes: int, what: str) -> int:
        """A declared number of things, each of which takes so many bytes at least."""
        left = (len(self.data) - self.place) // least_bytes
        if number > left:
            raise ValueError(f"its header declares {number:,} {what}, and the file has room for {left:,} at most")
        return number

    def skip(self, num_bytes: int) -> None:
        self.checked(num_bytes, 1, "bytes of one value")
        self.place += num_bytes

    def number(self, layout: str) -> Any:
        start, size = self.place, struct.calcsize(layout)
        self.skip(size)
        return struct.unpack(layout, self.data[start : start + size])[0]

    def text(self) -> str:
        length = self.number("<Q")
        start = self.place
        self.skip(length)
        return self.data[start : start + length].decode("utf-8", errors="replace")

    def value(self, kind: int) -> Any:
        if kind in _SCALARS:
            return self.number(_SCALARS[kind])
        if kind == _TEXT:
            return self.text()
        if kind != _ARRAY:
            raise ValueError(f"its header has a value of the unknown kind {kind}")
        inner, length = self.number("<I"), self.number("<Q")
        if inner in _SCALARS:
            size = struct.calcsize(_SCALARS[inner])
            self.checked(length, size, "values of one field")
            if length <= _LONGEST_SHOWN:
                return [self.number(_SCALARS[inner]) for _ in range(length)]
            self.skip(length * size)
        elif inner == _TEXT:
            for _ in range(self.checked(length, 8, "texts of one field")):
                self.skip(self.number("<Q"))
        else:
            raise ValueError(f"its header has a list of values of the kind {inner}")
        return None


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

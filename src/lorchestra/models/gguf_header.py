"""The header of a GGUF file, read without trusting it, and the files that are not models: refused by their header.

Counts and sizes in a header are checked against the file's length before anything is read or allocated.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import mmap
import re
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lorchestra.errors import CheckpointError

if TYPE_CHECKING:
    from gguf import GGMLQuantizationType, GGUFReader

_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_TEXT, _ARRAY = 8, 9
_MAX_AXES = 8
_LONGEST_SHOWN = 4096
"""Longer arrays of numbers (a vocabulary's scores) are skipped."""


@dataclass
class GgufHeader:
    """Metadata by key (without arrays of texts), and tensors' shapes by name."""

    fields: dict[str, object] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)


def read_header(path: Path) -> GgufHeader | None:
    """Read the header; None for versions of another layout (1, or the other byte order).

    Raises:
        ValueError: it is damaged, or declares more than the file has.
        OSError: the file cannot be read.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        reader = _Reader(data)
        reader.skip(4)
        version = reader.integer("<I")
        if version not in (2, 3):
            return None
        num_tensors, num_fields = reader.integer("<Q"), reader.integer("<Q")
        header = GgufHeader()
        for _ in range(reader.checked(num_fields, 12, "metadata fields")):
            key = reader.text()
            header.fields[key] = reader.value(reader.integer("<I"))
        for _ in range(reader.checked(num_tensors, 24, "tensors")):
            name = reader.text()
            axes = reader.integer("<I")
            if axes > _MAX_AXES:
                raise ValueError(f"the tensor {name[:80]!r} has {axes} axes")
            header.shapes[name] = tuple(reader.integer("<Q") for _ in range(axes))
            reader.skip(12)
        return header


class _Reader:
    """A cursor over the bytes of a file; never reads past the end."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data, self.position = data, 0

    def checked(self, number: int, least_bytes: int, what: str) -> int:
        """A declared number of items, refused if the file cannot hold so many of at least this size."""
        left = (len(self.data) - self.position) // least_bytes
        if number > left:
            raise ValueError(f"its header declares {number:,} {what}, but the file has room for at most {left:,}")
        return number

    def skip(self, num_bytes: int) -> None:
        self.checked(num_bytes, 1, "bytes of one value")
        self.position += num_bytes

    def integer(self, layout: str) -> int:
        value = self.scalar(layout)
        assert isinstance(value, int)
        return value

    def scalar(self, layout: str) -> object:
        start, size = self.position, struct.calcsize(layout)
        self.skip(size)
        return struct.unpack(layout, self.data[start : start + size])[0]

    def text(self) -> str:
        length = self.integer("<Q")
        start = self.position
        self.skip(length)
        return self.data[start : start + length].decode("utf-8", errors="replace")

    def value(self, kind: int) -> object:
        if kind in _SCALARS:
            return self.scalar(_SCALARS[kind])
        if kind == _TEXT:
            return self.text()
        if kind != _ARRAY:
            raise ValueError(f"its header has a value of the unknown kind {kind}")
        inner, length = self.integer("<I"), self.integer("<Q")
        if inner in _SCALARS:
            size = struct.calcsize(_SCALARS[inner])
            self.checked(length, size, "values of one field")
            if length <= _LONGEST_SHOWN:
                return [self.scalar(_SCALARS[inner]) for _ in range(length)]
            self.skip(length * size)
        elif inner == _TEXT:
            for _ in range(self.checked(length, 8, "texts of one field")):
                self.skip(self.integer("<Q"))
        else:
            raise ValueError(f"its header has an array of values of the kind {inner}")
        return None


_PART = re.compile(r"-(\d{5})-of-(\d{5})$")
_INSTEAD = "give a directory with safetensors instead"
_KINDS = {
    "adapter": (
        "is a LoRA adapter, not a base: give the base it was trained on; to make the adapter a member, import the PEFT"
        " folder that it was converted from (lorchestra import)"
    ),
    "mmproj": "is the vision part of a model (mmproj), not the model; give the .gguf file of the language model",
    "imatrix": "is an importance matrix for quantization, not a model; give the .gguf file of the model",
}
"""Messages by `general.type`."""


def check_kind(gguf_file: Path, reader: GGUFReader) -> None:
    """Refuse a file that is part of a model, not a model, or has weights in a format that gguf cannot unpack.

    Args:
        gguf_file: the file, for messages.
        reader: gguf's `GGUFReader` of it.

    Raises:
        CheckpointError: what the file is, and what to do.
    """
    kind = _value(reader, "general.type")
    if isinstance(kind, str) and kind in _KINDS:
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
        names = ", ".join(kind.name for kind in unknown)
        raise CheckpointError(
            f"{gguf_file}: has weights quantized as {names}, which the package gguf cannot unpack; use the model as"
            f" F16, BF16, Q8_0 or Q4_K_M, or {_INSTEAD}"
        )


def _unpacks(kind: GGMLQuantizationType) -> bool:
    """Whether gguf can turn weights of this type into float32."""
    import gguf

    block = np.zeros((1, gguf.GGML_QUANT_SIZES[kind][1]), np.uint8)
    try:
        gguf.quants.dequantize(block, kind)
    except NotImplementedError:
        return False
    return True


def _value(reader: GGUFReader, key: str) -> Any:
    field = reader.fields.get(key)
    return None if field is None else field.contents()

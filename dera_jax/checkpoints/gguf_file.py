"""Reads the metadata and tensors of a GGUF file.

Tensors are dequantized to float32 by the package `gguf`, each when it is read, so that beside the
result only one tensor at a time is in memory. The metadata are read here, since that package reads
the arrays of a vocabulary element by element, and does not notice where a damaged file ends.

Source: docs/gguf.md in ggml-org/ggml.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import gguf
import numpy as np

from dera_jax.checkpoints import sampling_fields
from dera_jax.checkpoints.storage import Index, StoredArray, explain_read_errors, prefix_errors

SUFFIX = ".gguf"
SUPPORTED = tuple(
    gguf.GGMLQuantizationType[name]
    for name in ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")
)  # fmt: skip
_VERSIONS = (2, 3)
_BLOCKS_VERSION = gguf.GGML_QUANT_VERSION  # of the layout of quantized blocks
_STRING, _ARRAY = gguf.GGUFValueType.STRING, gguf.GGUFValueType.ARRAY
_NUMBERS = {
    gguf.GGUFValueType[name]: np.dtype(dtype)
    for name, dtype in {
        "UINT8": "u1", "INT8": "i1", "UINT16": "<u2", "INT16": "<i2", "UINT32": "<u4", "INT32": "<i4",
        "UINT64": "<u8", "INT64": "<i8", "FLOAT32": "<f4", "FLOAT64": "<f8", "BOOL": "?",
    }.items()
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class GgufFile:
    """An opened GGUF file.

    Attributes:
        where: its path.
        fields: the metadata by key, as Python values.
        tensors: the tensors by name, which are read on request; shapes are [rows, columns].
    """

    where: str
    fields: Mapping[str, object]
    tensors: Mapping[str, StoredArray]

    def field(self, key: str) -> object:
        """Returns the value of a key; raises ValueError, without the path, if there is none."""
        if key not in self.fields:
            raise ValueError(f"the metadata lack {key!r}, which a model needs")
        return self.fields[key]

    def tensor(self, name: str) -> StoredArray:
        """Returns a tensor; raises ValueError, without the path, if there is none."""
        if name not in self.tensors:
            raise ValueError(f"the file lacks the tensor {name!r}")
        return self.tensors[name]


def open_gguf(path: str | Path) -> GgufFile:
    """Opens a GGUF file without reading its tensors.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged or one of several parts, or a tensor's type is not supported.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no file {path}")
    with prefix_errors(str(path)):
        content = np.memmap(path, np.uint8, "r") if path.stat().st_size else np.zeros(0, np.uint8)
        fields, tensors = _parsed(_Cursor(memoryview(content)), path)
        if fields.get("split.count", 0) not in (0, 1):
            raise ValueError(
                f"it is one of {fields['split.count']} parts of a model; join them with llama.cpp's "
                "llama-gguf-split --merge"
            )
        if fields.get("general.quantization_version", _BLOCKS_VERSION) != _BLOCKS_VERSION:
            raise ValueError(
                f"general.quantization_version is {fields['general.quantization_version']!r}; only "
                f"{_BLOCKS_VERSION} is supported"
            )
    return GgufFile(str(path), fields, {name: x.stored() for name, x in tensors.items()})


def sampling_notes(file: GgufFile) -> tuple[str, ...]:
    """Returns sentences about the file's sampling fields, which are not applied."""
    found = {key: x for key, x in file.fields.items() if key.startswith("general.sampling.")}
    return sampling_fields.notes(file.where, found)


@dataclasses.dataclass(frozen=True)
class _Tensor:
    """A tensor's place in a file.

    Attributes:
        path: the file.
        name: of the tensor.
        shape: its axes, columns last.
        kind: type of its values or blocks.
        start: offset of its first byte in the file.
    """

    path: Path
    name: str
    shape: tuple[int, ...]
    kind: gguf.GGMLQuantizationType
    start: int

    @property
    def row_bytes(self) -> int:
        """The size of one row in bytes."""
        values, size = gguf.GGML_QUANT_SIZES[self.kind]
        return self.shape[-1] // values * size

    def check(self, file_size: int) -> None:
        """Raises ValueError if the type is not supported, or the tensor is not inside the file."""
        if self.kind not in SUPPORTED:
            raise ValueError(
                f"tensor {self.name!r} is of type {self.kind.name}; supported are "
                f"{', '.join(x.name for x in SUPPORTED)}"
            )
        values, _ = gguf.GGML_QUANT_SIZES[self.kind]
        if not self.shape or self.shape[-1] % values:
            raise ValueError(
                f"tensor {self.name!r} has the shape {self.shape}; rows of {self.kind.name} are of "
                f"blocks of {values} values"
            )
        end = self.start + math.prod(self.shape[:-1]) * self.row_bytes
        if end > file_size:
            raise ValueError(
                f"half written or damaged (tensor {self.name!r} ends at byte {end:,}, the file at "
                f"{file_size:,})"
            )

    def stored(self) -> StoredArray:
        """Returns the tensor as an array in float32, of which only the rows requested are read."""
        where = f"{self.path}: tensor {self.name!r}"

        def read(index: Index) -> np.ndarray:
            with explain_read_errors(where):
                return self._read(index)

        return StoredArray(self.shape, np.dtype(np.float32), read, where)

    def _read(self, index: Index) -> np.ndarray:
        if len(self.shape) == 1:
            return self._rows(0, 1)[0][index]
        first, stop, _ = index[0].indices(self.shape[0])
        return self._rows(first, stop)[(slice(None), *index[1:])]

    def _rows(self, first: int, stop: int) -> np.ndarray:
        """Dequantizes the part from `first` to `stop` of the first axis; a vector is one row."""
        inner = self.shape[1:] or self.shape
        size = math.prod(inner[:-1]) * self.row_bytes
        start = self.start + first * size
        stored = np.fromfile(self.path, np.uint8, (stop - first) * size, offset=start)
        values = gguf.dequantize(stored.reshape(-1, self.row_bytes), self.kind)
        return values.reshape(-1, *inner)


class _Cursor:
    """Reads values of a GGUF file one after the other."""

    def __init__(self, content: memoryview):
        self.content, self.position = content, 0

    def bytes(self, size: int) -> memoryview:
        """Returns the next bytes; raises ValueError if the file ends before."""
        start, self.position = self.position, self.position + size
        if self.position > len(self.content):
            raise ValueError("half written or damaged (it ends within the metadata)")
        return self.content[start : self.position]

    def numbers(self, kind: gguf.GGUFValueType, count: int) -> list:
        dtype = _NUMBERS[kind]
        return np.frombuffer(self.bytes(count * dtype.itemsize), dtype).tolist()

    def uint32(self) -> int:
        return int.from_bytes(self.bytes(4), "little")

    def uint64(self) -> int:
        return int.from_bytes(self.bytes(8), "little")

    def string(self) -> str:
        return str(self.bytes(self.uint64()), "utf-8")

    def value(self) -> object:
        """Returns the next value of the metadata, whose type stands before it."""
        kind = gguf.GGUFValueType(self.uint32())
        if kind == _STRING:
            return self.string()
        if kind != _ARRAY:
            return self.numbers(kind, 1)[0]
        kind, count = gguf.GGUFValueType(self.uint32()), self.uint64()
        if kind == _ARRAY:
            raise ValueError("an array of arrays in the metadata is not supported")
        if kind == _STRING:
            return [self.string() for _ in range(count)]
        return self.numbers(kind, count)


def _parsed(cursor: _Cursor, path: Path) -> tuple[dict[str, object], dict[str, _Tensor]]:
    """Return the metadata and the tensors' places; raise ValueError if the file is damaged."""
    if bytes(cursor.content[:4]) != b"GGUF":
        raise ValueError("this is no GGUF file: it does not begin with 'GGUF'")
    cursor.position = 4
    version = cursor.uint32()
    if version not in _VERSIONS:
        raise ValueError(
            f"the version of the format is {version}; supported are 2 and 3, little-endian"
        )
    num_tensors, num_fields = cursor.uint64(), cursor.uint64()
    fields = _by_name((cursor.string(), cursor.value()) for _ in range(num_fields))
    places = _by_name(_tensor_info(cursor) for _ in range(num_tensors))
    alignment = fields.get("general.alignment", gguf.GGUF_DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int) or alignment < 1:
        raise ValueError(f"general.alignment is {alignment!r}; it must be an integer of at least 1")
    begin = -(-cursor.position // alignment) * alignment
    tensors = {
        name: _Tensor(path, name, shape, kind, begin + offset)
        for name, (shape, kind, offset) in places.items()
    }
    for tensor in tensors.values():
        tensor.check(len(cursor.content))
    return fields, tensors


def _tensor_info(
    cursor: _Cursor,
) -> tuple[str, tuple[tuple[int, ...], gguf.GGMLQuantizationType, int]]:
    """Return name, and shape, type and offset in the data, of the next tensor."""
    name = cursor.string()
    axes = cursor.numbers(gguf.GGUFValueType.UINT64, cursor.uint32())
    return name, (tuple(axes[::-1]), gguf.GGMLQuantizationType(cursor.uint32()), cursor.uint64())


def _by_name(entries: Iterator[tuple[str, object]]) -> dict:
    """Return a dictionary of entries; raise ValueError if a name occurs twice."""
    found = {}
    for name, value in entries:
        if name in found:
            raise ValueError(f"the file has two entries {name!r}")
        found[name] = value
    return found

"""Reads the metadata and tensors of a GGUF file, with the package `gguf`.

The file is mapped into memory, and each tensor is dequantized to float32 when it is read, so that
beside the result only one tensor at a time is in memory.

Source: the format's page, docs/gguf.md in ggml-org/ggml.
"""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np

from dera_jax.checkpoints.storage import Index, StoredArray

SUFFIX = ".gguf"
_PLAIN = {  # types that are read as they are
    gguf.GGMLQuantizationType.F32: np.dtype(np.float32),
    gguf.GGMLQuantizationType.F16: np.dtype(np.float16),
}
QUANTIZED = tuple(
    gguf.GGMLQuantizationType[name]
    for name in ("BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")
)  # fmt: skip


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
        """Returns the value of a key; raises ValueError if the file does not have it."""
        if key not in self.fields:
            raise ValueError(
                f"{self.where}: the metadata lack {key!r}, without which the model is not known"
            )
        return self.fields[key]


def open_gguf(path: str | Path) -> GgufFile:
    """Opens a GGUF file without reading its tensors.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or a tensor is of a type that is not supported.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no file {path}")
    try:
        reader = gguf.GGUFReader(path)
        fields = {name: field.contents() for name, field in reader.fields.items()}
    except Exception as error:  # the package raises whatever a damaged file leads to
        raise ValueError(f"{path}: half written or damaged ({str(error).strip()[:300]})") from error
    tensors = {x.name: _stored(path, x) for x in reader.tensors}
    if len(tensors) != len(reader.tensors):
        raise ValueError(f"{path}: two tensors have the same name")
    return GgufFile(str(path), fields, tensors)


def _stored(path: Path, tensor: gguf.ReaderTensor) -> StoredArray:
    kind, shape = tensor.tensor_type, tuple(int(x) for x in reversed(tensor.shape))
    where = f"{path}: tensor {tensor.name!r}"
    if kind in _PLAIN:
        return StoredArray(
            shape, _PLAIN[kind], lambda index: tensor.data.reshape(shape)[index], where
        )
    if kind not in QUANTIZED:
        known = ", ".join(x.name for x in (*_PLAIN, *QUANTIZED))
        raise ValueError(f"{where} is of type {kind.name}; supported are {known}")
    return StoredArray(
        shape, np.dtype(np.float32), functools.partial(_dequantized, tensor, shape), where
    )


def _dequantized(tensor: gguf.ReaderTensor, shape: tuple[int, ...], index: Index) -> np.ndarray:
    """Returns a part of a quantized tensor in float32; only the rows of the part are dequantized."""
    if len(shape) < 2:
        return gguf.dequantize(tensor.data, tensor.tensor_type).reshape(shape)[index]
    rows, *others = index
    part = gguf.dequantize(tensor.data[rows], tensor.tensor_type)
    return part.reshape(-1, *shape[1:])[(slice(None), *others)]

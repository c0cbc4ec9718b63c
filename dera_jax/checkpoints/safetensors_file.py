"""Arrays of a safetensors file, read in pieces.

A file is eight bytes that tell the length of a JSON header, the header, and the arrays' bytes. The
safetensors library reads local files only, and maps them whole; here a host reads the rows that it
needs, from a bucket too. What is written, is written by the library.

Source: the format's page in the documentation of the safetensors library.
"""

import json
import math
from collections.abc import Mapping

import ml_dtypes
import numpy as np

from dera_jax.checkpoints.storage import Folder, Index, StoredArray

_DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
_OTHER = frozenset(
    ["I8", "I16", "I32", "I64", "U8", "U16", "U32", "U64", "BOOL"]
)  # buffers, no parameters
_MOST = 100 * 2**20  # bytes of a header, as in the library
_FAR = 2**62  # beyond the end of any file; tensorstore takes no place of 64 bits


def open_safetensors(folder: Folder, name: str) -> dict[str, StoredArray]:
    """The arrays of real numbers in a file, by their name there.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the header says what cannot be, or the file is shorter than it says.
    """
    header, begin = _header(folder, name)
    found, end = {}, 0
    for key, entry in header.items():
        if key == "__metadata__":
            continue
        shape, dtype, (start, stop) = _entry(folder.path(name), key, entry)
        end = max(end, stop)
        if dtype is not None:
            found[key] = _stored(folder, name, shape, dtype, begin + start)
    if end:
        _read(folder, name, begin + end - 1, begin + end)  # a file cut off fails here
    return found


def _header(folder: Folder, name: str) -> tuple[Mapping, int]:
    """The header, and where the arrays begin."""
    where = folder.path(name)
    length = int.from_bytes(_read(folder, name, 0, 8), "little")
    if not 2 <= length <= _MOST:
        raise ValueError(f"{where}: no safetensors file (a header of {length} bytes)")
    try:
        header = json.loads(_read(folder, name, 8, 8 + length))
        header.items  # noqa: B018 (a list or a number has none)
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError, AttributeError) as error:
        raise ValueError(f"{where}: no safetensors file (its header: {error})") from error
    return header, 8 + length


def _entry(where: str, key: str, entry: Mapping) -> tuple[tuple[int, ...], np.dtype | None, tuple]:
    """Shape, type (None for whole numbers) and place of an array, if they fit each other."""
    try:
        kind, shape, (start, stop) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        if not all(type(x) is int and 0 <= x < _FAR for x in (*shape, start, stop)):
            raise ValueError(entry)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{where}: the header's entry for {key!r} is {entry}") from error
    if not isinstance(kind, str) or kind not in _OTHER.union(_DTYPES):
        raise ValueError(f"{where}: {key!r} is of type {kind!r}; known are {', '.join(_DTYPES)}")
    dtype = _DTYPES.get(kind)
    size = dtype and math.prod(shape) * dtype.itemsize
    if start > stop or (dtype and stop - start != size):
        raise ValueError(
            f"{where}: the header says that {key!r} is {kind} {list(shape)}, and that it has the "
            f"bytes {start} to {stop}, which it cannot"
        )
    return shape, dtype, (start, stop)


def _stored(folder: Folder, name: str, shape, dtype: np.dtype, begin: int) -> StoredArray:
    row = math.prod(shape[1:]) * dtype.itemsize

    def read(index: Index) -> np.ndarray:
        if not shape:
            return _array(folder, name, begin, begin + dtype.itemsize, dtype).reshape(())
        first, *others = index
        rows = _array(folder, name, begin + first.start * row, begin + first.stop * row, dtype)
        part = rows.reshape(-1, *shape[1:])[(slice(None), *others)]
        # A view would keep the other columns in memory.
        return part if part.size == rows.size else part.copy()

    return StoredArray(shape, dtype, read)


def _array(folder: Folder, name: str, start: int, stop: int, dtype: np.dtype) -> np.ndarray:
    return np.frombuffer(_read(folder, name, start, stop), dtype)


def _read(folder: Folder, name: str, start: int, stop: int) -> bytes:
    return folder.read(name, start, stop) if stop > start else b""

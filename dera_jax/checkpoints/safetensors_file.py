"""Reads parts of the arrays in a safetensors file, local or in a bucket.

A file consists of eight bytes with the length of a JSON header, the header, and the arrays' bytes.
The safetensors library reads local files only and maps them whole; this module lets each host read
only the rows that it needs. Files are written with the library.

Source: the format's page in the documentation of the safetensors library.
"""

import math
from collections.abc import Mapping

import ml_dtypes
import numpy as np

from dera_jax.checkpoints.storage import Folder, Index, StoredArray, json_object

_DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    **{f"{x}{bits}": np.dtype(f"{x.lower()}{bits // 8}") for x in "IU" for bits in (8, 16, 32, 64)},
    "BOOL": np.dtype(bool),
}
_MAX_HEADER = 100 * 2**20  # bytes, as in the library
_MAX_OFFSET = 2**62  # beyond the end of any file; tensorstore accepts no 64-bit offset


def open_safetensors(folder: Folder, name: str) -> dict[str, StoredArray]:
    """Returns the arrays of a file by name, including integer and boolean ones.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the header is not valid; the arrays overlap or leave gaps, which the format
            does not allow; or the file is shorter or longer than its header says.
    """
    header, begin = _header(folder, name)
    where = folder.path(name)
    entries = {key: _entry(where, key, x) for key, x in header.items() if key != "__metadata__"}
    end = begin + _check_contiguous(where, {key: place for key, (*_, place) in entries.items()})
    _check_length(folder, name, end)
    return {
        key: _stored(folder, name, key, shape, dtype, begin + start)
        for key, (shape, dtype, (start, _)) in entries.items()
    }


def _header(folder: Folder, name: str) -> tuple[Mapping, int]:
    """Return the header, and the offset at which the arrays begin."""
    where = folder.path(name)
    length = int.from_bytes(_read(folder, name, 0, 8), "little")
    if not 2 <= length <= _MAX_HEADER:
        raise ValueError(f"{where}: no safetensors file (a header of {length} bytes)")
    content = _read(folder, name, 8, 8 + length)
    try:
        return json_object(content), 8 + length
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: no safetensors file (its header: {error})") from error


def _entry(where: str, key: str, entry: Mapping) -> tuple[tuple[int, ...], np.dtype, tuple]:
    """Return shape, dtype and byte range of an array, after checking that they are consistent."""
    try:
        kind, shape, (start, stop) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        if not all(type(x) is int and 0 <= x < _MAX_OFFSET for x in (*shape, start, stop)):
            raise ValueError(entry)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{where}: the header's entry for {key!r} is {entry!s:.200}") from error
    if not isinstance(kind, str) or kind not in _DTYPES:
        raise ValueError(f"{where}: {key!r} is of type {kind!r}; known are {', '.join(_DTYPES)}")
    dtype = _DTYPES[kind]
    if stop - start != math.prod(shape) * dtype.itemsize:
        raise ValueError(
            f"{where}: the header says that {key!r} is {kind} {list(shape)}, and that it has the "
            f"bytes {start} to {stop}, which contradict each other"
        )
    return shape, dtype, (start, stop)


def _check_contiguous(where: str, places: Mapping[str, tuple[int, int]]) -> int:
    """Return the end of the last array; raise ValueError if arrays overlap or leave a gap."""
    end = 0
    for key, (start, stop) in sorted(places.items(), key=lambda item: tuple(item[1])):
        if start != end:
            fault = "overlaps the one before it" if start < end else "leaves a gap before it"
            raise ValueError(
                f"{where}: array {key!r} at the bytes {start} to {stop} {fault}, which ends at {end}"
            )
        end = stop
    return end


def _check_length(folder: Folder, name: str, end: int) -> None:
    """Raise ValueError unless the file ends with its last array."""
    _read(folder, name, end - 1, end)  # fails if the file is truncated
    try:
        _read(folder, name, end, end + 1)
    except ValueError:
        return
    raise ValueError(f"{folder.path(name)}: the file goes on after its last array, at byte {end}")


def _stored(folder: Folder, name: str, key: str, shape, dtype: np.dtype, begin: int) -> StoredArray:
    row_bytes = math.prod(shape[1:]) * dtype.itemsize

    def read(index: Index) -> np.ndarray:
        if not shape:
            return _array(folder, name, begin, begin + dtype.itemsize, dtype).reshape(())
        first, *others = index
        start, stop = begin + first.start * row_bytes, begin + first.stop * row_bytes
        rows = _array(folder, name, start, stop, dtype)
        part = rows.reshape(-1, *shape[1:])[(slice(None), *others)]
        # A view would keep the columns outside of `index` in memory.
        return part if part.size == rows.size else part.copy()

    return StoredArray(shape, dtype, read, f"{folder.path(name)}: array {key!r}")


def _array(folder: Folder, name: str, start: int, stop: int, dtype: np.dtype) -> np.ndarray:
    return np.frombuffer(_read(folder, name, start, stop), dtype)


def _read(folder: Folder, name: str, start: int, stop: int) -> bytes:
    return folder.read(name, start, stop) if stop > start else b""

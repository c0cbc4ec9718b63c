"""Reads the files and arrays of checkpoints in local folders and buckets.

All files are read with tensorstore, which accepts URLs such as `gs://...` as well as paths. Of an
array only the parts that are requested are read, and only when they are requested.
"""

import contextlib
import ctypes
import dataclasses
import math
import os
from collections.abc import Callable, Iterator, Mapping
from importlib import resources
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import tensorstore as ts
from jax import Array
from jax.sharding import Sharding

from dera_jax.files import json_files
from dera_jax.models.finite import count_not_finite
from dera_jax.progress_bar import ProgressBar

Index = tuple[slice, ...]
REAL = tuple(map(np.dtype, ("float64", "float32", "float16", ml_dtypes.bfloat16)))
_ASSETS = Path("dera_jax", "assets")
_LONGEST_JSON = 64 * 2**20  # bytes; longer JSON files are not parsed


@dataclasses.dataclass(frozen=True)
class Folder:
    """A folder whose files are read by name.

    Attributes:
        where: path or URL of the folder, such as gs://bucket/folder.
        store: the folder as a key-value store specification of tensorstore.
    """

    where: str
    store: Mapping[str, object]

    def path(self, name: str) -> str:
        """Returns the path or URL of a file in the folder, for messages."""
        return f"{self.where}/{name}"

    def local(self) -> Path:
        """Returns the local path; raises ValueError for a URL."""
        if self.store["driver"] != "file":
            raise ValueError(f"{self.where} must be a local file; copy it to this machine first")
        return Path(self.store["path"])

    def inside(self, name: str) -> "Folder":
        """Returns a subfolder, which need not exist; raises ValueError for names as `read`."""
        self._check_name(name)
        return Folder(self.path(name), {**self.store, "path": f"{self.store['path']}{name}/"})

    def has(self, name: str) -> bool:
        """Returns whether the folder has a file of that name; raises ValueError as `read`."""
        return self._get(name, slice(0, 0)) is not None

    def read(self, name: str, start: int = 0, stop: int | None = None) -> bytes:
        """Reads bytes start..stop-1 of a file; a negative start counts from the end.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is shorter or cannot be read, or `name` points outside the folder.
            PermissionError, ConnectionError: as in `explain_read_errors`.
        """
        value = self._get(name, slice(start, stop) if (start, stop) != (0, None) else None)
        if value is None:
            raise FileNotFoundError(f"no file {self.path(name)}")
        return value

    def read_json(self, name: str) -> dict:
        """Reads a file that holds one JSON object.

        Raises:
            FileNotFoundError, ValueError: as in `read`; or the file is no JSON object, repeats a
                key or is too long.
        """
        content = self.read(name)
        if len(content) > _LONGEST_JSON:
            raise ValueError(
                f"{self.path(name)}: {len(content):,} bytes; a JSON file of a checkpoint may have "
                f"{_LONGEST_JSON:,} at most"
            )
        try:
            value = json_object(content)
        except (ValueError, RecursionError) as error:
            raise _damaged(self.path(name), error) from error
        return value

    def names(self) -> list[str]:
        """Returns the paths of all files below the folder, relative to it and sorted."""
        return sorted(key.decode() for key in self._open().list().result())

    def _check_name(self, name: str) -> None:
        parts = name.split("/") if isinstance(name, str) else [".."]
        if not {"", ".", ".."}.isdisjoint(parts):
            raise ValueError(
                f"{self.where}: a file of the checkpoint names {name!r}, which is not a file inside "
                "that folder; absolute paths and '..' are not followed"
            )

    def _open(self) -> ts.KvStore:
        return ts.KvStore.open(dict(self.store)).result()

    def _get(self, name: str, part: slice | None) -> bytes | None:
        self._check_name(name)
        with explain_read_errors(self.path(name)):
            result = self._open().read(name, byte_range=part).result()
        return result.value if result.state == "value" else None


def open_folder(path: str | Path) -> Folder:
    """Returns the folder at a local path or a URL; it need not exist.

    Raises:
        ValueError: the path is empty or the root, or tensorstore does not support the URL.
    """
    where = str(path).rstrip("/")
    if not where:
        raise ValueError(f"{str(path)!r} is no folder of a checkpoint")
    if "://" not in where:
        if ".." in Path(where).parts:  # tensorstore does not accept ".."
            where = os.path.realpath(where)
        where = _shipped(where)
        return Folder(where, {"driver": "file", "path": f"{Path(where).absolute()}/"})
    try:
        return Folder(where, ts.KvStore.open(f"{where}/").result().spec().to_json())
    except ValueError as error:
        raise ValueError(f"{where}: no URL that can be read ({error})") from error


def _shipped(where: str) -> str:
    """Returns a local path, of a shipped file in the installed package.

    gin files and documents write "dera_jax/assets/...", which is a path in the folder of a clone only.
    """
    inside = Path(where).is_relative_to(_ASSETS) and not Path(where).exists()
    return str(Path(str(resources.files("dera_jax"))).parent / where) if inside else where


def json_object(content: bytes) -> dict:
    """Parses a JSON object; raises as `json_files.parse`, and ValueError for another value."""
    value = json_files.parse(content)
    if not isinstance(value, dict):
        raise ValueError("no JSON object")  # noqa: TRY004 (of a file)
    return value


def read_file(path: str | Path) -> bytes:
    """Reads a whole file at a local path or a URL; raises as `Folder.read`."""
    folder, _, name = str(path).rpartition("/")
    return open_folder(folder or ".").read(name)


@dataclasses.dataclass(frozen=True)
class StoredArray:
    """An array in a file, which is read only on request.

    Attributes:
        shape: shape of the whole array.
        dtype: dtype in which the array is stored.
        read: function from an index, one slice per axis, to that part of the array. It raises
            ValueError, naming the file, if the file is damaged.
        where: the file and the name of the array in it, for messages.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[Index], np.ndarray]
    where: str

    @property
    def nbytes(self) -> int:
        """Size of the whole array in bytes, as stored."""
        return math.prod(self.shape) * self.dtype.itemsize

    def transposed(self) -> "StoredArray":
        """Returns the array with its axes in reverse order."""
        read = lambda index: np.transpose(self.read(index[::-1]))
        return StoredArray(self.shape[::-1], self.dtype, read, self.where)

    def reshaped(self, shape: tuple[int, ...]) -> "StoredArray":
        """Returns the array in another shape of the same size; reading any part reads all of it."""
        full_index = tuple(slice(0, size) for size in self.shape)
        read = lambda index: self.read(full_index).reshape(shape)[index]
        return StoredArray(shape, self.dtype, read, self.where)


def in_memory(array: np.ndarray, where: str) -> StoredArray:
    """Wraps an array in memory as a `StoredArray`."""
    return StoredArray(array.shape, array.dtype, lambda index: array[index], where)


def read_arrays(
    arrays: Mapping[str, StoredArray], shardings: Mapping[str, Sharding] | None, dtype: str
) -> dict[str, Array]:
    """Reads arrays onto devices, one after the other.

    Every process reads only the parts that its own devices hold, so host memory is needed for one
    array at a time beside the result. The largest arrays are read first, while most memory is free.

    Args:
        arrays: arrays by name.
        shardings: shardings by name; None places all arrays on the default device.
        dtype: dtype of the result.

    Raises:
        ValueError: as in `StoredArray.read`; or a value is NaN or infinite in `dtype`.
    """
    placed = {}
    total = sum(x.nbytes for x in arrays.values())
    with ProgressBar(total=total, unit="B", unit_scale=True, desc="reading", delay=2) as progress:
        for name in sorted(arrays, key=lambda name: -arrays[name].nbytes):
            sharding = shardings and shardings[name]
            placed[name] = _place(arrays[name], sharding, np.dtype(dtype))
            progress.update(arrays[name].nbytes)
    _give_back_memory()
    return {name: placed[name] for name in arrays}


def _give_back_memory() -> None:
    """Return the memory of decompressed chunks to the system; glibc would keep it in its arenas."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)


def _place(array: StoredArray, sharding: Sharding | None, dtype: np.dtype) -> Array:
    if sharding is None:
        full_index = tuple(slice(0, size) for size in array.shape)
        # Wait, so that the next array is not read while two copies of this one exist.
        return jax.device_put(_read_part(array, full_index, dtype)).block_until_ready()
    parts = {}  # a part that several devices hold is read once

    def read(index: Index) -> np.ndarray:
        bounds = [part.indices(size)[:2] for part, size in zip(index, array.shape, strict=True)]
        key = tuple(bounds)
        if key not in parts:
            parts[key] = _read_part(array, tuple(slice(*x) for x in bounds), dtype)
        return parts[key]

    return jax.make_array_from_callback(array.shape, sharding, read).block_until_ready()


def _read_part(array: StoredArray, index: Index, dtype: np.dtype) -> np.ndarray:
    """Read a part of an array as `dtype`; raise ValueError as `read_arrays`."""
    with np.errstate(over="ignore"):  # overflow gives infinity, which is reported below
        part = array.read(index).astype(dtype, copy=False)
    if bad := count_not_finite(part):
        raise ValueError(
            f"{array.where}: {bad:,} of {part.size:,} values are NaN or infinite as {dtype}; the "
            "outputs of such a model are NaN at any λ. Download the file again, or train again"
        )
    return part


@contextlib.contextmanager
def prefix_errors(where: str) -> Iterator[None]:
    """Prefixes the message of a ValueError with the file that caused it."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


@contextlib.contextmanager
def explain_read_errors(where: str) -> Iterator[None]:
    """Turns tensorstore's errors about an unreadable file into a ValueError that names the file.

    Raises:
        PermissionError, ConnectionError: unchanged, since the file may be intact.
        ValueError: in place of other errors.
    """
    try:
        yield
    except (PermissionError, ConnectionError):
        raise
    except (OSError, ValueError, KeyError, NotImplementedError) as error:
        raise _damaged(where, error) from error


def _damaged(where: str, error: object) -> ValueError:
    return ValueError(f"{where}: half written or damaged ({str(error).strip()[:300]})")

"""Checkpoints where they lie, in a local folder or a bucket, read array by array.

tensorstore reads all of them, so `gs://` is as good as a path. Nothing of an array is read before
it is asked for, and then only the part that is asked for.
"""

import contextlib
import ctypes
import dataclasses
import math
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import tensorstore as ts
from jax import Array
from jax.sharding import Sharding
from tqdm import tqdm

from dera_jax import json_files
from dera_jax.models.finite import count_not_finite

Index = tuple[slice, ...]
REAL = tuple(map(np.dtype, ("float64", "float32", "float16", ml_dtypes.bfloat16)))
_LONGEST_JSON = 64 * 2**20  # bytes of a JSON file that is read


@dataclasses.dataclass(frozen=True)
class Folder:
    """A folder whose files are read by name.

    Attributes:
        where: its path or URL, such as gs://bucket/folder.
        store: tensorstore's description of it.
    """

    where: str
    store: Mapping[str, object]

    def path(self, name: str) -> str:
        """A file of it, for messages."""
        return f"{self.where}/{name}"

    def inside(self, name: str) -> "Folder":
        """A folder in it, which need not exist; raises ValueError as `read` for its name."""
        self._check_name(name)
        return Folder(self.path(name), {**self.store, "path": f"{self.store['path']}{name}/"})

    def has(self, name: str) -> bool:
        """Whether there is a file of that name."""
        return self._get(name, slice(0, 0)) is not None

    def read(self, name: str, start: int = 0, stop: int | None = None) -> bytes:
        """Bytes start..stop-1 of a file; from the end where start is negative.

        Raises:
            FileNotFoundError: no such file.
            ValueError: the file is shorter, or cannot be read, or its name leads out of the folder.
        """
        value = self._get(name, slice(start, stop) if (start, stop) != (0, None) else None)
        if value is None:
            raise FileNotFoundError(f"no file {self.path(name)}")
        return value

    def read_json(self, name: str) -> dict:
        """Raises as `read`, and ValueError where it is no JSON object, or one with a key twice."""
        content = self.read(name)
        if len(content) > _LONGEST_JSON:
            raise ValueError(
                f"{self.path(name)}: {len(content):,} bytes; a JSON file of a checkpoint may have "
                f"{_LONGEST_JSON:,}"
            )
        try:
            found = json_object(content)
        except (ValueError, RecursionError) as error:
            raise _damaged(self.path(name), error) from error
        return found

    def names(self) -> list[str]:
        """All files below it, by their path from here."""
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
        with explained(self.path(name)):
            found = self._open().read(name, byte_range=part).result()
        return found.value if found.state == "value" else None


def open_folder(path: str | Path) -> Folder:
    """A local path or a URL that tensorstore knows; it need not exist.

    Raises:
        ValueError: a URL of a kind that tensorstore does not know.
    """
    where = str(path).rstrip("/")
    if not where:
        raise ValueError(f"{str(path)!r} is no folder of a checkpoint")
    if "://" not in where:
        if ".." in Path(where).parts:  # tensorstore takes none
            where = os.path.realpath(where)
        return Folder(where, {"driver": "file", "path": f"{Path(where).absolute()}/"})
    try:
        return Folder(where, ts.KvStore.open(f"{where}/").result().spec().to_json())
    except ValueError as error:
        raise ValueError(f"{where}: no URL that can be read ({error})") from error


def json_object(content: bytes) -> dict:
    """The object of a JSON text; raises as `json_files.parse`, and ValueError for another value."""
    found = json_files.parse(content)
    if not isinstance(found, dict):
        raise ValueError("no JSON object")  # noqa: TRY004 (of a file)
    return found


def read_file(path: str | Path) -> bytes:
    """A whole file, local or at a URL; raises as `Folder.read`."""
    folder, _, name = str(path).rpartition("/")
    return open_folder(folder or ".").read(name)


@dataclasses.dataclass(frozen=True)
class StoredArray:
    """An array that is read when it is asked for.

    Attributes:
        shape: its sizes.
        dtype: as stored.
        read: gives the part under an index, which is a slice for each axis; raises ValueError for
            a file that is damaged, naming it.
        where: its file and its name there, for messages.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[Index], np.ndarray]
    where: str

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def transposed(self) -> "StoredArray":
        """With its axes in the opposite order."""
        read = lambda index: np.transpose(self.read(index[::-1]))
        return StoredArray(self.shape[::-1], self.dtype, read, self.where)

    def reshaped(self, shape: tuple[int, ...]) -> "StoredArray":
        """With other axes of as many numbers; all of them are read for any part."""
        everything = tuple(slice(0, size) for size in self.shape)
        read = lambda index: self.read(everything).reshape(shape)[index]
        return StoredArray(shape, self.dtype, read, self.where)


def in_memory(array: np.ndarray, where: str) -> StoredArray:
    """An array that has been read already."""
    return StoredArray(array.shape, array.dtype, lambda index: array[index], where)


def read_arrays(
    arrays: Mapping[str, StoredArray], shardings: Mapping[str, Sharding] | None, dtype: str
) -> dict[str, Array]:
    """Reads arrays onto their devices, one after the other.

    Every process reads what its own devices hold, in the stored type, so the memory taken is that of
    the result and of one array under way. The largest come first, while there is the most room.

    Args:
        arrays: by name.
        shardings: by name; None for the default device.
        dtype: of the result.

    Raises:
        ValueError: as `StoredArray.read`, or a value is NaN or infinite in the type of the result.
    """
    placed = {}
    total = sum(x.nbytes for x in arrays.values())
    with tqdm(total=total, unit="B", unit_scale=True, desc="reading", delay=2) as progress:
        for name in sorted(arrays, key=lambda name: -arrays[name].nbytes):
            sharding = shardings and shardings[name]
            placed[name] = _place(arrays[name], sharding, np.dtype(dtype))
            progress.update(arrays[name].nbytes)
    _give_back_memory()
    return {name: placed[name] for name in arrays}


def _give_back_memory() -> None:
    """Of chunks that were unpacked: glibc would keep it, in an arena of each thread."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)


def _place(array: StoredArray, sharding: Sharding | None, dtype: np.dtype) -> Array:
    if sharding is None:
        everything = tuple(slice(0, size) for size in array.shape)
        # Waits, so that the next array is not read while two copies of this one are there.
        return jax.device_put(_read_part(array, everything, dtype)).block_until_ready()
    parts = {}  # devices that hold the same part share one reading

    def read(index: Index) -> np.ndarray:
        bounds = [part.indices(size)[:2] for part, size in zip(index, array.shape, strict=True)]
        key = tuple(bounds)
        if key not in parts:
            parts[key] = _read_part(array, tuple(slice(*x) for x in bounds), dtype)
        return parts[key]

    return jax.make_array_from_callback(array.shape, sharding, read).block_until_ready()


def _read_part(array: StoredArray, index: Index, dtype: np.dtype) -> np.ndarray:
    """A part of an array as `dtype`; raises ValueError as `read_arrays`."""
    with np.errstate(over="ignore"):  # what is too large for the type is infinite, and found below
        part = array.read(index).astype(dtype, copy=False)
    if bad := count_not_finite(part):
        raise ValueError(
            f"{array.where}: {bad:,} of {part.size:,} values are NaN or infinite as {dtype}; all that "
            "a model with such parameters computes is NaN, at any λ. Get the file again, or train anew"
        )
    return part


@contextlib.contextmanager
def naming(where: str) -> Iterator[None]:
    """Puts the file before the sentence of a ValueError about what it says."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


@contextlib.contextmanager
def explained(where: str) -> Iterator[None]:
    """Turns what tensorstore says of an unreadable file into a ValueError that names it.

    Raises:
        PermissionError, ConnectionError: the bucket's own answer.
        ValueError: everything else.
    """
    try:
        yield
    except (PermissionError, ConnectionError):
        raise
    except (OSError, ValueError, KeyError, NotImplementedError) as error:
        raise _damaged(where, error) from error


def _damaged(where: str, error: object) -> ValueError:
    return ValueError(f"{where}: half written or damaged ({str(error).strip()[:300]})")

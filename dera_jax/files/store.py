"""Stores the files of runs as keys and values of tensorstore's key-value interface.

Writes are atomic and may be conditional on the stored value. At present a store is a local folder,
whose keys are file names. Only `open_store` and the errors depend on that, so that an object store
can replace it: values are never appended to and never renamed.
"""

import dataclasses
import os
import re
from pathlib import Path

import tensorstore as ts

LEFTOVER = (
    ".__lock"  # suffix of the temporary file of a killed write, which the next write replaces
)
_OS_ERROR = re.compile(r"os_error_code='(\d+)'")
_FAILURES = (ValueError, KeyError, RuntimeError, OSError, MemoryError, NotImplementedError)


@dataclasses.dataclass(frozen=True)
class Store:
    """Reads and writes values by key.

    Attributes:
        where: path of the folder, for messages and errors.
        values: the key-value store of tensorstore.
    """

    where: str
    values: ts.KvStore

    def path(self, key: str) -> str:
        """Return the path of a value, for messages and errors."""
        return f"{self.where}/{key}"

    def read(self, key: str) -> bytes | None:
        """Return the value of a key, None if the key is missing.

        Raises:
            OSError: the value cannot be read, or its path is a folder.
        """
        return self.read_generation(key)[0]

    def read_generation(self, key: str) -> tuple[bytes | None, bytes]:
        """Return the value of a key (None if missing) and its generation, which writes change."""
        try:
            found = self.values.read(key).result()
        except _FAILURES as error:
            raise _os_error(self.path(key), error) from error
        if found.state != "value" and os.path.isdir(self.path(key)):
            raise IsADirectoryError(f"{self.path(key)} is a folder where a file is expected")
        return (found.value if found.state == "value" else None), found.stamp.generation

    def write(self, key: str, value: bytes) -> None:
        """Writes a value unconditionally; raises OSError, naming the file, if that fails."""
        self._write(key, value, None)

    def create(self, key: str, value: bytes) -> bytes | None:
        """Writes a value if the key is missing; of several processes that try, one succeeds.

        Returns:
            The value's generation; None if the key had a value.

        Raises:
            OSError: the value cannot be written; the error names the file.
        """
        stored, missing = self.read_generation(key)
        return None if stored is not None else self.replace(key, value, missing)

    def replace(self, key: str, value: bytes | None, generation: bytes) -> bytes | None:
        """Writes a value, or removes it (None), if the stored value still has this generation.

        Returns:
            The new generation; None if the stored value had another generation.

        Raises:
            OSError: the value cannot be written; the error names the file.
        """
        return self._write(key, value, generation) or None

    def _write(self, key: str, value: bytes | None, generation: bytes | None) -> bytes:
        try:
            # tensorstore returns an empty generation if the condition did not hold.
            return self.values.write(key, value, if_equal=generation).result().generation
        except _FAILURES as error:
            raise _os_error(self.path(key), error) from error


def open_store(folder: str | Path) -> Store:
    """Open the store in a local folder, which need not exist."""
    where = Path(folder)
    driver = {"driver": "file", "path": f"{where.resolve()}/"}  # tensorstore does not accept ".."
    return Store(str(where), ts.KvStore.open(driver).result())


def write_file(path: str | Path, content: bytes) -> None:
    """Writes a whole file atomically; raises OSError naming it."""
    open_store(Path(path).parent).write(Path(path).name, content)


def read_file(path: str | Path) -> bytes | None:
    """Return the content of a file, None if it does not exist; raises OSError naming it."""
    return open_store(Path(path).parent).read(Path(path).name)


def error_number(error: Exception) -> int | None:
    """Return the errno of an error, which tensorstore puts in its message; None if it has none."""
    match = _OS_ERROR.search(str(error))
    return int(match[1]) if match else getattr(error, "errno", None)


def _os_error(path: str, error: Exception) -> OSError:
    """Convert an error of tensorstore to the OSError that Python raises for its errno."""
    if number := error_number(error):
        return OSError(number, os.strerror(number), path)
    return OSError(f"{path}: cannot be read or written ({str(error).strip()[:300]})")

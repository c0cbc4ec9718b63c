"""What runs write, as keys and values of tensorstore's key-value interface.

A value is written complete or not at all, and a write may depend on what is there already. Today a
store is a local folder, whose keys are the files in it. Nothing here depends on that but
`open_store` and the errors, so that an object store can take its place: values are never appended
to and never renamed.
"""

import dataclasses
import os
import re
from pathlib import Path

import tensorstore as ts

LEFTOVER = ".__lock"  # ends the name of the draft of a killed write, which the next one replaces
_OS_ERROR = re.compile(r"os_error_code='(\d+)'")
_FAILURES = (ValueError, KeyError, RuntimeError, OSError, MemoryError, NotImplementedError)


@dataclasses.dataclass(frozen=True)
class Store:
    """Values by key.

    Attributes:
        where: the folder, for messages and errors.
        values: tensorstore's view of it.
    """

    where: str
    values: ts.KvStore

    def path(self, key: str) -> str:
        """Of a value, for messages and errors."""
        return f"{self.where}/{key}"

    def read(self, key: str) -> bytes | None:
        """The value under a key, None if there is none.

        Raises:
            OSError: it cannot be read, or a folder has its name.
        """
        return self.read_generation(key)[0]

    def read_generation(self, key: str) -> tuple[bytes | None, bytes]:
        """The value under a key (None: none), and its generation, which every write changes."""
        try:
            found = self.values.read(key).result()
        except _FAILURES as error:
            raise _os_error(self.path(key), error) from error
        if found.state != "value" and os.path.isdir(self.path(key)):
            raise IsADirectoryError(f"{self.path(key)} is a folder where a file is expected")
        return (found.value if found.state == "value" else None), found.stamp.generation

    def write(self, key: str, value: bytes) -> None:
        """Writes a value, whatever is there; raises OSError if that fails, naming the file."""
        self._write(key, value, None)

    def create(self, key: str, value: bytes) -> bytes | None:
        """Writes a value if the key has none: of several processes that try, one succeeds.

        Returns:
            The value's generation; None if the key had a value.

        Raises:
            OSError: the value cannot be written, naming the file.
        """
        there, missing = self.read_generation(key)
        return None if there is not None else self.replace(key, value, missing)

    def replace(self, key: str, value: bytes | None, generation: bytes) -> bytes | None:
        """Writes a value, or removes it (None), if the one there is still of this generation.

        Returns:
            The new generation; None if the value there was of another.

        Raises:
            OSError: the value cannot be written, naming the file.
        """
        return self._write(key, value, generation) or None

    def _write(self, key: str, value: bytes | None, generation: bytes | None) -> bytes:
        try:
            # An empty generation is the answer where the condition did not hold.
            return self.values.write(key, value, if_equal=generation).result().generation
        except _FAILURES as error:
            raise _os_error(self.path(key), error) from error


def open_store(folder: str | Path) -> Store:
    """The store in a local folder, which need not exist."""
    where = Path(folder)
    driver = {"driver": "file", "path": f"{where.resolve()}/"}  # tensorstore refuses ".."
    return Store(str(where), ts.KvStore.open(driver).result())


def write_file(path: str | Path, content: bytes) -> None:
    """Writes a whole file, complete or not at all; raises OSError naming it."""
    open_store(Path(path).parent).write(Path(path).name, content)


def read_file(path: str | Path) -> bytes | None:
    """A whole file, None if there is none; raises OSError naming it."""
    return open_store(Path(path).parent).read(Path(path).name)


def error_number(error: Exception) -> int | None:
    """The system's number of an error; those of tensorstore have it in their text. None for others."""
    told = _OS_ERROR.search(str(error))
    return int(told[1]) if told else getattr(error, "errno", None)


def _os_error(path: str, error: Exception) -> OSError:
    """What tensorstore says of a failure, as the exception that Python has for it."""
    if number := error_number(error):
        return OSError(number, os.strerror(number), path)
    return OSError(f"{path}: cannot be read or written ({str(error).strip()[:300]})")

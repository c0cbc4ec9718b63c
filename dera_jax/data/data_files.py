"""Opens data files; errors name a file as it was looked for."""

import io
from pathlib import Path
from typing import BinaryIO

from dera_jax.checkpoints.storage import read_file


def open_data(path: str) -> BinaryIO:
    """Opens a local file, or reads the file at a URL such as `gs://bucket/train.jsonl`.

    Raises:
        FileNotFoundError, ValueError: as `check_is_file`; or as `storage.read_file`.
    """
    if _is_url(path):
        return io.BytesIO(read_file(path))
    check_is_file(path)
    return Path(path).open("rb")


def check_is_file(path: str) -> None:
    """Check a local path without reading the file; URLs are not checked.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the path is a folder.
    """
    if _is_url(path) or Path(path).is_file():
        return
    if Path(path).is_dir():
        raise ValueError(f"{path}: is a folder; expected a file{_looked_for(path)}")
    raise FileNotFoundError(f"{path}: no such file{_looked_for(path)}")


def _is_url(path: str) -> bool:
    return "://" in path


def _looked_for(path: str) -> str:
    """Return where a relative path points to, as the end of a message; '' for an absolute path."""
    if Path(path).is_absolute():
        return ""
    return f"; looked for {Path(path).absolute()}, since the working directory is {Path.cwd()}"

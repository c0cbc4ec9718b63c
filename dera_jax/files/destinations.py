"""Checks output folders: runs write to local folders, from one process.

Buckets and several processes are not supported yet and raise ValueError.
"""

import os
from pathlib import Path

import jax


def check_one_process() -> None:
    """Raise ValueError if JAX runs in several processes, which would each train a model."""
    if jax.process_count() > 1:
        raise ValueError(
            f"JAX runs in {jax.process_count()} processes; runs in several processes are not "
            "supported yet: start one process, without jax.distributed"
        )


def output_folder(path: str | Path) -> Path:
    """Check and return an output folder, which need not exist; it is not created.

    Raises:
        ValueError: `path` is a URL.
        NotADirectoryError: the path, or its nearest existing parent, is not a folder.
        PermissionError: the folder, or its nearest existing parent, is not writable.
    """
    if "://" in str(path):
        raise ValueError(
            f"{path}: output to a URL is not supported yet; write to a local folder and copy it"
        )
    folder = Path(path)
    nearest = next(x for x in (folder.absolute(), *folder.absolute().parents) if x.exists())
    if not nearest.is_dir():
        raise NotADirectoryError(f"cannot write to {path}: {nearest} is not a folder")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise PermissionError(f"cannot write to {path}: no permission to write in {nearest}")
    return folder

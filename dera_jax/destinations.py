"""Where runs may write: local folders, from one process. Buckets and pods are refused until they work."""

import os
from pathlib import Path

import jax


def check_one_process() -> None:
    """Raises ValueError where JAX runs in several processes: each would train a model of its own."""
    if jax.process_count() > 1:
        raise ValueError(
            f"JAX runs in {jax.process_count()} processes; runs in several processes are not "
            "supported yet: start one process, without jax.distributed"
        )


def output_folder(path: str | Path) -> Path:
    """A folder to write to, which need not exist; nothing is made.

    Raises:
        ValueError: a URL.
        NotADirectoryError: it, or what it is to be made in, is no folder.
        PermissionError: it cannot be written to.
    """
    if "://" in str(path):
        raise ValueError(
            f"{path}: outputs at a URL are not supported yet; choose a local folder and copy it"
        )
    folder = Path(path)
    there = next(x for x in (folder.absolute(), *folder.absolute().parents) if x.exists())
    if not there.is_dir():
        raise NotADirectoryError(f"cannot write to {path}: {there} is no folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise PermissionError(f"cannot write to {path}: no permission to write in {there}")
    return folder

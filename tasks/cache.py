"""Caches text extracted from installed packages between runs, in files of JSON lines."""

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from dera_jax.files.cache_folder import cache_folder


def path(name: str, key: Mapping[str, object], suffix: str) -> Path:
    """Return the cache file for `name` and a key of all that its content depends on."""
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:12]
    return cache_folder() / f"{name}-{digest}{suffix}"


def write_atomically(target: Path, write: Callable[[Path], None]) -> None:
    """Calls `write` with a temporary file, which is renamed to `target` once it is complete."""
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=target.parent, suffix=target.suffix)
    os.close(handle)
    try:
        write(Path(name))
        os.replace(name, target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def rows(name: str, key: Mapping[str, object], make: Callable[[], Iterable[dict]]) -> list[dict]:
    """Return the rows of `make()`, which are computed once per `key` and then cached."""
    target = path(name, key, ".jsonl")
    if not target.exists():
        write_atomically(target, lambda temporary: _write_rows(temporary, make()))
    with target.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def _write_rows(target: Path, new_rows: Iterable[dict]) -> None:
    with target.open("w", encoding="utf-8") as out:
        out.writelines(json.dumps(row) + "\n" for row in new_rows)

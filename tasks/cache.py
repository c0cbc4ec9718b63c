"""Text extracted from installed packages, kept as JSON lines between runs."""

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from dera_jax.cache_folder import cache_folder


def path(name: str, key: Mapping[str, object], suffix: str) -> Path:
    """The file of `name` for everything its content depends on, such as package versions."""
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:12]
    return cache_folder() / f"{name}-{digest}{suffix}"


def write_atomically(target: Path, write: Callable[[Path], None]) -> None:
    """Lets `write` fill a file that takes the name `target` only once it is complete."""
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
    """The rows of `make()`, computed once per `key`."""
    target = path(name, key, ".jsonl")
    if not target.exists():
        write_atomically(target, lambda temporary: _write_rows(temporary, make()))
    with target.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def _write_rows(target: Path, made: Iterable[dict]) -> None:
    with target.open("w", encoding="utf-8") as out:
        out.writelines(json.dumps(row) + "\n" for row in made)

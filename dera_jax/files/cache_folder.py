"""Locates the cache folder, which keeps recomputable results between runs."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """Return the cache folder, which need not exist.

    It is `$DERA_JAX_CACHE`, by default `dera_jax` in `$XDG_CACHE_HOME` or `~/.cache`.

    Raises:
        RuntimeError: neither variable is set, and the user has no home directory.
    """
    if named := os.environ.get("DERA_JAX_CACHE"):
        return Path(named)
    caches = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not caches.is_absolute():  # unset, or invalid by the XDG specification
        caches = Path.home() / ".cache"
    return caches / "dera_jax"

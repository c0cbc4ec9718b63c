"""Where results that can be computed again are kept between runs."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """`$DERA_JAX_CACHE`, by default `dera_jax` in `$XDG_CACHE_HOME` or `~/.cache`; it need not exist.

    Raises:
        RuntimeError: none of these is set, and the user has no home directory.
    """
    if named := os.environ.get("DERA_JAX_CACHE"):
        return Path(named)
    caches = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not caches.is_absolute():  # unset, or invalid by the XDG specification
        caches = Path.home() / ".cache"
    return caches / "dera_jax"

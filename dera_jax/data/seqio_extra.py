"""Imports TensorFlow and seqio, which the extra `seqio` of this package installs.

Everything that needs them imports this module first. It hides accelerators from TensorFlow, which
would otherwise reserve the memory that JAX needs, and the lines that its C++ libraries log.

    from dera_jax.data.seqio_extra import seqio, tf

Raises:
    ModuleNotFoundError: a package of the extra is not installed; the message has the command that
        installs it.
"""

import contextlib
import os
import re
import sys
import tempfile
from collections.abc import Iterator

__all__ = ["seqio", "tf"]

_LEVEL = "TF_CPP_MIN_LOG_LEVEL"
# Logged while the libraries are loaded, before any level of logging applies: "I0000 00:00:... ".
_LOADING = re.compile(rb"I\d{4} |WARNING: All log messages before absl::InitializeLog\(\)")


@contextlib.contextmanager
def _errors_only() -> Iterator[None]:
    """Sets the level of TensorFlow's C++ log for the first import, when TensorFlow reads it."""
    level = os.environ.get(_LEVEL)
    os.environ[_LEVEL] = "3"  # 2 shows an error on machines without a CUDA driver
    try:
        yield
    finally:
        del os.environ[_LEVEL]
        if level is not None:
            os.environ[_LEVEL] = level  # of JAX


@contextlib.contextmanager
def _without_loading_messages() -> Iterator[None]:
    """Keeps the messages of `_LOADING` from stderr; what else is written there appears afterwards."""
    sys.stderr.flush()
    with tempfile.TemporaryFile() as written:
        stderr = os.dup(2)
        os.dup2(written.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(stderr, 2)
            written.seek(0)
            with os.fdopen(stderr, "wb") as visible:
                visible.writelines(line for line in written if not _LOADING.match(line))


def _hide_accelerators() -> None:
    # RuntimeError: the user's own code has used TensorFlow before, with the devices of its choice.
    with contextlib.suppress(RuntimeError):
        for kind in ("GPU", "TPU"):
            tf.config.set_visible_devices([], kind)


try:
    with _errors_only(), _without_loading_messages():
        import tensorflow as tf

        _hide_accelerators()
        import seqio
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"seqio tasks need the package {error.name}, which the extra `seqio` installs: "
        "pip install 'dera_jax[seqio]', or pip install -c constraints.txt -e '.[seqio]' in a clone; "
        "runs on files of your own (--gin.TRAIN, --gin.VALIDATION, --gin.TEST) do not need it",
        name=error.name,
    ) from error

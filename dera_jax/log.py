"""Warnings that a run gives once, however often it comes by."""

import functools

from absl import logging


@functools.cache
def warn_once(message: str) -> None:
    """Logs a warning the first time that this process has this message."""
    logging.warning("%s", message)

"""Warnings that a run gives once, however often it comes by."""

from collections.abc import Hashable

from absl import logging

_said: set[Hashable] = set()


def warn_once(message: str, about: Hashable = None) -> None:
    """Logs a warning the first time that this process is warned of something.

    Args:
        message: the warning.
        about: what it is about, where the message alone does not tell: counts in it may differ.
    """
    key = message if about is None else about
    if key not in _said:
        _said.add(key)
        logging.warning("%s", message)


def forget() -> None:
    """Lets every warning be given again; for tests."""
    _said.clear()

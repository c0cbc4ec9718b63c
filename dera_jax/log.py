"""Logs warnings once per process."""

from collections.abc import Hashable

from absl import logging

_logged: set[Hashable] = set()


def warn_once(message: str, about: Hashable = None) -> None:
    """Logs a warning unless this process has already logged it.

    Args:
        message: the warning.
        about: key that identifies the warning if its message varies, for example by a count.
    """
    key = message if about is None else about
    if key not in _logged:
        _logged.add(key)
        logging.warning("%s", message)


def clear_logged_warnings() -> None:
    """Forgets all logged warnings, so that they are logged again; for tests."""
    _logged.clear()

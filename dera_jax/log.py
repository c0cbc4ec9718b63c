"""Shows warnings of this library and of the user's code, each once; hides those of other packages."""

import logging as python_logging
import sys
import sysconfig
import warnings
from collections.abc import Hashable
from pathlib import Path

from absl import logging

_PACKAGE = Path(__file__).resolve().parent
_INSTALLED = [Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platlib")]

_logged: set[Hashable] = set()


def show(verbose: bool = False) -> None:
    """Prints warnings to standard error, one line each; for commands, before they begin.

    Warnings of other packages are printed only with `verbose`, their errors always.
    """
    root, handler = python_logging.root, _Handler(sys.stderr)
    replaced = _Handler, logging.ABSLHandler
    root.handlers = [x for x in root.handlers if not isinstance(x, replaced)] + [handler]
    logging.set_verbosity(logging.WARNING)
    if not verbose:
        handler.addFilter(lambda x: x.levelno >= python_logging.ERROR or _is_own(x.pathname))
        # Set anew, because `warnings.simplefilter` would hide the warnings of a user's code too.
        warnings.showwarning = _show_own_warning


class _Handler(python_logging.StreamHandler):
    """Prints a record as "warning: message"."""

    def format(self, record: python_logging.LogRecord) -> str:
        return f"{record.levelname.lower()}: {super().format(record)}"


def _show_own_warning(message, category, filename, lineno, file=None, line=None) -> None:
    if _is_own(filename):
        text = warnings.formatwarning(message, category, filename, lineno, line)
        print(text, end="", file=file or sys.stderr)


def _is_own(path: str) -> bool:
    """Returns whether a file is of this package or of a user, not of an installed package."""
    file = Path(path)
    return file.is_relative_to(_PACKAGE) or not any(map(file.is_relative_to, _INSTALLED))


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

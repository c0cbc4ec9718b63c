"""Shows the progress of loops: a bar on terminals and in notebooks, plain lines in log files."""

import sys
from typing import TextIO

from tqdm import tqdm

PERIOD = 60  # seconds between two lines in a log file
_LINE = "{desc}: {n_fmt}/{total_fmt} {unit}, {elapsed} elapsed, {remaining} left{postfix}"


class ProgressBar(tqdm):
    """A progress bar of tqdm, which takes its arguments.

    Where standard error is neither a terminal nor a notebook, it writes one plain line per minute
    instead, and nothing for loops that take less than a minute.
    """

    def __init__(self, *arguments: object, **options: object):
        super().__init__(*arguments, **options | ({} if redraws() else _line_options()))


def redraws() -> bool:
    """Returns whether standard error can redraw a line, as terminals and notebooks can."""
    return sys.stderr.isatty() or "ipykernel" in sys.modules


def _line_options() -> dict[str, object]:
    # `maxinterval` is the period of tqdm's monitor, which would otherwise draw every 10 seconds.
    periods = {"delay": PERIOD, "mininterval": PERIOD, "maxinterval": PERIOD}
    return {"file": _Lines(sys.stderr), "bar_format": _LINE} | periods


class _Lines:
    """Writes what tqdm draws as lines: without carriage returns and the blanks that erase a bar."""

    def __init__(self, file: TextIO):
        self._file = file

    def write(self, text: str) -> None:
        line = text.strip("\r\n ")
        if line:
            self._file.write(f"{line}\n")

    def flush(self) -> None:
        self._file.flush()

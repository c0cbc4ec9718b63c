"""Runs commands: reports errors and interrupts in one line, and enables JAX's compilation cache.

Exit statuses:

0    success
1    error
2    wrong use of the command line (from argparse)
130  stopped by Ctrl-C (SIGINT), 143 by SIGTERM, 141 because the reader of stdout ended before a run
"""

import contextlib
import errno
import gc
import os
import signal
import sys
import sysconfig
import threading
import traceback
import types
from collections.abc import Callable, Iterator
from pathlib import Path

from dera_jax import compilation_cache

_PACKAGE = Path(__file__).resolve().parent
_OURS = (_PACKAGE,)
_IGNORED = ("_xla_gc_callback", "__del__")  # functions whose exceptions are ignored
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
_NO_SPACE_TEXTS = ("No space left on device", "Disk quota exceeded")


def run(
    command: Callable[[], None],
    folder: Callable[[], str | None] = lambda: None,
    explain: Callable[[Exception], str] = str,
) -> None:
    """Calls `command`; on an interrupt or an expected error, prints one line and exits.

    Unexpected errors, and all errors that passed through a user's own code, are raised unchanged,
    since their traceback is needed.

    Args:
        command: the work to do.
        folder: returns the output folder, called after `command` has ended; None if unknown.
        explain: returns the message of an error.

    Raises:
        SystemExit: with a status as listed above.
    """
    number, line = None, None
    with _signals() as received:
        try:
            compilation_cache.enable()
            command()
            sys.stdout.flush()
        except BrokenPipeError as error:
            if not _is_of_stdout(error):
                raise
            close_stdout()
            number = signal.SIGPIPE if folder() else None  # a run that has not ended
        except (KeyboardInterrupt, Exception) as error:
            # Some libraries turn an interrupt during a conversion into another error.
            if received or isinstance(error, KeyboardInterrupt):
                number = received[0] if received else signal.SIGINT
            elif not _is_expected(error):
                raise
            else:
                line = f"error: {_text(error, explain, folder())}"
    if number is not None:
        gc.collect()  # frees the objects of the traceback: a progress bar then ends its line
        print(f"stopped; {progress_summary(folder())}", file=sys.stderr)
        sys.exit(128 + number)
    if line is not None:
        sys.exit(line)


def _is_of_stdout(error: BrokenPipeError) -> bool:
    """Returns whether a function of this package, by printing, raised the error."""
    return Path(_frames(error)[-1].filename).is_relative_to(_PACKAGE)


def close_stdout() -> None:
    """Ends the output without an error: its reader, such as `head`, has what it needs."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """Makes SIGINT and SIGTERM raise KeyboardInterrupt; yields the list of received signals."""
    received = []

    def stop(number: int, frame: object) -> None:
        received.append(number)
        if _would_be_lost(frame):
            threading.Timer(0.05, os.kill, (os.getpid(), number)).start()
            return
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield received  # only the main thread may set signal handlers
        return
    before = {x: signal.signal(x, stop) for x in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Delays SIGINT and SIGTERM to the end of the `with` block."""
    received = []
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set signal handlers
        return
    note = lambda number, frame: received.append(number)
    before = {x: signal.signal(x, note) for x in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if received:
            signal.raise_signal(received[0])


def _would_be_lost(frame: types.FrameType | None) -> bool:
    """Returns whether Python would ignore an exception at this place, as in a callback of its garbage collector."""
    while frame is not None and frame.f_code.co_name not in _IGNORED:
        frame = frame.f_back
    return frame is not None


def progress_summary(folder: str | None) -> str:
    """Return what an interrupted run has saved in its folder, and how to resume it."""
    if folder is None:
        return "nothing was saved"
    path = Path(folder)
    if not path.is_dir():
        return "nothing was saved yet"
    ended = len([x for x in path.rglob("result.json") if x.parent != path])
    parts = [f"{ended} finished {'stage' if ended == 1 else 'stages'}"] if ended else []
    progress = {
        x: f"the checkpoint of step {step} in {x}" for x, step in _checkpoints(path).items()
    }
    progress |= {x: f"{n} documents in {x}" for x, n in _documents(path).items()}
    running = [x for x in progress if not any((y / "result.json").exists() for y in (x, x.parent))]
    if running:
        parts.append(progress[max(running, key=lambda x: x.stat().st_mtime)])
    what = " and ".join(parts) or f"nothing but the configuration in {folder}"
    return f"saved: {what}; start the same command again to resume"


def _checkpoints(path: Path) -> dict[Path, int]:
    """Return the step of the last complete checkpoint of each folder."""
    folders = {x.parent for x in path.rglob("checkpoints/[0-9]*") if x.name.isdigit()}
    return {x: max(int(y.name) for y in x.iterdir() if y.name.isdigit()) for x in folders}


def _documents(path: Path) -> dict[Path, int]:
    """Return the number of decoded documents by folder: lines of its shards but the headers."""
    shards = {x.parent: list(x.glob("[0-9]*.jsonl")) for x in path.rglob("shards")}
    counts = {x: sum(y.read_bytes().count(b"\n") - 1 for y in shards[x]) for x in shards}
    return {folder: n for folder, n in counts.items() if n > 0}


def _is_expected(error: Exception) -> bool:
    """Return True for errors raised on purpose, whose message suffices, and for system errors.

    Errors that passed through a user's own code, such as a reward, are never expected.
    """
    frames, cause = _frames(error), error.__cause__
    while cause:
        frames, cause = [*_frames(cause), *frames], cause.__cause__
    if not all(map(_is_known, frames)):
        return False
    last, file = frames[-1], Path(frames[-1].filename)
    on_purpose = last.line.startswith("raise") and any(map(file.is_relative_to, _OURS))
    from_gin = "gin" in file.parts
    return on_purpose or from_gin or isinstance(error, ImportError) or _is_system_error(error)


def _frames(error: BaseException) -> list[traceback.FrameSummary]:
    return list(traceback.extract_tb(error.__traceback__))


def _is_known(frame: traceback.FrameSummary) -> bool:
    """Return whether a frame is of this repository, of a library, or generated by Python."""
    libraries = [sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")]
    known = any(map(Path(frame.filename).is_relative_to, (*_OURS, *libraries)))
    return known or frame.filename == "<string>" or frame.filename.startswith("<frozen")


def _is_system_error(error: Exception) -> bool:
    return isinstance(unwrapped(error), OSError) or _is_disk_full(error)


def _is_disk_full(error: Exception) -> bool:
    """Return whether a disk is full; C++ libraries report that in the message of other errors."""
    number = getattr(unwrapped(error), "errno", None)
    return number in _NO_SPACE or any(text in str(error) for text in _NO_SPACE_TEXTS)


def _text(error: Exception, explain: Callable[[Exception], str], folder: str | None) -> str:
    cause = unwrapped(error)
    path = getattr(cause, "filename", None)
    if _is_disk_full(error):
        where = path or folder
        full = "no space left on the disk; make room and start the same command again"
        return f"{where}: {full}" if where else full
    if isinstance(cause, OSError) and cause.errno is not None:
        return f"{path}: {cause.strerror}" if path else str(cause.strerror)
    return explain(error)


def unwrapped(error: BaseException) -> BaseException:
    """Return the original error: gin replaces it by another one with a longer message."""
    while getattr(type(error).__init__, "__module__", None) == "gin.utils":
        error = error.__context__
    return error

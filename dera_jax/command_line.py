"""What commands share: errors in one line, interrupts in one line, exit statuses, JAX's compilation cache.

0    done
1    an error
2    a wrong use of the command line (argparse's)
130  stopped by Ctrl-C (SIGINT), 143 by SIGTERM
"""

import contextlib
import errno
import gc
import signal
import sys
import sysconfig
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

from dera_jax import compilation_cache

_PACKAGE = Path(__file__).resolve().parent
_OURS = (_PACKAGE, _PACKAGE.parent / "tasks")
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
_NO_SPACE_TEXTS = ("No space left on device", "Disk quota exceeded")


def run(
    command: Callable[[], None],
    folder: Callable[[], str | None] = lambda: None,
    explain: Callable[[Exception], str] = str,
) -> None:
    """Calls `command`; where it is interrupted or fails as foreseen, says so in one line and exits.

    Errors that are not foreseen, and all that passed through a user's own code, are raised as they
    are: what helps then is the traceback.

    Args:
        command: does the work.
        folder: where it writes, asked once it has ended; None if that is not known.
        explain: the text of an error.

    Raises:
        SystemExit: with the status above.
    """
    number, line = None, None
    with _signals() as received:
        try:
            compilation_cache.switch_on()
            command()
        except (KeyboardInterrupt, Exception) as error:
            # An interrupt inside of a conversion comes out of some libraries as another error.
            if received or isinstance(error, KeyboardInterrupt):
                number = received[0] if received else signal.SIGINT
            elif not _is_foreseen(error):
                raise
            else:
                line = f"error: {_text(error, explain, folder())}"
    if number is not None:
        gc.collect()  # what the traceback held, such as a progress bar, which then ends its line
        print(f"stopped; {saved(folder())}", file=sys.stderr)
        sys.exit(128 + number)
    if line is not None:
        sys.exit(line)


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """SIGINT and SIGTERM raise KeyboardInterrupt; yields the numbers of those that have come."""
    received = []

    def stop(number: int, frame: object) -> None:
        received.append(number)
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield received  # only the main thread may handle signals
        return
    before = {x: signal.signal(x, stop) for x in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def saved(folder: str | None) -> str:
    """What an interrupted run has left in its folder, and how to go on."""
    if folder is None:
        return "the run had not begun"
    path = Path(folder)
    if not path.is_dir():
        return "nothing was saved yet"
    ended = len([x for x in path.rglob("result.json") if x.parent != path])
    found = [f"{ended} finished {'stage' if ended == 1 else 'stages'}"] if ended else []
    left = {x: f"the checkpoint of step {step} in {x}" for x, step in _checkpoints(path).items()}
    left |= {x: f"{n} documents in {x}" for x, n in _documents(path).items()}
    running = [x for x in left if not any((y / "result.json").exists() for y in (x, x.parent))]
    if running:
        found.append(left[max(running, key=lambda x: x.stat().st_mtime)])
    what = " and ".join(found) or f"nothing but the settings in {folder}"
    return f"saved: {what}; start the same command again to go on"


def _checkpoints(path: Path) -> dict[Path, int]:
    """The last step of which a complete checkpoint is there, by folder."""
    folders = {x.parent for x in path.rglob("checkpoints/[0-9]*") if x.name.isdigit()}
    return {x: max(int(y.name) for y in x.iterdir() if y.name.isdigit()) for x in folders}


def _documents(path: Path) -> dict[Path, int]:
    """How many documents are decoded, by folder: in shards, whose first line is a header."""
    found = {x.parent: list(x.glob("[0-9]*.jsonl")) for x in path.rglob("shards")}
    lines = {x: sum(y.read_bytes().count(b"\n") - 1 for y in found[x]) for x in found}
    return {folder: n for folder, n in lines.items() if n > 0}


def _is_foreseen(error: Exception) -> bool:
    """True for errors raised on purpose, whose text says it all, and for those of the system.

    Not for those that passed through a user's own code, such as a reward, wherever they were raised.
    """
    frames, cause = _frames(error), error.__cause__
    while cause:
        frames, cause = [*_frames(cause), *frames], cause.__cause__
    if not all(map(_is_known, frames)):
        return False
    last, file = frames[-1], Path(frames[-1].filename)
    on_purpose = last.line.startswith("raise") and any(map(file.is_relative_to, _OURS))
    from_gin = "gin" in file.parts
    return on_purpose or from_gin or isinstance(error, ImportError) or _is_of_the_system(error)


def _frames(error: BaseException) -> list[traceback.FrameSummary]:
    return list(traceback.extract_tb(error.__traceback__))


def _is_known(frame: traceback.FrameSummary) -> bool:
    """Of this repository, of an installed package, or of code that Python makes (dataclasses, imports)."""
    libraries = [sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")]
    known = any(map(Path(frame.filename).is_relative_to, (*_OURS, *libraries)))
    return known or frame.filename == "<string>" or frame.filename.startswith("<frozen")


def _is_of_the_system(error: Exception) -> bool:
    return isinstance(unwrapped(error), OSError) or _is_full(error)


def _is_full(error: Exception) -> bool:
    """Whether a disk is; libraries in C++ say so in the text of errors of their own."""
    number = getattr(unwrapped(error), "errno", None)
    return number in _NO_SPACE or any(text in str(error) for text in _NO_SPACE_TEXTS)


def _text(error: Exception, explain: Callable[[Exception], str], folder: str | None) -> str:
    cause = unwrapped(error)
    where = getattr(cause, "filename", None) or folder
    if _is_full(error):
        return f"{where}: no space left on the disk; make room and start the same command again"
    if isinstance(cause, OSError) and cause.errno is not None:
        return f"{where}: {cause.strerror}"
    return explain(error)


def unwrapped(error: BaseException) -> BaseException:
    """The error that was raised: gin raises another one in its place, with a longer text."""
    while getattr(type(error).__init__, "__module__", None) == "gin.utils":
        error = error.__context__
    return error

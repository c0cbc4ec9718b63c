"""Keeps a second process out of a folder in which a run is under way.

The lock is a value in the folder's store, written on the condition that there is none. It names its
process, which refreshes it while the run lasts. A process that was killed leaves its lock: where it
is certain that it no longer runs (same host, same boot, no such process), the next one takes over.
"""

import contextlib
import dataclasses
import datetime
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from absl import logging

from dera_jax import json_files
from dera_jax.store import Store

KEY = "lock.json"
HEARTBEAT_SECONDS = 30.0
STALE_SECONDS = 600.0  # without a heartbeat the process is probably gone
_TRIES = 5


@dataclasses.dataclass(frozen=True)
class Owner:
    """A process.

    Attributes:
        host: its machine's name.
        system: the machine's boot and the process namespace, in which ids mean something.
        process: its id.
        started: when it started, in ticks of that boot, since ids are used again; None if unknown.
    """

    host: str
    system: str
    process: int
    started: int | None

    @classmethod
    def here(cls) -> "Owner":
        """This process."""
        return cls(socket.gethostname(), _system(), os.getpid(), _started(os.getpid()))

    def is_gone(self) -> bool:
        """True where it is certain that the process no longer runs."""
        here = Owner.here()
        if (self.host, self.system) != (here.host, here.system):
            return False
        try:
            os.kill(self.process, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            pass  # another user's
        return self.started != _started(self.process)


@contextlib.contextmanager
def held(store: Store) -> Iterator[None]:
    """Holds the lock of a store.

    Raises:
        RuntimeError: another process holds it, naming host, process and how to go on.
        OSError: the folder cannot be written to.
    """
    beat = _Heartbeat(store, *_acquire(store))
    beat.start()
    try:
        yield
    finally:
        beat.stop()


class _Heartbeat(threading.Thread):
    """Refreshes a lock until it is stopped, which removes it."""

    def __init__(self, store: Store, owner: Owner, generation: bytes):
        super().__init__(name="heartbeat of the run folder's lock", daemon=True)
        self._store, self._owner, self._generation = store, owner, generation
        self._stopped = threading.Event()

    def run(self) -> None:
        while self._generation and not self._stopped.wait(HEARTBEAT_SECONDS):
            try:
                self._generation = self._store.replace(KEY, _content(self._owner), self._generation)
            except OSError as error:
                logging.warning("the lock could not be refreshed: %s", error)
        if not self._generation:
            self._say_lost()

    def stop(self) -> None:
        self._stopped.set()
        self.join()
        try:
            if self._generation and not self._store.replace(KEY, None, self._generation):
                self._say_lost()
        except OSError as error:
            logging.warning("the lock could not be removed: %s", error)

    def _say_lost(self) -> None:
        logging.error(
            "%s was removed or replaced while this run works in its folder: stop one of the two runs",
            self._store.path(KEY),
        )


def _acquire(store: Store) -> tuple[Owner, bytes]:
    owner = Owner.here()
    for _ in range(_TRIES):  # others may take, replace or release it between two steps
        if generation := store.create(KEY, _content(owner)):
            return owner, generation
        value, theirs = store.read_generation(KEY)
        if value is None:
            continue
        holder, seen = _parse(value, store.path(KEY))
        if not holder.is_gone():
            raise RuntimeError(_refusal(store, holder, seen))
        if generation := store.replace(KEY, _content(owner), theirs):
            return owner, generation
    raise RuntimeError(f"{store.where} is in use by another process that has just started")


def _content(owner: Owner) -> bytes:
    row = dataclasses.asdict(owner) | {"heartbeat": time.time()}
    return json_files.to_lines([row], KEY)


def _parse(value: bytes, path: str) -> tuple[Owner, float]:
    try:
        row = json_files.loads(value, path)
        return Owner(**{f.name: row[f.name] for f in dataclasses.fields(Owner)}), row["heartbeat"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is no lock of a run ({error!r}); remove it if no run uses its folder"
        ) from error


def _refusal(store: Store, holder: Owner, seen: float) -> str:
    who = f"process {holder.process} on host {holder.host}"
    when = datetime.datetime.fromtimestamp(seen).isoformat(" ", "seconds")
    if time.time() - seen < STALE_SECONDS:
        return (
            f"{store.where} is in use by {who} (last heartbeat {when}); wait until that run ends, "
            "stop it, or choose another folder"
        )
    return (
        f"{store.where} is locked by {who}, whose last heartbeat was at {when}; if that process no "
        f"longer runs, remove {store.path(KEY)}"
    )


def _system() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""  # not Linux


def _started(process: int) -> int | None:
    """When a process started; None where that is unknown, or it has ended and nobody asked how."""
    try:
        # The name, in brackets, may hold anything; the state comes next, the start is the 22nd field.
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] in ("Z", "X") else int(fields[19])
    except (OSError, ValueError, IndexError):
        return None

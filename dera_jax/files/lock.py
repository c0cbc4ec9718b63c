"""Locks a run folder, so that only one process at a time works in it.

The lock is a value in the folder's store, written on the condition that the key is missing. It
names the process that holds it, which refreshes a heartbeat while the run lasts. A killed process
leaves its lock behind. The next process takes it over if the holder certainly no longer runs (same
host, same boot, no such process).
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

from dera_jax.files import json_files
from dera_jax.files.store import Store

KEY = "lock.json"
HEARTBEAT_SECONDS = 30.0
STALE_SECONDS = 600.0  # after so long without a heartbeat the process has probably ended
_TRIES = 5


@dataclasses.dataclass(frozen=True)
class Owner:
    """Identifies the process that holds a lock.

    Attributes:
        host: name of the machine.
        system: ids of the machine's boot and of the process namespace, within which process ids are
            valid.
        process: process id.
        started: start time in clock ticks since boot, or None if unknown; the id alone does not
            identify a process, since ids are reused.
    """

    host: str
    system: str
    process: int
    started: int | None

    @classmethod
    def here(cls) -> "Owner":
        """Return the owner that identifies this process."""
        return cls(socket.gethostname(), _system(), os.getpid(), _started(os.getpid()))

    def is_gone(self) -> bool:
        """Return True if it is certain that the process no longer runs."""
        here = Owner.here()
        if (self.host, self.system) != (here.host, here.system):
            return False
        try:
            os.kill(self.process, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            pass  # the process exists and belongs to another user
        return self.started != _started(self.process)


@contextlib.contextmanager
def held(store: Store) -> Iterator[None]:
    """Holds the lock of a store inside a `with` block.

    Raises:
        RuntimeError: another process holds it; the message names host and process, and says what
            to do.
        OSError: the folder cannot be written to.
    """
    heartbeat = _Heartbeat(store, *_acquire(store))
    heartbeat.start()
    try:
        yield
    finally:
        heartbeat.stop()


class _Heartbeat(threading.Thread):
    """Refreshes a lock periodically; `stop` ends that and removes the lock."""

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
            self._log_lost()

    def stop(self) -> None:
        self._stopped.set()
        self.join()
        try:
            if self._generation and not self._store.replace(KEY, None, self._generation):
                self._log_lost()
        except OSError as error:
            logging.warning("the lock could not be removed: %s", error)

    def _log_lost(self) -> None:
        logging.error(
            "%s was removed or replaced while this run uses its folder; if another run uses the "
            "folder too, stop one of them",
            self._store.path(KEY),
        )


def _acquire(store: Store) -> tuple[Owner, bytes]:
    owner = Owner.here()
    for _ in range(
        _TRIES
    ):  # other processes may take, replace or release the lock between two operations
        if generation := store.create(KEY, _content(owner)):
            return owner, generation
        value, theirs = store.read_generation(KEY)
        if value is None:
            continue
        holder, seen = _parse(value, store.path(KEY))
        if not holder.is_gone():
            raise RuntimeError(_in_use_message(store, holder, seen))
        if generation := store.replace(KEY, _content(owner), theirs):
            return owner, generation
    raise RuntimeError(
        f"{store.where} is in use by another process that has just started; wait until that run "
        "ends, or choose another folder"
    )


def _content(owner: Owner) -> bytes:
    row = dataclasses.asdict(owner) | {"heartbeat": time.time()}
    return json_files.to_lines([row], KEY)


def _parse(value: bytes, path: str) -> tuple[Owner, float]:
    try:
        row = json_files.loads(value, path)
        return Owner(**{f.name: row[f.name] for f in dataclasses.fields(Owner)}), row["heartbeat"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is not a valid lock of a run ({error!r}); remove it if no run uses its folder"
        ) from error


def _in_use_message(store: Store, holder: Owner, seen: float) -> str:
    name = f"process {holder.process} on host {holder.host}"
    when = datetime.datetime.fromtimestamp(seen).isoformat(" ", "seconds")
    if time.time() - seen < STALE_SECONDS:
        return (
            f"{store.where} is in use by {name} (last heartbeat {when}); wait until that run ends, "
            "stop it, or choose another folder"
        )
    return (
        f"{store.where} is locked by {name}, whose last heartbeat was at {when}; if that process no "
        f"longer runs, remove {store.path(KEY)}"
    )


def _system() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""  # not Linux


def _started(process: int) -> int | None:
    """Return the start time of a process in ticks; None if unknown, or for a zombie."""
    try:
        # Field 2 is the name in brackets, which may contain spaces and brackets; field 3 is the
        # state, field 22 the start time.
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] in ("Z", "X") else int(fields[19])
    except (OSError, ValueError, IndexError):
        return None

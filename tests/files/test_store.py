"""The store that runs write to, and its lock, from several processes at once."""

import contextlib
import dataclasses
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dera_jax.files import lock
from dera_jax.files.store import open_store, read_file, write_file

ROOT = Path(__file__).resolve().parents[2]
HOLD = """
import sys, time
from dera_jax.files import lock
from dera_jax.files.store import open_store
with lock.held(open_store(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""
RACE = """
import sys, time
from dera_jax.files.store import open_store
store = open_store(sys.argv[1])
sys.stdin.readline()
print(sum(store.create(f"key/{i}", sys.argv[2].encode()) is not None for i in range(40)))
"""


def child(code: str, *arguments: object) -> subprocess.Popen:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=environment, **pipes)


def test_one_of_two_processes_creates_a_value(tmp_path):
    children = [child(RACE, tmp_path, name) for name in "ab"]
    for process in children:
        process.stdin.write("go\n")
        process.stdin.flush()
    created = [int(process.communicate()[0]) for process in children]
    assert sum(created) == 40
    store = open_store(tmp_path)
    assert [sum(store.read(f"key/{i}") == x for i in range(40)) for x in (b"a", b"b")] == created


def test_a_value_is_replaced_only_in_the_generation_that_was_read(tmp_path):
    store = open_store(tmp_path)
    first = store.create("a", b"1")
    assert store.create("a", b"2") is None and store.read("a") == b"1"
    second = store.replace("a", b"3", first)
    assert store.replace("a", b"4", first) is None and store.read("a") == b"3"
    assert store.replace("a", None, first) is None and store.read("a") == b"3"
    assert store.replace("a", None, second) and store.read("a") is None


@contextlib.contextmanager
def file_size_limit(size: int):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_write_that_fails_names_the_file_and_leaves_the_old_one(tmp_path):
    write_file(tmp_path / "a", b"old")
    with file_size_limit(1000), pytest.raises(OSError, match="File too large.*/a'"):
        write_file(tmp_path / "a", bytes(5000))
    assert read_file(tmp_path / "a") == b"old"
    with pytest.raises(NotADirectoryError, match="/a/b"):
        write_file(tmp_path / "a" / "b", b"")
    (tmp_path / "c").mkdir()
    for call in (lambda: read_file(tmp_path / "c"), lambda: write_file(tmp_path / "c", b"")):
        with pytest.raises(IsADirectoryError, match="/c"):
            call()


@pytest.mark.parametrize("reaped", [True, False])
def test_a_second_process_is_refused_until_the_first_is_killed(reaped, tmp_path):
    store = open_store(tmp_path)
    with child(HOLD, tmp_path) as process:
        assert process.stdout.readline() == "held\n"
        with (
            pytest.raises(RuntimeError, match=rf"in use by process {process.pid} on host \S+ "),
            lock.held(store),
        ):
            pass
        process.kill()
        if reaped:
            process.wait()
        else:  # as under a parent that never asks how its child ended
            while "Z (zombie)" not in Path(f"/proc/{process.pid}/status").read_text():
                time.sleep(0.01)
        assert store.read(lock.KEY)
        with lock.held(store):
            assert json.loads(store.read(lock.KEY))["process"] == os.getpid()
    assert store.read(lock.KEY) is None


def test_a_lock_is_released_whatever_happens_and_not_taken_twice(tmp_path):
    store = open_store(tmp_path)
    with pytest.raises(KeyboardInterrupt), lock.held(store):
        with (
            pytest.raises(RuntimeError, match=f"in use by process {os.getpid()}"),
            lock.held(store),
        ):
            pass
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def left(store, seconds: float = 0.0, **changes) -> None:
    """Leaves the lock of another process, whose last heartbeat was so long ago."""
    owner = dataclasses.replace(lock.Owner.here(), **changes)
    row = dataclasses.asdict(owner) | {"heartbeat": time.time() - seconds}
    store.write(lock.KEY, json.dumps(row).encode())


def test_a_lock_whose_process_is_certainly_gone_is_taken_over(tmp_path):
    store = open_store(tmp_path)
    left(store, started=lock.Owner.here().started - 1)  # the process's id was given again
    with lock.held(store):
        pass


@pytest.mark.parametrize("change", [{"host": "other"}, {"system": "another boot"}])
def test_a_lock_that_may_be_in_use_is_kept_and_a_stale_one_tells_how_to_clear_it(change, tmp_path):
    store = open_store(tmp_path)
    for seconds, message in ((1, "is in use by process 1 on"), (7200, "remove .*lock.json")):
        left(store, seconds, process=1, **change)
        with pytest.raises(RuntimeError, match=message), lock.held(store):
            pass
    assert store.read(lock.KEY)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"host": "a"}'])
def test_a_broken_lock_is_named(content, tmp_path):
    (tmp_path / lock.KEY).write_text(content)
    with (
        pytest.raises(ValueError, match="lock.json is not a valid lock"),
        lock.held(open_store(tmp_path)),
    ):
        pass


def test_the_heartbeat_goes_on_and_a_lost_lock_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "HEARTBEAT_SECONDS", 0.01)
    store = open_store(tmp_path)
    beat = lambda: json.loads(store.read(lock.KEY))["heartbeat"]
    with lock.held(store):
        first, deadline = beat(), time.monotonic() + 20
        while beat() == first:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        left(store, host="other")
        time.sleep(0.05)
    assert json.loads(store.read(lock.KEY))["host"] == "other"

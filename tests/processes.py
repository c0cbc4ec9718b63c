"""Two real processes of JAX on this machine, which talk over gloo.

A module's `main(port, index, file, *arguments)` is what each of them runs, with `join` first; what it
finds it writes to the file as JSON.
"""

import json
import os
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import jax

ROOT = Path(__file__).resolve().parents[1]
_TIMEOUT = 400  # seconds


def join(port: str, index: str, file: str, work: Callable[[], object]) -> None:
    """Does the work as one of the two, and writes what it returns."""
    jax.distributed.initialize(f"localhost:{port}", 2, int(index))
    assert jax.process_count() == 2
    try:
        found = work()
    except Exception:  # noqa: BLE001 (whatever it is, the other process must not wait)
        traceback.print_exc()
        os._exit(1)  # without waiting for the other process
    Path(file).write_text(json.dumps(found))


def run_two(module: str, folder: Path, *arguments: str, devices: int = 1) -> list[object]:
    """What `python -m module PORT INDEX FILE *arguments` found in each of the two processes."""
    files, logs = ([folder / f"{i}.{x}" for i in range(2)] for x in ("json", "log"))
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    env = {**os.environ, "XLA_FLAGS": flags.strip()}
    command, started = [sys.executable, "-m", module, port], []
    for i, (file, log) in enumerate(zip(files, logs, strict=True)):
        with log.open("w") as stderr:
            line = [*command, str(i), file, *arguments]
            started.append(subprocess.Popen(line, cwd=ROOT, stderr=stderr, env=env))
    statuses, end = _statuses(started), time.monotonic() + _TIMEOUT
    while None in statuses and not any(statuses) and time.monotonic() < end:
        time.sleep(0.1)  # an error in one process leaves the other waiting
        statuses = _statuses(started)
    for process in started:
        process.kill()
        process.wait()
    assert statuses == [0, 0], [log.read_text()[-2000:] for log in logs]
    return [json.loads(file.read_text()) for file in files]


def _statuses(processes: list[subprocess.Popen]) -> list[int | None]:
    return [process.poll() for process in processes]

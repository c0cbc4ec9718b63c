"""Ctrl-C, SIGTERM and full disks: one line that says what is there, an exit status, and going on."""

import contextlib
import errno
import os
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src import array

from dera_jax import command_line
from dera_jax.checkpoints import convert, ship
from dera_jax.checkpoints.orbax import Checkpoints, Saving
from dera_jax.training.metric_log import MetricWriter
from dera_jax.training.progress import Progress
from tests.test_main import arrays_of_the_last_checkpoint, start, steps_saved, write_letters


def stopped_by(number: int, command, folder: Path | None = None) -> SystemExit:
    """What `run` ends with when a command sends itself a signal."""
    with pytest.raises(SystemExit) as ended:
        command_line.run(lambda: command(number), lambda: folder and str(folder))
    return ended.value


def send(number: int) -> None:
    os.kill(os.getpid(), number)
    time.sleep(5)  # a handler runs before this has begun


def send_within_a_conversion(number: int) -> None:
    """NumPy raises a ValueError in the place of whatever `float` raises."""

    class Scalar:
        def __float__(self):
            send(number)

        def __len__(self):
            raise TypeError

        __getitem__ = None

    values = np.zeros(1)
    try:
        values[0] = Scalar()
    except KeyboardInterrupt as error:  # depends on NumPy's version
        raise ValueError("setting an array element with a sequence.") from error


def send_within_a_destructor(number: int) -> None:
    """Python ignores what is raised there, as in callbacks of its garbage collector."""

    class Sender:
        def __del__(self):
            os.kill(os.getpid(), number)
            time.sleep(0.02)

    sender = Sender()
    del sender
    for _ in range(50):
        time.sleep(0.1)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("command", [send, send_within_a_conversion, send_within_a_destructor])
def test_a_signal_ends_a_command_with_one_line(command, number, status, capsys):
    before = [signal.getsignal(x) for x in (signal.SIGINT, signal.SIGTERM)]
    assert stopped_by(number, command).code == status
    assert capsys.readouterr().err == "stopped; nothing was saved\n"
    assert [signal.getsignal(x) for x in (signal.SIGINT, signal.SIGTERM)] == before


@pytest.mark.parametrize(("folder", "statuses"), [(None, []), ("out", [141])])
def test_the_reader_of_stdout_may_stop_and_a_run_then_says_so(folder, statuses, monkeypatch):
    """A broken pipe of the user's own code is an error."""
    reader, writer = os.pipe()
    os.close(reader)
    monkeypatch.setattr(command_line, "_PACKAGE", Path(__file__).parent)  # print is called here
    monkeypatch.setattr(command_line, "close_stdout", lambda: None)
    found = []
    with open(writer, "wb", buffering=0) as broken:
        try:
            command_line.run(lambda: broken.write(b"a"), lambda: folder)
        except SystemExit as stopped:
            found.append(stopped.code)
        monkeypatch.undo()
        assert found == statuses
        with pytest.raises(BrokenPipeError):
            command_line.run(lambda: broken.write(b"a"))


def test_a_block_may_end_before_a_signal_counts(capsys):
    done = []

    def work(number: int) -> None:
        with command_line.uninterrupted():
            os.kill(os.getpid(), number)
            time.sleep(0.1)
            done.append("the block")
        done.append("what follows")

    assert stopped_by(signal.SIGINT, work).code == 130
    assert done == ["the block"]


def write(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}\n" * 3)


LEFT = [
    ([], "nothing but the configuration in "),
    (
        ["a/shards/00000.jsonl", "a/shards/00001.jsonl", "a/shards/plan.json"],
        r"4 documents in \S*/a;",
    ),
    (["checkpoints/7/a", "checkpoints/12/a", "checkpoints/20.tmp/a"], "checkpoint of step 12 in "),
    (["sft/result.json", "sft/checkpoints/9/a"], "saved: 1 finished stage; "),
    (
        ["sft/result.json", "a/result.json", "ppo/checkpoints/4/a"],
        r"saved: 2 finished stages and the checkpoint of step 4 in \S*/ppo/checkpoints; ",
    ),
]


@pytest.mark.parametrize(("names", "message"), LEFT)
def test_what_was_saved_is_said_and_how_to_go_on(tmp_path, capsys, names, message):
    write(tmp_path, "config.gin", *names)
    assert stopped_by(signal.SIGINT, send, tmp_path).code == 130
    said = capsys.readouterr().err
    assert re.search(message, said) and said.endswith("; start the same command again to resume\n")
    assert said.count("\n") == 1


def test_a_run_stopped_before_its_folder_is_made_says_so(tmp_path, capsys):
    stopped_by(signal.SIGINT, send, tmp_path / "none")
    assert capsys.readouterr().err == "stopped; nothing was saved yet\n"


def test_an_interrupt_while_metrics_are_fetched_stays_one(tmp_path, monkeypatch):
    progress = Progress(MetricWriter(tmp_path, 0), 0, 5)
    progress.add({"loss": jnp.float32(1.0), "tokens": jnp.int32(3)})

    def interrupted(self):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(array.ArrayImpl, "_value", property(interrupted))
        with pytest.raises(KeyboardInterrupt):
            progress.flush()
    progress.close()


@contextlib.contextmanager
def files_of_at_most(size: int):
    """The system refuses to write more, as it does on a full disk (EFBIG in place of ENOSPC)."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_checkpoint_that_cannot_be_written_is_named_and_leaves_nothing(tmp_path):
    small = {"a": jnp.ones((4,))}
    large = {"a": jax.random.normal(jax.random.key(0), (300, 300))}
    checkpoints = Checkpoints(tmp_path, Saving(1000, 3.0))
    checkpoints.save(1, small)
    with files_of_at_most(100_000), pytest.raises(OSError, match="File too large") as refused:
        checkpoints.save(2, large)
    assert (refused.value.errno, refused.value.filename) == (errno.EFBIG, str(tmp_path / "2"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1"]
    checkpoints.close()

    again = Checkpoints(tmp_path, Saving(1000, 3.0))
    np.testing.assert_array_equal(again.restore(small)["a"], small["a"])
    again.save(2, large)
    np.testing.assert_array_equal(again.restore(large)["a"], large["a"])


FULL = "RESOURCE_EXHAUSTED: ... No space left on device [os_error_code='28']"


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)),
        ValueError(FULL),
        RuntimeError(FULL),
    ],
)
def test_a_full_disk_is_told_with_the_folder(error, monkeypatch):
    def fail():
        raise error

    monkeypatch.setattr(command_line, "_OURS", (*command_line._OURS, Path(__file__).parent))
    with pytest.raises(SystemExit) as ended:
        command_line.run(fail, lambda: "out/it")
    said = "no space left on the disk; make room and start the same command again"
    assert ended.value.code == f"error: out/it: {said}"


def test_an_error_of_the_system_names_its_file(tmp_path):
    with pytest.raises(SystemExit, match=f"^error: {tmp_path}/no: No such file or directory$"):
        command_line.run((tmp_path / "no").read_text, lambda: "out/it")


@pytest.mark.parametrize("write_to", [convert.convert, ship.ship])
def test_other_commands_refuse_a_url_too(write_to):
    with pytest.raises(ValueError, match="gs://bucket/model: .* not supported yet"):
        write_to("no/such/model", "gs://bucket/model")


@pytest.mark.evidence
def test_a_run_stopped_by_ctrl_c_goes_on_and_ends_with_the_same_bits(tmp_path):
    write_letters(tmp_path)
    assert start(tmp_path, tmp_path / "whole").wait() == 0
    stopped = tmp_path / "stopped"
    process = start(tmp_path, stopped)
    while steps_saved(stopped) < 5:
        assert process.poll() is None, (tmp_path / "log").read_text()[-3000:]
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=300) == 130
    log = (tmp_path / "log").read_text()
    assert "Traceback" not in log
    (line,) = re.findall(r"^stopped; .*", log, re.MULTILINE)
    assert f"the checkpoint of step {steps_saved(stopped)} in {stopped}/checkpoints" in line
    assert start(tmp_path, stopped).wait() == 0
    last = [arrays_of_the_last_checkpoint(run) for run in (stopped, tmp_path / "whole")]
    jax.tree.map(np.testing.assert_array_equal, *last)


def test_nothing_but_the_line_is_printed_by_a_real_process(tmp_path):
    script = "import os, signal\nfrom dera_jax import command_line\n"
    script += "command_line.run(lambda: os.kill(os.getpid(), signal.SIGINT), lambda: None)"
    done = subprocess.run(
        [sys.executable, "-c", script], check=False, capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parent.parent)},
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr == "stopped; nothing was saved\n"

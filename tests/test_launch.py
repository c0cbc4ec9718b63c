"""What is refused before a run begins, and how errors of a run read."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest

from dera_jax import bindings, command_line, configure, main, run_summary
from dera_jax.files import destinations

ROOT = Path(__file__).resolve().parent.parent

JOB = """
import dataclasses
import errno
import os
import numpy as np
from dera_jax.rewards.length import LengthInRange

@dataclasses.dataclass(frozen=True)
class Doubled:
    upto: int
    scale: float = 1.0
    name: str | None = None
    values: tuple[float, ...] = ()
    reward: LengthInRange | None = None
    fail: str = ""

    def run(self, folder):
        if self.fail == "bug":
            return {"x": None + 1}
        if self.fail == "full":
            (folder / "begun").write_text("")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return {"total": 2 * self.upto}
"""

GIN = """
from __gin__ import dynamic_registration
from dera_jax import configure
from dera_jax.rewards import length
import doubling_job

MODEL_DIR = %gin.REQUIRED
UPTO = 4
LOW = 1
HIGH = 3
REWARD = None
configure.run.job = @one/doubling_job.Doubled()
configure.run.folder = %MODEL_DIR
one/doubling_job.Doubled.upto = %UPTO
one/doubling_job.Doubled.reward = %REWARD
length.LengthInRange.low = %LOW
length.LengthInRange.high = %HIGH
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("source")
    (folder / "doubling_job.py").write_text(JOB)
    (folder / "double.gin").write_text(GIN)
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))


@pytest.fixture
def call(source, tmp_path):
    """Runs main: call('--gin.UPTO=3', more='UPTO = 5'), where `more` is a second gin file."""

    def run(*arguments: str, more: str = "", out: str = "") -> None:
        (tmp_path / "more.gin").write_text(more)
        files = ["--gin_file=double.gin", "--gin_file=more.gin"]
        folder = f'--gin.MODEL_DIR="{out or tmp_path / "out"}"'
        main.main([f"--gin_search_paths={source},{tmp_path}", *files, folder, *arguments])

    return run


REWARD = "--gin.REWARD=@length.LengthInRange()"


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--gin.UPTO='a'", r"Doubled.upto must be int; found 'a' \(UPTO = 'a' on the command"),
        ("--gin.UPTO=2.0", r"Doubled.upto must be int; found 2.0"),
        ("--gin.UPTO=True", r"Doubled.upto must be int; found True"),
        ("--gin.Doubled.scale=None", r"Doubled.scale must be float; found None"),
        ("--gin.Doubled.name=3", r"Doubled.name must be str or None; found 3"),
        ("--gin.Doubled.values=0.5", r"Doubled.values must be a tuple of float; found 0.5"),
        ("--gin.Doubled.values=(1, 'b')", r"Doubled.values must be .*found \(1, 'b'\)"),
        ("--gin.REWARD='length'", r"reward must be a LengthInRange .*; found 'length'"),
    ],
)
def test_a_value_of_the_wrong_type_is_named_with_its_binding(call, tmp_path, argument, message):
    with pytest.raises(SystemExit, match=message):
        call(argument)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("values", ["(1, 2.5)", "[1, 2.5]", "()"])
def test_values_of_the_right_type_run(call, values):
    call(f"--gin.Doubled.values={values}", REWARD, "--gin.one/Doubled.scale=3")


def test_a_wrong_value_of_a_file_is_named_with_its_line(call):
    with pytest.raises(SystemExit, match=r"found 'a' \(UPTO = 'a' in more.gin, line 2\)$"):
        call(more="# a comment\nUPTO = 'a'\n")


def test_a_refused_value_is_named_without_what_gin_adds(call):
    with pytest.raises(SystemExit) as refused:
        call(REWARD, "--gin.LOW=5")
    text = str(refused.value)
    assert "LOW = 5 on the command line" in text and "HIGH = 3 in double.gin, line " in text
    assert "In call to configurable" not in text and "\n" not in text


def test_a_string_that_an_error_quotes_is_named_with_its_binding(source, tmp_path):
    (tmp_path / "more.gin").write_text("NAME = 'nobody'\nDoubled.name = %NAME")
    files, folders = ["double.gin", "more.gin"], [str(source), str(tmp_path)]
    known = configure.parse(files, ["MODEL_DIR = 'out/x'"], folders)
    said = "unknown name 'nobody'; choose another folder"
    named = f"{said} (NAME = 'nobody' in more.gin, line 1)"
    assert configure.error_message(ValueError(said), known) == named


@pytest.mark.parametrize(
    ("more", "argument", "message"),
    [
        ("REWARD = %NOSUCH", "", r"%NOSUCH in more.gin, line 1: no gin file defines this macro"),
        ("UPTO = %UPT", "", r"%UPT .*which UPTO refers to; did you mean UPTO\?$"),
        ("", "--gin.UPTO=%LOWW", r"%LOWW on the command line.*did you mean LOW\?$"),
        ("", "--gin.on/Doubled.scale=2.0", r"on/.*scale on the command.*'on'.*mean one\?$"),
        ("on/Doubled.scale = 2.0", "", r"on/.*scale in more.gin, line 1: no reference @on/"),
        ("UPTO = (", "", r"more.gin, line 2: EOF"),
        ("import no_such_module", "", r"No module named 'no_such_module'"),
        ("Doubled.nam = 3", "", r"more.gin, line 1: .*'nam'.*did you mean name"),
    ],
)
def test_what_no_file_defines_is_refused_in_one_line(call, more, argument, message):
    with pytest.raises(SystemExit, match=message) as refused:
        call(*filter(None, [argument]), more=more)
    assert len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("more", "argument", "message"),
    [
        ("", "--gin.LOW=2", "--gin.LOW: this run does not read this binding; remove it$"),
        ("", "--gin.length.LengthInRange.high=7", r"--gin.*high: this run does not read"),
        (
            "",
            "--gin.Doubled.upto=7",
            r"--gin.doubling_job.Doubled.upto: this run does not read this binding; did you mean one/doubling_job.Doubled.upto\? \(",
        ),
        ("UPTOO = 3", "", r"UPTOO in more.gin, line 1: .* not read .*; did you mean UPTO\?$"),
        ("UPTOO = None", "", ""),  # as LOW = None, which some rewards read
        ("length.LengthInRange.high = 7", "", ""),  # a file's, which REWARD overrides
    ],
)
def test_a_binding_that_the_run_does_not_read_is_refused(call, tmp_path, more, argument, message):
    arguments = list(filter(None, [argument]))
    if not message:
        call(*arguments, more=more)
        return
    with pytest.raises(SystemExit, match=message):
        call(*arguments, more=more)
    assert not (tmp_path / "out").exists()


def test_the_scopes_in_which_a_run_reads_a_parameter_are_named():
    given = ["MODEL_DIR = 'out'", "REFERENCE = 'a'", "optimizers.adamw.clip_norm = 0.5"]
    known = configure.parse(["gin_configs/runs/ppo.gin"], given, ["."])
    hint = (
        r"; did you mean policy/optimizers.adamw.clip_norm or value/optimizers.adamw.clip_norm\?$"
    )
    with pytest.raises(ValueError, match=rf"--gin.optimizers.adamw.clip_norm: .*{hint}"):
        bindings.check_read(bindings.reachable_bindings("dera_jax.configure.run"), known)


def test_unread_bindings_of_a_users_file_are_named(call, caplog):
    call(more="length.LengthInRange.high = 7")
    line = "this run does not read length.LengthInRange.low in double.gin"
    assert line in caplog.text and "length.LengthInRange.high in more.gin, line 1" in caplog.text


def test_no_file_of_this_package_is_named_as_unread(caplog, tmp_path):
    files = ["gin_configs/runs/sweep.gin", "gin_configs/rewards/words.gin"]
    given = ["MODEL_DIR = 'out'", "REFERENCE = 'a'", "ALIGNED = 'b'", "AT_MOST = 20"]
    known = configure.parse(files, given, ["."])
    bindings.check_read(bindings.reachable_bindings("dera_jax.configure.run"), known)
    assert not caplog.text


def test_the_same_bindings_are_accepted_where_they_are_read(call):
    call("--gin.LOW=2", "--gin.length.LengthInRange.high=7", REWARD)


def test_a_run_begins_with_two_lines(call, capsys, tmp_path):
    call("--gin.LOW=2", REWARD)
    first, second, *_ = capsys.readouterr().out.splitlines()
    assert first == "rewards LengthInRange(low=2, high=3)"
    assert re.fullmatch(rf"device .+ × {jax.device_count()}; folder {tmp_path / 'out'}", second)


def test_a_config_without_a_run_is_refused(tmp_path):
    (tmp_path / "only.gin").write_text("STEPS = 3")
    with pytest.raises(SystemExit, match="set no configure.run.job"):
        main.main([f"--gin_search_paths={tmp_path}", "--gin_file=only.gin"])


def test_a_bug_of_the_users_own_keeps_its_traceback(call):
    with pytest.raises(TypeError, match="unsupported operand"):
        call("--gin.Doubled.fail='bug'")


@pytest.mark.parametrize("argument", ["--upto=3", "--dry", "--gin_fil=double.gin"])
def test_wrong_use_of_the_command_line_has_a_status_of_its_own(call, capsys, argument):
    """Abbreviated flags are unknown."""
    with pytest.raises(SystemExit) as ended:
        call(argument)
    assert ended.value.code == 2
    assert f"unknown argument '{argument}'; expected --gin.NAME=VALUE" in capsys.readouterr().err


@pytest.mark.parametrize("scheme", ["gs", "s3", "file"])
def test_an_output_folder_at_a_url_is_refused(call, tmp_path, monkeypatch, scheme):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=rf"{scheme}://bucket/run: .* not supported yet"):
        call(out=f"{scheme}://bucket/run")
    assert not (tmp_path / f"{scheme}:").exists()


def test_an_output_folder_that_is_no_folder_is_refused(call, tmp_path):
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "below" / "it"):
        with pytest.raises(SystemExit, match=rf"cannot write to {out}: {tmp_path / 'file'} is no"):
            call(out=str(out))


def test_an_output_folder_without_permission_is_refused(call, tmp_path, monkeypatch):
    monkeypatch.setattr(destinations.os, "access", lambda path, mode: False)
    with pytest.raises(SystemExit, match=f"no permission to write in {tmp_path}$"):
        call()


def test_a_full_disk_is_told_with_the_folder(call, source, tmp_path, monkeypatch):
    """A user's job, which the traceback of other errors would be for, and a library's own error."""
    monkeypatch.setattr(command_line, "_OURS", (*command_line._OURS, source))
    with pytest.raises(SystemExit, match=rf"^error: {tmp_path}/out: no space left on the disk"):
        call("--gin.Doubled.fail='full'")
    assert (tmp_path / "out" / "begun").exists()


def test_several_processes_are_refused(call, tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(SystemExit, match="JAX runs in 2 processes"):
        call()
    assert not (tmp_path / "out").exists()


TWO = """
import sys
import jax
jax.distributed.initialize(f"localhost:{sys.argv[1]}", 2, int(sys.argv[2]))
from dera_jax import main
main.main(sys.argv[3:])
"""


@pytest.mark.slow
def test_two_real_processes_are_refused(source, tmp_path):
    """Process 1 would train a model of its own, and leave it in the folder of process 0."""
    import socket

    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    options = [f"--gin_search_paths={source}", "--gin_file=double.gin"]
    options.append(f'--gin.MODEL_DIR="{tmp_path}/out"')
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{source}"}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", TWO, str(port), str(i), *options],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    for process in started:
        assert "error: JAX runs in 2 processes" in process.communicate(timeout=120)[1]
        assert process.returncode == 1
    assert not (tmp_path / "out").exists()


def test_settings_of_a_stage_that_is_made_later_are_read_by_the_run(call):
    """`@function` without parentheses: an experiment calls it once its first stages have ended."""
    file = "gin_configs/experiments/length_reward/newswire.gin"
    known = configure.parse([file], ["PPO_STEPS = 3", "LABEL_SMOOTHING = 0.1"], ["."])
    found = bindings.reachable_bindings("dera_jax.configure.run")
    bindings.check_read(found, known)
    assert ("PPO_STEPS", "gin.macro", "value") in found


@pytest.mark.parametrize(
    ("word", "python"), [("true", "True"), ("FALSE", "False"), ("null", "None")]
)
def test_a_constant_is_written_as_in_python(call, word, python):
    with pytest.raises(SystemExit, match=f"--gin.UPTO: cannot read {word}; write {python}"):
        call(f"--gin.UPTO={word}")


FILES = {
    "sample": (
        ["runs/sample"],
        "data docstrings (test); models REFERENCE=a",
    ),
    "beam_search": (
        ["runs/beam_search", "rewards/faithfulness"],
        "data docstrings (test); models REFERENCE=a; λ 0; rewards Faithfulness()",
    ),
    "ppo": (
        ["runs/ppo"],
        "data docstrings (train); models REFERENCE=a; rewards LengthInRange(low=12, high=17)",
    ),
    "ppo, a sum": (
        ["runs/ppo", "rewards/faithful_words"],
        "data docstrings (train); models REFERENCE=a; rewards words (weight 0.5), faithful (weight 1)",
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_the_first_line_tells_what_a_run_is_about(name):
    files, expected = FILES[name]
    paths = [f"gin_configs/{file}.gin" for file in files]
    configure.parse(paths, ["REFERENCE = 'a'", "MODEL_DIR = 'b'"], ["."])
    found = run_summary.describe_run(bindings.reachable_bindings("dera_jax.configure.run"), "b")
    assert found.splitlines()[0] == expected


def test_a_pair_is_decoded_at_the_aligned_model_by_default():
    given = ["REFERENCE = 'a'", "ALIGNED = 'c'", "MODEL_DIR = 'b'"]
    configure.parse(
        ["gin_configs/runs/evolution.gin", "gin_configs/rewards/faithfulness.gin"], given, ["."]
    )
    found = run_summary.describe_run(bindings.reachable_bindings("dera_jax.configure.run"), "b")
    assert "models REFERENCE=a, ALIGNED=c; λ 1; rewards Faithfulness()" in found

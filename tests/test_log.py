"""What a command prints besides its results: its own warnings, and progress where it can be shown."""

import importlib.util
import io
import logging as python_logging
import sys
import warnings

import pytest
from absl import logging

from dera_jax import log, progress_bar
from dera_jax.progress_bar import ProgressBar

SOURCE = """
import logging, warnings
from absl import logging as absl_logging
def speak():
    absl_logging.warning("by absl")
    logging.getLogger("a.module").warning("by logging")
    logging.getLogger("a.module").error("an error")
    warnings.warn("by warnings", stacklevel=1)
"""


@pytest.fixture
def speak(tmp_path, monkeypatch):
    """Calls code of a user, or of an installed package, and returns the lines that it prints."""
    monkeypatch.setattr(python_logging.root, "handlers", [])
    monkeypatch.setattr(warnings, "showwarning", lambda x, *_: print(x, file=sys.stderr))
    verbosity = logging.get_verbosity()

    def call(installed: bool, verbose: bool, capsys) -> list[str]:
        monkeypatch.setattr(log, "_INSTALLED", [tmp_path] if installed else [])
        path = tmp_path / "speaker.py"
        path.write_text(SOURCE)
        spec = importlib.util.spec_from_file_location("speaker", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        log.show(verbose)
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            module.speak()
        return capsys.readouterr().err.splitlines()

    yield call
    logging.set_verbosity(verbosity)


def test_warnings_of_a_user_s_code_are_one_line_each(speak, capsys):
    lines = speak(installed=False, verbose=False, capsys=capsys)
    assert lines[:3] == ["warning: by absl", "warning: by logging", "error: an error"]
    assert "by warnings" in lines[3]


def test_only_errors_of_other_packages_are_printed(speak, capsys):
    assert speak(installed=True, verbose=False, capsys=capsys) == ["error: an error"]


def test_verbose_prints_the_warnings_of_other_packages(speak, capsys):
    lines = speak(installed=True, verbose=True, capsys=capsys)
    assert lines[:3] == ["warning: by absl", "warning: by logging", "error: an error"]
    assert "by warnings" in lines[3]


def test_a_second_command_of_a_process_prints_each_warning_once(speak, capsys):
    speak(installed=False, verbose=False, capsys=capsys)
    assert speak(installed=False, verbose=False, capsys=capsys).count("warning: by absl") == 1


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def drawn(monkeypatch, file: io.StringIO, seconds: float) -> str:
    """What a loop of three batches writes if each batch takes `seconds`."""
    now = iter(range(10_000))
    monkeypatch.setattr(sys, "stderr", file)
    monkeypatch.setattr(progress_bar.ProgressBar, "monitor_interval", 0)  # no thread
    bar = ProgressBar(total=3, desc="decoding", unit="batch")
    bar._time = lambda: bar.start_t + seconds * next(now)
    for _ in range(3):
        bar.update()
    bar.close()
    return file.getvalue()


def test_a_terminal_gets_a_bar(monkeypatch):
    text = drawn(monkeypatch, Terminal(), seconds=2)
    assert "\rdecoding: 100%|" in text and "| 3/3" in text


def test_a_log_file_gets_plain_lines_of_long_loops_only(monkeypatch):
    lines = drawn(monkeypatch, io.StringIO(), seconds=100).splitlines()
    assert len(lines) >= 2 and lines[-1].startswith("decoding: 3/3 batch, ")
    assert not any(character in line for line in lines for character in "\r|%")
    assert drawn(monkeypatch, io.StringIO(), seconds=2) == ""


def test_a_notebook_gets_a_bar(monkeypatch):
    monkeypatch.setitem(sys.modules, "ipykernel", sys)
    assert "3/3" in drawn(monkeypatch, io.StringIO(), seconds=2)

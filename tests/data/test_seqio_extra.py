"""TensorFlow is imported without accelerators and without log lines, or a sentence says what to install."""

import os
import runpy
import subprocess
import sys
import types
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MODULE = ROOT / "dera_jax" / "data" / "seqio_extra.py"
LEVEL = "TF_CPP_MIN_LOG_LEVEL"

TASKS = """
import tasks
import seqio
import tensorflow as tf
print(list(tf.data.Dataset.range(2).as_numpy_iterator()), tf.config.get_visible_devices())
"""


def import_with(monkeypatch, set_visible_devices) -> dict:
    """Runs the module with a TensorFlow that has only this function; returns its globals."""
    tensorflow = types.ModuleType("tensorflow")
    tensorflow.config = types.SimpleNamespace(set_visible_devices=set_visible_devices)
    monkeypatch.setitem(sys.modules, "tensorflow", tensorflow)
    monkeypatch.setitem(sys.modules, "seqio", types.ModuleType("seqio"))
    return runpy.run_path(str(MODULE))


@pytest.mark.parametrize("level", [None, "1"])
def test_accelerators_are_hidden_and_the_level_of_the_log_is_put_back(monkeypatch, level):
    if level is None:
        monkeypatch.delenv(LEVEL, raising=False)
    else:
        monkeypatch.setenv(LEVEL, level)
    calls = []
    found = import_with(monkeypatch, lambda *x: calls.append((*x, os.environ[LEVEL])))
    assert calls == [([], "GPU", "3"), ([], "TPU", "3")]
    assert os.environ.get(LEVEL) == level
    assert found["tf"] is sys.modules["tensorflow"] and found["seqio"] is sys.modules["seqio"]


def test_only_loading_messages_are_hidden(monkeypatch, capfd):
    text = (
        "WARNING: All log messages before absl::InitializeLog() is called are written to STDERR\n"
        "I0000 00:00:1.0   1 port.cc:153] oneDNN custom operations are on.\n"
        "E0000 00:00:1.0   1 cuda.cc:52] failed\n"
        "I am a warning of Python\n"
    )
    import_with(monkeypatch, lambda devices, kind: kind == "GPU" and os.write(2, text.encode()))
    os.write(2, b"afterwards")
    shown = "E0000 00:00:1.0   1 cuda.cc:52] failed\nI am a warning of Python\nafterwards"
    assert capfd.readouterr().err == shown


def test_devices_that_are_in_use_stay(monkeypatch):
    def refuse(devices, kind):
        raise RuntimeError("Visible devices cannot be modified after being initialized")

    assert "seqio" in import_with(monkeypatch, refuse)


@pytest.mark.parametrize("package", ["tensorflow", "seqio"])
def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch, package, capfd):
    tensorflow = types.ModuleType("tensorflow")
    tensorflow.config = types.SimpleNamespace(set_visible_devices=lambda *x: None)
    monkeypatch.setitem(sys.modules, "tensorflow", tensorflow)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ModuleNotFoundError, match=rf"package {package}, .*'dera_jax\[seqio\]'"):
        runpy.run_path(str(MODULE))
    os.write(2, b"visible")
    assert capfd.readouterr().err == "visible"


def test_importing_tasks_prints_nothing():
    environment = {name: x for name, x in os.environ.items() if name != LEVEL}
    done = subprocess.run(
        [sys.executable, "-c", TASKS],
        check=False, cwd=ROOT, capture_output=True, text=True, env=environment,
    )  # fmt: skip
    assert done.returncode == 0 and done.stdout.count("PhysicalDevice(") == 1, done.stderr
    assert done.stderr == ""

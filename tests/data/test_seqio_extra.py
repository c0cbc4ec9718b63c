"""TensorFlow is imported without accelerators and without log lines, or a sentence says what to install."""

import ast
import importlib
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
import dera_jax.tasks
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


def imports(path: Path) -> list[str]:
    """Top-level packages that a file imports, in order, but those for type checkers."""
    nodes = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
        nodes.append(node)
    names = [x.name for node in nodes if isinstance(node, ast.Import) for x in node.names]
    names += [node.module for node in nodes if isinstance(node, ast.ImportFrom)]
    return [name.partition(".")[0] for name in names]


def test_tensorflow_is_imported_by_this_module_first():
    """The modules of `dera_jax.tasks` import it by name, after their package, which imports this one first."""
    package = ROOT / "dera_jax"
    found = [x for x in package.rglob("*.py") if {"tensorflow", "seqio"} & set(imports(x))]
    for_types = {"task_data.py", "seqio_tasks.py"}  # under TYPE_CHECKING
    assert [x for x in found if x.parent.name != "tasks" and x.name not in for_types] == [MODULE]
    lines = (package / "tasks" / "__init__.py").read_text(encoding="utf-8").splitlines()
    first = next(line for line in lines if line.startswith(("import", "from")))
    assert first.startswith("from dera_jax.data import seqio_extra")


@pytest.mark.parametrize("name", ["tasks", "tasks.newswire"])
def test_the_tasks_have_one_name(name):
    """Under another name the same files would register each task again."""
    with pytest.raises(
        ImportError, match="^the tasks of dera_jax are the package dera_jax.tasks: "
    ):
        importlib.import_module(name)

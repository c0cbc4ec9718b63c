"""Importing the library must stay light: the package alone needs only Python; no data or config stack.

What reads no seqio task works without the extra `seqio`.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import dera_jax
from dera_jax import api
from dera_jax.decoding import sampling

ROOT = Path(__file__).resolve().parents[1]
LIGHT = ["dera_jax.models", "dera_jax.decoding", "dera_jax.rewards"]  # with all their modules
HEAVY = {
    "tensorflow", "tensorflow_datasets", "tensorflow_text", "seqio", "gin", "t5x", "orbax",
    "huggingface_hub",
}  # fmt: skip
LATER = {
    "matplotlib",
    "nltk",
    "rouge_score",
    "scipy",
    "optax",
    "orbax",
    "huggingface_hub",
}  # when used
MAX_SECONDS = 3.0

PROBE = """
import importlib, json, pkgutil, sys, time
began = time.process_time()
package = importlib.import_module(sys.argv[1])
if sys.argv[2:]:
    names = [m.name for m in pkgutil.walk_packages(package.__path__, sys.argv[1] + ".")]
    assert names
    for name in names:
        importlib.import_module(name)
seconds = time.process_time() - began  # of the CPU: other processes do not count
roots = sorted({name.partition(".")[0] for name in sys.modules})
print(json.dumps({"seconds": seconds, "roots": roots}))
"""

PACKAGE_ALONE = """
import sys
before = set(sys.modules)
import dera_jax
print(*sorted({name.partition(".")[0] for name in set(sys.modules) - before}))
"""

WITHOUT_EXTRA = """
import importlib, pkgutil, sys
for name in ("tensorflow", "tensorflow_datasets", "tensorflow_text", "seqio", "clu", "t5x"):
    sys.modules[name] = None  # as if it were not installed
import dera_jax
NEED_IT = ("dera_jax.data.seqio_extra", "dera_jax.tasks", "dera_jax.t5x.")
for module in pkgutil.walk_packages(dera_jax.__path__, "dera_jax."):
    if not module.name.startswith(NEED_IT):
        importlib.import_module(module.name)
from dera_jax import main
from dera_jax.data.splits import Split
try:
    Split("docstrings", "test", inputs=8)
except ModuleNotFoundError as error:
    print(error)
bindings = [f"--gin.MODEL_DIR={sys.argv[1]!r}", "--gin.INITIAL_MODEL='no/model'"]
main.main(["--gin_file=gin_configs/runs/sft.gin", *bindings])
"""
SENTENCE = (
    "seqio tasks need the package tensorflow, which the extra `seqio` installs: pip install "
    "'dera_jax[seqio]', or pip install -c constraints.txt -e '.[seqio]' in a clone; runs on files of "
    "your own (--gin.TRAIN, --gin.VALIDATION, --gin.TEST) do not need it\n"
)


def import_in_new_process(*arguments: str) -> dict:
    """CPU seconds that an import takes, and the top-level modules then loaded.

    A second argument asks for all modules of the package.
    """
    command = [sys.executable, "-c", PROBE, *arguments]
    done = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_importing_the_package_loads_nothing_but_python():
    """jax, which takes most of a second, is loaded with the first name that is used."""
    command = [sys.executable, "-c", PACKAGE_ALONE]
    done = subprocess.run(command, check=True, cwd=ROOT, capture_output=True, text=True)
    assert set(done.stdout.split()) - sys.stdlib_module_names == {"dera_jax"}


@pytest.mark.parametrize("name", LIGHT)
def test_import_loads_no_data_or_config_library(name):
    loaded = HEAVY & set(import_in_new_process(name, "all")["roots"])
    assert not loaded, f"importing {name} loads {sorted(loaded)}"


def test_loading_models_needs_neither_figures_nor_rouge():
    loaded = LATER & set(import_in_new_process("dera_jax.api")["roots"])
    assert not loaded, f"importing dera_jax.api loads {sorted(loaded)}"


def test_warm_import_of_the_decoder_is_fast():
    name = "dera_jax.decoding.sampling"
    import_in_new_process(name)  # warms the file cache and the .pyc files
    seconds = min(import_in_new_process(name)["seconds"] for _ in range(2))
    print(f"import {name}: the faster of 2 warm imports took {seconds:.2f} CPU seconds")
    assert seconds < MAX_SECONDS


def test_training_loads_no_data_or_config_library():
    """It keeps its checkpoints by orbax."""
    loaded = (HEAVY | {"clu"}) - {"orbax"}
    loaded &= set(import_in_new_process("dera_jax.training", "all")["roots"])
    assert not loaded, f"importing dera_jax.training loads {sorted(loaded)}"


def test_only_tasks_need_the_extra_seqio(tmp_path):
    command = [sys.executable, "-c", WITHOUT_EXTRA, str(tmp_path / "out")]
    done = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == SENTENCE, done.stderr  # of Split
    assert done.stderr.startswith(f"error: {SENTENCE.strip()}")
    assert done.returncode == 1 and not (tmp_path / "out").exists()


def test_the_few_names_that_a_user_needs():
    assert set(dera_jax.__all__) == {
        "load", "sample", "sweep", "search", "evolve", "best_of_n", "rewards", "read_documents",
    }  # fmt: skip
    assert set(dera_jax.__all__) <= set(dir(dera_jax))
    assert dera_jax.sample is sampling.sample and dera_jax.load is api.load
    for name in dera_jax.__all__:
        assert f"\n{name} " in dera_jax.__doc__ and getattr(dera_jax, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'smaple'"):
        dera_jax.smaple  # noqa: B018

"""Importing the library must stay light: no data or config stack, and under three seconds."""

import json
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LIGHT = ["dera_jax", "dera_jax.models", "dera_jax.decoding", "dera_jax.rewards"]
HEAVY = {"tensorflow", "tensorflow_datasets", "tensorflow_text", "seqio", "gin", "t5x", "orbax"}
MAX_SECONDS = 3.0

PROBE = """
import importlib, json, sys, time
began = time.perf_counter()
importlib.import_module(sys.argv[1])
seconds = time.perf_counter() - began
roots = sorted({name.partition(".")[0] for name in sys.modules})
print(json.dumps({"seconds": seconds, "roots": roots}))
"""


def import_in_new_process(name: str) -> dict:
    """Seconds that importing module `name` takes, and the top-level modules then loaded."""
    command = [sys.executable, "-c", PROBE, name]
    done = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", LIGHT)
def test_import_loads_no_data_or_config_library(name):
    if not ROOT.joinpath(*name.split("."), "__init__.py").exists():
        pytest.skip(f"{name} does not exist yet")
    loaded = HEAVY & set(import_in_new_process(name)["roots"])
    assert not loaded, f"import {name} loads {sorted(loaded)}"


def test_warm_import_is_fast():
    import_in_new_process("dera_jax")  # warms the file cache and the .pyc files
    seconds = statistics.median(import_in_new_process("dera_jax")["seconds"] for _ in range(5))
    print(f"import dera_jax: median of 5 warm imports {seconds:.2f} s")
    assert seconds < MAX_SECONDS

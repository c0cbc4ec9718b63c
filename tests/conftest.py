"""Bounds the suite's time and memory, and says how much memory each process needed.

Programs compiled by XLA are kept for the session in a temporary folder that all worker processes and
the processes they start share; a process that holds much of them in memory is made to forget them.
"""

import ctypes
import gc
import importlib.metadata
import importlib.util
import os
import resource
import shutil
import sys
import tempfile
from pathlib import Path

import pytest

PEAKS = pytest.StashKey[dict[str, float]]()


def pytest_configure(config):
    config.stash[PEAKS] = {}
    config.compiled = None
    if hasattr(config, "workerinput"):  # started by pytest -n: has the first process's environment
        return
    os.environ["HF_HUB_OFFLINE"] = "1"  # no test asks the hub; test_hub.py serves its own
    config.compiled = tempfile.mkdtemp(prefix="compiled")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = config.compiled  # jax reads it when it is imported
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.3"
    # Most of the time is XLA's: more than half of it goes without the emitters of fused loops, a seventh
    # where each program is compiled in one piece, and some without optimizations. The main job (test_shipped.py) is run as users run it.
    if importlib.metadata.version("jaxlib").startswith(
        "0.10."
    ):  # XLA stops at a flag it does not know
        flags = os.environ.get("XLA_FLAGS", "")
        faster = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
        os.environ["XLA_FLAGS"] = f"{flags} {faster}".strip()
    if "evidence" not in config.getoption("markexpr"):
        os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")


def pytest_unconfigure(config):
    if config.compiled:
        shutil.rmtree(config.compiled, ignore_errors=True)


def pytest_collection_modifyitems(config, items):
    """Leaves out what is marked `evidence`, unless -m names it."""
    if "evidence" in config.getoption("markexpr"):
        return
    left_out = [item for item in items if item.get_closest_marker("evidence")]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


@pytest.fixture(autouse=True, scope="module")
def _little_memory_after_each_file():
    yield
    _free_memory(above=1.3)


@pytest.fixture(autouse=True)
def _not_too_much_memory_within_a_file():
    yield
    _free_memory(above=1.8)


_left = 0.0  # gigabytes that could not be freed


def _free_memory(above: float) -> None:
    """Frees memory if this process holds more than `above` gigabytes, and more than what cannot be freed.

    jax keeps every program that it has compiled, and glibc what was freed: 5 GB in a session. Where
    there is little, the programs are kept, since other tests call some of them.
    """
    global _left
    if "jax" not in sys.modules or _gigabytes() < max(above, _left + 0.2):
        return
    sys.modules["jax"].clear_caches()
    gc.collect()
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)
    _left = _gigabytes()


def _gigabytes() -> float:
    """What this process holds now; on systems without /proc, the most that it has held."""
    pages = Path("/proc/self/statm")
    if not pages.exists():
        return _peak_gigabytes()
    return int(pages.read_text().split()[1]) * resource.getpagesize() / 1e9


def _peak_gigabytes() -> float:
    """The most memory that this process has held."""
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def pytest_sessionfinish(session):
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["peak"] = _peak_gigabytes()


@pytest.hookimpl(optionalhook=True)  # of pytest-xdist
def pytest_testnodedown(node, error):
    output = getattr(node, "workeroutput", {})  # a worker that crashed has none
    node.config.stash[PEAKS][node.gateway.id] = output.get("peak", float("nan"))


def pytest_terminal_summary(terminalreporter, config):
    peaks = config.stash[PEAKS] or {"this process": _peak_gigabytes()}
    sizes = ", ".join(f"{name} {size:.2f} GB" for name, size in sorted(peaks.items()))
    terminalreporter.line(f"peak memory: {sizes}")
    skipped = terminalreporter.stats.get("skipped", [])
    if importlib.util.find_spec("t5x") is None and any("t5x" in x.nodeid for x in skipped):
        terminalreporter.section("T5X IS NOT INSTALLED", sep="!")
        terminalreporter.line(
            "tests/t5x/test_plugin.py did not run: the plug-in was not tried inside T5X itself. "
            "docs/t5x.md says how to install T5X beside the project."
        )

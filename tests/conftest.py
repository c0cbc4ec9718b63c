"""Keeps compiled programs for the session: many tests, and their processes, need the same. And puts
the longest files first, so that processes side by side end at about the same time."""

import importlib.util
import os
import shutil
import tempfile

LONGEST = ("test_newswire_chain.py", "test_main.py")


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.path.name not in LONGEST)


def pytest_configure(config):
    config.compiled = None
    if hasattr(config, "workerinput"):  # started by pytest -n: has the first process's environment
        return
    config.compiled = tempfile.mkdtemp(prefix="compiled")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = config.compiled  # jax reads it when it is imported
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.3"


def pytest_terminal_summary(terminalreporter):
    skipped = terminalreporter.stats.get("skipped", [])
    if importlib.util.find_spec("t5x") is None and any("t5x" in x.nodeid for x in skipped):
        terminalreporter.section("T5X IS NOT INSTALLED", sep="!")
        terminalreporter.line(
            "tests/t5x/test_plugin.py did not run: the plug-in was not tried inside T5X itself. "
            "docs/t5x.md says how to install T5X beside the project."
        )


def pytest_unconfigure(config):
    if config.compiled:
        shutil.rmtree(config.compiled, ignore_errors=True)

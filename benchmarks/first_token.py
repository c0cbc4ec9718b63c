"""Measures what the time from the start of Python to the first sampled token of the default models goes into.

    python benchmarks/first_token.py

Two processes after each other, the first with an empty compilation cache, on an idle machine.
"""

import json
import os
import subprocess
import sys
import tempfile

MEASURED = """
import json, sys, time
start = time.perf_counter()
import dera_jax
from dera_jax import api, compilation_cache
imported = time.perf_counter()
compilation_cache.enable()
pair = dera_jax.load()
loaded = time.perf_counter()
document = "We present a parser that reads a sentence once. It is two points more accurate than earlier ones."
sample = lambda: pair.sample(document, lam=1, max_length=1)
sample()
first = time.perf_counter()
sample()
second = time.perf_counter()
print(json.dumps([imported - start, loaded - imported, (first - loaded) - (second - first), second - first]))
"""
PARTS = (
    "import dera_jax.api, with JAX",
    "load the models",
    "compile",
    "encode, prefill and sample",
)


def main() -> None:
    """Prints a table in Markdown."""
    with tempfile.TemporaryDirectory() as cache:
        environment = os.environ | {"DERA_JAX_CACHE": cache}
        command = [sys.executable, "-c", MEASURED]
        runs = [
            json.loads(
                subprocess.check_output(command, env=environment, text=True).splitlines()[-1]
            )
            for _ in range(2)
        ]
    print("| seconds | first run | later runs |\n|---|---:|---:|")
    for name, first, later in zip((*PARTS, "sum"), *([*x, sum(x)] for x in runs), strict=True):
        print(f"| {name} | {first:.1f} | {later:.1f} |")


if __name__ == "__main__":
    main()

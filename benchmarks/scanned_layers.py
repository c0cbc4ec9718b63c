"""Layers in a Python loop beside layers in `lax.scan`: seconds to compile, milliseconds of a pass.

    python benchmarks/scanned_layers.py --write

The network of `dera_jax.models.llama` with random parameters of SmolLM2-135M's sizes: a decoding step with
a cache, prefill of a prompt, and the gradient of all parameters. For the scan the parameters of all layers
are stacked once, outside what is timed. Both variants are timed in turn, after a check that their outputs
agree. `--write` puts the table into docs/results.
"""

import argparse
import functools
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import speed_report
from adapter_speed import CONFIG

from dera_jax.models import llama
from dera_jax.models.language_model import PyTree

STEP_ROWS, PREFILL_ROWS, TRAINED_ROWS, SLOTS, LENGTH = 16, 4, 2, 192, 320

PAGE = """# Layers in a loop or in a scan

Written by `{command}` on {machine}.

Median milliseconds of a pass and seconds of its first call's compilation; random parameters of
SmolLM2-135M's sizes ({layers} layers), float32. A step has {step} rows with a cache of {slots} tokens, a
prefill {prefill} prompts of {length} tokens, a gradient {trained} sequences of {length} tokens.

{table}
"""


def in_loop(params: PyTree, tokens: jax.Array, slots: jax.Array, cache: PyTree | None):
    """Runs the network as `llama.decode` does."""
    num_slots = cache[0][0].shape[3] if cache else tokens.shape[-1]
    context = llama.context(CONFIG, slots, num_slots, jnp.zeros(len(tokens), jnp.int32), 0)
    hidden, cache = llama.decode(CONFIG, params, tokens, context, cache=cache)
    return llama.logits(CONFIG, params, hidden[..., -1, :]), cache


def in_scan(params: PyTree, tokens: jax.Array, slots: jax.Array, cache: PyTree | None):
    """The same with layers, and caches, stacked along a first axis."""
    num_slots = cache[0].shape[4] if cache else tokens.shape[-1]
    context = llama.context(CONFIG, slots, num_slots, jnp.zeros(len(tokens), jnp.int32), 0)
    x = params["token_embedder"]["embedding"][tokens][:, :, None]

    def layer(x, stacked):
        return llama._layer(CONFIG, stacked[0], x, context, None, stacked[1])

    x, cache = jax.lax.scan(layer, x, (params["layers"], cache))
    hidden = llama._norm(CONFIG, params["final_norm"], x)
    return llama.logits(CONFIG, params, hidden[..., -1, :]), cache


def stack(layers: list[PyTree]) -> PyTree:
    return jax.tree.map(lambda *x: jnp.stack(x), *layers)


def stacked_params(params: PyTree) -> PyTree:
    layers = [params[f"layers_{i}"] for i in range(CONFIG.num_layers)]
    return {k: x for k, x in params.items() if not k.startswith("layers_")} | {
        "layers": stack(layers)
    }


def passes(run: Callable, params: PyTree, cache: PyTree) -> dict[str, Callable]:
    """Returns functions without arguments' values, and their arguments, of the passes that are timed."""
    draw = lambda *shape: jnp.asarray(
        np.random.default_rng(0).integers(5, CONFIG.vocab_size, shape)
    )
    step_tokens, prompt = draw(STEP_ROWS, 1, 1), draw(PREFILL_ROWS, 1, LENGTH)
    sequences, slots = draw(TRAINED_ROWS, 1, LENGTH), jnp.arange(LENGTH)
    loss = lambda p, x: jnp.mean(jax.nn.logsumexp(run(p, x, slots, None)[0], axis=-1))
    return {
        "step": (lambda p, x, c: run(p, x, jnp.full(1, 100), c)[0], (params, step_tokens, cache)),
        "prefill": (lambda p, x: run(p, x, slots, None), (params, prompt)),
        "gradient": (jax.grad(loss), (params, sequences)),
    }


def variants() -> dict[str, dict[str, Callable]]:
    params = llama.init(CONFIG, jax.random.key(0))
    empty = llama.empty_cache(CONFIG, (STEP_ROWS, 1), 1, SLOTS)
    layers = [(empty, empty)] * CONFIG.num_layers
    return {
        "loop": passes(in_loop, params, tuple(layers)),
        "scan": passes(in_scan, stacked_params(params), stack(layers)),
    }


def compiled(function: Callable, arguments: tuple) -> tuple[Callable, float]:
    """Returns a call of the compiled function, and the seconds of lowering and compilation."""
    start = time.perf_counter()
    program = jax.jit(function).lower(*arguments).compile()
    return functools.partial(program, *arguments), time.perf_counter() - start


def measure(name: str, found: dict, runs: int) -> list[str]:
    """Returns the row of one pass in the table."""
    calls = {kind: compiled(*passes[name]) for kind, passes in found.items()}
    if name == "step":
        np.testing.assert_allclose(*[call() for call, _ in calls.values()], atol=1e-3)
    times = {kind: [] for kind in calls}
    for _ in range(runs + 1):  # the first of each is not counted
        for kind, (call, _) in calls.items():
            start = time.perf_counter()
            jax.block_until_ready(call())
            times[kind].append((time.perf_counter() - start) * 1e3)
    medians = [f"{statistics.median(x[1:]):.1f}" for x in times.values()]
    return [name, *medians, *(f"{seconds:.1f}" for _, seconds in calls.values())]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=7, help="timed calls of each pass")
    parser.add_argument("--write", action="store_true", help="write docs/results/scanned_layers.md")
    options = parser.parse_args()
    jax.config.update("jax_enable_compilation_cache", False)
    found = variants()
    header = ["", "loop, ms", "scan, ms", "loop, s to compile", "scan, s to compile"]
    rows = [header, ["---"] * 5] + [measure(x, found, options.runs) for x in found["loop"]]
    table = "\n".join("| " + " | ".join(row) + " |" for row in rows)
    print(table)
    if options.write:
        speed_report.write_page(
            "scanned_layers.md",
            PAGE,
            layers=CONFIG.num_layers,
            step=STEP_ROWS,
            slots=SLOTS,
            prefill=PREFILL_ROWS,
            trained=TRAINED_ROWS,
            length=LENGTH,
            table=table,
        )


if __name__ == "__main__":
    main()

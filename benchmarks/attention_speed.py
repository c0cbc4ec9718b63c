"""Attention of `dera_jax.models.llama` beside `jax.nn.dot_product_attention`: milliseconds of a layer's attention.

    python benchmarks/attention_speed.py --write

Random queries, keys and values of SmolLM2-135M's heads, float32, a causal mask. Both are timed in turn, after a
check that their outputs agree. `--write` puts the table into docs/results.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import speed_report
from adapter_speed import CONFIG

from dera_jax.models import llama

SHAPES = ((4, 320), (1, 512), (8, 128))  # prompts and tokens
OURS, JAX = "dera_jax", "jax.nn.dot_product_attention"

PAGE = """# Attention beside jax.nn.dot_product_attention

Written by `{command}` on {machine}.

Median milliseconds of a layer's attention (without projections) over B prompts of S tokens, and of its gradient; 9 heads,
3 heads of keys, 64 wide, float32.

{table}
"""


def ours(queries: jax.Array, keys: jax.Array, values: jax.Array) -> jax.Array:
    """Attends with queries [B, S, H, D] to keys and values [B, S, G, D], as a prefill does."""
    shape = (len(queries), 1, 1, *queries.shape[1:])
    size = shape[3]
    mask = jnp.broadcast_to(jnp.tril(jnp.ones((size, size), bool)), (shape[0], size, size))
    blocks = [tuple(llama._heads_first(x[:, None, None]) for x in (keys, values))]
    grouped = llama._grouped(CONFIG, queries[:, None, None])
    return llama._ungrouped(CONFIG, llama._attend(CONFIG, grouped, blocks, mask), shape)[:, 0, 0]


def of_jax(queries: jax.Array, keys: jax.Array, values: jax.Array) -> jax.Array:
    """The same by the library."""
    return jax.nn.dot_product_attention(queries, keys, values, is_causal=True)


def measure(batch: int, size: int, runs: int, gradient: bool) -> dict[str, float]:
    """Returns the median milliseconds of both."""
    draw = lambda i, heads: jax.random.normal(
        jax.random.key(i), (batch, size, heads, CONFIG.head_dim)
    )
    arrays = draw(0, CONFIG.num_heads), draw(1, CONFIG.num_kv_heads), draw(2, CONFIG.num_kv_heads)
    calls = {name: _compiled(f, gradient) for name, f in ((OURS, ours), (JAX, of_jax))}
    found = [np.asarray(jax.tree.leaves(call(*arrays))[0]) for call in calls.values()]
    np.testing.assert_allclose(*found, atol=1e-4)
    times = {name: [] for name in calls}
    for _ in range(runs):
        for name, call in calls.items():
            start = time.perf_counter()
            jax.block_until_ready(call(*arrays))
            times[name].append((time.perf_counter() - start) * 1e3)
    return {name: statistics.median(x) for name, x in times.items()}


def _compiled(attend: Callable, gradient: bool) -> Callable:
    if not gradient:
        return jax.jit(attend)
    return jax.jit(jax.grad(lambda *x: jnp.sum(jnp.square(attend(*x))), argnums=(0, 1, 2)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=31, help="timed calls of each")
    parser.add_argument(
        "--write", action="store_true", help="write docs/results/attention_speed.md"
    )
    options = parser.parse_args()
    lines = [f"| B × S | pass | {OURS} | {JAX} |", "|---" * 4 + "|"]
    for batch, size in SHAPES:
        for gradient in (False, True):
            times = measure(batch, size, options.runs, gradient)
            kind = "gradient" if gradient else "forward"
            lines.append(f"| {batch} × {size} | {kind} | {times[OURS]:.1f} | {times[JAX]:.1f} |")
    table = "\n".join(lines)
    print(table)
    if options.write:
        speed_report.write_page("attention_speed.md", PAGE, table=table)


if __name__ == "__main__":
    main()

"""One token per row: a uniform and the inverse of the cumulative distribution, or Gumbel noise.

    python benchmarks/draws.py

Prints, for both, the time of a draw for 64 rows and how often two slightly different
distributions (logits that differ by normal noise of standard deviation 0.1, as neighbouring λ do)
draw the same token from the same randomness. The second number is why the library uses Gumbel
noise although it is slower: a λ sweep wants common random numbers to give common tokens.
"""

import time

import jax
import jax.numpy as jnp
import numpy as np

ROWS = 64
BLOCK = 128


def inverse_cdf(key, logits):
    """One uniform; block sums find the block, a cumulative sum within it the token."""
    u = jax.random.uniform(key)
    blocks = jax.nn.softmax(logits).reshape(-1, BLOCK)
    ends = jnp.cumsum(blocks.sum(-1))
    block = jnp.sum(ends < u * ends[-1])
    within = ends[block] - blocks[block].sum() + jnp.cumsum(blocks[block])
    return block * BLOCK + jnp.sum(within < u * ends[-1])


def gumbel(key, logits):
    return jnp.argmax(logits + jax.random.gumbel(key, logits.shape))


def seconds(draw, keys, logits) -> float:
    jax.block_until_ready(draw(keys, logits))
    start = time.perf_counter()
    for _ in range(20):
        jax.block_until_ready(draw(keys, logits))
    return (time.perf_counter() - start) / 20


def main():
    keys = jax.random.split(jax.random.key(0), ROWS)
    for vocab_size in (4096, 32128):
        logits = 3 * jax.random.normal(jax.random.key(1), (ROWS, vocab_size))
        nearby = logits + 0.1 * jax.random.normal(jax.random.key(2), logits.shape)
        for method in (inverse_cdf, gumbel):
            draw = jax.jit(jax.vmap(method))
            same = np.mean(
                [
                    draw(trial, logits) == draw(trial, nearby)
                    for trial in jax.random.split(jax.random.key(3), (20, ROWS))
                ]
            )
            ms = 1e3 * seconds(draw, keys, logits)
            print(f"V {vocab_size:6d}  {method.__name__:12s} {ms:7.2f} ms   same token {same:.3f}")


if __name__ == "__main__":
    main()

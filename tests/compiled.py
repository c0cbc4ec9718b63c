"""Methods of models, compiled once for equal models: `jax.jit(model.step)` anew would trace again."""

import functools

import jax


@functools.cache
def compiled(model, method: str, *static: int):
    """The compiled method; `static` are the numbers of arguments that it needs as Python values."""
    return jax.jit(getattr(model, method), static_argnums=static)


def start(model, params, prompts, num_hypotheses: int = 1, max_len: int = 1):
    """`model.start`, compiled."""
    return compiled(model, "start", 2, 3)(params, prompts, num_hypotheses, max_len)

"""Decoding-time alignment of language models in plain JAX.

What most users need, imported when it is first used:

load        a model, or a reference and aligned models, from their checkpoints
sample      sequences of a model at any λ
sweep       documents at several λ, written down as they are decoded
search      reward-guided beam search (DeAL)
evolve      evolutionary decoding (DARWIN)
best_of_n   the best of n samples
rewards     the package of reward functions
"""

import importlib

__version__ = "0.2.0"

_WHERE = {
    "load": ("dera_jax.checkpoints.loading", "load"),
    "sample": ("dera_jax.decoding.sampling", "sample"),
    "sweep": ("dera_jax.evaluation.sweep", "decode"),
    "search": ("dera_jax.decoding.beam_search", "beam_search"),
    "evolve": ("dera_jax.decoding.archive", "evolve"),
    "best_of_n": ("dera_jax.decoding.best_of_n", "best_of_n"),
    "rewards": ("dera_jax.rewards", None),
}
__all__ = ["best_of_n", "evolve", "load", "rewards", "sample", "search", "sweep"]


def __getattr__(name: str) -> object:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _WHERE[name]
    found = importlib.import_module(module)
    return found if attribute is None else getattr(found, attribute)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])

"""Decoding-time alignment of language models in plain JAX.

The main functions are imported on first use; all but the first two take and return arrays:

load        loads a model, or a reference model and aligned models; they have methods on strings: sample,
            sweep, best_of_n, search, evolve
read_documents  reads a file of documents for these methods: text, JSON Lines, CSV or Parquet
sample      samples sequences from a model, for a realigned model at any λ
sweep       decodes documents at several λ and writes each result as soon as it is decoded
search      runs reward-guided beam search (DeAL)
evolve      runs evolutionary decoding (DARWIN)
best_of_n   selects the sequence with the highest reward among n samples
rewards     the package of reward functions
"""

import importlib

__version__ = "0.2.0"

_LOCATIONS = {  # module and attribute of each name; None for the module itself
    "load": ("dera_jax.api", "load"),
    "sample": ("dera_jax.decoding.sampling", "sample"),
    "sweep": ("dera_jax.evaluation.sweep", "decode"),
    "search": ("dera_jax.decoding.beam_search", "beam_search"),
    "evolve": ("dera_jax.decoding.archive", "evolve"),
    "best_of_n": ("dera_jax.decoding.best_of_n", "best_of_n"),
    "read_documents": ("dera_jax.data.document_files", "read_documents"),
    "rewards": ("dera_jax.rewards", None),
}
__all__ = ["best_of_n", "evolve", "load", "read_documents", "rewards", "sample", "search", "sweep"]


def __getattr__(name: str) -> object:
    if name not in _LOCATIONS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    path, attribute = _LOCATIONS[name]
    module = importlib.import_module(path)
    return module if attribute is None else getattr(module, attribute)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])

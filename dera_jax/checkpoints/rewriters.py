"""Loads models that mutate instructions."""

import dataclasses

from dera_jax.checkpoints.loading import load
from dera_jax.decoding.mutation import RELEASED, Rewriter


def load_rewriter(folder: str, inputs: int, max_length: int) -> Rewriter:
    """Loads a model and returns the mutator that generates instructions with it.

    Args:
        folder: folder of the model; its vocabulary may differ from that of the decoded models.
        inputs: maximum number of tokens of a request.
        max_length: maximum number of tokens of an output.

    Raises:
        FileNotFoundError, ValueError: as in `load` and `Rewriter`; or there is no tokenizer.
    """
    loaded = load(folder)
    if loaded.no_vocabulary:
        raise ValueError(loaded.no_vocabulary)
    sampling = dataclasses.replace(RELEASED, max_length=max_length)
    encode = lambda request, size: loaded.encode_prompt(request, size).ids
    return Rewriter(loaded.model, loaded.params, encode, loaded.decode, inputs, sampling)

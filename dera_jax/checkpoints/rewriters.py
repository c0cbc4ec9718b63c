"""Rewriters of instructions from model folders."""

import dataclasses

from dera_jax.checkpoints.loading import load
from dera_jax.decoding.mutation import RELEASED, Rewriter


def load_rewriter(folder: str, inputs: int, max_length: int) -> Rewriter:
    """The mutator that asks the model of a folder for other instructions.

    Args:
        folder: of a finished model; its vocabulary need not be that of the models it helps.
        inputs: tokens of a request at most.
        max_length: tokens of an answer at most.

    Raises:
        FileNotFoundError, ValueError: no complete model, no vocabulary, or as `Rewriter`.
    """
    found = load(folder)
    if found.no_vocabulary:
        raise ValueError(found.no_vocabulary)
    sampling = dataclasses.replace(RELEASED, max_length=max_length)
    encode = lambda request, size: found.encode_prompt(request, size).ids
    return Rewriter(found.model, found.params, encode, found.decode, inputs, sampling)

"""What rewards read once before a run: `rewards.protocol.Resources` over a vocabulary and folders."""

import dataclasses
from collections.abc import Callable

import jax
from jax import Array

from dera_jax.checkpoints.loading import load_params
from dera_jax.checkpoints.tokenizer import tokenizer
from dera_jax.checkpoints.vocabulary import Vocabulary

PyTree = object
_PIECE_BYTES = 16  # of the longest piece in most vocabularies


@dataclasses.dataclass(frozen=True)
class RunResources:
    """Of a run over this vocabulary; ValueError where it is None, and a reward asks for it."""

    vocabulary: Vocabulary | None

    @property
    def end_id(self) -> int:
        """The id of the end of sequence."""
        return tokenizer(self.vocabulary).end_id

    def pieces(self) -> list[bytes]:
        """The text of every id in UTF-8; b"" for ids that stand for none."""
        tokenizer(self.vocabulary)
        return self.vocabulary.piece_bytes()

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, without the end of sequence."""
        return tokenizer(self.vocabulary).encode(text)

    def control_tokens(self, ends_prompts: bool) -> tuple[list[int], list[int]]:
        """See `Tokenizer.control_tokens`."""
        return tokenizer(self.vocabulary, ends_prompts).control_tokens

    def params(self, folder: str | None, init: Callable[[Array], PyTree]) -> PyTree:
        """The parameters of a finished model's folder; raises as `rewards.protocol.Resources`."""
        if folder is None:
            raise ValueError("a learned reward needs the folder of its model")
        return load_params(folder, init, self.vocabulary, "this run")


@dataclasses.dataclass(frozen=True)
class ShapesOnly:
    """For a dry run: nothing is read, and arrays have the shapes of a usual vocabulary."""

    vocab_size: int
    end_id: int = 0  # any will do

    def pieces(self) -> list[bytes]:
        return [b"x" * _PIECE_BYTES] * self.vocab_size

    def encode(self, text: str) -> list[int]:
        return [0] * len(text.split())

    def control_tokens(self, ends_prompts: bool) -> tuple[list[int], list[int]]:
        return ([], [self.end_id]) if ends_prompts else ([0], [])

    def params(self, folder: str | None, init: Callable[[Array], PyTree]) -> PyTree:
        del folder
        return jax.eval_shape(init, jax.random.key(0))

"""Implements `rewards.protocol.Resources`, from which rewards are set up once before a run."""

import dataclasses
from collections.abc import Callable

import jax
from jax import Array

from dera_jax.checkpoints.loading import load_params
from dera_jax.checkpoints.tokenizer import Tokenizer, tokenizer
from dera_jax.checkpoints.vocabulary import Vocabulary

PyTree = object
_PIECE_BYTES = 16  # bytes of the longest piece in a typical vocabulary


@dataclasses.dataclass(frozen=True)
class RunResources:
    """Gives rewards the vocabulary of a run and the parameters in model folders.

    Every use of a vocabulary that is None raises ValueError.

    Attributes:
        vocabulary: of the run's models.
        chat_template: source of their chat template, which defines the end of a completion.
    """

    vocabulary: Vocabulary | None
    chat_template: str | None = None

    @classmethod
    def of(cls, text: Tokenizer) -> "RunResources":
        """Returns the resources of runs with a tokenizer."""
        return cls(text.vocabulary, text.chat_template and text.chat_template.source)

    @property
    def end_id(self) -> int:
        """The id that ends completions."""
        ends_prompts = self.chat_template is None
        return tokenizer(self.vocabulary, ends_prompts, chat_template=self.chat_template).end_id

    def pieces(self) -> list[bytes]:
        """Returns the text of every id in UTF-8; b"" for ids without text."""
        tokenizer(self.vocabulary)
        return self.vocabulary.piece_bytes()

    def encode(self, text: str) -> list[int]:
        """Returns the token ids of a text, without the end of sequence."""
        return tokenizer(self.vocabulary).encode(text)

    def control_tokens(self, ends_prompts: bool) -> tuple[list[int], list[int]]:
        """Returns the ids before and after a prompt's text, see `Tokenizer.control_tokens`."""
        return tokenizer(self.vocabulary, ends_prompts).control_tokens

    def params(self, folder: str | None, init: Callable[[Array], PyTree]) -> PyTree:
        """Loads the parameters in a model folder, in the shapes of `init(key)`.

        Raises:
            FileNotFoundError, ValueError: as in `loading.load_params`; or `folder` is None.
        """
        if folder is None:
            raise ValueError("a learned reward needs the folder of its model")
        return load_params(folder, init, self.vocabulary, "this run")


@dataclasses.dataclass(frozen=True)
class DryRunResources:
    """Replaces `RunResources` in a dry run: reads no file and returns data of plausible shapes."""

    vocab_size: int
    end_id: int = 0  # the value does not matter

    def pieces(self) -> list[bytes]:
        return [b"x" * _PIECE_BYTES] * self.vocab_size

    def encode(self, text: str) -> list[int]:
        return [0] * len(text.split())

    def control_tokens(self, ends_prompts: bool) -> tuple[list[int], list[int]]:
        return ([], [self.end_id]) if ends_prompts else ([0], [])

    def params(self, folder: str | None, init: Callable[[Array], PyTree]) -> PyTree:
        del folder
        return jax.eval_shape(init, jax.random.key(0))

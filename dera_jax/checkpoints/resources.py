"""Implements `rewards.protocol.Resources`, from which rewards are set up once before a run."""

import dataclasses
from collections.abc import Callable

import jax
from jax import Array

from dera_jax.checkpoints.conversations import difference, tokenizer_of
from dera_jax.checkpoints.loading import load_params
from dera_jax.checkpoints.recognise import open_checkpoint
from dera_jax.checkpoints.tokenizer import Tokenizer, tokenizer
from dera_jax.checkpoints.vocabulary import Vocabulary
from dera_jax.models.heads import LAST, ValueHead

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

    def reward_model(self, folder: str | None, model: ValueHead) -> tuple[PyTree, list[int]]:
        """Loads a reward model, see `rewards.protocol.Resources`; raises as `params`.

        Raises:
            ValueError: the folder's model has another pooling than `model`; or it reads
                conversations, and those of this run have other ids (`conversations.difference`).
        """
        params = self.params(folder, model.random)
        checkpoint = open_checkpoint(folder)
        if checkpoint.head != model.pooling:
            raise ValueError(
                f"{folder} is a reward model with {checkpoint.head}, and is used with {model.pooling}; "
                "take both from the folder (checkpoints.learned_rewards.reward_model)"
            )
        if model.pooling.kind != LAST:
            return params, []
        own = tokenizer_of(checkpoint)
        text = tokenizer(self.vocabulary, own.ends_prompts, "this run", self.chat_template)
        if reason := difference(own, text, checkpoint.where, "this run"):
            raise ValueError(
                f"{folder} cannot read the ids of this run, since {reason}; name the policy, so that it "
                "reads text instead (REWARD_POLICY, or learned_rewards.reward_model(folder, policy))"
            )
        return params, own.ending


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

    def reward_model(self, folder: str | None, model: ValueHead) -> tuple[PyTree, list[int]]:
        return self.params(folder, model.random), [self.end_id]

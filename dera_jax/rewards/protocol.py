"""What a reward is: a function of token ids, called inside the compiled program.

Axes: B inputs, K hypotheses of each input, S input length, D document length, T output length, R length
of a human text, W keywords of a document, L bytes of a keyword.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import jax.numpy as jnp
from flax import struct
from jax import Array

from dera_jax import checks
from dera_jax.models.finite import check_values
from dera_jax.models.language_model import Padded, Prompts, PyTree, check_padded


@struct.dataclass
class Source:
    """What a reward may know of B documents. Each reward says which of it it reads.

    Attributes:
        prompts: the documents as a model reads them, in the original instruction and cut to its limit.
        targets: [B, R], a human text about each; None where the task has none.
        keywords: uint8 [B, W, L], its keywords in UTF-8, 0 is padding; None likewise.
        document: [B, D], the documents alone and uncut; None where only prompts are known.
    """

    prompts: Prompts
    targets: Padded | None = None
    keywords: Array | None = None
    document: Padded | None = None

    def document_for(self, reward: "Reward") -> Padded:
        """The documents alone; raises ValueError, naming the reward, where they are not known."""
        if self.document is None:
            raise ValueError(
                f"{type(reward).__name__} needs the documents' own ids: Source.document"
            )
        return self.document


class Resources(Protocol):
    """Where a reward's parameters come from: the vocabulary of a run, and files."""

    @property
    def end_id(self) -> int:
        """The id of the end of sequence."""

    def pieces(self) -> Sequence[bytes]:
        """The text of every id in UTF-8; b"" for ids that stand for none."""

    def encode(self, text: str) -> list[int]:
        """Token ids of a text."""

    def control_tokens(self, ends_prompts: bool) -> tuple[list[int], list[int]]:
        """The ids before and after the text of a prompt, of a model that ends prompts or does not."""

    def params(self, folder: str | None, init: Callable[[Array], PyTree]) -> PyTree:
        """The parameters of a finished model's folder, of the shapes that init(key) gives.

        Raises:
            FileNotFoundError, ValueError: no complete model, or another vocabulary than the run's.
        """


@dataclasses.dataclass(frozen=True)
class Reward:
    """Scores whole texts, higher is better. Rewards are frozen, hashable and hold no arrays.

    What they need beyond their settings is read once, by `load`, and is an argument from then on.

    `min_limit` is the smallest length limit of a decode, in tokens with the end token, under which
    the reward means what it says; 1 if any does.

    `highest` bounds the reward: no text scores more, whatever its document. None where no bound is
    known. Only where there is one can a search stop before the length limit: without, any text that
    it has not read yet might be the best.
    """

    @property
    def min_limit(self) -> int:
        return 1

    @property
    def highest(self) -> float | None:
        return None

    @property
    def on_host(self) -> bool:
        """Whether it, or a part of it, is a Python function of texts: not to be called compiled."""
        return False

    @property
    def about_keywords(self) -> bool:
        """Whether it, or a part of it, asks for keywords: documents that have none say nothing of it."""
        return False

    def positions(self, inputs: int, rows: int, tokens: int) -> int:
        """Token positions its networks read to score `rows` texts of one document; 0 for a formula.

        By it decoding methods are compared at equal cost. What a Python function does is not known
        and counts as 0.

        Args:
            inputs: tokens of the document.
            rows: texts.
            tokens: of a text, the end token included; shorter texts are padded and cost the same.
        """
        del inputs, rows, tokens
        return 0

    def check_documents(self, documents: Sequence[str]) -> None:
        """Warns of documents for which the reward does not measure what its name says."""
        del documents

    def load(self, resources: Resources) -> PyTree:
        """The reward's parameters; None if it has none.

        Raises:
            FileNotFoundError, ValueError: a file that is missing, or of another vocabulary.
        """
        del resources

    def __call__(
        self, params: PyTree, source: Source, tokens: Array, lengths: Array, finished: Array
    ) -> Array:
        """The reward of each hypothesis, float32 [B, K].

        Args:
            params: of `load`.
            source: the B documents.
            tokens: int32 [B, K, T], 0 after each row's length.
            lengths: int32 [B, K], the end token included: the text has lengths - finished tokens.
            finished: bool [B, K]; False where the length limit cut the text off.

        Raises:
            ValueError: `source` lacks what the reward is about.
        """
        raise NotImplementedError

    def parts(
        self, params: PyTree, source: Source, tokens: Array, lengths: Array, finished: Array
    ) -> Mapping[str, Array]:
        """What the reward is the sum of, by name, each float32 [B, K]; empty if of nothing."""
        return {}


REWARD = checks.instance(
    Reward,
    words="a dera_jax.rewards.protocol.Reward, as one of the files entailment, faithfulness, "
    "keywords, length_and_faithfulness, overlap, repetition, reward_model, soft_length or words "
    "(.gin) of gin_configs/rewards gives REWARD",
)


def rewards_of(
    reward: Reward, params: PyTree, source: Source, tokens: Array, lengths: Array, finished: Array
) -> Array:
    """Calls a compiled reward, and validates what it gives: float32 [B, K].

    Raises:
        ValueError: an array of another shape, which would be broadcast silently, or of no real numbers.
    """
    found = reward(params, source, tokens, lengths, finished)
    batch, hypotheses = lengths.shape
    name = f"the result of the reward {reward}"
    checks.check_array(name, found, "rewards", jnp.floating, B=batch, K=hypotheses)
    return found.astype(jnp.float32)


def check_source(source: Source, batch: int, name: str = "source") -> None:
    """Raises ValueError unless the arrays of a source have their types and are of B = `batch`."""
    check_padded(f"{name}.prompts", source.prompts, B=batch, S=None)
    if source.targets is not None:
        check_padded(f"{name}.targets", source.targets, B=batch, R=None)
    if source.document is not None:
        check_padded(f"{name}.document", source.document, B=batch, D=None)
    keywords = source.keywords
    if keywords is not None:
        name = f"{name}.keywords"
        checks.check_array(name, keywords, "bytes", jnp.uint8, B=batch, W=None, L=None)


def check_limit(reward: Reward, max_length: int) -> None:
    """Refuses a length limit under which `reward` cannot be earned as meant.

    Raises:
        ValueError: max_length is below the reward's `min_limit`.
    """
    if max_length < reward.min_limit:
        raise ValueError(
            f"max_length must be at least {reward.min_limit} for the reward {reward}; found "
            f"{max_length}. Raise max_length, or change the reward."
        )


def check_rewards(rewards: Array, reward: Reward, axes: Sequence[str] = ("input", "text")) -> None:
    """Refuses rewards that are NaN or infinite; those that an outer jit traces are not seen.

    Args:
        rewards: of any shape.
        reward: that gave them, for the message.
        axes: names of their axes, likewise.

    Raises:
        FloatingPointError: naming the reward, and the first input and text.
    """
    check_values({f"reward {reward}": rewards}, axes)

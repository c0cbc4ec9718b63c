"""Defines the interface of reward functions, which score token ids inside the compiled program.

Axes: B inputs, K hypotheses of each input, S input length, D document length, T output length,
R target length, W keywords of a document, L bytes of a keyword.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import jax.numpy as jnp
from flax import struct
from jax import Array

from dera_jax import checks
from dera_jax.models.finite import check_values
from dera_jax.models.heads import ValueHead
from dera_jax.models.language_model import Padded, Prompts, PyTree, check_padded


@struct.dataclass
class Source:
    """Holds what a reward may read of B documents. Each reward states which fields it reads.

    Attributes:
        prompts: the documents in the original template, truncated to the model's input limit.
        targets: [B, R], a human-written target for each document; None if the task has no targets.
        keywords: uint8 [B, W, L], the documents' keywords in UTF-8, where 0 is padding; None if the
            task has no keywords.
        document: [B, D], the documents without template and untruncated; None where only prompts
            are known.
    """

    prompts: Prompts
    targets: Padded | None = None
    keywords: Array | None = None
    document: Padded | None = None

    def document_for(self, reward: "Reward") -> Padded:
        """Returns `document`, [B, D].

        Raises:
            ValueError: `document` is None; the message names `reward`.
        """
        if self.document is None:
            raise ValueError(
                f"{type(reward).__name__} needs the documents' own ids, but Source.document is "
                "None; set it to the token ids of the documents without template"
            )
        return self.document


class Resources(Protocol):
    """Provides what a reward loads its parameters from: the run's vocabulary and model folders."""

    @property
    def end_id(self) -> int:
        """The id of the end token."""

    def pieces(self) -> Sequence[bytes]:
        """Returns the UTF-8 text of each id; b"" for an id without text."""

    def encode(self, text: str) -> list[int]:
        """Returns the token ids of a text, without control tokens."""

    def control_tokens(self, ends_prompts: bool) -> tuple[list[int], list[int]]:
        """Returns the ids before and after a prompt's text.

        Args:
            ends_prompts: whether the model's prompts end with the end token.
        """

    def params(self, folder: str | None, init: Callable[[Array], PyTree]) -> PyTree:
        """Returns the parameters in a finished model's folder, with the shapes of init(key).

        Raises:
            FileNotFoundError: the folder holds no complete model.
            ValueError: the model's vocabulary differs from the run's.
        """

    def reward_model(self, folder: str | None, model: ValueHead) -> tuple[PyTree, list[int]]:
        """Returns the parameters of a reward model, and the ids that it reads after an output's text.

        The ids are the end of the conversation that the chat template writes; none for a model that
        takes the mean over the prefixes of an output, which reads the output's own end token.

        Raises:
            FileNotFoundError, ValueError: as in `params`.
            ValueError: the folder's model has another pooling than `model`; or it reads whole
                conversations, and the run's prompts and outputs are not parts of such ones.
        """


@dataclasses.dataclass(frozen=True)
class Reward:
    """Scores complete outputs; a higher reward is better.

    Rewards are frozen, hashable and hold no arrays. `load` reads all further data once, which is
    then passed as `params`.

    Attributes:
        min_limit: smallest length limit of decoding, in tokens with the end token, for which the
            reward is meaningful; 1 if every limit is.
        highest: an upper bound of the reward of any output for any document; None if no bound is
            known. A search can stop before the length limit only if a bound is known, since
            otherwise any output that it has not scored yet could be the best.
    """

    @property
    def summands(self) -> tuple:
        """The `combined.Part`s that the reward is the weighted sum of; empty for any other reward."""
        return ()

    @property
    def min_limit(self) -> int:
        return 1

    @property
    def highest(self) -> float | None:
        return None

    @property
    def on_host(self) -> bool:
        """Whether the reward or a part of it is a Python function, which cannot be compiled."""
        return False

    @property
    def about_keywords(self) -> bool:
        """Whether the reward or a part of it reads keywords, so needs documents that have some."""
        return False

    def forward_tokens(self, inputs: int, rows: int, tokens: int) -> int:
        """Returns the tokens that the reward's networks process to score outputs of one document.

        Budget-matched comparisons of decoding methods count these tokens. Rewards without a network
        count 0, and so do Python functions, whose cost is unknown.

        Args:
            inputs: number of tokens of the document.
            rows: number of outputs.
            tokens: length of each output, the end token included; shorter outputs are padded and
                cost the same.
        """
        del inputs, rows, tokens
        return 0

    def check_documents(self, documents: Sequence[str]) -> None:
        """Logs a warning if the reward does not measure what its name says for these documents."""
        del documents

    def metrics(self, lengths: Array, finished: Array) -> Mapping[str, Array]:
        """Returns the reward's own binary metrics of outputs by name, bool [B, K]; none by default.

        Tables report `<name>_rate`, the fraction of outputs for which the metric is True.

        Args:
            lengths: int32 [B, K], the end token included.
            finished: bool [B, K].
        """
        del lengths, finished
        return {}

    def text_metrics(self, text: str, finished: bool) -> Mapping[str, bool]:
        """Returns those binary metrics of one output that are measured on its text."""
        del text, finished
        return {}

    def described(self) -> dict[str, object]:
        """Returns the description of the reward, as JSON, for the card of a model aligned to it."""
        return {"reward": repr(self)}

    def load(self, resources: Resources) -> PyTree:
        """Returns the reward's parameters; None if it has none.

        Raises:
            FileNotFoundError: a file is missing.
            ValueError: a file belongs to another vocabulary.
        """
        del resources

    def __call__(
        self, params: PyTree, source: Source, tokens: Array, lengths: Array, finished: Array
    ) -> Array:
        """Returns the reward of each hypothesis, float32 [B, K].

        Args:
            params: the result of `load`.
            source: the B documents.
            tokens: int32 [B, K, T], 0 from each hypothesis's length on.
            lengths: int32 [B, K], the end token included; the text has lengths - finished tokens.
            finished: bool [B, K]; False where the length limit truncated the output.

        Raises:
            ValueError: `source` lacks a field that the reward reads.
        """
        raise NotImplementedError

    def parts(
        self, params: PyTree, source: Source, tokens: Array, lengths: Array, finished: Array
    ) -> Mapping[str, Array]:
        """Returns the terms of a sum of rewards by name, float32 [B, K]; {} for other rewards."""
        return {}


REWARD = checks.instance(
    Reward,
    words="a dera_jax.rewards.protocol.Reward, such as the macro REWARD that one of the files "
    "entailment, faithful_words, faithfulness, keywords, length_and_faithfulness, overlap, "
    "repetition, reward_model, soft_length or words (.gin) in gin_configs/rewards sets",
)


def call_reward(
    reward: Reward, params: PyTree, source: Source, tokens: Array, lengths: Array, finished: Array
) -> Array:
    """Calls a compiled reward and returns its validated result, float32 [B, K].

    Raises:
        ValueError: the result has another shape, which would be broadcast silently, or does not
            consist of real numbers.
    """
    rewards = reward(params, source, tokens, lengths, finished)
    batch, hypotheses = lengths.shape
    name = f"the result of the reward {reward}"
    checks.check_array(name, rewards, "rewards", jnp.floating, B=batch, K=hypotheses)
    return rewards.astype(jnp.float32)


def check_source(source: Source, batch: int, name: str = "source") -> None:
    """Validates types and shapes of the arrays of a source with B = `batch` documents.

    Raises:
        ValueError: an array has another type or shape.
    """
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
    """Checks that the length limit of decoding allows outputs that `reward` can score meaningfully.

    Raises:
        ValueError: max_length is below the reward's `min_limit`.
    """
    if max_length < reward.min_limit:
        raise ValueError(
            f"max_length must be at least {reward.min_limit} for the reward {reward}; found "
            f"{max_length}. Raise max_length, or change the reward."
        )


def check_rewards(rewards: Array, reward: Reward, axes: Sequence[str] = ("input", "text")) -> None:
    """Checks that rewards are finite. Rewards traced by an outer jit are not checked.

    Args:
        rewards: rewards of any shape.
        reward: the reward function, for the message.
        axes: names of the axes of `rewards`, for the message.

    Raises:
        FloatingPointError: a reward is NaN or infinite; the message names the reward function and
            the first such entry.
    """
    check_values({f"reward {reward}": rewards}, axes)

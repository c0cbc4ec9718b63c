"""Rewards that are networks: a scalar head trained on comparisons, and an entailment model.

Both read token ids of the run's own vocabulary. A model with another tokenizer has to see text: wrap
it as a host reward (`rewards.host`).

Axes: B documents, K texts of each, S input length, T output length, N prompt length, A answer length.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax import Array

from dera_jax import checks
from dera_jax.models.heads import T5Value, value_of_texts
from dera_jax.models.language_model import PyTree, score
from dera_jax.models.t5_lm import T5
from dera_jax.rewards.protocol import Resources, Reward, Source

_PROMPTS_AT_ONCE = 64


@dataclasses.dataclass(frozen=True)
class RewardModel(Reward):
    """The mean of the scalars that a T5 with a head gives a document and every prefix of a text.

    Made by `training.preferences` from comparisons (Bradley and Terry 1952; for language models
    Stiennon et al. 2020, arXiv 2009.01325).

    Attributes:
        model: the architecture.
        folder: of the finished model; None for a dry run only.
    """

    model: T5Value
    folder: str | None = None

    def __post_init__(self):
        checks.check_fields(self, folder=checks.optional(checks.PATH))

    def positions(self, inputs: int, rows: int, tokens: int) -> int:
        """The encoder reads the document once, the decoder the start symbol and each text."""
        return inputs + rows * (tokens + 1)

    def load(self, resources: Resources) -> PyTree:
        return resources.params(self.folder, self.model.random)

    def __call__(
        self, params: PyTree, source: Source, tokens: Array, lengths: Array, finished: Array
    ) -> Array:
        del finished
        return value_of_texts(self.model, params, source.inputs, tokens, lengths)


@dataclasses.dataclass(frozen=True)
class Entailment(Reward):
    """log p(label | "premise: <document> hypothesis: <text>") of a text-to-text model.

    As in the hallucination experiment of DeRa (Liu et al. 2024, arXiv 2402.02992), whose reward is the
    log-probability of "entailment" under such a model. The prompt is put together from token ids,
    document and text as they are, so it can differ from the tokens of the joined text at the seams.

    Attributes:
        model: the architecture.
        folder: of the finished model; None for a dry run only.
        max_length: N, tokens of a prompt; the document is cut to what a text of T tokens leaves.
        instruction: what the inputs of the run's task begin with; it is not part of the premise.
        premise, hypothesis: what the model was trained to see before document and text.
        label: what it answers where the document entails the text.
    """

    model: T5
    folder: str | None = None
    max_length: int = 512
    instruction: str = "summarize:"
    premise: str = "premise:"
    hypothesis: str = "hypothesis:"
    label: str = "entailment"

    def __post_init__(self):
        words = dict.fromkeys(("instruction", "premise", "hypothesis"), checks.STRING)
        checks.check_fields(
            self,
            folder=checks.optional(checks.PATH),
            max_length=checks.whole(1),
            label=checks.TEXT,
            **words,
        )

    @property
    def highest(self) -> float:
        return 0.0

    def positions(self, inputs: int, rows: int, tokens: int) -> int:
        """A prompt of `max_length` for each text, whatever the lengths of document and text.

        The answer's few tokens are left out: how many they are is known only after `load`.
        """
        del inputs, tokens
        return rows * self.max_length

    def load(self, resources: Resources) -> PyTree:
        ids = lambda text: jnp.asarray(resources.encode(text), jnp.int32)
        return {
            "model": resources.params(self.folder, self.model.init),
            "instruction": ids(self.instruction),
            "premise": ids(self.premise),
            "hypothesis": ids(self.hypothesis),
            "answer": jnp.append(ids(self.label), resources.end_id),
            "end": jnp.asarray(resources.end_id, jnp.int32),
        }

    def __call__(
        self, params: PyTree, source: Source, tokens: Array, lengths: Array, finished: Array
    ) -> Array:
        prompts = self.prompts(params, source.inputs, tokens, lengths - finished)
        answer, nothing = params["answer"][None, None], jnp.zeros((1, 1))

        def log_prob(prompt: Array) -> Array:
            state = self.model.start(params["model"], prompt[None], nothing, nothing, max_len=1)
            length = jnp.full((1, 1), answer.shape[-1])
            return jnp.sum(score(self.model, params["model"], state, answer, length))

        # Every text makes an input of its own, so a few at a time: a sweep has hundreds.
        flat = prompts.reshape(-1, prompts.shape[-1])
        found = jax.lax.map(log_prob, flat, batch_size=_PROMPTS_AT_ONCE)
        return found.reshape(tokens.shape[:2])

    def prompts(self, params: PyTree, inputs: Array, tokens: Array, lengths: Array) -> Array:
        """int32 [B, K, N]: premise, document, hypothesis and the first lengths[B, K] tokens.

        Raises:
            ValueError: a text can fill the prompt alone.
        """
        words = [params[name] for name in ("instruction", "premise", "hypothesis")]
        end = params["end"]
        room = self.max_length - len(words[1]) - len(words[2]) - tokens.shape[-1] - 1
        if room < 1:
            raise ValueError(
                f"Entailment.max_length {self.max_length} leaves no room for a document beside a "
                f"text of {tokens.shape[-1]} tokens; raise it"
            )

        def prompt(document: Array, text: Array, length: Array) -> Array:
            document = _without_prefix(document, words[0])
            document = jnp.where(document == end, 0, document)[:room]
            text = jnp.where(jnp.arange(len(text)) < length, text, 0)
            parts = (words[1], document, words[2], text)
            return _join(parts, self.max_length, end)

        of_rows = jax.vmap(prompt, (None, 0, 0))
        return jax.vmap(of_rows)(inputs, tokens, lengths)


def _without_prefix(ids: Array, prefix: Array) -> Array:
    """ids[S] moved to the left by the prefix if they begin with it, filled up with 0."""
    n = len(prefix)
    moved = jnp.pad(ids[n:], (0, n))
    return jnp.where(jnp.all(ids[:n] == prefix), moved, ids)


def _join(parts: tuple[Array, ...], length: int, end: Array) -> Array:
    """The ids above 0 of the parts, one after the other, then the end token: int32 [length]."""
    ids = jnp.concatenate([*parts, end[None]])
    place = jnp.where(ids > 0, jnp.cumsum(ids > 0) - 1, length)  # padding falls off the end
    return jnp.zeros(length, jnp.int32).at[place].set(ids, mode="drop")

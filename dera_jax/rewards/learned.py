"""Rewards that are networks: a scalar head trained on comparisons, and an entailment model.

Both read token ids of the run's own vocabulary. A model with another tokenizer has to see text: wrap
it as a host reward (`rewards.host`).

Axes: B documents, K texts of each, T output length, N prompt length, A answer length.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import Array

from dera_jax import checks
from dera_jax.models.heads import ValueHead, value_of_sequences
from dera_jax.models.language_model import (
    Padded,
    Prompts,
    PyTree,
    TrainableModel,
    score_sequences,
)
from dera_jax.rewards.protocol import Resources, Reward, Source

_PROMPTS_AT_ONCE = 64


@dataclasses.dataclass(frozen=True)
class RewardModel(Reward):
    """The mean of the scalars that a model with a head gives a document and every prefix of a text.

    Made by `training.preferences` from comparisons (Bradley and Terry 1952; for language models
    Stiennon et al. 2020, arXiv 2009.01325).

    Attributes:
        model: the architecture.
        folder: of the finished model; None for a dry run only.
    """

    model: ValueHead
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
        return value_of_sequences(self.model, params, source.prompts, tokens, lengths)


@dataclasses.dataclass(frozen=True)
class Entailment(Reward):
    """log p(label | "premise: <document> hypothesis: <text>") of a text-to-text model.

    As in the hallucination experiment of DeRa (Liu et al. 2024, arXiv 2402.02992), whose reward is the
    log-probability of "entailment" under such a model. The prompt is put together from token ids,
    document (`Source.document`) and text as they are, so it can differ from the tokens of the joined text
    at the seams.

    Attributes:
        model: the architecture.
        folder: of the finished model; None for a dry run only.
        max_length: N, tokens of a prompt; the document is cut to what a text of T tokens leaves.
        premise, hypothesis: what the model was trained to see before document and text.
        label: what it answers where the document entails the text.
    """

    model: TrainableModel
    folder: str | None = None
    max_length: int = 512
    premise: str = "premise:"
    hypothesis: str = "hypothesis:"
    label: str = "entailment"

    def __post_init__(self):
        words = dict.fromkeys(("premise", "hypothesis"), checks.STRING)
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
        begin, end = resources.control_tokens(self.model.ends_prompts)
        ids = {
            "premise": [*begin, *resources.encode(self.premise)],
            "hypothesis": resources.encode(self.hypothesis),
            "answer": [*resources.encode(self.label), resources.end_id],
            "end": end,
        }
        ids = {name: jnp.asarray(some, jnp.int32) for name, some in ids.items()}
        return {"model": resources.params(self.folder, self.model.init), **ids}

    def __call__(
        self, params: PyTree, source: Source, tokens: Array, lengths: Array, finished: Array
    ) -> Array:
        document = source.document_for(self)
        prompts = self.prompts(params, document, tokens, lengths - finished)
        answer = params["answer"][None, None]

        def log_prob(prompt: Prompts) -> Array:
            one, length = jax.tree.map(lambda x: x[None], prompt), jnp.full((1, 1), answer.size)
            return jnp.sum(score_sequences(self.model, params["model"], one, answer, length))

        # Every sequence makes a prompt of its own, so a few at a time: a sweep has hundreds.
        flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), prompts)
        found = jax.lax.map(log_prob, flat, batch_size=_PROMPTS_AT_ONCE)
        return found.reshape(tokens.shape[:2])

    def prompts(self, params: PyTree, documents: Padded, tokens: Array, lengths: Array) -> Prompts:
        """[B, K, N]: premise, document, hypothesis and the first lengths[B, K] tokens.

        Raises:
            ValueError: a text can fill the prompt alone.
        """
        premise, hypothesis, end = (params[name] for name in ("premise", "hypothesis", "end"))
        room = self.max_length - len(premise) - len(hypothesis) - tokens.shape[-1] - len(end)
        if room < 1:
            raise ValueError(
                f"Entailment.max_length {self.max_length} leaves no room for a document beside a "
                f"text of {tokens.shape[-1]} tokens; raise it"
            )

        def prompt(ids: Array, size: Array, text: Array, length: Array) -> tuple[Array, Array]:
            whole = lambda ids: (ids, len(ids))
            document = ids[:room], jnp.minimum(size, room)
            parts = whole(premise), document, whole(hypothesis), (text, length), whole(end)
            return _join(parts, self.max_length)

        of_texts = jax.vmap(prompt, (None, None, 0, 0))
        return Prompts(*jax.vmap(of_texts)(documents.tokens, documents.lengths, tokens, lengths))


def _join(parts: Sequence[tuple[Array, Array | int]], size: int) -> tuple[Array, Array]:
    """The first ids of each part, as many as its number says, one after the other: int32 [size], []."""
    joined, length = jnp.zeros(size, jnp.int32), jnp.zeros((), jnp.int32)
    for ids, count in parts:
        place = jnp.arange(len(ids))
        at = jnp.where(place < count, length + place, size)  # the others fall off the end
        joined, length = joined.at[at].set(ids, mode="drop"), length + count
    return joined, length

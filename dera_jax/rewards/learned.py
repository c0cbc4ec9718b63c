"""Defines learned rewards: a scalar head trained on comparisons, and an entailment model.

Both read token ids of the run's vocabulary. Wrap a model with another tokenizer as a host reward
(`rewards.host`), which reads text.

Axes: B documents, K outputs for each, S document length, T output length, N prompt length.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import Array

from dera_jax import checks
from dera_jax.models.heads import LAST, ValueHead, value_of_sequences
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
    """Scores an output by a model's scalar head, as the model's `pooling` says.

    A model that `training.preferences` trained on comparisons (Bradley and Terry 1952; for language
    models Stiennon et al. 2020, arXiv 2009.01325) takes the mean over all prefixes of the output. Its
    prompt is the document.

    A model published as ...ForSequenceClassification reads the last token of a whole conversation:
    the run's prompt, the output's text, and the end of the conversation, as the chat template writes
    it. Every output is scored as a complete answer: the end token of a finished output is replaced
    by the template's end of the conversation, and an unfinished output is followed by it too.

    Attributes:
        model: the architecture.
        folder: folder of the finished model; None for a dry run only.
    """

    model: ValueHead
    folder: str | None = None

    def __post_init__(self):
        checks.check_fields(self, folder=checks.optional(checks.PATH))

    def forward_tokens(self, inputs: int, rows: int, tokens: int) -> int:
        """Counts the document once, and each output with the token before it.

        The few tokens after the text of an output are not counted, since their number is known only
        after `load`.
        """
        return inputs + rows * (tokens + 1)

    def load(self, resources: Resources) -> PyTree:
        params, ending = resources.reward_model(self.folder, self.model)
        if self.model.pooling.kind != LAST:
            return params
        return {"model": params, "ending": jnp.asarray(ending, jnp.int32)}

    def __call__(
        self, params: PyTree, source: Source, tokens: Array, lengths: Array, finished: Array
    ) -> Array:
        if self.model.pooling.kind != LAST:
            return value_of_sequences(self.model, params, source.prompts, tokens, lengths)
        sequences = _followed_by(params["ending"], tokens, lengths - finished)
        return value_of_sequences(self.model, params["model"], source.prompts, *sequences)


def _followed_by(ending: Array, tokens: Array, lengths: Array) -> tuple[Array, Array]:
    """Returns sequences with the ids of `ending` after each: int32 [B, K, T + len(ending)], lengths."""
    size = tokens.shape[-1] + len(ending)
    append = lambda ids, length: _join([(ids, length), (ending, len(ending))], size)
    return jax.vmap(jax.vmap(append))(tokens, lengths)


@dataclasses.dataclass(frozen=True)
class Entailment(Reward):
    """Returns log p(label | "premise: <document> hypothesis: <output>") of a text-to-text model.

    The hallucination experiment of DeRa (Liu et al. 2024, arXiv 2402.02992) uses as reward the
    log-probability of "entailment" under such a model. The prompt concatenates token ids, with
    those of `Source.document` and of the output unchanged, so it can differ from the tokenization
    of the concatenated text at the boundaries.

    Attributes:
        model: the architecture.
        folder: folder of the finished model; None for a dry run only.
        max_length: N, maximum tokens of a prompt; the document is truncated to the tokens that an
            output of T tokens leaves.
        premise, hypothesis: the text before document and output in the model's training data.
        label: the model's answer if the document entails the output.
    """

    model: TrainableModel
    folder: str | None = None
    max_length: int = 512
    premise: str = "premise:"
    hypothesis: str = "hypothesis:"
    label: str = "entailment"

    def __post_init__(self):
        markers = dict.fromkeys(("premise", "hypothesis"), checks.STRING)
        checks.check_fields(
            self,
            folder=checks.optional(checks.PATH),
            max_length=checks.integer(1),
            label=checks.TEXT,
            **markers,
        )

    @property
    def highest(self) -> float:
        return 0.0

    def forward_tokens(self, inputs: int, rows: int, tokens: int) -> int:
        """Counts a prompt of `max_length` tokens for each output, whatever the lengths.

        The few tokens of the answer are not counted, since their number is known only after `load`.
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
        ids = {name: jnp.asarray(tokens, jnp.int32) for name, tokens in ids.items()}
        return {"model": resources.params(self.folder, self.model.init), **ids}

    def __call__(
        self, params: PyTree, source: Source, tokens: Array, lengths: Array, finished: Array
    ) -> Array:
        document = source.document_for(self)
        prompts = self.prompts(params, document, tokens, lengths - finished)
        answer = params["answer"][None, None]

        def log_prob(prompt: Prompts) -> Array:
            batched = jax.tree.map(lambda x: x[None], prompt)
            length = jnp.full((1, 1), answer.size)
            return jnp.sum(score_sequences(self.model, params["model"], batched, answer, length))

        # Each output has its own prompt, and a sweep has hundreds of outputs. Scoring them in small
        # batches bounds the memory.
        flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), prompts)
        log_probs = jax.lax.map(log_prob, flat, batch_size=_PROMPTS_AT_ONCE)
        return log_probs.reshape(tokens.shape[:2])

    def prompts(self, params: PyTree, documents: Padded, tokens: Array, lengths: Array) -> Prompts:
        """Returns prompts [B, K, N] of premise, document, hypothesis and output.

        Args:
            params: the result of `load`.
            documents: [B, S].
            tokens: int32 [B, K, T], the outputs.
            lengths: int32 [B, K], lengths of the outputs without their end tokens.

        Raises:
            ValueError: an output of T tokens leaves no room for a document.
        """
        premise, hypothesis, end = (params[name] for name in ("premise", "hypothesis", "end"))
        room = self.max_length - len(premise) - len(hypothesis) - tokens.shape[-1] - len(end)
        if room < 1:
            raise ValueError(
                f"Entailment.max_length {self.max_length} leaves no room for a document beside an "
                f"output of {tokens.shape[-1]} tokens; raise Entailment.max_length to at least "
                f"{self.max_length + 1 - room}, or lower the length limit of outputs"
            )

        def prompt(ids: Array, size: Array, output: Array, length: Array) -> tuple[Array, Array]:
            whole = lambda ids: (ids, len(ids))
            document = ids[:room], jnp.minimum(size, room)
            parts = whole(premise), document, whole(hypothesis), (output, length), whole(end)
            return _join(parts, self.max_length)

        of_outputs = jax.vmap(prompt, (None, None, 0, 0))
        return Prompts(*jax.vmap(of_outputs)(documents.tokens, documents.lengths, tokens, lengths))


def _join(parts: Sequence[tuple[Array, Array | int]], size: int) -> tuple[Array, Array]:
    """Concatenates the first `count` ids of parts (ids, count): int32 [size], and the length."""
    joined, length = jnp.zeros(size, jnp.int32), jnp.zeros((), jnp.int32)
    for ids, count in parts:
        offset = jnp.arange(len(ids))
        index = jnp.where(offset < count, length + offset, size)  # `size` is dropped
        joined, length = joined.at[index].set(ids, mode="drop"), length + count
    return joined, length

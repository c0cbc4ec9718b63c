"""Scores of texts, and the loss by which comparisons train them.

Of a document's two texts the chosen one is to have the higher score s (Bradley and Terry 1952):

    loss = −log σ(s(chosen) − s(rejected))

A reward model's score is a number from a model with a scalar head (`heads.value_of_sequences`; Stiennon
et al. 2020, arXiv 2009.01325, take the last state's). The score of direct preference optimization is
the reward for which the policy is the optimum (Rafailov et al. 2023, arXiv 2305.18290):

    s(y) = β·(log π(y | x) − log π_ref(y | x))

Axes: B documents, K texts of each (chosen, rejected), S input length, T text length.
"""

import dataclasses
from typing import Protocol

import jax
import jax.numpy as jnp
from jax import Array

from dera_jax import checks
from dera_jax.evaluation import reliability
from dera_jax.models.heads import ValueHead, value_of_sequences
from dera_jax.models.language_model import (
    Padded,
    Prompts,
    PyTree,
    TrainableModel,
    check_padded,
    within,
)
from dera_jax.partitioning import Network
from dera_jax.training.losses import bradley_terry, log_probs
from dera_jax.training.train_state import Batch, Memory


class Scorer(Protocol):
    """What gives texts a score to be trained. Frozen, hashable, holds no arrays.

    `network` is what is trained.
    """

    network: Network

    def init(self, params: PyTree) -> PyTree:
        """The first parameters to train, from those of a language model."""

    def fixed(self, params: PyTree) -> PyTree:
        """What of the model's parameters the score needs as they were before training; None: nothing."""

    def scores(
        self, params: PyTree, fixed: PyTree, prompts: Prompts, texts: Array, lengths: Array
    ) -> Array:
        """float32 [B, K] of texts[B, K, T]."""

    def kept_small(self, memory: Memory) -> "Scorer":
        """The same, holding less at once."""


@dataclasses.dataclass(frozen=True)
class ScalarHead:
    """A reward model's score; what is trained is a `ValueHead`."""

    model: ValueHead

    @property
    def network(self) -> Network:
        return self.model

    def kept_small(self, memory: Memory) -> "ScalarHead":
        return ScalarHead(ValueHead(memory.of(self.model.trunk)))

    def init(self, params: PyTree) -> PyTree:
        return self.model.init(params)

    def fixed(self, params: PyTree) -> PyTree:
        return None

    def scores(
        self, params: PyTree, fixed: PyTree, prompts: Prompts, texts: Array, lengths: Array
    ) -> Array:
        del fixed
        return value_of_sequences(self.model, params, prompts, texts, lengths)


@dataclasses.dataclass(frozen=True)
class LogRatio:
    """DPO's score, the reward that the policy is optimal for, up to a constant of the document.

    Attributes:
        model: of policy and reference.
        beta: β.
        chunk: see `train_state.Memory`.

    Raises:
        ValueError: β is not positive.
    """

    model: TrainableModel
    beta: float
    chunk: int | None = None

    def __post_init__(self):
        beta = checks.check("DPO's beta", self.beta, checks.number(above=0))
        object.__setattr__(self, "beta", beta)
        checks.check_fields(self, chunk=checks.optional(checks.whole(1)))

    @property
    def network(self) -> Network:
        return self.model

    def kept_small(self, memory: Memory) -> "LogRatio":
        return LogRatio(memory.of(self.model), self.beta, memory.chunk)

    def init(self, params: PyTree) -> PyTree:
        return params

    def fixed(self, params: PyTree) -> PyTree:
        return params

    def scores(
        self, params: PyTree, fixed: PyTree, prompts: Prompts, texts: Array, lengths: Array
    ) -> Array:
        def log_prob(p: PyTree) -> Array:
            each = log_probs(self.model, p, prompts, texts, self.chunk)
            return jnp.sum(jnp.where(within(lengths, texts.shape[-1]), each, 0.0), axis=-1)

        return self.beta * (log_prob(params) - log_prob(jax.lax.stop_gradient(fixed)))


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The mean loss of pairs, batch["targets"] chosen and batch["rejected"], by batch["weight"].

    Logs the accuracy; ties are half right.
    """

    scorer: Scorer

    def weight(self, batch: Batch) -> Array:
        return jnp.maximum(jnp.sum(batch["weight"]), 1e-9)

    def __call__(
        self, params: PyTree, frozen: PyTree, batch: Batch, key: Array
    ) -> tuple[Array, dict[str, Array]]:
        """See `train_state.Objective`."""
        del key  # no dropout
        pairs = batch["inputs"], batch["targets"], batch["rejected"]
        margin = margin_of(self.scorer, params, frozen, *pairs)
        tied = jnp.abs(margin) < reliability.TIE
        right = jnp.where(tied, 0.5, margin > 0)
        total = lambda x: jnp.sum(x * batch["weight"])
        return total(bradley_terry(margin)), {"accuracy": total(right)}


def margin_of(
    scorer: Scorer,
    params: PyTree,
    fixed: PyTree,
    prompts: Prompts,
    chosen: Padded,
    rejected: Padded,
) -> Array:
    """s(chosen) − s(rejected), float32 [B].

    Raises:
        ValueError: prompts or sequences of another type or shape than [B, S], [B, T], [B, T].
    """
    batch, _ = check_padded("prompts", prompts, B=None, S=None)
    _, size = check_padded("chosen", chosen, B=batch, T=None)
    check_padded("rejected", rejected, B=batch, T=size)
    texts = jax.tree.map(lambda *x: jnp.stack(x, axis=1), chosen, rejected)
    scores = scorer.scores(params, fixed, prompts, texts.tokens, texts.lengths)
    return scores[:, 0] - scores[:, 1]

"""Scores sequences for training on preference pairs, and computes the loss of the pairs.

The loss gives the chosen of a document's two completions the higher score s (Bradley and Terry
1952):

    loss = −log σ(s(chosen) − s(rejected))

The score of a reward model is the output of a scalar head, by default averaged over prefixes
(`heads.value_of_sequences`; Stiennon et al. 2020, arXiv 2009.01325, use the last state only). The
score of direct preference optimization (DPO) is, up to a constant of the document, the reward for
which the policy is the KL-regularized optimum (Rafailov et al. 2023, arXiv 2305.18290):

    s(y) = β·(log π(y | x) − log π_ref(y | x))

Axes: B documents, K completions of each (chosen, rejected), S prompt length, T completion length.
"""

import dataclasses
from typing import Protocol

import jax
import jax.numpy as jnp
from jax import Array

from dera_jax import checks
from dera_jax.metrics import reliability
from dera_jax.models.heads import ValueHead, value_of_sequences
from dera_jax.models.language_model import (
    Padded,
    Prompts,
    PyTree,
    TrainableModel,
    check_padded,
    length_mask,
)
from dera_jax.partitioning import Network
from dera_jax.training.losses import bradley_terry, log_probs
from dera_jax.training.train_state import Batch, Frozen, Memory


class Scorer(Protocol):
    """Scores sequences by trained parameters. Implementations are frozen, hashable, hold no arrays.

    `network` is the network whose parameters are trained.
    """

    network: Network

    def init(self, params: PyTree) -> PyTree:
        """Returns the initial trainable parameters, from those of a language model."""

    def fixed(self, params: PyTree) -> PyTree:
        """Returns the initial model's parameters that the score needs frozen, or None."""

    def scores(
        self, params: PyTree, fixed: PyTree, prompts: Prompts, texts: Array, lengths: Array
    ) -> Array:
        """Returns the scores, float32 [B, K], of completions texts[B, K, T] with lengths[B, K]."""

    def with_memory(self, memory: Memory) -> "Scorer":
        """Returns the scorer with the rematerialization and chunking of `memory`."""


@dataclasses.dataclass(frozen=True)
class ScalarHead:
    """Scores sequences by a reward model, a `ValueHead` that is trained as a whole."""

    model: ValueHead

    @property
    def network(self) -> Network:
        """Returns the network whose parameters are trained."""
        return self.model

    def with_memory(self, memory: Memory) -> "ScalarHead":
        """Returns the scorer with the rematerialization policy of `memory`."""
        return ScalarHead(dataclasses.replace(self.model, trunk=memory.of(self.model.trunk)))

    def init(self, params: PyTree) -> PyTree:
        """Returns the parameters with a head that is 0 everywhere."""
        return self.model.init(params)

    def fixed(self, params: PyTree) -> PyTree:
        """Returns None, since nothing is frozen."""
        return None

    def scores(
        self, params: PyTree, fixed: PyTree, prompts: Prompts, texts: Array, lengths: Array
    ) -> Array:
        """Returns the scores, float32 [B, K], of completions texts[B, K, T] with lengths[B, K]."""
        del fixed
        return value_of_sequences(self.model, params, prompts, texts, lengths)


@dataclasses.dataclass(frozen=True)
class LogRatio:
    """Scores sequences by β·(log π − log π_ref), the implicit reward of DPO.

    Attributes:
        model: architecture of policy and reference policy.
        beta: KL coefficient β.
        chunk: see `train_state.Memory`.

    Raises:
        ValueError: beta is not positive, or `chunk` is not a positive integer or None.
    """

    model: TrainableModel
    beta: float
    chunk: int | None = None

    def __post_init__(self):
        beta = checks.check("DPO's beta", self.beta, checks.number(above=0))
        object.__setattr__(self, "beta", beta)
        checks.check_fields(self, chunk=checks.optional(checks.integer(1)))

    @property
    def network(self) -> Network:
        """Returns the network whose parameters are trained."""
        return self.model

    def with_memory(self, memory: Memory) -> "LogRatio":
        """Returns the scorer with the rematerialization and chunking of `memory`."""
        return LogRatio(memory.of(self.model), self.beta, memory.chunk)

    def init(self, params: PyTree) -> PyTree:
        """Returns the parameters, with which the policy starts."""
        return params

    def fixed(self, params: PyTree) -> PyTree:
        """Returns the parameters, which stay those of the reference policy."""
        return params

    def scores(
        self, params: PyTree, fixed: PyTree, prompts: Prompts, texts: Array, lengths: Array
    ) -> Array:
        """Returns the scores, float32 [B, K], of completions texts[B, K, T] with lengths[B, K]."""

        def log_prob(p: PyTree) -> Array:
            per_token = log_probs(self.model, p, prompts, texts, self.chunk)
            return jnp.sum(
                jnp.where(length_mask(lengths, texts.shape[-1]), per_token, 0.0), axis=-1
            )

        return self.beta * (log_prob(params) - log_prob(jax.lax.stop_gradient(fixed)))


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Computes the loss of pairs, batch["targets"] (chosen) and batch["rejected"].

    The mean over pairs is weighted by batch["weight"]. The metric `accuracy` is the fraction of
    pairs in which the chosen completion has the higher score; a tie counts as one half.
    """

    scorer: Scorer

    def weight(self, batch: Batch) -> Array:
        """Returns the sum of the weights of the pairs, float32 []."""
        return jnp.maximum(jnp.sum(batch["weight"]), 1e-9)

    def __call__(
        self, params: PyTree, frozen: Frozen, batch: Batch, key: Array
    ) -> tuple[Array, dict[str, Array]]:
        """Computes the loss, see `train_state.LossFunction`."""
        del key  # no dropout
        pairs = batch["inputs"], batch["targets"], batch["rejected"]
        margin = margin_of(self.scorer, params, frozen["reference"], *pairs)
        tied = jnp.abs(margin) < reliability.TIE
        correct = jnp.where(tied, 0.5, margin > 0)
        total = lambda x: jnp.sum(x * batch["weight"])
        return total(bradley_terry(margin)), {"accuracy": total(correct)}


def margin_of(
    scorer: Scorer,
    params: PyTree,
    fixed: PyTree,
    prompts: Prompts,
    chosen: Padded,
    rejected: Padded,
) -> Array:
    """Returns the margins s(chosen) − s(rejected), float32 [B].

    Raises:
        ValueError: prompts [B, S] or sequences [B, T] have another type or shape.
    """
    batch, _ = check_padded("prompts", prompts, B=None, S=None)
    _, size = check_padded("chosen", chosen, B=batch, T=None)
    check_padded("rejected", rejected, B=batch, T=size)
    pairs = jax.tree.map(lambda *x: jnp.stack(x, axis=1), chosen, rejected)
    scores = scorer.scores(params, fixed, prompts, pairs.tokens, pairs.lengths)
    return scores[:, 0] - scores[:, 1]

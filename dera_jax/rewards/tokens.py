"""Defines rewards that count and compare token ids.

Axes: B inputs, K hypotheses of each input, T output length, R target length.
"""

import dataclasses

import jax.numpy as jnp
from jax import Array, lax

from dera_jax import checks
from dera_jax.models.language_model import PyTree, length_mask
from dera_jax.rewards.protocol import Resources, Reward, Source


@dataclasses.dataclass(frozen=True)
class LengthNear(Reward):
    """Scores an output of n tokens (end token excluded) by -|n - target| / target.

    An output that the length limit truncated is scored like any other.

    Attributes:
        target: length in tokens, the end token excluded, at which the reward is 0.

    Raises:
        ValueError: `target` is not a positive integer.
    """

    target: int

    def __post_init__(self):
        checks.check_fields(self, target=checks.integer(1))

    @property
    def min_limit(self) -> int:
        """Leaves room for an output that is one token too long, and its end token."""
        return self.target + 2

    @property
    def highest(self) -> float:
        return 0.0

    def __call__(
        self, params: PyTree, source: Source, tokens: Array, lengths: Array, finished: Array
    ) -> Array:
        """Implements `protocol.Reward`."""
        del params, source, tokens
        num_tokens = (lengths - finished).astype(jnp.float32)
        return -jnp.abs(num_tokens - self.target) / self.target


@dataclasses.dataclass(frozen=True)
class Repetition(Reward):
    """Scores minus the fraction of an output's token n-grams that occur earlier in the output.

    The reward is 0 without repetition or with fewer than n tokens. The end token is not counted.

    Attributes:
        n: number of tokens of an n-gram.

    Raises:
        ValueError: `n` is not a positive integer.
    """

    n: int = 2

    def __post_init__(self):
        checks.check_fields(self, n=checks.integer(1))

    @property
    def highest(self) -> float:
        return 0.0

    def __call__(
        self, params: PyTree, source: Source, tokens: Array, lengths: Array, finished: Array
    ) -> Array:
        """Implements `protocol.Reward`."""
        del params, source
        tokens = jnp.asarray(tokens)
        size = tokens.shape[-1]
        padded = jnp.pad(tokens, ((0, 0), (0, 0), (0, self.n)))
        grams = [padded[..., i : i + size] for i in range(self.n)]
        total = jnp.maximum(lengths - finished - self.n + 1, 0)
        is_gram = jnp.arange(size) < total[..., None]
        # After sorting, equal n-grams are adjacent, and windows beyond the output's end come last.
        ordered = lax.sort((~is_gram, *grams), dimension=-1, num_keys=self.n + 1)
        same = jnp.ones((*tokens.shape[:-1], size - 1), bool)
        for column in ordered[1:]:
            same &= column[..., 1:] == column[..., :-1]
        repeated = jnp.sum(same & ~ordered[0][..., 1:], axis=-1)
        return -repeated / jnp.maximum(total, 1)


@dataclasses.dataclass(frozen=True)
class TokenOverlap(Reward):
    """Scores the F1 of the multisets of tokens of an output and its target; 0 if either is empty.

    It is a proxy of ROUGE-1 inside compiled programs, on tokens instead of words and without
    stemming. Reported ROUGE is computed by rouge-score. Padding and the end token are not counted.
    """

    @property
    def highest(self) -> float:
        return 1.0

    def load(self, resources: Resources) -> Array:
        """Returns the end token's id, int32 []."""
        return jnp.asarray(resources.end_id, jnp.int32)

    def __call__(
        self, params: PyTree, source: Source, tokens: Array, lengths: Array, finished: Array
    ) -> Array:
        """Implements `protocol.Reward`; raises ValueError if the task has no targets."""
        if source.targets is None:
            raise ValueError(
                "TokenOverlap needs a summary for each document, and these documents have none: add "
                "the column `summary` to your files, or the field `targets` to the task, or choose "
                "another reward"
            )
        size = tokens.shape[-1]
        counted = length_mask(lengths - finished, size) & (tokens != params)
        output = jnp.where(counted, tokens, -1)  # [B, K, T]
        targets = source.targets
        in_target = targets.mask & (targets.tokens != params)
        target = jnp.where(in_target, targets.tokens, -2)[:, None]  # [B, 1, R]
        target_count = jnp.sum(output[..., :, None] == target[..., None, :], axis=-1)
        before = jnp.tril(jnp.ones((size, size), bool), -1)
        earlier_count = jnp.sum((output[..., :, None] == output[..., None, :]) & before, axis=-1)
        overlap = jnp.sum(counted & (earlier_count < target_count), axis=-1)
        total = jnp.sum(counted, axis=-1) + jnp.sum(in_target, axis=-1)[:, None]
        return 2 * overlap / jnp.maximum(total, 1)

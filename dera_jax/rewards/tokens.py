"""Rewards that count and compare token ids.

Axes: B inputs, K hypotheses of each input, T output length, R length of a human text.
"""

import dataclasses

import jax.numpy as jnp
from jax import Array, lax

from dera_jax import checks
from dera_jax.models.language_model import PyTree, within
from dera_jax.rewards.protocol import Resources, Reward, Source


@dataclasses.dataclass(frozen=True)
class LengthNear(Reward):
    """-|n - target| / target for a text of n tokens (end token excluded): 0 at the target.

    A text cut off by the length limit counts the tokens it has.

    Raises:
        ValueError: target is not positive.
    """

    target: int

    def __post_init__(self):
        checks.check_fields(self, target=checks.whole(1))

    @property
    def min_limit(self) -> int:
        """Room for a text that is too long by one token, and ends."""
        return self.target + 2

    @property
    def highest(self) -> float:
        return 0.0

    def __call__(
        self, params: PyTree, source: Source, tokens: Array, lengths: Array, finished: Array
    ) -> Array:
        """See `protocol.Reward`."""
        del params, source, tokens
        text = (lengths - finished).astype(jnp.float32)
        return -jnp.abs(text - self.target) / self.target


@dataclasses.dataclass(frozen=True)
class Repetition(Reward):
    """Minus the share of a text's n-grams of tokens that the text has had before.

    0 for a text without repetition, or of fewer than n tokens. The end token is not counted.

    Raises:
        ValueError: n is not positive.
    """

    n: int = 2

    def __post_init__(self):
        checks.check_fields(self, n=checks.whole(1))

    @property
    def highest(self) -> float:
        return 0.0

    def __call__(
        self, params: PyTree, source: Source, tokens: Array, lengths: Array, finished: Array
    ) -> Array:
        """See `protocol.Reward`."""
        del params, source
        tokens = jnp.asarray(tokens)
        size = tokens.shape[-1]
        padded = jnp.pad(tokens, ((0, 0), (0, 0), (0, self.n)))
        grams = [padded[..., i : i + size] for i in range(self.n)]
        total = jnp.maximum(lengths - finished - self.n + 1, 0)
        is_gram = jnp.arange(size) < total[..., None]
        # Sorted, equal n-grams are neighbours; what is no n-gram comes last.
        ordered = lax.sort((~is_gram, *grams), dimension=-1, num_keys=self.n + 1)
        same = jnp.ones((*tokens.shape[:-1], size - 1), bool)
        for column in ordered[1:]:
            same &= column[..., 1:] == column[..., :-1]
        repeated = jnp.sum(same & ~ordered[0][..., 1:], axis=-1)
        return -repeated / jnp.maximum(total, 1)


@dataclasses.dataclass(frozen=True)
class TokenOverlap(Reward):
    """F1 of a text's tokens and a human text's, as multisets; 0 where either is empty.

    It stands in for ROUGE-1 where a program needs a reward: it knows neither words nor stems, so
    what is reported as ROUGE is rouge-score's. Padding and the end token are not counted.
    """

    @property
    def highest(self) -> float:
        return 1.0

    def load(self, resources: Resources) -> Array:
        """The end token's id."""
        return jnp.asarray(resources.end_id, jnp.int32)

    def __call__(
        self, params: PyTree, source: Source, tokens: Array, lengths: Array, finished: Array
    ) -> Array:
        """See `protocol.Reward`. Raises ValueError where the task has no human texts."""
        if source.targets is None:
            raise ValueError(
                "TokenOverlap needs a human text of each document, and this task has no targets: "
                "add them to the task, or choose another reward"
            )
        size = tokens.shape[-1]
        counted = within(lengths - finished, size) & (tokens != params)
        text = jnp.where(counted, tokens, -1)  # [B, K, T]
        targets = source.targets
        is_human = targets.mask & (targets.tokens != params)
        human = jnp.where(is_human, targets.tokens, -2)[:, None]  # [B, 1, R]
        there = jnp.sum(text[..., :, None] == human[..., None, :], axis=-1)
        before = jnp.tril(jnp.ones((size, size), bool), -1)
        earlier = jnp.sum((text[..., :, None] == text[..., None, :]) & before, axis=-1)
        shared = jnp.sum(counted & (earlier < there), axis=-1)
        both = jnp.sum(counted, axis=-1) + jnp.sum(is_human, axis=-1)[:, None]
        return 2 * shared / jnp.maximum(both, 1)

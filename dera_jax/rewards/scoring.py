"""Scores the outputs of a round, whether the reward is compiled or a Python function.

Axes: B documents, K outputs for each, T output length.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from dera_jax import checks
from dera_jax.models.language_model import Padded, PyTree, check_padded
from dera_jax.rewards.combined import Combined
from dera_jax.rewards.host import HostReward
from dera_jax.rewards.protocol import (
    REWARD,
    Reward,
    Source,
    call_reward,
    check_rewards,
    check_source,
)


@dataclasses.dataclass(frozen=True)
class RewardScorer:
    """Scores outputs with a reward.

    Attributes:
        reward: the reward, compiled, a Python function, or a sum of both kinds.
        params: the reward's parameters, as returned by `Reward.load`.
        to_text: decodes token ids to text, for host rewards.
    """

    reward: Reward
    params: PyTree
    to_text: Callable[[Sequence[int]], str]

    def __post_init__(self):
        checks.check_fields(self, reward=REWARD, to_text=checks.FUNCTION)

    def __call__(
        self,
        source: Source,
        documents: Sequence[str] | None,
        tokens: Array,
        lengths: Array,
        finished: Array,
    ) -> tuple[np.ndarray, Mapping[str, np.ndarray]]:
        """Returns the rewards of outputs, float32 [B, K], and their named parts, each [B, K].

        Args:
            source: the documents, for compiled rewards.
            documents: texts of the B documents, for host rewards; None without a host reward.
            tokens, lengths, finished: the outputs, [B, K, T], [B, K] and [B, K], as for a `Reward`.

        Raises:
            ValueError: an argument or a result has another type or shape, `documents` has another
                length than B or is missing for a host reward, or a host reward is not finite.
            FloatingPointError: a compiled reward or a sum is not finite.
        """
        reward, params = self.reward, self.params
        shape = check_padded("outputs", Padded(tokens, lengths), B=None, K=None, T=None)
        checks.check_array("finished", finished, "flags", jnp.bool_, B=shape[0], K=shape[1])
        _check_documents(documents, len(lengths))
        if isinstance(reward, HostReward):
            total, parts = reward.score(documents, self._texts(tokens, lengths)), {}
            total = total.reshape(lengths.shape)  # [0, K] if B = 0
        elif reward.on_host:
            total, parts = self._combine(source, documents, tokens, lengths, finished)
        else:
            total, parts = score(reward, params, source, tokens, lengths, finished)
        total = np.asarray(total)
        check_rewards(total, reward)
        return total, jax.tree.map(np.asarray, parts)

    def _combine(self, source, documents, *outputs):
        """Scores each part, compiled or in Python, and adds the parts up in NumPy."""
        combined: Combined = self.reward
        parts = {
            term.name: RewardScorer(term.reward, params, self.to_text)(source, documents, *outputs)[
                0
            ]
            for term, params in zip(combined.terms, self.params, strict=True)
        }
        return combined.total(parts), parts

    def _texts(self, tokens: Array, lengths: Array) -> list[list[str]]:
        tokens, lengths = np.asarray(tokens), np.asarray(lengths)
        return [
            [self.to_text(ids[:length].tolist()) for ids, length in zip(*outputs, strict=True)]
            for outputs in zip(tokens, lengths, strict=True)
        ]


def _check_documents(documents: Sequence[str] | None, batch: int) -> None:
    if documents is None:
        return
    if isinstance(documents, str) or len(documents) != batch:
        found = "one string" if isinstance(documents, str) else f"{len(documents)} texts"
        raise ValueError(
            f"documents must be a list of B = {batch} texts, one for each input; found {found}."
        )


@functools.partial(jax.jit, static_argnums=0)
def score(
    reward: Reward, params: PyTree, source: Source, tokens: Array, lengths: Array, finished: Array
) -> tuple[Array, Mapping[str, Array]]:
    """Computes a reward [B, K] and its named parts, each [B, K], in one compiled program.

    Raises:
        ValueError: `source` or the reward has another type or shape.
    """
    check_source(source, len(tokens))
    parts = reward.parts(params, source, tokens, lengths, finished)
    if reward.summands:
        return reward.total(parts), parts
    return call_reward(reward, params, source, tokens, lengths, finished), parts

"""Scoring whole rounds of texts, whether the reward is compiled or a Python function.

Axes: B documents, K texts of each, T output length.
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
    check_rewards,
    check_source,
    rewards_of,
)


@dataclasses.dataclass(frozen=True)
class Judge:
    """A reward with its parameters, and the way from ids to text that host rewards need."""

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
        """The rewards float32 [B, K] of texts, and their named parts [B, K].

        Args:
            source: the documents as compiled rewards know them.
            documents: B texts, for host rewards; None where there is none.
            tokens, lengths, finished: of the texts, [B, K, T], [B, K], [B, K].

        Raises:
            ValueError: an array of another type or shape, given or as the reward; a host reward
                without documents or that gives what is not finite; another number of documents.
            FloatingPointError: a compiled reward or a sum is not finite.
        """
        reward, params = self.reward, self.params
        shape = check_padded("texts", Padded(tokens, lengths), B=None, K=None, T=None)
        checks.check_array("finished", finished, "flags", jnp.bool_, B=shape[0], K=shape[1])
        _check_documents(documents, len(lengths))
        if isinstance(reward, HostReward):
            total, parts = reward.score(documents, self._texts(tokens, lengths)), {}
            total = total.reshape(lengths.shape)  # [0, K] if there is no document
        elif reward.on_host:
            total, parts = self._combine(source, documents, tokens, lengths, finished)
        else:
            total, parts = score(reward, params, source, tokens, lengths, finished)
        total = np.asarray(total)
        check_rewards(total, reward)
        return total, jax.tree.map(np.asarray, parts)

    def _combine(self, source, documents, *texts):
        """Each part where it runs; the sum here."""
        combined: Combined = self.reward
        parts = {
            term.name: Judge(term.reward, params, self.to_text)(source, documents, *texts)[0]
            for term, params in zip(combined.terms, self.params, strict=True)
        }
        return combined.total(parts), parts

    def _texts(self, tokens: Array, lengths: Array) -> list[list[str]]:
        tokens, lengths = np.asarray(tokens), np.asarray(lengths)
        return [
            [self.to_text(row[:length].tolist()) for row, length in zip(*rows, strict=True)]
            for rows in zip(tokens, lengths, strict=True)
        ]


def _check_documents(documents: Sequence[str] | None, batch: int) -> None:
    if documents is None:
        return
    if isinstance(documents, str) or len(documents) != batch:
        found = "one string" if isinstance(documents, str) else f"{len(documents)} of them"
        raise ValueError(
            f"documents must be a list of B = {batch} texts, one for each input; found {found}."
        )


@functools.partial(jax.jit, static_argnums=0)
def score(
    reward: Reward, params: PyTree, source: Source, tokens: Array, lengths: Array, finished: Array
) -> tuple[Array, Mapping[str, Array]]:
    """The reward [B, K] and its named parts, compiled; raises as `check_source` and `rewards_of`."""
    check_source(source, len(tokens))
    parts = reward.parts(params, source, tokens, lengths, finished)
    if isinstance(reward, Combined):
        return reward.total(parts), parts
    return rewards_of(reward, params, source, tokens, lengths, finished), parts

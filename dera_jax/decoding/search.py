"""The driver of every search: begin, then explore, score and settle, until it is over.

A search is its rules over this driver: beam search (`beam_search`) and evolution (`evolution`) are
two. With a compiled reward the whole search is one compiled call. With a reward in Python it is
called between compiled halves of a round, on all candidates of the round at once.

Axes: B prompts, R candidates of a prompt, T output length.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.experimental import multihost_utils

from dera_jax import checks
from dera_jax.models.language_model import LanguageModel, Prompts, PyTree
from dera_jax.rewards.judge import Judge, score
from dera_jax.rewards.protocol import Source, check_source, rewards_of

Progress = PyTree
Candidates = tuple[Array, Array, Array]  # tokens [B, R, T], lengths and finished [B, R]


class Rules(Protocol):
    """The rules of a search. A pytree whose static fields and leaves are its settings."""

    def begin(
        self, model: LanguageModel, params: PyTree, prompts: Prompts, keys: Array
    ) -> Progress:
        """The search before its first round."""

    def explore(
        self, model: LanguageModel, params: PyTree, progress: Progress
    ) -> tuple[PyTree, Candidates]:
        """A round up to its scoring: what `settle` needs, and the sequences to score."""

    def settle(
        self, model: LanguageModel, params: PyTree, explored: PyTree, rewards: Array
    ) -> Progress:
        """The rest of the round, given rewards[B, R] of the candidates."""

    def is_over(self, progress: Progress) -> Array:
        """bool [], whether no prompt of the batch needs another round."""

    def result(self, progress: Progress) -> PyTree:
        """What was found, once the search is over."""


@dataclasses.dataclass(frozen=True)
class Guide:
    """A reward with all that it needs to score sequences for B prompts.

    Attributes:
        judge: the reward and its parameters.
        source: the B documents as compiled rewards know them.
        documents: n <= B texts, for rewards in Python. The B - n prompts after them only fill the
            batch: their sequences are not scored, and their reward is 0.
    """

    judge: Judge
    source: Source
    documents: Sequence[str] | None = None

    def __post_init__(self):
        checks.check_fields(self, judge=checks.instance(Judge), source=checks.instance(Source))

    def check(self, batch: int) -> None:
        """Raises ValueError unless the source is of B = `batch` documents, and the texts of at most B."""
        check_source(self.source, batch, "Guide.source")
        texts = self.documents
        if texts is not None and (isinstance(texts, str) or len(texts) > batch):
            found = "one string" if isinstance(texts, str) else f"{len(texts)} of them"
            raise ValueError(
                f"Guide.documents must be a list of at most B = {batch} texts; found {found}."
            )

    def score(self, candidates: Candidates) -> tuple[Array, Mapping[str, Array]]:
        """Rewards float32 [B, R] and their named parts [B, R]; raises as the judge."""
        judge, batch = self.judge, len(candidates[0])
        if not judge.reward.on_host:
            return score(judge.reward, judge.params, self.source, *candidates)
        n = batch if self.documents is None else len(self.documents)
        source, candidates = jax.tree.map(lambda x: x[:n], (self.source, candidates))
        scored = judge(source, self.documents, *candidates)
        return jax.tree.map(lambda x: np.pad(x, [(0, batch - n), (0, 0)]), scored)


def search(
    rules: Rules,
    model: LanguageModel,
    params: PyTree,
    prompts: Prompts,
    keys: Array,
    guide: Guide | None,
) -> PyTree:
    """Runs a search to its end, and returns the `result` of its rules.

    Args:
        rules: of the search.
        model, params, prompts, keys: as its rules take them.
        guide: the reward; None if no sequence needs one.

    Raises:
        What a reward in Python raises.
    """
    if guide is None:
        return _compiled(rules, model, params, prompts, keys, None, None, None)
    judge = guide.judge
    if not judge.reward.on_host:
        reward = judge.reward, judge.params, guide.source
        return _compiled(rules, model, params, prompts, keys, *reward)
    progress, over = _begin(rules, model, params, prompts, keys), False
    while not over:
        explored, candidates = _explore(rules, model, params, progress)
        rewards, _ = guide.score(candidates)
        progress, over = _settle(rules, model, params, explored, rewards)
        over = _everywhere(over)
    return _result(rules, progress)


@functools.partial(jax.jit, static_argnames=("model", "reward"))
def _compiled(rules: Rules, model, params, prompts, keys, reward, reward_params, source):
    def one_round(progress: Progress) -> Progress:
        explored, candidates = rules.explore(model, params, progress)
        rewards = jnp.zeros(candidates[1].shape)
        if reward is not None:
            rewards = rewards_of(reward, reward_params, source, *candidates)
        return rules.settle(model, params, explored, rewards)

    progress = rules.begin(model, params, prompts, keys)
    return rules.result(lax.while_loop(lambda x: ~rules.is_over(x), one_round, progress))


@functools.partial(jax.jit, static_argnames="model")
def _begin(rules: Rules, model, params, prompts, keys) -> Progress:
    return rules.begin(model, params, prompts, keys)


@functools.partial(jax.jit, static_argnames="model")
def _explore(rules: Rules, model, params, progress) -> tuple[PyTree, Candidates]:
    return rules.explore(model, params, progress)


@functools.partial(jax.jit, static_argnames="model")
def _settle(rules: Rules, model, params, explored, rewards) -> tuple[Progress, Array]:
    progress = rules.settle(model, params, explored, rewards)
    return progress, rules.is_over(progress)


@jax.jit
def _result(rules: Rules, progress) -> PyTree:
    return rules.result(progress)


def _everywhere(over: Array) -> bool:
    """Whether it is over on all processes: each runs as many rounds as the others."""
    if jax.process_count() == 1:
        return bool(over)
    return bool(np.all(multihost_utils.process_allgather(over)))

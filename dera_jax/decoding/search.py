"""Runs reward-guided searches: begin, then rounds of explore, score and settle until the end.

A search algorithm is an implementation of `Rules`, such as beam search (`beam_search`) or evolution
(`evolution`). With a compiled reward the whole search is one compiled call. A Python reward is
called between the two compiled halves of a round, once for all candidates of the round.

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
from dera_jax.rewards.protocol import Source, call_reward, check_source
from dera_jax.rewards.scoring import RewardScorer, score

Progress = PyTree
Candidates = tuple[Array, Array, Array]  # tokens [B, R, T], lengths and finished [B, R]


class Rules(Protocol):
    """A search algorithm: a pytree whose static fields and leaves are its settings."""

    def begin(
        self, model: LanguageModel, params: PyTree, prompts: Prompts, keys: Array
    ) -> Progress:
        """Prefills the prompts and returns the progress before the first round."""

    def explore(
        self, model: LanguageModel, params: PyTree, progress: Progress
    ) -> tuple[PyTree, Candidates]:
        """Runs a round up to its scoring; returns the input of `settle`, and the candidates."""

    def settle(
        self, model: LanguageModel, params: PyTree, explored: PyTree, rewards: Array
    ) -> Progress:
        """Completes the round, given rewards[B, R] of the candidates."""

    def is_over(self, progress: Progress) -> Array:
        """Returns bool [], whether no prompt of the batch needs another round."""

    def result(self, progress: Progress) -> PyTree:
        """Returns the outputs of the search after its last round."""


@dataclasses.dataclass(frozen=True)
class Guide:
    """A reward function and the inputs with which it scores sequences for B prompts.

    Attributes:
        scorer: the reward and its parameters.
        source: the B documents as arrays, for compiled rewards.
        documents: n <= B documents as strings, for Python rewards. The last B - n prompts only fill
            the batch: their sequences are not scored, and their reward is 0.

    Raises:
        ValueError: `scorer` or `source` has another type.
    """

    scorer: RewardScorer
    source: Source
    documents: Sequence[str] | None = None

    def __post_init__(self):
        checks.check_fields(
            self, scorer=checks.instance(RewardScorer), source=checks.instance(Source)
        )

    def check(self, batch: int) -> None:
        """Raises ValueError unless `source` has B = `batch` documents and `documents` at most B."""
        check_source(self.source, batch, "Guide.source")
        documents = self.documents
        if documents is not None and (isinstance(documents, str) or len(documents) > batch):
            found = "one string" if isinstance(documents, str) else f"{len(documents)} of them"
            raise ValueError(
                f"Guide.documents must be a list of at most B = {batch} texts; found {found}."
            )

    def score(self, candidates: Candidates) -> tuple[Array, Mapping[str, Array]]:
        """Returns rewards float32 [B, R] and their named parts [B, R]; raises as the scorer."""
        scorer, batch = self.scorer, len(candidates[0])
        if not scorer.reward.on_host:
            return score(scorer.reward, scorer.params, self.source, *candidates)
        n = batch if self.documents is None else len(self.documents)
        source, candidates = jax.tree.map(lambda x: x[:n], (self.source, candidates))
        scored = scorer(source, self.documents, *candidates)
        return jax.tree.map(lambda x: np.pad(x, [(0, batch - n), (0, 0)]), scored)


def search(
    rules: Rules,
    model: LanguageModel,
    params: PyTree,
    prompts: Prompts,
    keys: Array,
    guide: Guide | None,
) -> PyTree:
    """Runs a search to its end and returns the `result` of its rules.

    Args:
        rules: the search algorithm.
        model, params, prompts, keys: the arguments of the rules.
        guide: the reward; None if the search needs none.

    Raises:
        Exception: whatever a Python reward raises.
    """
    if guide is None:
        return _compiled(rules, model, params, prompts, keys, None, None, None)
    scorer = guide.scorer
    if not scorer.reward.on_host:
        reward_inputs = scorer.reward, scorer.params, guide.source
        return _compiled(rules, model, params, prompts, keys, *reward_inputs)
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
            rewards = call_reward(reward, reward_params, source, *candidates)
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
    """Returns whether the search is over on all processes, which must run equally many rounds."""
    if jax.process_count() == 1:
        return bool(over)
    return bool(np.all(multihost_utils.process_allgather(over)))

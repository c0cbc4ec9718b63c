"""Computes policies, rewards and KL exactly for small models, by recursion over the prefix tree.

A policy is the list of its log-probabilities per depth: [V^t, V] at depth t < T, one row for every
prefix of t tokens, where row i's child v is row i·V + v of the next depth. Rows behind an end token
exist and have probability 0. A reward has a value for each sequence that ends after a prefix, and
for each sequence that is cut off after T tokens.

All sums run over the whole tree, so that KL and rewards are exact up to float64 rounding.

Axes: T horizon, V vocabulary, t depth, P prefixes.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from scipy.special import log_softmax, logsumexp

from dera_jax.models.tabular import TabularLM

(END,) = TabularLM.end_ids
Policy = Sequence[np.ndarray]


@dataclasses.dataclass(frozen=True)
class Rewards:
    """The rewards of all sequences.

    Attributes:
        ended: for each depth t, [V^t]: the rewards of sequences that end after t tokens.
        cut: [V^T], the rewards of sequences that were cut off after T tokens.
    """

    ended: Sequence[np.ndarray]
    cut: np.ndarray

    def scaled(self, by: float) -> "Rewards":
        """Returns the rewards multiplied by `by`."""
        return Rewards([by * x for x in self.ended], by * self.cut)


def policy_of(table: np.ndarray, horizon: int) -> list[np.ndarray]:
    """Returns the policy of one input's logits [P, V], with prefixes as in `TabularLM`."""
    vocab = table.shape[-1]
    starts = np.cumsum([0] + [vocab**t for t in range(horizon)])
    table = np.asarray(table, np.float64)
    return [log_softmax(table[starts[t] : starts[t + 1]], axis=-1) for t in range(horizon)]


def length_rewards(low: int, high: int, vocab: int, horizon: int) -> Rewards:
    """Returns 0 for sequences that end after low to high tokens (end token excluded), else −1."""
    ended = [np.full(vocab**t, 0.0 if low <= t <= high else -1.0) for t in range(horizon)]
    return Rewards(ended, np.full(vocab**horizon, -1.0))


def optimal_policy(reference: Policy, rewards: Rewards, beta: float) -> list[np.ndarray]:
    """Returns π* ∝ π_ref·exp(r/β) over whole sequences, which maximises E[r] − β·KL(π ‖ π_ref)."""
    return _renormalised(reference, rewards.scaled(1 / beta))


def sequence_mixture(reference: Policy, aligned: Policy, lam: float) -> list[np.ndarray]:
    """Returns the policy ∝ π_ref^(1−λ)·π_aligned^λ over whole sequences.

    If the aligned policy is π*(β), this is π*(β/λ) (DeRa, arXiv 2402.02992).
    """
    weights = [(1 - lam) * r + lam * a for r, a in zip(reference, aligned, strict=True)]
    return _renormalised(weights, _zero_rewards(reference))


def token_mixture(reference: Policy, aligned: Policy, lam: float) -> list[np.ndarray]:
    """Returns the policy ∝ π_ref^(1−λ)·π_aligned^λ token by token, which DeRa samples from."""
    weights = [(1 - lam) * r + lam * a for r, a in zip(reference, aligned, strict=True)]
    return [log_softmax(w, axis=-1) for w in weights]


def kl(p: Policy, q: Policy) -> float:
    """Returns KL(p ‖ q) over whole sequences, in nats."""
    terms = (
        np.exp(reach) @ np.sum(np.exp(a) * (a - b), axis=-1)
        for reach, a, b in zip(_log_reach(p), p, q, strict=False)
    )
    return float(sum(terms))


def mean_reward(p: Policy, rewards: Rewards) -> float:
    """Returns the expected reward E_p[r]."""
    *reaches, cut = _log_reach(p)
    total = np.exp(cut) @ rewards.cut
    for reach, log_probs, ended in zip(reaches, p, rewards.ended, strict=True):
        total += np.exp(reach + log_probs[:, END]) @ ended
    return float(total)


def sequence_log_probs(p: Policy) -> tuple[list[np.ndarray], np.ndarray]:
    """Returns log p of the sequences that end, for each depth [V^t], and of those cut off [V^T]."""
    *reaches, cut = _log_reach(p)
    return [r + step[:, END] for r, step in zip(reaches, p, strict=True)], cut


def _renormalised(weights: Policy, leaves: Rewards) -> list[np.ndarray]:
    """Returns the policy ∝ exp(Σ weights along a sequence + its leaf's value).

    Z of each subtree is summed from the leaves to the root:
    p(v | prefix) = exp(weight(v))·Z(child) / Z(prefix).
    """
    vocab = weights[0].shape[-1]
    subtree, log_probs = leaves.cut, []
    for weight, ended in zip(reversed(weights), reversed(leaves.ended), strict=True):
        children = subtree.reshape(-1, vocab).copy()
        children[:, END] = ended
        log_sums = weight + children
        subtree = logsumexp(log_sums, axis=-1)
        log_probs.append(log_sums - subtree[:, None])
    return log_probs[::-1]


def _log_reach(p: Policy) -> list[np.ndarray]:
    """Returns the log-probabilities of all prefixes at depths 0..T; −inf behind an end token."""
    reach = [np.zeros(1)]
    for log_probs in p:
        children = reach[-1][:, None] + log_probs
        children[:, END] = -np.inf
        reach.append(children.ravel())
    return reach


def _zero_rewards(like: Policy) -> Rewards:
    return Rewards([np.zeros(len(x)) for x in like], np.zeros(like[-1].size))

"""Language models small enough to be exact: every text a leaf of a tree, every sum carried out.

A policy is the list of its log-probabilities per depth: [V^t, V] at depth t < T, one row for every
prefix of t tokens, where row i's child v is row i·V + v of the next depth. Rows behind an end token
exist and have probability 0. A reward gives each text that ended after a prefix its value, and each
text that was cut off after T tokens.

All recursions go from the leaves to the root, so that KL and rewards are exact up to float64.

Axes: T horizon, V vocabulary, t depth.
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
    """Attributes:
    ended: per depth [V^t], of the texts that end after these prefixes of t tokens.
    cut: [V^T], of the texts that did not end.
    """

    ended: Sequence[np.ndarray]
    cut: np.ndarray

    def scaled(self, by: float) -> "Rewards":
        return Rewards([by * x for x in self.ended], by * self.cut)


def policy_of(table: np.ndarray, horizon: int) -> list[np.ndarray]:
    """The policy of one input's logits [P, V] in `TabularLM`'s order of prefixes."""
    vocab = table.shape[-1]
    starts = np.cumsum([0] + [vocab**t for t in range(horizon)])
    table = np.asarray(table, np.float64)
    return [log_softmax(table[starts[t] : starts[t + 1]], axis=-1) for t in range(horizon)]


def length_rewards(low: int, high: int, vocab: int, horizon: int) -> Rewards:
    """0 for texts that end after low to high tokens (the end token excluded), else −1."""
    ended = [np.full(vocab**t, 0.0 if low <= t <= high else -1.0) for t in range(horizon)]
    return Rewards(ended, np.full(vocab**horizon, -1.0))


def optimum(reference: Policy, rewards: Rewards, beta: float) -> list[np.ndarray]:
    """π* ∝ π_ref·exp(r/β) over whole texts: the maximiser of E[r] − β·KL(π ‖ π_ref)."""
    return _renormalised(reference, rewards.scaled(1 / beta))


def sequence_mixture(reference: Policy, aligned: Policy, lam: float) -> list[np.ndarray]:
    """∝ π_ref^(1−λ)·π_aligned^λ over whole texts; with aligned = π*(β) this is π*(β/λ)
    (DeRa, arXiv 2402.02992)."""
    weights = [(1 - lam) * r + lam * a for r, a in zip(reference, aligned, strict=True)]
    return _renormalised(weights, _zero_rewards(reference))


def token_mixture(reference: Policy, aligned: Policy, lam: float) -> list[np.ndarray]:
    """∝ π_ref^(1−λ)·π_aligned^λ token by token: what DeRa samples."""
    weights = [(1 - lam) * r + lam * a for r, a in zip(reference, aligned, strict=True)]
    return [log_softmax(w, axis=-1) for w in weights]


def kl(p: Policy, q: Policy) -> float:
    """KL(p ‖ q) over whole texts, in nats."""
    terms = (
        np.exp(reach) @ np.sum(np.exp(a) * (a - b), axis=-1)
        for reach, a, b in zip(_log_reach(p), p, q, strict=False)
    )
    return float(sum(terms))


def mean_reward(p: Policy, rewards: Rewards) -> float:
    """E_p[r]."""
    *reaches, cut = _log_reach(p)
    total = np.exp(cut) @ rewards.cut
    for reach, log_probs, ended in zip(reaches, p, rewards.ended, strict=True):
        total += np.exp(reach + log_probs[:, END]) @ ended
    return float(total)


def text_log_probs(p: Policy) -> tuple[list[np.ndarray], np.ndarray]:
    """log p of every ended text, per depth [V^t], and of every text cut off [V^T]."""
    *reaches, cut = _log_reach(p)
    return [r + step[:, END] for r, step in zip(reaches, p, strict=True)], cut


def _renormalised(weights: Policy, leaves: Rewards) -> list[np.ndarray]:
    """The policy ∝ exp(Σ weights along a text + its leaf), from the log-sums Z of all subtrees:
    p(v | prefix) = exp(weight(v))·Z(child) / Z(prefix)."""
    vocab = weights[0].shape[-1]
    subtree, found = leaves.cut, []
    for weight, ended in zip(reversed(weights), reversed(leaves.ended), strict=True):
        children = subtree.reshape(-1, vocab).copy()
        children[:, END] = ended
        log_sums = weight + children
        subtree = logsumexp(log_sums, axis=-1)
        found.append(log_sums - subtree[:, None])
    return found[::-1]


def _log_reach(p: Policy) -> list[np.ndarray]:
    """log-probability of every prefix at depths 0..T; −inf behind an end token."""
    reach = [np.zeros(1)]
    for log_probs in p:
        children = reach[-1][:, None] + log_probs
        children[:, END] = -np.inf
        reach.append(children.ravel())
    return reach


def _zero_rewards(like: Policy) -> Rewards:
    return Rewards([np.zeros(len(x)) for x in like], np.zeros(like[-1].size))

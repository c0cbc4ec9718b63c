"""Defines the length reward of the DeRa paper, and the optimal policy for it in closed form.

With a reward of 0 in range and -1 elsewhere, the optimal policy of E[r] − β·KL(π ‖ π_ref),
realigned with λ (which is π_ref·exp(λ·r/β), normalised), has for each document the in-range rate

    rate(λ) = p / (p + (1 − p)·exp(−λ/β)),    p = in-range rate of the reference policy.

Over documents with different p, the in-range rate is the mean of rate(λ).

Source of the reward and of the optimal policy: Liu et al. 2024 (arXiv 2402.02992).

Axes: B inputs, K hypotheses of each input, T output length, n documents.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np
from jax import Array

from dera_jax import checks
from dera_jax.models.language_model import PyTree
from dera_jax.rewards.protocol import Reward, Source


@dataclasses.dataclass(frozen=True)
class LengthInRange(Reward):
    """Scores 0 for an output that ended with `low` to `high` tokens (end token excluded), else -1.

    An output that the length limit truncated scores -1, whatever its length.

    Attributes:
        low, high: the length range in tokens, the end token excluded.

    Raises:
        ValueError: `low` and `high` are not integers with 0 <= low <= high.
    """

    low: int
    high: int

    def __post_init__(self):
        checks.check_fields(self, low=checks.integer(0), high=checks.integer(0))
        if self.low > self.high:
            raise ValueError(
                f"LengthInRange needs 0 <= low <= high; found low {self.low}, high {self.high}."
            )

    @property
    def min_limit(self) -> int:
        """Leaves room for an output that is one token too long, and its end token."""
        return self.high + 2

    @property
    def highest(self) -> float:
        return 0.0

    def metrics(self, lengths: Array, finished: Array) -> dict[str, Array]:
        return {"in_range": self.contains(lengths, finished)}

    def described(self) -> dict[str, object]:
        return super().described() | {"length_range": [self.low, self.high]}

    def __call__(
        self, params: PyTree, source: Source, tokens: Array, lengths: Array, finished: Array
    ) -> Array:
        """Implements `protocol.Reward`."""
        del params, source, tokens
        return jnp.where(self.contains(lengths, finished), 0.0, -1.0)

    def contains(self, lengths: Array, finished: Array) -> Array:
        """Returns whether each output ended in range; `lengths` count the end token."""
        num_tokens = lengths - finished
        return finished & (self.low <= num_tokens) & (num_tokens <= self.high)


def optimal_in_range_rate(p: float | np.ndarray, beta: float, lam: float = 1.0) -> float:
    """Returns the in-range rate of the optimal policy for KL coefficient `beta`, realigned with λ.

    Args:
        p: in-range rate of the reference policy: one number, or [n], the rate for each document.
            For an array the result is the mean over documents, which is at most the rate at the
            mean of p, as the rate is concave in p for λ > 0.
        beta: KL coefficient β.
        lam: mixing coefficient λ.
    """
    return float(np.mean(_optimal_rate(np.asarray(p, np.float64), lam / beta)))


def _optimal_rate(p: np.ndarray, strength: float) -> np.ndarray:
    """Returns the in-range rates of π ∝ π_ref·exp(strength·r) for in-range rates p of π_ref."""
    return p / (p + (1 - p) * np.exp(-strength))


def optimal_policy(p: np.ndarray, beta: float) -> dict[str, float]:
    """Returns reward, KL and objective of the KL-regularized optimal policy, in closed form.

    With rewards 0 (in range) and −1, π* ∝ π_ref·exp(r/β) is in range with probability
    q = p / (p + (1 − p)·exp(−1/β)), and KL(π* ‖ π_ref) is the KL divergence of Bernoulli
    distributions with probabilities q and p.

    Args:
        p: [n], the reference policy's in-range rate for each document.
        beta: KL coefficient.

    Returns:
        Means over documents of `reward` E[r], `kl` in nats, and `objective` E[r] − β·KL.
    """
    from scipy.special import rel_entr  # takes a moment

    p = np.asarray(p, np.float64)
    q = _optimal_rate(p, 1 / beta)
    kl = float(np.mean(rel_entr(q, p) + rel_entr(1 - q, 1 - p)))  # 0·log 0 = 0
    reward = float(np.mean(q - 1))
    return {"reward": reward, "kl": kl, "objective": reward - beta * kl}


def beta_for_rate(p: float | np.ndarray, target: float) -> float:
    """Returns the β whose optimal policy has the in-range rate `target` at λ = 1, by bisection.

    Args:
        p: as for `optimal_in_range_rate`.
        target: in-range rate, a mean over documents.

    Raises:
        ValueError: target is not between the mean of p and the fraction of documents with p > 0.
            Alignment raises the in-range rate, but not that of documents with p = 0.
    """
    lowest, highest = float(np.mean(p)), float(np.mean(np.asarray(p) > 0))
    if not lowest < target < highest:
        raise ValueError(
            f"the target in-range rate must be above {lowest:.3f} (in-range rate of the reference) "
            f"and below {highest:.3f} (fraction of documents whose rate is not 0); found the "
            f"target {target}. Choose a target between them, or another range."
        )
    small, large = 1e-3, 1e3  # the in-range rate falls as β grows
    for _ in range(60):
        middle = np.sqrt(small * large)
        small, large = (
            (middle, large) if optimal_in_range_rate(p, middle) > target else (small, middle)
        )
    return float(middle)


def length_range_of(lengths: np.ndarray, finished: np.ndarray) -> LengthInRange:
    """Returns the range from the 75th to the 95th percentile of output lengths.

    Args:
        lengths: int [...], lengths of sampled outputs, truncated ones included, with end token.
        finished: bool [...], False where the length limit truncated the output.
    """
    num_tokens = np.asarray(lengths) - np.asarray(finished)
    low, high = np.percentile(num_tokens, [75, 95], method="nearest")
    return LengthInRange(int(low), int(high))

"""The length reward of the DeRa paper, and what alignment to it must give in closed form.

With a reward of 0 in range and -1 elsewhere, the optimum of E[r] − β·KL(π ‖ π_ref) realigned with λ
(that is, π_ref·exp(λ·r/β), normalised) is in range with the probability

    share(λ) = p / (p + (1 − p)·exp(−λ/β)),    p = the reference's share in range,

for each document: over documents with different p, the mean of this.

Source of the reward and of the optimum's form: Liu et al. 2024 (arXiv 2402.02992).

Axes: B inputs, K hypotheses of each input, S input length, T output length.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np
from jax import Array
from scipy.special import rel_entr

from dera_jax import checks
from dera_jax.models.language_model import PyTree
from dera_jax.rewards.protocol import Reward, Source


@dataclasses.dataclass(frozen=True)
class LengthInRange(Reward):
    """0 for a text that ended with low to high tokens (end token excluded), else -1.

    A text cut off by the length limit scores -1, whatever its length.

    Raises:
        ValueError: not integers with 0 <= low <= high.
    """

    low: int = 50
    high: int = 60

    def __post_init__(self):
        checks.check_fields(self, low=checks.whole(0), high=checks.whole(0))
        if self.low > self.high:
            raise ValueError(
                f"LengthInRange needs 0 <= low <= high; found low {self.low}, high {self.high}."
            )

    @property
    def min_limit(self) -> int:
        """Room for a text that is too long by one token, and ends."""
        return self.high + 2

    @property
    def highest(self) -> float:
        return 0.0

    def __call__(
        self, params: PyTree, source: Source, tokens: Array, lengths: Array, finished: Array
    ) -> Array:
        """See `protocol.Reward`."""
        del params, source, tokens
        return jnp.where(self.contains(lengths, finished), 0.0, -1.0)

    def contains(self, lengths: Array, finished: Array) -> Array:
        """Whether each text ended in range; lengths count the end token."""
        text = lengths - finished
        return finished & (self.low <= text) & (text <= self.high)


def share_in_range(p: float | np.ndarray, beta: float, lam: float = 1.0) -> float:
    """share(λ) of the optimum at KL strength `beta`, for a reference in range with share p.

    p may be an array, the reference's share for each document: then the mean over documents. It is
    less than the share at the mean p, since documents whose p is near 0 stay behind.
    """
    return float(np.mean(_optimal_rate(np.asarray(p, np.float64), lam / beta)))


def _optimal_rate(p: np.ndarray, strength: float) -> np.ndarray:
    """In-range rate of π* ∝ π_ref·exp(strength·r), from the reference's p."""
    return p / (p + (1 - p) * np.exp(-strength))


def optimal_policy(p: np.ndarray, beta: float) -> dict[str, float]:
    """Mean reward, KL and objective of the KL-regularized optimal policy, in closed form.

    With rewards 0 (in range) and −1, π* ∝ π_ref·exp(r/β) is in range with probability
    q = p / (p + (1 − p)·exp(−1/β)), and KL(π* ‖ π_ref) is that of two coins, q and p.

    Args:
        p: [n], the reference policy's in-range rate for each document.
        beta: KL coefficient.

    Returns:
        Means over documents of `reward` E[r], `kl` in nats, and `objective` E[r] − β·KL.
    """
    p = np.asarray(p, np.float64)
    q = _optimal_rate(p, 1 / beta)
    kl = float(np.mean(rel_entr(q, p) + rel_entr(1 - q, 1 - p)))  # 0·log 0 = 0
    reward = float(np.mean(q - 1))
    return {"reward": reward, "kl": kl, "objective": reward - beta * kl}


def beta_for_share(p: float | np.ndarray, target: float) -> float:
    """The β whose optimum is in range with share `target` at λ = 1; p as for `share_in_range`.

    Raises:
        ValueError: alignment raises the share, and only where p > 0: target must be between the
            mean p and the share of documents with p > 0.
    """
    lowest, highest = float(np.mean(p)), float(np.mean(np.asarray(p) > 0))
    if not lowest < target < highest:
        raise ValueError(
            f"the share in range that alignment can give is between {lowest:.3f} (the reference's) "
            f"and {highest:.3f} (documents that are ever in range); found the target {target}."
        )
    small, large = 1e-3, 1e3  # the share falls as β grows
    for _ in range(60):
        middle = np.sqrt(small * large)
        small, large = (middle, large) if share_in_range(p, middle) > target else (small, middle)
    return float(middle)


def range_of(lengths: np.ndarray, finished: np.ndarray) -> LengthInRange:
    """From the 75th to the 95th percentile of the text lengths, cut-off texts included.

    Args:
        lengths: int [...] of sampled texts, the end token included.
        finished: bool [...].
    """
    text = np.asarray(lengths) - np.asarray(finished)
    low, high = np.percentile(text, [75, 95], method="nearest")
    return LengthInRange(int(low), int(high))

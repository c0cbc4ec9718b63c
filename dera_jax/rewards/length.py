"""The length reward of the DeRa paper, and what alignment to it must give in closed form.

With a reward of 0 in range and -1 elsewhere, the optimum of E[r] − β·KL(π ‖ π_ref) realigned with λ
(that is, π_ref·exp(λ·r/β), normalised) is in range with the probability

    share(λ) = p / (p + (1 − p)·exp(−λ/β)),    p = the reference's share in range.

Source of the reward and of the optimum's form: Liu et al. 2024 (arXiv 2402.02992).

Axes: B inputs, K hypotheses of each input, S input length, T output length.
"""

import dataclasses
import math

import jax.numpy as jnp
import numpy as np
from jax import Array

from dera_jax.models.language_model import PyTree


@dataclasses.dataclass(frozen=True)
class LengthInRange:
    """0 for a text that ended with low to high tokens (end token excluded), else -1.

    A text cut off by the length limit scores -1, whatever its length.

    Raises:
        ValueError: not 0 <= low <= high.
    """

    low: int = 50
    high: int = 60

    def __post_init__(self):
        if not 0 <= self.low <= self.high:
            raise ValueError(
                f"LengthInRange needs 0 <= low <= high; found low {self.low}, high {self.high}."
            )

    @property
    def min_limit(self) -> int:
        """Room for a text that is too long by one token, and ends."""
        return self.high + 2

    def __call__(
        self, params: PyTree, inputs: Array, tokens: Array, lengths: Array, finished: Array
    ) -> Array:
        """See `protocol.Reward`."""
        del params, inputs, tokens
        return jnp.where(self.contains(lengths, finished), 0.0, -1.0)

    def contains(self, lengths: Array, finished: Array) -> Array:
        """Whether each text ended in range; lengths count the end token."""
        text = lengths - finished
        return finished & (self.low <= text) & (text <= self.high)


def share_in_range(p: float, beta: float, lam: float = 1.0) -> float:
    """share(λ) of the optimum at KL strength `beta`, for a reference in range with share p."""
    return p / (p + (1 - p) * math.exp(-lam / beta))


def beta_for_share(p: float, target: float) -> float:
    """The β whose optimum is in range with share `target` at λ = 1: 1 / (logit(target) − logit(p)).

    Raises:
        ValueError: not 0 < p < target < 1; alignment only raises the share.
    """
    if not 0 < p < target < 1:
        raise ValueError(f"beta_for_share needs 0 < p < target < 1; found p {p}, target {target}.")
    return 1 / (math.log(target / (1 - target)) - math.log(p / (1 - p)))


def range_of(lengths: np.ndarray, finished: np.ndarray) -> LengthInRange:
    """From the 75th to the 95th percentile of the text lengths, cut-off texts included.

    Args:
        lengths: int [...] of sampled texts, the end token included.
        finished: bool [...].
    """
    text = np.asarray(lengths) - np.asarray(finished)
    low, high = np.percentile(text, [75, 95], method="nearest")
    return LengthInRange(int(low), int(high))

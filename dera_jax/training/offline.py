"""Fits a policy to the KL-regularized optimum by samples that the reference policy drew once.

The optimal policy of E[r] − β·KL(π ‖ π_ref) is π*(y | x) ∝ π_ref(y | x)·exp(r(x, y)/β). So with it

    δ(y) = r(x, y) − β·(log π(y | x) − log π_ref(y | x))

is the same number for all completions y of a prompt x, and no other policy has this property. The loss
is the variance of δ over a prompt's samples, the log-variance divergence (Richter et al. 2020, arXiv
2010.10436) in units of the reward. Unlike maximum likelihood on samples with weights exp(r/β), it
learns from bad samples too, and K samples of a prompt do not bound the KL by log K.

Axes: B prompts, K samples of each, T output length.
"""

import dataclasses

import jax.numpy as jnp
from jax import Array

from dera_jax.models.language_model import PyTree, TrainableModel
from dera_jax.training.losses import log_probs
from dera_jax.training.train_state import Batch, Frozen


@dataclasses.dataclass(frozen=True)
class LogVariance:
    """Computes the variance of δ over the samples of each prompt, see the module's docstring.

    Its metrics are `explained`, 1 − variance of δ / variance of the reward, which is 0 for the reference
    policy and 1 for the optimum, and `log_ratio`, the mean of log π − log π_ref.

    A batch has the prompts `inputs`, their `samples` (`Padded`, tokens [B, K, T]), `reward` float32 [B, K]
    and `reference_log_prob` float32 [B, K], the log-probability of each sample under π_ref.

    Attributes:
        model: architecture of the policy.
        beta: KL coefficient β.
        chunk: see `train_state.Memory`.
    """

    model: TrainableModel
    beta: float
    chunk: int | None = None

    def weight(self, batch: Batch) -> Array:
        """Returns B·K, float32 []."""
        return jnp.float32(batch["reward"].size)

    def __call__(
        self, params: PyTree, frozen: Frozen, batch: Batch, key: Array
    ) -> tuple[Array, dict[str, Array]]:
        """Computes the loss, see `train_state.LossFunction`; nothing frozen but a base is read."""
        del frozen, key
        samples, reward = batch["samples"], batch["reward"]
        tokens = log_probs(self.model, params, batch["inputs"], samples.tokens, self.chunk)
        log_prob = jnp.sum(jnp.where(samples.mask, tokens, 0.0), axis=-1)
        log_ratio = log_prob - batch["reference_log_prob"]
        loss = _variance(reward - self.beta * log_ratio)
        explained = 1 - loss / jnp.maximum(_variance(reward), 1e-9)
        size = self.weight(batch)
        return size * loss, {"explained": size * explained, "log_ratio": jnp.sum(log_ratio)}


def _variance(x: Array) -> Array:
    """Returns the mean over prompts of the variance over the samples of x[B, K], float32 []."""
    return jnp.mean(jnp.var(x, axis=-1))

"""Computes the loss of supervised training, for a batch of prompts and targets.

Axes: B examples of a batch, S prompt length, T target length.
"""

import dataclasses

import jax.numpy as jnp
from jax import Array

from dera_jax import checks
from dera_jax.models.language_model import PyTree, TrainableModel, check_padded
from dera_jax.training.losses import cross_entropy, per_token
from dera_jax.training.train_state import Batch, Frozen


@dataclasses.dataclass(frozen=True)
class Loss:
    """Holds the coefficients of `losses.cross_entropy`.

    Attributes:
        label_smoothing: probability that is spread evenly over all tokens.
        z_loss: coefficient of the squared logarithm of the softmax's normalizer.

    Raises:
        ValueError: a coefficient is out of its range.
    """

    label_smoothing: float = 0.0
    z_loss: float = 0.0

    def __post_init__(self):
        checks.check_fields(
            self, label_smoothing=checks.number(least=0, below=1), z_loss=checks.number(least=0)
        )


@dataclasses.dataclass(frozen=True)
class CrossEntropy:
    """Computes the loss of batch["targets"] given batch["inputs"].

    The loss is a mean over target tokens, weighted by the batch["weight"] of their example.

    Attributes:
        model: architecture of the trained model.
        loss: coefficients of the loss of a token.
        chunk: see `train_state.Memory`.
    """

    model: TrainableModel
    loss: Loss
    chunk: int | None = None

    def weight(self, batch: Batch) -> Array:
        """Returns the weighted number of target tokens, float32 []."""
        return jnp.maximum(jnp.sum(_weights(batch)), 1e-9)

    def __call__(
        self, params: PyTree, frozen: Frozen, batch: Batch, key: Array
    ) -> tuple[Array, dict[str, Array]]:
        """Computes the loss, see `train_state.LossFunction`.

        Raises:
            ValueError: prompts [B, S] or targets [B, T] have another type or shape (at tracing).
        """
        del frozen
        model, inputs, targets = self.model, batch["inputs"], batch["targets"]
        batch_size, _ = check_padded("prompts", inputs, B=None, S=None)
        check_padded("targets", targets, B=batch_size, T=None)
        hidden = model.hidden(params, inputs, targets.tokens[:, None, :-1], key)
        options = self.loss.label_smoothing, self.loss.z_loss, model.num_ids, model.unused_ids
        measure = lambda logits, tokens: cross_entropy(logits, tokens, *options)
        losses = per_token(model, params, hidden, targets.tokens[:, None], measure, self.chunk)
        return jnp.sum(losses[:, 0] * _weights(batch)), {}


def _weights(batch: Batch) -> Array:
    """Returns the weight of each target token, float32 [B, T], 0 at padding."""
    return batch["targets"].mask * batch["weight"][:, None]

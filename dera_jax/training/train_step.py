"""The loss of supervised training.

Axes: B examples of a batch, S prompt length, T target length.
"""

import dataclasses

import jax.numpy as jnp
from jax import Array

from dera_jax import checks
from dera_jax.models.language_model import PyTree, TrainableModel, check_padded
from dera_jax.training.losses import cross_entropy, per_token
from dera_jax.training.train_state import Batch


@dataclasses.dataclass(frozen=True)
class Loss:
    """See `losses.cross_entropy`."""

    label_smoothing: float = 0.0
    z_loss: float = 0.0

    def __post_init__(self):
        checks.check_fields(
            self, label_smoothing=checks.number(least=0, below=1), z_loss=checks.number(least=0)
        )


@dataclasses.dataclass(frozen=True)
class CrossEntropy:
    """The mean loss per token of batch["targets"] after batch["inputs"], by batch["weight"].

    Attributes:
        model: that is trained.
        loss: of a token.
        chunk: see `train_state.Memory`.
    """

    model: TrainableModel
    loss: Loss
    chunk: int | None = None

    def weight(self, batch: Batch) -> Array:
        return jnp.maximum(jnp.sum(_weights(batch)), 1e-9)

    def __call__(
        self, params: PyTree, frozen: PyTree, batch: Batch, key: Array
    ) -> tuple[Array, dict[str, Array]]:
        """See `train_state.Objective`.

        Raises:
            ValueError: (when a shape is new) prompts or targets of another type or shape than [B, S], [B, T].
        """
        del frozen
        model, inputs, targets = self.model, batch["inputs"], batch["targets"]
        rows, _ = check_padded("prompts", inputs, B=None, S=None)
        check_padded("targets", targets, B=rows, T=None)
        hidden = model.hidden(params, inputs, targets.tokens[:, None, :-1], key)
        settings = self.loss.label_smoothing, self.loss.z_loss, model.num_ids
        measure = lambda logits, tokens: cross_entropy(logits, tokens, *settings)
        losses = per_token(model, params, hidden, targets.tokens[:, None], measure, self.chunk)
        return jnp.sum(losses[:, 0] * _weights(batch)), {}


def _weights(batch: Batch) -> Array:
    """Of each target token, float32 [B, T]."""
    return batch["targets"].mask * batch["weight"][:, None]

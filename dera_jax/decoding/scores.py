"""What is reported of every produced token: log-probabilities and KL.

Axes: B prompts, K hypotheses, T output length, V vocabulary, C component models.
"""

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from dera_jax.models.finite import check_values
from dera_jax.models.language_model import Output


@struct.dataclass
class Tokens:
    """What a step (each field [B, K]) or a whole decode ([B, K, T]) produced, per token.

    Attributes:
        token: int32; 0 after the end.
        log_prob: under the model itself: untempered, untruncated (for a mixture, the mixture).
        sampling_log_prob: under what was really sampled; 0 when greedy.
        part_log_prob: [C, ...], under each component model, reference first; None for one model.
        kl: KL(mixture ‖ reference) of the whole next-token distribution, in nats; None for one
            model. Its sum over a sequence estimates the sequence KL only at temperature 1 without
            truncation.
    """

    token: Array
    log_prob: Array
    sampling_log_prob: Array
    part_log_prob: Array | None
    kl: Array | None


def score_tokens(output: Output, logits: Array, token: Array, greedy: bool) -> Tokens:
    """Log-probabilities and KL of token[B, K] (or [B, K, T], of `teacher_forced`'s output).

    logits[B, K, V] are those it was drawn from.
    """
    at_token = lambda x: jnp.take_along_axis(x, token[..., None], axis=-1)[..., 0]
    log_probs = jax.nn.log_softmax(output.logits)
    log_prob = at_token(log_probs)
    part_log_prob = kl = None
    if output.parts is not None:
        part_log_probs = jax.nn.log_softmax(output.parts)
        part_log_prob = jax.vmap(at_token)(part_log_probs)
        kl = jnp.sum(jnp.exp(log_probs) * (log_probs - part_log_probs[0]), axis=-1)
    return Tokens(
        token=token.astype(jnp.int32),
        log_prob=log_prob,
        sampling_log_prob=jnp.zeros_like(log_prob)
        if greedy
        else at_token(jax.nn.log_softmax(logits)),
        part_log_prob=part_log_prob,
        kl=kl,
    )


def check_scores(scores: Tokens, lam: Array | None = None) -> None:
    """Raise FloatingPointError, naming the place, for a score that is NaN or infinite.

    Not inside of jit: there the values are not known yet.

    Args:
        scores: of hypotheses [B, K, T].
        lam: of the prompts, [B, G] or [B, G, M], for the message.
    """
    names = {
        "log-probability": scores.log_prob,
        "sampling log-probability": scores.sampling_log_prob,
        "KL to the reference": scores.kl,
    }
    axes = "input", "hypothesis", "token"
    check_values(names, axes, lam)
    check_values({"log-probability": scores.part_log_prob}, ("component", *axes))

"""Computes the log-probabilities and KL that are reported for every generated token.

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
    """Generated tokens and their scores, of one step (fields [B, K]) or of a decode ([B, K, T]).

    Attributes:
        token: int32; 0 after the end of the sequence.
        log_prob: log-probability under the model (for a mixture, the realigned policy) at
            temperature 1 and without truncation.
        sampling_log_prob: log-probability under the tempered and truncated distribution that was
            sampled; 0 for greedy decoding.
        part_log_prob: [C, ...], log-probability under each component model, reference first; None
            for a single model.
        kl: KL(mixture ‖ reference) of the full next-token distribution, in nats; None for a single
            model. Its sum over a sequence estimates the sequence KL only at temperature 1 without
            truncation.
    """

    token: Array
    log_prob: Array
    sampling_log_prob: Array
    part_log_prob: Array | None
    kl: Array | None


def score_tokens(output: Output, logits: Array, token: Array, greedy: bool) -> Tokens:
    """Computes the log-probabilities and KL of token[B, K] (or [B, K, T] for `teacher_forced`).

    Args:
        output: the model's logits [B, K, V], and those of its components.
        logits: [B, K, V], tempered and truncated, from which the token was sampled.
        token: the generated token ids.
        greedy: whether the token was not sampled; its sampling log-probability is then 0.
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
    """Validates that all scores are finite. Inside jit the values are not known and are skipped.

    Args:
        scores: scores [B, K, T] of the hypotheses.
        lam: λ of the prompts, [B, G] or [B, G, M], for the error message.

    Raises:
        FloatingPointError: a score is NaN or infinite; the message names input, hypothesis, token.
    """
    names = {
        "log-probability": scores.log_prob,
        "sampling log-probability": scores.sampling_log_prob,
        "KL to the reference": scores.kl,
    }
    axes = "input", "hypothesis", "token"
    check_values(names, axes, lam)
    check_values({"log-probability": scores.part_log_prob}, ("component", *axes))

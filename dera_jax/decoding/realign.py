"""Decoding-time realignment (DeRa): this is where λ enters, once.

From a reference π_ref and a model π aligned to it at KL strength β, the model that would have been
aligned at β/λ is approximated token by token (Liu et al. 2024, arXiv 2402.02992, section 4):

    π_λ(· | x, y_<t) = softmax( λ·h_t + (1 − λ)·h_t^ref )

λ = 0 is the reference, λ = 1 the aligned model, λ > 1 a weaker KL term than the one trained with.

Axes: B inputs, K hypotheses, V vocabulary, M aligned models.
"""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from dera_jax import checks
from dera_jax.models.language_model import (
    LanguageModel,
    Output,
    PyTree,
    State,
    without_unused,
)

LAMBDA = checks.number()
LAMBDAS = checks.several(
    checks.either(LAMBDA, checks.several(LAMBDA, example="(0.5, 0.5) for two aligned models")),
    example="(0.5,)",
)


def realign_logits(reference: Array, aligned: Sequence[Array], lam: Array) -> Array:
    """h_λ = (1 − Σ_i λ_i)·h_ref + Σ_i λ_i·h_i, in float32.

    Written so, λ = 1 gives the aligned logits bit for bit; h_ref + λ·(h − h_ref) would not.

    Args:
        reference: [..., V].
        aligned: M arrays [..., V]; finite, since 0·inf is not 0.
        lam: [..., M], λ_i of each aligned model.

    Returns:
        float32 [..., V].
    """
    mixture = (1.0 - jnp.sum(lam, axis=-1, keepdims=True)) * reference.astype(jnp.float32)
    for i, logits in enumerate(aligned):
        mixture = mixture + lam[..., i, None] * logits.astype(jnp.float32)
    return mixture


@dataclasses.dataclass(frozen=True)
class Realigned:
    """A reference and one or more aligned models as one `LanguageModel`.

    Its parameters are a tuple, the reference's first. λ is that of the state: [B, K], or
    [B, K, M] for M aligned models, so one call decodes any mix of λ.

    Raises:
        ValueError: no aligned model, or models that differ in vocabulary, start or end token.
    """

    reference: LanguageModel
    aligned: tuple[LanguageModel, ...]

    def __post_init__(self):
        models = checks.several(checks.having("step"), "(aligned_model,)", least=0)
        checks.check_fields(self, aligned=models)
        if not self.aligned:
            raise ValueError("Realigned needs at least one aligned model.")
        for i, model in enumerate(self.aligned):
            for field in ("vocab_size", "num_ids", "start_token", "end_token"):
                expected, found = getattr(self.reference, field), getattr(model, field)
                unsaid = field == "end_token" and None in (expected, found)
                if expected != found and not unsaid:
                    raise ValueError(
                        f"Realigned: {field} of the reference is {expected}, "
                        f"of aligned model {i} it is {found}; they must be equal."
                    )

    @property
    def models(self) -> tuple[LanguageModel, ...]:
        return (self.reference, *self.aligned)

    @property
    def vocab_size(self) -> int:
        return self.reference.vocab_size

    @property
    def num_ids(self) -> int | None:
        return self.reference.num_ids

    @property
    def start_token(self) -> int:
        return self.reference.start_token

    @property
    def end_token(self) -> int | None:
        """That of the models that say one."""
        said = (model.end_token for model in self.models if model.end_token is not None)
        return next(said, None)

    def start(
        self, params: PyTree, inputs: Array, lam: Array, stream: Array, max_len: int
    ) -> State:
        lam = check_lam(lam, stream.shape, len(self.aligned))
        parts = [
            model.start(p, inputs, lam, stream, max_len)
            for model, p in zip(self.models, params, strict=True)
        ]
        shared, cache = tuple(x.shared for x in parts), tuple(x.cache for x in parts)
        return parts[0].replace(shared=shared, cache=cache)

    def step(self, params: PyTree, state: State, tokens: Array) -> tuple[Output, State]:
        return self._combine(state, params, lambda model, p, part: model.step(p, part, tokens))

    def extend(
        self, params: PyTree, state: State, tokens: Array, lengths: Array
    ) -> tuple[Output, State]:
        feed = lambda model, p, part: model.extend(p, part, tokens, lengths)
        return self._combine(state, params, feed)

    def teacher_forced(self, params: PyTree, state: State, tokens: Array) -> Output:
        feed = lambda model, p, part: (model.teacher_forced(p, part, tokens), part)
        return self._combine(state, params, feed)[0]

    def _combine(self, state: State, params: PyTree, feed: Callable) -> tuple[Output, State]:
        """Feeds every model with its part of the state and mixes their logits."""
        outputs, parts = [], []
        for i, model in enumerate(self.models):
            part = state.replace(shared=state.shared[i], cache=state.cache[i])
            output, part = feed(model, params[i], part)
            outputs.append(output.logits)
            parts.append(part)
        lam = state.lam.reshape(*outputs[0].shape[:2], *[1] * (outputs[0].ndim - 3), -1)
        logits = realign_logits(outputs[0], outputs[1:], lam)
        state = parts[0].replace(shared=state.shared, cache=tuple(x.cache for x in parts))
        return without_unused(Output(logits, jnp.stack(outputs)), self.num_ids), state


def check_lam(lam: Array, rows: tuple[int, int], num_aligned: int) -> Array:
    """Validate lam and cast it to float32.

    Raises:
        ValueError: it is no array of numbers, its shape is not [B, K] (with one aligned model) or
            [B, K, M], or it holds a value that is not finite (seen outside of jit only).
    """
    if not isinstance(lam, (np.ndarray, Array)) or not jnp.issubdtype(lam.dtype, jnp.number):
        raise ValueError(
            f"lam must be an array of numbers [B, K], or [B, K, M] for M aligned models; found {lam!r}."
        )
    shapes = [(*rows, num_aligned)] + ([rows] if num_aligned == 1 else [])
    if lam.shape not in shapes:
        expected = " or ".join(map(str, shapes))
        raise ValueError(
            f"lam has shape {lam.shape}; expected {expected}, that is [B, K] as of `stream`, with "
            "an axis M more for M aligned models."
        )
    if isinstance(lam, np.ndarray) and not np.isfinite(lam).all():
        raise ValueError(f"lam must be finite; found {lam[~np.isfinite(lam)][0]}.")
    return jnp.asarray(lam, jnp.float32)


def known_lam(model: LanguageModel, lam: Array, rows: tuple[int, int]) -> Array:
    """`check_lam` of what a caller hands over for a model; 0 for a single one, which has no λ."""
    if not isinstance(model, Realigned):
        return jnp.zeros(rows)
    known = lam if isinstance(lam, jax.core.Tracer) else np.asarray(lam)
    return check_lam(known, rows, len(model.aligned))

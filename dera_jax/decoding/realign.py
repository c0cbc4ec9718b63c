"""Implements decoding-time realignment (DeRa); λ enters the computation only in this module.

Given a reference policy π_ref and a policy π aligned from it with KL coefficient β, the policy that
alignment with coefficient β/λ would give is approximated at every token (Liu et al. 2024, arXiv
2402.02992):

    π_λ(· | x, y_<t) = softmax( λ·h_t + (1 − λ)·h_t^ref )

λ = 0 gives the reference policy and λ = 1 the aligned policy; λ > 1 approximates a policy trained
with a smaller KL coefficient than β.

Axes: B prompts, G values of λ for a prompt, K hypotheses, V vocabulary, M aligned models.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Protocol

import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array

from dera_jax import checks
from dera_jax.models.language_model import (
    LanguageModel,
    Output,
    Prompts,
    PyTree,
    State,
    mask_unused_logits,
)
from dera_jax.partitioning import constrain

LAMBDA = checks.number()
LAMBDAS = checks.sequence(
    checks.either(LAMBDA, checks.sequence(LAMBDA, example="(0.5, 0.5) for two aligned models")),
    example="(0.5,)",
)


def realign_logits(reference: Array, aligned: Sequence[Array], lam: Array) -> Array:
    """Combines logits as h_λ = (1 − Σ_i λ_i)·h_ref + Σ_i λ_i·h_i, in float32.

    In this form λ = 1 gives the aligned logits bit for bit; h_ref + λ·(h − h_ref) would not.

    Args:
        reference: logits [..., V] of the reference policy.
        aligned: M arrays of logits [..., V]; they must be finite, since 0·inf is not 0.
        lam: [..., M], the mixing coefficient λ_i of each aligned policy.

    Returns:
        The combined logits, float32 [..., V].

    Raises:
        ValueError: the last axis of lam is not the number of aligned policies.
    """
    if np.shape(lam)[-1:] != (len(aligned),):
        raise ValueError(
            f"realign_logits needs lam [..., M] for M = {len(aligned)} aligned models; found shape "
            f"{np.shape(lam)}."
        )
    mixture = (1.0 - jnp.sum(lam, axis=-1, keepdims=True)) * reference.astype(jnp.float32)
    for i, logits in enumerate(aligned):
        mixture = mixture + lam[..., i, None] * logits.astype(jnp.float32)
    return mixture


@struct.dataclass
class Mixed:
    """The `kept` leaves of a mixture's state, which follow each hypothesis.

    Attributes:
        lam: float32 [B, K, M], λ of each hypothesis.
        parts: the `kept` leaves of the component models' states.
    """

    lam: Array
    parts: PyTree


@dataclasses.dataclass(frozen=True)
class Realigned:
    """The realigned mixture of a reference model and M aligned models, as one `LanguageModel`.

    The parameters are a tuple, reference first. λ comes with the prompts, [B, G] or [B, G, M], so
    that one call decodes at any number of λ; `start` moves it into the state.

    Logits over vocabularies of different sizes are padded with 0 to the largest; ids that a
    component lacks are never generated.

    Raises:
        ValueError: no aligned model is given, or the models' start tokens or end ids differ.
    """

    reference: LanguageModel
    aligned: tuple[LanguageModel, ...]

    def __post_init__(self):
        models = checks.sequence(checks.with_attribute("step"), "(aligned_model,)", least=0)
        checks.check_fields(self, aligned=models)
        if not self.aligned:
            raise ValueError("Realigned.aligned needs at least one aligned model; found none.")
        for i, model in enumerate(self.aligned):
            for field in ("start_token", "end_ids"):
                expected, found = getattr(self.reference, field), getattr(model, field)
                unknown = field == "end_ids" and () in (expected, found)
                if expected != found and not unknown:
                    raise ValueError(
                        f"Realigned: {field} of the reference is {expected}, "
                        f"of aligned model {i} it is {found}; they must be equal: load models "
                        "that share one vocabulary."
                    )

    @property
    def models(self) -> tuple[LanguageModel, ...]:
        """The component models, reference first."""
        return (self.reference, *self.aligned)

    @property
    def num_models(self) -> int:
        """C, the number of component models."""
        return len(self.models)

    @property
    def vocab_size(self) -> int:
        return max(model.vocab_size for model in self.models)

    @property
    def num_ids(self) -> int | None:
        """The number of ids that all component models can produce; None if that is all V ids."""
        common = min(
            model.vocab_size if model.num_ids is None else model.num_ids for model in self.models
        )
        return None if common == self.vocab_size else common

    @property
    def unused_ids(self) -> tuple[int, ...]:
        """The other ids that a component model does not produce, sorted."""
        return tuple(sorted({i for model in self.models for i in model.unused_ids}))

    @property
    def start_token(self) -> int | None:
        return self.reference.start_token

    @property
    def ends_prompts(self) -> bool:
        return self.reference.ends_prompts

    @property
    def end_ids(self) -> tuple[int, ...]:
        """The end ids of the first component that names any; empty if none does."""
        return next((model.end_ids for model in self.models if model.end_ids), ())

    def check(self, prompts: Prompts, num_hypotheses: int) -> None:
        check_lam(prompts.lam, (len(prompts.tokens), num_hypotheses), len(self.aligned))
        for model in self.models:
            model.check(prompts.replace(lam=None), num_hypotheses)

    def start(self, params: PyTree, prompts: Prompts, num_hypotheses: int, max_len: int) -> State:
        states = [
            model.start(p, prompts.replace(lam=None), num_hypotheses, max_len)
            for model, p in zip(self.models, params, strict=True)
        ]
        lam = _per_hypothesis(prompts.lam, (len(prompts.tokens), num_hypotheses), len(self.aligned))
        return states[0].replace(
            shared=tuple(x.shared for x in states),
            kept=Mixed(lam, tuple(x.kept for x in states)),
            cache=tuple(x.cache for x in states),
        )

    def step(self, params: PyTree, state: State, tokens: Array) -> tuple[Output, State]:
        return self._combine(state, params, lambda model, p, part: model.step(p, part, tokens))

    def extend(self, params: PyTree, state: State, tokens: Array) -> tuple[Output, State]:
        return self._combine(state, params, lambda model, p, part: model.extend(p, part, tokens))

    def teacher_forced(self, params: PyTree, state: State, tokens: Array) -> Output:
        feed = lambda model, p, part: (model.teacher_forced(p, part, tokens), part)
        return self._combine(state, params, feed)[0]

    def _combine(self, state: State, params: PyTree, feed: Callable) -> tuple[Output, State]:
        """Runs every component model on its part of the state and combines their logits."""
        logits, parts = [], []
        for i, model in enumerate(self.models):
            part = state.replace(
                shared=state.shared[i], kept=state.kept.parts[i], cache=state.cache[i]
            )
            output, part = feed(model, params[i], part)
            missing = self.vocab_size - output.logits.shape[-1]
            logits.append(
                jnp.pad(output.logits, [(0, 0)] * (output.logits.ndim - 1) + [(0, missing)])
            )
            parts.append(part)
        output = _combined(jnp.stack(logits), state.kept.lam, self)
        state = state.replace(
            position=parts[0].position,
            kept=state.kept.replace(parts=tuple(x.kept for x in parts)),
            cache=tuple(x.cache for x in parts),
        )
        return output, state


class ComponentModel(LanguageModel, Protocol):
    """Interface of C models that share a base and differ in their LoRA adapters (`lora.attach`).

    The methods of `LanguageModel` are for C = 1. A state holds all components, whose axis is part of the
    cache's and the prompt's heads; all of them are fed the same tokens.
    """

    components: int

    def extend_components(self, params: PyTree, state: State, tokens: Array) -> tuple[Array, State]:
        """Feeds tokens[B, K, N] in one pass; returns logits float32 [C, B, K, V] after the last."""

    def forced_components(self, params: PyTree, state: State, tokens: Array) -> Array:
        """Returns logits float32 [C, B, K, T, V] that predict tokens[B, K, T] under teacher forcing."""


@dataclasses.dataclass(frozen=True)
class RealignedAdapters:
    """The realigned mixture of LoRA adapters of one base, as one `LanguageModel`.

    It computes what `Realigned` would for the merged models, but the base runs once over the
    hypotheses of all components as one batch. The parameters are the base's with the components'
    adapters, reference first (`lora.attach`).

    Raises:
        ValueError: `model` has less than two components.
    """

    model: ComponentModel

    def __post_init__(self):
        if getattr(self.model, "components", 1) < 2:
            raise ValueError(
                "RealignedAdapters.model needs components = 2 or more, the reference among them; "
                f"found {self.model!r:.100}."
            )

    @property
    def num_models(self) -> int:
        """C, the number of component models."""
        return self.model.components

    @property
    def vocab_size(self) -> int:
        return self.model.vocab_size

    @property
    def num_ids(self) -> int | None:
        return self.model.num_ids

    @property
    def unused_ids(self) -> tuple[int, ...]:
        return self.model.unused_ids

    @property
    def start_token(self) -> int | None:
        return self.model.start_token

    @property
    def ends_prompts(self) -> bool:
        return self.model.ends_prompts

    @property
    def end_ids(self) -> tuple[int, ...]:
        return self.model.end_ids

    def check(self, prompts: Prompts, num_hypotheses: int) -> None:
        check_lam(prompts.lam, (len(prompts.tokens), num_hypotheses), self.model.components - 1)
        self.model.check(prompts.replace(lam=None), num_hypotheses)

    def start(self, params: PyTree, prompts: Prompts, num_hypotheses: int, max_len: int) -> State:
        rows, num_aligned = (len(prompts.tokens), num_hypotheses), self.model.components - 1
        state = self.model.start(params, prompts.replace(lam=None), num_hypotheses, max_len)
        return state.replace(
            kept=Mixed(_per_hypothesis(prompts.lam, rows, num_aligned), state.kept)
        )

    def step(self, params: PyTree, state: State, tokens: Array) -> tuple[Output, State]:
        return self.extend(params, state, tokens[..., None])

    def extend(self, params: PyTree, state: State, tokens: Array) -> tuple[Output, State]:
        own = state.replace(kept=state.kept.parts)
        logits, own = self.model.extend_components(params, own, tokens)
        kept = state.kept.replace(parts=own.kept)
        return _combined(logits, state.kept.lam, self), own.replace(kept=kept)

    def teacher_forced(self, params: PyTree, state: State, tokens: Array) -> Output:
        own = state.replace(kept=state.kept.parts)
        logits = self.model.forced_components(params, own, tokens)
        return _combined(logits, state.kept.lam, self)


def _combined(parts: Array, lam: Array, mixture: LanguageModel) -> Output:
    """Combines the components' logits [C, B, K, ..., V] by lam[B, K, M]."""
    lam = lam.reshape(*lam.shape[:2], *[1] * (parts.ndim - 4), -1)
    output = Output(realign_logits(parts[0], parts[1:], lam), parts)
    return mask_unused_logits(output, mixture)


def with_lam(state: State, lam: Array) -> State:
    """Replaces λ in the state of a mixture, so that one prefill serves any λ.

    Args:
        state: a state from `Realigned.start`.
        lam: float32 [B, G] or [B, G, M], as in `Prompts.lam`.

    Raises:
        ValueError: lam is invalid, see `check_lam`.
    """
    *rows, num_aligned = state.kept.lam.shape
    return state.replace(kept=state.kept.replace(lam=_per_hypothesis(lam, rows, num_aligned)))


def _per_hypothesis(lam: Array, rows: Sequence[int], num_aligned: int) -> Array:
    """Repeats lam [B, G] or [B, G, M] over K/G adjacent hypotheses: float32 [B, K, M]."""
    check_lam(lam, rows, num_aligned)
    lam = jnp.asarray(lam, jnp.float32).reshape(*lam.shape[:2], num_aligned)
    return constrain(jnp.repeat(lam, rows[1] // lam.shape[1], axis=1), "batch", None, None)


def check_lam(lam: Array, rows: Sequence[int], num_aligned: int) -> None:
    """Validates the mixing coefficients λ.

    Args:
        lam: as in `Prompts.lam`.
        rows: (B, K), the number of prompts and of hypotheses of each.
        num_aligned: M.

    Raises:
        ValueError: lam is not an array of numbers, its shape is not [B, G] (for one aligned model)
            or [B, G, M] with G a divisor of K, or a value is not finite (checked if the values are
            known on this process).
    """
    if not isinstance(lam, (np.ndarray, Array)) or not jnp.issubdtype(lam.dtype, jnp.number):
        raise ValueError(
            "lam must be an array of numbers [B, G], or [B, G, M] for M aligned models; found "
            f"{lam!r}."
        )
    fits = lam.ndim == 3 or (lam.ndim == 2 and num_aligned == 1)
    fits = fits and lam.shape[0] == rows[0] and lam.shape[2:] in ((), (num_aligned,))
    if not fits or lam.shape[1] < 1 or rows[1] % lam.shape[1]:
        raise ValueError(
            f"lam has shape {lam.shape}; expected [B, G] = [{rows[0]}, G] where G divides the "
            f"{rows[1]} hypotheses of a prompt, or [B, G, M] for M aligned models, of which there "
            f"are {num_aligned}."
        )
    if checks.is_known(lam) and not np.isfinite(lam).all():
        not_finite = np.asarray(lam)[~np.isfinite(lam)]
        raise ValueError(f"lam must be finite; found {not_finite[0]}.")

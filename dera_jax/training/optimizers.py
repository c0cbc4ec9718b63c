"""Makes optimizers and learning-rate schedules from optax, as functions that gin can configure.

A schedule is a function step -> learning rate. All schedules warm up linearly from 0 at step 0.
"""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import optax

from dera_jax import checks

_SCHEDULE = checks.Check(
    "a schedule, which is a function step -> learning rate such as `cosine` returns", callable
)


@dataclasses.dataclass(frozen=True)
class WarmedUp:
    """Wraps a schedule and records the number of its warm-up steps, so that it can be validated."""

    schedule: optax.Schedule
    warmup_steps: int

    def __call__(self, step: jax.Array | int) -> jax.Array:
        return self.schedule(step)


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """Holds an optax transformation, and its schedule so that the learning rate can be logged."""

    transformation: optax.GradientTransformation
    learning_rate: optax.Schedule

    def check_warmup(self, name: str, steps: int) -> None:
        """Validates that a run is at least as long as the warm-up of the learning rate.

        Args:
            name: gin name of the field that gives the number of updates, for the message.
            steps: number of updates of the run.

        Raises:
            ValueError: the run would end before the learning rate reaches its peak.
        """
        warmup = getattr(self.learning_rate, "warmup_steps", 0)
        if warmup > steps:
            raise ValueError(
                f"the warm-up of the learning rate has {warmup} steps, but {name} gives only "
                f"{steps} updates; lower warmup_steps of the schedule to {steps}, or train longer"
            )


def combined(optimizers: Mapping[str, Optimizer]) -> Optimizer:
    """Combines the optimizers of several networks, by name, into one optimizer of their parameters.

    Each network is updated by its own optimizer, and its gradient is clipped by its own norm. The
    `learning_rate` of the result, which is only logged, is that of the first optimizer.
    """
    parts = {name: x.transformation for name, x in optimizers.items()}
    by_network = lambda params: {name: name for name in params}
    first = next(iter(optimizers.values()))
    return Optimizer(optax.multi_transform(parts, by_network), first.learning_rate)


def warmup(fraction: float, steps: int) -> int:
    """Returns the number of warm-up steps of a run, rounded.

    Args:
        fraction: fraction of the updates in which the learning rate rises to its peak.
        steps: number of updates of the run.

    Raises:
        ValueError: an argument is out of its range.
    """
    checks.check("warmup.fraction", fraction, checks.number(least=0, below=1))
    checks.check("warmup.steps", steps, checks.integer(1))
    return round(fraction * steps)


def constant(peak: float, warmup_steps: int) -> optax.Schedule:
    """Returns a schedule that stays at `peak` after the warm-up.

    Args:
        peak: the learning rate after the warm-up.
        warmup_steps: number of updates of the warm-up.

    Raises:
        ValueError: an argument is out of its range.
    """
    _check_schedule("constant", peak, warmup_steps)
    return _warmed_up(peak, warmup_steps, optax.constant_schedule(peak))


def rsqrt(peak: float, warmup_steps: int) -> optax.Schedule:
    """Returns the schedule peak·√(warmup_steps / step) after the warm-up, as in T5's pre-training.

    Args:
        peak: the learning rate at the end of the warm-up.
        warmup_steps: number of updates of the warm-up.

    Raises:
        ValueError: an argument is out of its range.
    """
    _check_schedule("rsqrt", peak, warmup_steps)
    start = max(warmup_steps, 1)
    decay = lambda step: peak * jnp.sqrt(start / (jnp.maximum(step, 0) + start))
    return _warmed_up(peak, warmup_steps, decay)


def cosine(peak: float, warmup_steps: int, total_steps: int, final: float = 0.0) -> optax.Schedule:
    """Returns a half-cosine decay from `peak` after the warm-up to `final` at `total_steps`.

    Args:
        peak: the learning rate at the end of the warm-up.
        warmup_steps: number of updates of the warm-up.
        total_steps: number of updates of the run, the warm-up included.
        final: the learning rate at the end of the run.

    Raises:
        ValueError: an argument is out of its range, or `warmup_steps` is not below `total_steps`.
    """
    _check_schedule("cosine", peak, warmup_steps)
    checks.check("cosine.total_steps", total_steps, checks.integer(1))
    checks.check("cosine.final", final, checks.number(least=0))
    if warmup_steps >= total_steps:
        raise ValueError(
            f"cosine.warmup_steps must be below total_steps ({total_steps}); found {warmup_steps}. "
            "Lower warmup_steps or raise total_steps."
        )
    decay = optax.cosine_decay_schedule(peak, total_steps - warmup_steps, final / peak)
    return _warmed_up(peak, warmup_steps, decay)


def _warmed_up(peak: float, steps: int, decay: optax.Schedule) -> optax.Schedule:
    warmup = optax.linear_schedule(0.0, peak, steps)
    return WarmedUp(optax.join_schedules([warmup, decay], [steps]), steps)


def _check_schedule(name: str, peak: float, warmup_steps: int) -> None:
    checks.check(f"{name}.peak", peak, checks.number(above=0))
    checks.check(f"{name}.warmup_steps", warmup_steps, checks.integer(0))


def adamw(
    learning_rate: optax.Schedule,
    clip_norm: float,
    b1: float = 0.9,
    b2: float = 0.99,
    weight_decay: float = 0.01,
) -> Optimizer:
    """Returns AdamW (Loshchilov and Hutter, 2019) with gradients clipped to the norm `clip_norm`.

    Weight decay applies to matrices only, not to vectors such as the scales of layer norms.

    Args:
        learning_rate: the schedule.
        clip_norm: the largest norm of a gradient; longer ones are scaled down to it.
        b1: decay rate of the mean of the gradients.
        b2: decay rate of the mean of their squares.
        weight_decay: coefficient of the weight decay.

    Raises:
        ValueError: an argument is out of its range.
    """
    checks.check("adamw.learning_rate", learning_rate, _SCHEDULE)
    checks.check("adamw.clip_norm", clip_norm, checks.number(above=0))
    for name, value in {"b1": b1, "b2": b2}.items():
        checks.check(f"adamw.{name}", value, checks.number(least=0, below=1))
    checks.check("adamw.weight_decay", weight_decay, checks.number(least=0))
    update = optax.adamw(learning_rate, b1, b2, weight_decay=weight_decay, mask=_matrices)
    return _clipped(update, learning_rate, clip_norm)


def _matrices(params: optax.Params) -> optax.Params:
    return jax.tree.map(lambda x: x.ndim > 1, params)


def adafactor(
    learning_rate: optax.Schedule, clip_norm: float, decay_rate: float = 0.8
) -> Optimizer:
    """Returns Adafactor (Shazeer and Stern, 2018) with gradients clipped to the norm `clip_norm`.

    As in T5, each update is scaled by the magnitude of the parameter that it changes.

    Args:
        learning_rate: the schedule.
        clip_norm: the largest norm of a gradient; longer ones are scaled down to it.
        decay_rate: exponent of the decay of the mean of squared gradients.

    Raises:
        ValueError: an argument is out of its range.
    """
    checks.check("adafactor.learning_rate", learning_rate, _SCHEDULE)
    checks.check("adafactor.clip_norm", clip_norm, checks.number(above=0))
    checks.check("adafactor.decay_rate", decay_rate, checks.number(above=0, most=1))
    update = optax.adafactor(learning_rate, decay_rate=decay_rate)
    return _clipped(update, learning_rate, clip_norm)


def _clipped(update: optax.GradientTransformation, rate: optax.Schedule, norm: float) -> Optimizer:
    return Optimizer(optax.chain(optax.clip_by_global_norm(norm), update), rate)

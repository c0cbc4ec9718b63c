"""Reports the progress of a training run by a progress bar and by means of the metrics."""

import time
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jax import Array

from dera_jax.progress_bar import ProgressBar
from dera_jax.training.metric_log import MetricWriter

PERIOD = 10  # steps between two reports
_DIVERGED = "Lower the peak learning rate or the clip_norm of the optimizer"
_RESUME = "then start the run again, which resumes from its last checkpoint"
# Metrics that must be finite, in the order of cause and effect, with advice for the error message.
_CHECKED = {
    "reward": "Correct the reward function, or the reward model that it uses",
    "kl": f"The policy no longer returns finite log-probabilities. {_DIVERGED}",
    "full_kl": f"The policy no longer returns finite log-probabilities. {_DIVERGED}",
    "loss": _DIVERGED,
    "grad_norm": _DIVERGED,
}


class Progress:
    """Collects the metrics of each step without waiting for the device, and reports their means.

    The progress bar shows the metrics that are named in `shown`.
    """

    def __init__(
        self,
        writer: MetricWriter,
        start_step: int,
        total_steps: int,
        shown: Sequence[str] = ("loss",),
    ):
        self._writer = writer
        self._shown = shown
        self._step = start_step
        self._pending: list[Mapping[str, Array]] = []
        self._since = time.monotonic()
        self._bar = ProgressBar(total=total_steps, initial=start_step, unit="step", mininterval=2)

    def add(self, metrics: Mapping[str, Array]) -> None:
        """Adds the scalar metrics of one step; calls `flush` after every `PERIOD` steps."""
        self._step += 1
        self._pending.append(metrics)
        if len(self._pending) == PERIOD:
            self.flush()

    def flush(self) -> None:
        """Reports the means of the metrics that were added since the last report.

        Raises:
            FloatingPointError: a reward, KL, loss or gradient is not finite; the message names the
                first of them and the steps.
        """
        if not self._pending:
            return
        # Fetch first: NumPy, given a list of JAX scalars, turns an interrupt while it waits for one
        # of them into a ValueError ("setting an array element with a sequence").
        pending = jax.device_get(self._pending)
        columns = {name: np.array([m[name] for m in pending]) for name in pending[0]}
        self._check(columns)
        means = {name: float(np.mean(x)) for name, x in columns.items() if name != "tokens"}
        means["tokens_per_second"] = columns["tokens"].sum() / (time.monotonic() - self._since)
        self._writer.write(self._step, {f"training/{name}": x for name, x in means.items()})
        shown = {name: f"{means[name]:.3f}" for name in self._shown}
        shown["tokens/s"] = f"{means['tokens_per_second']:.0f}"
        self._bar.set_postfix(shown, refresh=False)
        self._bar.update(len(self._pending))
        self._pending = []
        self._since = time.monotonic()

    def validated(self, scores: Mapping[str, float]) -> None:
        """Reports the scores of a validation, and excludes its time from tokens/s.

        Raises:
            FloatingPointError: a score is not finite; the message names it.
        """
        for name, value in scores.items():
            if not np.isfinite(value):
                raise FloatingPointError(
                    f"the validation {name} after step {self._step} is {value}; the last "
                    f"checkpoint was written before that. {_DIVERGED}, {_RESUME}."
                )
        self._writer.write(self._step, {f"validation/{name}": x for name, x in scores.items()})
        summary = ", ".join(f"{name} {value:.4g}" for name, value in scores.items())
        ProgressBar.write(f"validation after step {self._step}: {summary}")
        self._since = time.monotonic()

    def close(self) -> None:
        """Closes the progress bar."""
        self._bar.close()

    def _check(self, columns: Mapping[str, np.ndarray]) -> None:
        """Raises FloatingPointError for the metric that was the first not to be finite."""
        not_finite = {
            name: np.flatnonzero(~np.isfinite(columns[name]))
            for name in _CHECKED
            if name in columns
        }
        first = min((indices[0] for indices in not_finite.values() if len(indices)), default=None)
        for name, indices in not_finite.items():
            if len(indices) and indices[0] == first:
                steps = indices + self._step - len(columns[name]) + 1
                raise FloatingPointError(
                    f"the training {name} is not finite at steps {steps.tolist()}; the last "
                    f"checkpoint was written before that. {_CHECKED[name]}, {_RESUME}."
                )

"""What a run tells while it trains: a progress bar, and the mean of each metric now and then."""

import time
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jax import Array
from tqdm import tqdm

from dera_jax.training.metrics import MetricWriter

PERIOD = 10  # steps between two reports
_DIVERGED = "Lower the peak learning rate or the clip_norm of the optimizer"
# What must be finite, in the order in which one follows from the other, and what to do if it is not.
_CHECKED = {
    "reward": "Mend the reward function, or the reward model that it reads",
    "kl": f"The policy computes no log-probabilities any more. {_DIVERGED}",
    "full_kl": f"The policy computes no log-probabilities any more. {_DIVERGED}",
    "loss": _DIVERGED,
    "grad_norm": _DIVERGED,
}


class Progress:
    """Collects the metrics of each step without waiting for the device, and reports them.

    Those named in `shown` stand beside the bar.
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
        self._bar = tqdm(total=total_steps, initial=start_step, unit="step", mininterval=2)

    def add(self, metrics: Mapping[str, Array]) -> None:
        """Takes the metrics of one step."""
        self._step += 1
        self._pending.append(metrics)
        if len(self._pending) == PERIOD:
            self.flush()

    def flush(self) -> None:
        """Reports what was added since the last time.

        Raises:
            FloatingPointError: reward, KL, loss or gradient was not finite, naming what was so first,
                and the steps.
        """
        if not self._pending:
            return
        # Fetched first: NumPy, given a list of JAX scalars, would turn an interrupt while it waits for
        # one of them into a ValueError ("setting an array element with a sequence").
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
        """Reports the scores of a validation, whose time does not count in tokens/s.

        Raises:
            FloatingPointError: a score is not finite, naming it.
        """
        for name, value in scores.items():
            if not np.isfinite(value):
                raise FloatingPointError(
                    f"the validation {name} after step {self._step} is {value}; the last checkpoint is "
                    f"from before. {_DIVERGED}"
                )
        self._writer.write(self._step, {f"validation/{name}": x for name, x in scores.items()})
        words = ", ".join(f"{name} {value:.4g}" for name, value in scores.items())
        tqdm.write(f"step {self._step}: {words}")
        self._since = time.monotonic()

    def close(self) -> None:
        self._bar.close()

    def _check(self, columns: Mapping[str, np.ndarray]) -> None:
        bad = {
            name: np.flatnonzero(~np.isfinite(columns[name]))
            for name in _CHECKED
            if name in columns
        }
        first = min((rows[0] for rows in bad.values() if len(rows)), default=None)
        for name, rows in bad.items():
            if len(rows) and rows[0] == first:
                steps = rows + self._step - len(columns[name]) + 1
                raise FloatingPointError(
                    f"the training {name} is not finite at steps {steps.tolist()}; the last checkpoint "
                    f"is from before. {_CHECKED[name]}"
                )

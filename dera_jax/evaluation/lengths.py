"""Surveys the output lengths of a model, and derives a length reward and its β from them.

Axes: n documents, K samples of each.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np

from dera_jax import checks
from dera_jax.checkpoints.loaded import MODEL, LoadedModel, ensure_loaded
from dera_jax.data.splits import SPLIT, Split
from dera_jax.evaluation.samples import sample_batches
from dera_jax.rewards.length import beta_for_rate, length_range_of

TARGET_RATES = (0.6, 0.7, 0.8)  # target in-range rates at λ = 1 for which β is computed


@dataclasses.dataclass(frozen=True)
class LengthSurvey:
    """Samples a model before alignment and measures the lengths of its outputs.

    Attributes:
        model: the loaded model, or a function that loads it when it is needed.
        documents: the split to sample on; the training split, on which the model will be aligned.
        max_length: maximum number of output tokens, the end token included.
        seed: seed of all PRNG keys.
        num_samples: K. β depends on the in-range rate of every single document, so K is large.
        batch_size: documents per compiled call.

    Raises:
        ValueError: a field has a wrong type or is out of its range.
    """

    model: LoadedModel | Callable[[], LoadedModel]
    documents: Split
    max_length: int
    seed: int
    num_samples: int = 32
    batch_size: int = 8

    def __post_init__(self):
        sizes = dict.fromkeys(("max_length", "num_samples", "batch_size"), checks.integer(1))
        checks.check_fields(self, model=MODEL, documents=SPLIT, seed=checks.SEED, **sizes)

    def run(self, folder: Path) -> dict[str, object]:
        """Samples, and returns the length range, the in-range rate, and β for the rates `TARGET_RATES`.

        The range is that of `rewards.length.length_range_of`; β is
        `rewards.length.beta_for_rate`, or None where no alignment reaches the target rate. Nothing is written to `folder`.

        Returns:
            `low` and `high` in tokens; `in_range_rate`; `ever_in_range`, the fraction of documents
            with a sample in range; `beta_for_rate`; `mean_length` in tokens; and `finished`, the
            fraction of samples that ended before the length limit.
        """
        del folder
        lengths, finished = self.sample()
        reward = length_range_of(lengths, finished)
        rates = np.mean(reward.contains(lengths, finished), axis=-1)  # [n]
        return {
            "low": reward.low,
            "high": reward.high,
            "in_range_rate": float(np.mean(rates)),
            "ever_in_range": float(np.mean(rates > 0)),
            "beta_for_rate": {str(target): _beta(rates, target) for target in TARGET_RATES},
            "mean_length": float(np.mean(lengths - finished)),
            "finished": float(np.mean(finished)),
        }

    def sample(self) -> tuple[np.ndarray, np.ndarray]:
        """Samples all documents; returns lengths int32 [n, K], end token included, and finished.

        finished bool [n, K] tells which samples ended with an end token.

        Raises:
            ValueError: the model's vocabulary differs from the task's.
        """
        parts, n = [], 0
        for _, documents, samples in sample_batches(
            ensure_loaded(self.model),
            self.documents,
            self.max_length,
            self.num_samples,
            self.batch_size,
            self.seed,
        ):
            parts.append((np.asarray(samples.lengths), np.asarray(samples.finished)))
            n = len(documents.texts)
        return tuple(np.concatenate(column)[:n] for column in zip(*parts, strict=True))


def _beta(rates: np.ndarray, target: float) -> float | None:
    """Returns β for the target in-range rate, or None where no alignment reaches it."""
    if not np.mean(rates) < target < np.mean(rates > 0):
        return None
    return round(beta_for_rate(rates, target), 4)

"""How long the texts of a model are, and what length reward and β follow from that.

Axes: n documents, K samples of each.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np

from dera_jax import checks
from dera_jax.checkpoints.loading import MODEL, Loaded, loaded
from dera_jax.evaluation.jobs import SPLIT, Split
from dera_jax.evaluation.samples import sample_batches
from dera_jax.rewards.length import beta_for_share, range_of

SHARES = (0.6, 0.7, 0.8)  # in range at λ = 1, for which β is computed


@dataclasses.dataclass(frozen=True)
class LengthSurvey:
    """Samples a model on documents it may be aligned on.

    Attributes:
        model: read, or a function that reads it when it is needed.
        documents: a split; of training, since that is where alignment will happen.
        max_length: tokens at most, the end token included.
        num_samples: K; β depends on each document's own share, which few samples cannot tell.
        batch_size: documents at once.
        seed: of the draws.

    Raises:
        ValueError: a setting out of its range.
    """

    model: Loaded | Callable[[], Loaded]
    documents: Split
    max_length: int
    num_samples: int = 32
    batch_size: int = 8
    seed: int = 0

    def __post_init__(self):
        sizes = dict.fromkeys(("max_length", "num_samples", "batch_size"), checks.whole(1))
        checks.check_fields(self, model=MODEL, documents=SPLIT, seed=checks.SEED, **sizes)

    def run(self, folder: Path) -> dict[str, object]:
        """Returns what follows from the lengths: the range, the share in it, β for SHARES."""
        del folder
        lengths, finished = self.sample()
        reward = range_of(lengths, finished)
        shares = np.mean(reward.contains(lengths, finished), axis=-1)  # [n]
        return {
            "low": reward.low,
            "high": reward.high,
            "share_in_range": float(np.mean(shares)),
            "ever_in_range": float(np.mean(shares > 0)),
            "beta_for_share": {str(x): _beta(shares, x) for x in SHARES},
            "mean_length": float(np.mean(lengths - finished)),
            "finished": float(np.mean(finished)),
        }

    def sample(self) -> tuple[np.ndarray, np.ndarray]:
        """lengths int32 [n, K], the end token included, and finished bool [n, K]."""
        parts, n = [], 0
        for _, documents, samples in sample_batches(
            loaded(self.model),
            self.documents,
            self.max_length,
            self.num_samples,
            self.batch_size,
            self.seed,
        ):
            parts.append((np.asarray(samples.lengths), np.asarray(samples.finished)))
            n = len(documents.texts)
        return tuple(np.concatenate(column)[:n] for column in zip(*parts, strict=True))


def _beta(shares: np.ndarray, target: float) -> float | None:
    """β, or None where no alignment reaches the target."""
    if not np.mean(shares) < target < np.mean(shares > 0):
        return None
    return round(beta_for_share(shares, target), 4)

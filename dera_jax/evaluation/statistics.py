"""The calibration pass: mean and spread of the parts of a reward over a reference's own texts.

`rewards.combined.Combined` standardises by them, from the file that is written here.

Axes: n documents, K samples of each.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np

from dera_jax import checks, json_files
from dera_jax.checkpoints.loading import MODEL, Loaded, loaded
from dera_jax.checkpoints.resources import RunResources
from dera_jax.evaluation.jobs import SPLIT, Split
from dera_jax.evaluation.samples import sample_batches
from dera_jax.rewards.combined import Combined, Statistics
from dera_jax.rewards.judge import Judge
from dera_jax.rewards.protocol import check_limit

FILE = "statistics.json"


@dataclasses.dataclass(frozen=True)
class RewardStatistics:
    """Samples the reference and measures every part of a combined reward.

    Attributes:
        model: the reference, read, or a function that reads it when it is needed.
        documents: a split; of training, since that is where alignment will happen.
        reward: the combined reward; its own statistics, if any, are not used.
        max_length: tokens at most, the end token included.
        num_samples: K.
        batch_size: documents at once.
        seed: of the draws.

    Raises:
        TypeError: the reward is no sum.
        ValueError: another setting out of its range, or a sum that cannot be reached within the
            length limit.
    """

    model: Loaded | Callable[[], Loaded]
    documents: Split
    reward: Combined
    max_length: int
    num_samples: int = 8
    batch_size: int = 16
    seed: int = 0

    def __post_init__(self):
        if not isinstance(self.reward, Combined):
            raise TypeError(
                f"RewardStatistics.reward must be a rewards.combined.Combined, whose parts are "
                f"measured; found {self.reward!r}"
            )
        sizes = dict.fromkeys(("max_length", "num_samples", "batch_size"), checks.whole(1))
        checks.check_fields(self, model=MODEL, documents=SPLIT, seed=checks.SEED, **sizes)
        check_limit(self.reward, self.max_length)

    def run(self, folder: Path) -> dict[str, object]:
        """Writes statistics.json: name -> mean and std. Returns the same."""
        known, name = self.documents.known_vocabulary(), f"task {self.documents.task!r}"
        model = loaded(self.model).agreeing_with(known, name)
        params = self.reward.load(RunResources(model.vocabulary))
        judge = Judge(self.reward, params, model.decode)
        found = {term.name: [] for term in self.reward.terms}
        for rows, documents, out in sample_batches(
            model,
            self.documents,
            self.max_length,
            self.num_samples,
            self.batch_size,
            self.seed,
        ):
            rows = np.unique(rows)  # the rest is filling
            texts = (x[: len(rows)] for x in (out.tokens, out.lengths, out.finished))
            documents_of = [documents.texts[row] for row in rows]
            _, parts = judge(documents.source(rows), documents_of, *texts)
            for name, values in parts.items():
                found[name].append(values)
        result = {name: _moments(parts) for name, parts in found.items()}
        json_files.write(folder / FILE, result)
        return result


def _moments(parts: list[np.ndarray]) -> dict[str, float]:
    values = np.concatenate(parts).astype(np.float64)
    return {"mean": float(values.mean()), "std": float(values.std())}


def read(path: str | None) -> tuple[Statistics, ...] | None:
    """The statistics of a calibration pass, for `Combined.statistics`; None without a path.

    Raises:
        FileNotFoundError, ValueError: no such file, or it is not that of a calibration pass.
    """
    if path is None:
        return None
    if not Path(path).exists():
        raise FileNotFoundError(f"{path}: no statistics; run gin_configs/runs/statistics.gin first")
    try:
        rows = json_files.loads(Path(path).read_bytes(), path)
        return tuple(Statistics(name, x["mean"], x["std"]) for name, x in rows.items())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no file of statistics: {error!r}") from error

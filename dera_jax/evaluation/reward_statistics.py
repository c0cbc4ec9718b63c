"""Measures mean and standard deviation of the parts of a reward over samples of the reference.

`rewards.combined.Combined` standardises its parts with the file that this calibration pass writes.

Axes: K samples of each document.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np

from dera_jax import checks
from dera_jax.checkpoints.loaded import MODEL, LoadedModel, ensure_loaded
from dera_jax.checkpoints.resources import RunResources
from dera_jax.data.splits import SPLIT, Split
from dera_jax.evaluation.samples import sample_batches
from dera_jax.files import json_files
from dera_jax.rewards.combined import Combined, Statistics
from dera_jax.rewards.protocol import check_limit
from dera_jax.rewards.scoring import RewardScorer

FILE = "statistics.json"


@dataclasses.dataclass(frozen=True)
class RewardStatistics:
    """Samples the reference and measures every part of a combined reward.

    Attributes:
        model: the loaded reference, or a function that loads it when it is needed.
        documents: the split to sample on; the training split, on which the model will be aligned.
        reward: the combined reward; its own statistics, if any, are not used.
        max_length: maximum number of output tokens, the end token included.
        num_samples: K, samples of each document.
        batch_size: documents per compiled call.
        seed: seed of all PRNG keys.

    Raises:
        TypeError: the reward is not a `rewards.combined.Combined`.
        ValueError: another field has a wrong type or is out of its range, or max_length is below
            the reward's minimum.
    """

    model: LoadedModel | Callable[[], LoadedModel]
    documents: Split
    reward: Combined
    max_length: int
    num_samples: int
    seed: int
    batch_size: int = 16

    def __post_init__(self):
        if not isinstance(self.reward, Combined):
            raise TypeError(
                "RewardStatistics.reward must be a rewards.combined.Combined, whose parts are "
                f"measured; found {self.reward!r}"
            )
        sizes = dict.fromkeys(("max_length", "num_samples", "batch_size"), checks.integer(1))
        checks.check_fields(self, model=MODEL, documents=SPLIT, seed=checks.SEED, **sizes)
        check_limit(self.reward, self.max_length)

    def run(self, folder: Path) -> dict[str, object]:
        """Writes statistics.json, the `mean` and `std` of each part by name, and returns the same.

        Raises:
            ValueError: the model's vocabulary differs from the task's.
        """
        vocabulary, name = self.documents.known_vocabulary(), self.documents.name
        model = ensure_loaded(self.model).with_vocabulary(vocabulary, name)
        params = self.reward.load(RunResources(model.vocabulary, model.chat_template))
        scorer = RewardScorer(self.reward, params, model.decode)
        rewards = {term.name: [] for term in self.reward.terms}
        for rows, documents, out in sample_batches(
            model,
            self.documents,
            self.max_length,
            self.num_samples,
            self.batch_size,
            self.seed,
        ):
            rows = np.unique(rows)  # without the batch padding
            sequences = (x[: len(rows)] for x in (out.tokens, out.lengths, out.finished))
            batch_documents = [documents.texts[row] for row in rows]
            _, parts = scorer(documents.source(rows), batch_documents, *sequences)
            for name, values in parts.items():
                rewards[name].append(values)
        result = {name: _moments(batches) for name, batches in rewards.items()}
        json_files.write(folder / FILE, result)
        return result


def _moments(batches: list[np.ndarray]) -> dict[str, float]:
    values = np.concatenate(batches).astype(np.float64)
    return {"mean": float(values.mean()), "std": float(values.std())}


def read(path: str | None) -> tuple[Statistics, ...] | None:
    """Reads the file of a calibration pass for `Combined.statistics`; returns None without a path.

    Args:
        path: the statistics.json that gin_configs/runs/statistics.gin writes; None for no
            statistics.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file was not written by a calibration pass.
    """
    if path is None:
        return None
    if not Path(path).exists():
        raise FileNotFoundError(
            f"{path}: no such file of reward statistics; run gin_configs/runs/statistics.gin first"
        )
    try:
        rows = json_files.loads(Path(path).read_bytes(), path)
        return tuple(Statistics(name, x["mean"], x["std"]) for name, x in rows.items())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} is not a file of reward statistics ({error!r}); give the statistics.json that "
            "gin_configs/runs/statistics.gin writes"
        ) from error

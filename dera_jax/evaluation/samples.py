"""Samples one model on the documents of a split, batch by batch."""

from collections.abc import Iterator

import numpy as np

from dera_jax.checkpoints.loaded import LoadedModel
from dera_jax.data.documents import Documents
from dera_jax.data.splits import Split
from dera_jax.decoding.sampling import Samples, Sampling, sample
from dera_jax.evaluation.record_store import full_batches
from dera_jax.models.language_model import sequence_keys
from dera_jax.progress_bar import ProgressBar


def sample_batches(
    model: LoadedModel, split: Split, max_length: int, num_samples: int, batch_size: int, seed: int
) -> Iterator[tuple[np.ndarray, Documents, Samples]]:
    """Yields (row numbers [B], all documents, samples [B, K] of these rows).

    The last batch is padded with the last document, so that all have one shape and compile once.

    Raises:
        ValueError: the model's vocabulary differs from the task's.
    """
    model = model.with_vocabulary(split.known_vocabulary(), split.name)
    documents = split.read(model.tokenizer)
    for rows in ProgressBar(full_batches(len(documents.texts), batch_size), unit="batch"):
        keys = sequence_keys(seed, documents.example_id[rows], np.arange(num_samples))
        prompts, sampling = documents.prompts_of(rows), Sampling(max_length)
        yield rows, documents, sample(model.model, model.params, prompts, keys, sampling)

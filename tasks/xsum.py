"""Registers XSum (Narayan et al., 2018, "Don't Give Me the Details, Just the Summary!", arXiv
1808.08745).

Task `xsum` reads `train.jsonl`, `validation.jsonl` and `test.jsonl`, lines of
`{"document": ..., "summary": ...}`, from the folder named by `DERA_JAX_XSUM` (local or `gs://`).
Task `xsum_tfds` reads the data set `xsum` of TensorFlow Datasets, which must be built manually
first, since TFDS does not download the archive of its texts (see the data set's page).

Both tasks use T5's prefix. Use `register` for your own folder, under another name. A line with an
empty document raises an error (see `dera_jax.tasks.jsonl`); remove it from the file.
"""

import os

import seqio

from dera_jax.data import text_columns
from dera_jax.tasks import jsonl

SPLITS = ("train", "validation", "test")
_TFDS_NAME = "xsum:1.1.0"


def register(name: str, folder: str) -> seqio.Task:
    """Registers a task over a folder with one JSONL file per split. Raises as `jsonl.register`."""
    return jsonl.register(name, {x: os.path.join(folder, f"{x}.jsonl") for x in SPLITS})


def _rows(split: str) -> dict[str, list[str]]:
    folder = os.environ.get("DERA_JAX_XSUM")
    if not folder:
        raise ValueError(
            f"task 'xsum', split {split!r}: set DERA_JAX_XSUM to a folder with "
            f"{', '.join(f'{name}.jsonl' for name in SPLITS)}, or use the task 'xsum_tfds'"
        )
    path = os.path.join(folder, f"{split}.jsonl")
    columns = text_columns.read_summaries(path, need_summaries=True)
    return text_columns.with_ids(columns, text_columns.DOCUMENT)


jsonl.register_pairs("xsum", _rows, SPLITS, jsonl.SUMMARIZE)
seqio.TaskRegistry.add(
    "xsum_tfds",
    source=seqio.TfdsDataSource(_TFDS_NAME, splits=SPLITS),
    preprocessors=jsonl.preprocessors(jsonl.SUMMARIZE),
    output_features=jsonl.features(),
)

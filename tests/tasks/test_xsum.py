"""Both routes to XSum, read by a model of bytes."""

import json

import numpy as np
import pytest
import seqio
import tensorflow_datasets as tfds

from dera_jax.data import task_data
from dera_jax.data.encoding import Sizes
from dera_jax.tasks import xsum
from tests.texts import BYTES

SIZES = Sizes(64, 32)


def write_folder(folder):
    for split in xsum.SPLITS:
        rows = [{"document": f"{split} article {i}", "summary": f"{split} {i}"} for i in range(3)]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{split}.jsonl").write_text(text)
    return str(folder)


def test_jsonl_route(tmp_path):
    xsum.register("xsum_bytes", write_folder(tmp_path))
    for split in xsum.SPLITS:
        examples = task_data.epoch("xsum_bytes", split, BYTES, SIZES, 0)
        assert examples.documents == [f"{split} article {i}" for i in range(3)]
        assert examples.summaries == [f"{split} {i}" for i in range(3)]
        assert BYTES.decode(examples.inputs.tokens[0].tolist()) == f"summarize: {split} article 0"


def test_default_task_reads_the_folder_of_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("DERA_JAX_XSUM", write_folder(tmp_path))
    rows = seqio.TaskRegistry.get("xsum").source.get_dataset("test", shuffle=False)
    assert [row["document"] for row in rows.as_numpy_iterator()] == [
        f"test article {i}".encode() for i in range(3)
    ]


def test_default_task_without_a_folder_says_what_to_set(monkeypatch):
    monkeypatch.delenv("DERA_JAX_XSUM", raising=False)
    with pytest.raises(ValueError, match="set DERA_JAX_XSUM to a folder with train.jsonl"):
        seqio.TaskRegistry.get("xsum").source.get_dataset("train", shuffle=False)


def test_tfds_route_on_mock_data():
    with tfds.testing.mock_data(num_examples=4):
        examples = task_data.epoch("xsum_tfds", "validation", BYTES, SIZES, 0)
        raw = list(tfds.as_numpy(tfds.load("xsum:1.1.0", split="validation")))
    assert len(examples) == 4
    assert examples.documents == [row["document"].decode() for row in raw]
    assert examples.summaries == [row["summary"].decode() for row in raw]
    assert examples.example_id.min() >= 0
    ids, lengths = examples.inputs.tokens, examples.inputs.lengths
    ends = np.take_along_axis(ids, lengths[:, None] - 1, axis=1)
    assert (ends == 1).all()

"""seqio tasks over the golden data, for T5X's own programs; GOLDEN_REPEAT asks for more of the same."""

import os

import numpy as np
import seqio
import tensorflow as tf

from tests import golden

IDS = seqio.PassThroughVocabulary(size=128, eos_id=1)
BYTES = seqio.ByteVocabulary(extra_ids=0)  # for instructions, which are text


def _examples(split: str, shuffle_files: bool, seed: int | None = None) -> tf.data.Dataset:
    del split, shuffle_files, seed
    g = np.load(golden.FOLDER / "v1_1" / "golden.npz")
    text = lambda rows: [" ".join(str(i) for i in row if i > 0) for row in rows]
    repeat = int(os.environ.get("GOLDEN_REPEAT", "1"))
    names = {"inputs": "encoder_input_tokens", "targets": "decoder_target_tokens"}
    return tf.data.Dataset.from_tensor_slices({k: text(g[v]) * repeat for k, v in names.items()})


def _to_ids(dataset: tf.data.Dataset) -> tf.data.Dataset:
    def ids(example):
        found = {f"{name}_pretokenized": text for name, text in example.items()}
        numbers = lambda text: tf.strings.to_number(tf.strings.split(text), tf.int32)
        return found | {name: numbers(text) for name, text in example.items()}

    return dataset.map(ids)


def _mean_length(targets, predictions) -> dict[str, float]:
    del targets
    return {"mean_length": float(np.mean([np.sum(np.array(x) > 0) for x in predictions]))}


for _name, _vocabulary in (("golden_v1_1", IDS), ("golden_v1_1_bytes", BYTES)):
    seqio.TaskRegistry.add(
        _name,
        source=seqio.FunctionDataSource(_examples, splits=["validation", "test"]),
        preprocessors=[_to_ids],
        output_features={
            feature: seqio.Feature(_vocabulary, add_eos=False) for feature in ("inputs", "targets")
        },
        metric_fns=[_mean_length],
    )

"""Registers CommonGen (Lin et al., 2020, "CommonGen: A Constrained Text Generation Challenge for
Generative Commonsense Reasoning", arXiv 1911.03705): write a sentence that uses all given concepts.

Task `commongen` reads `train.jsonl`, `validation.jsonl` and `test.jsonl` (published as
`commongen.train.jsonl`, `commongen.dev.jsonl` and `commongen.test.jsonl`) from the folder named by
`DERA_JAX_COMMONGEN` (local or `gs://`): lines of `{"concept_set": "dog#frisbee#catch", "scene":
["...", ...]}`. Part-of-speech tags, as in `dog_N`, are removed; other keys are ignored.

The document is the list of concepts, separated by commas, and the summary is a scene. `train` has a
row for every scene of a line, and the other splits have one for the first scene. The lines of
`test` may omit scenes if all do; such a file can be used for sampling. The field `keywords` holds
the concepts, one per line.

Task `commongen_tfds` reads `gem/common_gen` of TensorFlow Datasets, the version of the data set
that GEM prepared, with its rows and splits. The summary is `target`, which may be empty in `test`.

Use `register` for your own folder, under another name.
"""

import functools
import os
import re

import seqio
import tensorflow as tf

from dera_jax.data import text_columns
from dera_jax.rewards.segmentation import words_of
from dera_jax.tasks import jsonl

TEMPLATE = "generate a sentence with: {document}"
SPLITS = ("train", "validation", "test")
_TFDS_NAME = "gem/common_gen:1.1.0"
_ROW = ("document", "summary")  # identify an example: a document of `train` has several rows
_TAG = re.compile(r"_[NV]$")


def register(name: str, folder: str) -> seqio.Task:
    """Registers a task over a folder with one JSONL file per split.

    Raises:
        ValueError: the name is already registered. Reading a split raises ValueError or TypeError,
            with file and line number, if concepts or required scenes are missing or empty.
    """
    rows = functools.partial(_rows, folder)
    return jsonl.register_pairs(name, rows, SPLITS, TEMPLATE, identity=_ROW)


@seqio.map_over_dataset
def _from_tfds(row: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    return {
        "document": tf.strings.reduce_join(row["concepts"], separator=", "),
        "summary": row["target"],
        "keywords": tf.strings.reduce_join(row["concepts"], separator="\n"),
    }


def _rows(folder: str, split: str) -> dict[str, list[str]]:
    parse = functools.partial(_parse, split=split)
    path = os.path.join(folder, f"{split}.jsonl")
    return text_columns.with_summaries(text_columns.read_columns(path, parse))


def _parse(row: dict[str, object], where: str, split: str) -> list[dict[str, str]]:
    listed = text_columns.text_of(row, "concept_set", where).split("#")
    concepts = [_TAG.sub("", " ".join(concept.split())) for concept in listed]
    if not all(map(words_of, concepts)):
        raise ValueError(
            f"{where}: 'concept_set' has a concept without a letter or digit: "
            f"{row['concept_set']!r}"
        )
    scenes = row.get("scene", [])
    if not isinstance(scenes, list):
        raise TypeError(
            f"{where}: 'scene' must be a list of strings, found {type(scenes).__name__}"
        )
    if not scenes and split != "test":
        raise ValueError(f"{where}: 'scene' is missing or empty; only lines of 'test' may omit it")
    texts = [text_columns.text_of({"scene": scene}, "scene", where).strip() for scene in scenes]
    document = {"document": ", ".join(concepts), "keywords": "\n".join(concepts)}
    if not texts:
        return [document]
    return [document | {"summary": scene} for scene in (texts if split == "train" else texts[:1])]


def _default_rows(split: str) -> dict[str, list[str]]:
    files = ", ".join(f"{name}.jsonl" for name in SPLITS)
    return _rows(jsonl.folder_of("DERA_JAX_COMMONGEN", "commongen", files), split)


jsonl.register_pairs("commongen", _default_rows, SPLITS, TEMPLATE, identity=_ROW)
seqio.TaskRegistry.add(
    "commongen_tfds",
    source=seqio.TfdsDataSource(_TFDS_NAME, splits=SPLITS),
    preprocessors=[_from_tfds, *jsonl.preprocessors(TEMPLATE, identity=_ROW)],
    output_features=jsonl.features(),
)

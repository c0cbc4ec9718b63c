"""XSum (Narayan et al., 2018, "Don't Give Me the Details, Just the Summary!", arXiv 1808.08745).

Task `xsum` reads `train.jsonl`, `validation.jsonl` and `test.jsonl`, lines of
`{"document": ..., "summary": ...}`, from the folder named by `DERA_JAX_XSUM` (local or `gs://`).
Task `xsum_tfds` reads the data set `xsum` of TensorFlow Datasets, which has to be built by hand
first: its texts come as an archive that TFDS does not download (see the data set's page).

Both use T5's public vocabulary, from its bucket or from the file named by `DERA_JAX_T5_VOCABULARY`,
and T5's prefix. A folder or a vocabulary of your own: `register` and `register_tfds`, under another
name. A line with an empty document stops the run (see `tasks.jsonl`): take it out of the file.
"""

import os

import seqio

from tasks import jsonl

PREFIX = "summarize: "
SPLITS = ("train", "validation", "test")
_T5_PIECES = "gs://t5-data/vocabs/cc_all.32000/sentencepiece.model"
_TFDS_NAME = "xsum:1.1.0"


def t5_vocabulary() -> seqio.SentencePieceVocabulary:
    """T5's 32,000 pieces and 100 sentinels; read when first used."""
    path = os.environ.get("DERA_JAX_T5_VOCABULARY") or _T5_PIECES
    return seqio.SentencePieceVocabulary(path, extra_ids=100)


def register(name: str, folder: str, vocabulary: seqio.Vocabulary) -> seqio.Task:
    """Registers a task over a folder with one JSONL file per split. Raises as `jsonl.register`."""
    paths = {split: os.path.join(folder, f"{split}.jsonl") for split in SPLITS}
    return jsonl.register(name, paths, vocabulary, PREFIX)


def register_tfds(name: str, vocabulary: seqio.Vocabulary) -> seqio.Task:
    """Registers a task over TFDS's `xsum`. Raises ValueError if the name is taken."""
    return seqio.TaskRegistry.add(
        name,
        source=seqio.TfdsDataSource(_TFDS_NAME, splits=SPLITS),
        preprocessors=jsonl.preprocessors(PREFIX),
        output_features=jsonl.features(vocabulary),
    )


def _rows(split: str) -> dict[str, list[str]]:
    folder = os.environ.get("DERA_JAX_XSUM")
    if not folder:
        raise ValueError(
            f"task 'xsum', split {split!r}: set DERA_JAX_XSUM to a folder with "
            f"{', '.join(f'{name}.jsonl' for name in SPLITS)}, or use the task 'xsum_tfds'"
        )
    return jsonl.read(os.path.join(folder, f"{split}.jsonl"), need_summaries=True)


jsonl.register_pairs("xsum", _rows, SPLITS, t5_vocabulary(), PREFIX)
register_tfds("xsum_tfds", t5_vocabulary())

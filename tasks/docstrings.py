"""seqio task `docstrings`: the body of a docstring in, its first line out."""

import seqio
import tensorflow as tf

from tasks import docstring_corpus, jsonl, vocabularies

PREFIX = "summarize: "


def dataset(split: str, shuffle_files: bool, seed: int | None = None) -> tf.data.Dataset:
    """Examples of one split: `inputs` (with the prefix), `targets`, `example_id`.

    `example_id` is a non-negative int32 made from the document's hash: the same document has the
    same id in every run. Held-out splits come from the shipped list, and `train` needs the
    versions that list was made with.

    Raises:
        RuntimeError: `train` under other package versions, where twins of held-out documents
            cannot be told apart.
    """
    del shuffle_files, seed  # the loader permutes
    return tf.data.Dataset.from_tensor_slices(_columns(_pairs(split)))


def _pairs(split: str) -> list[docstring_corpus.Pair]:
    if split in docstring_corpus.HELD_OUT:
        return docstring_corpus.held_out(split)
    expected, found = docstring_corpus.shipped()["packages"], docstring_corpus.package_versions()
    if expected != found:
        differing = ", ".join(
            f"{name} {found[name]} (expected {expected[name]})"
            for name in found
            if found[name] != expected.get(name)
        )
        raise RuntimeError(
            "the training split of `docstrings` is known for the pinned package versions only; "
            f"installed: {differing}. Install them with constraints.txt, or use a JSONL task."
        )
    return docstring_corpus.corpus()[split]


def _columns(pairs: list[docstring_corpus.Pair]) -> dict[str, list]:
    return {
        "inputs": [PREFIX + pair.document for pair in pairs],
        "targets": [pair.summary for pair in pairs],
        "example_id": tf.constant([example_id(pair) for pair in pairs], tf.int32),
    }


def example_id(pair: docstring_corpus.Pair) -> int:
    """31 bits of the document's hash."""
    return int(pair.hash[:8], 16) & 0x7FFFFFFF


def register(name: str, features: dict[str, seqio.Feature]) -> seqio.Task:
    """Registers the corpus under `name` for other features, such as another vocabulary."""
    return seqio.TaskRegistry.add(
        name,
        source=seqio.FunctionDataSource(dataset, splits=docstring_corpus.SPLITS),
        preprocessors=[
            seqio.preprocessors.tokenize,
            seqio.CacheDatasetPlaceholder(),
            seqio.preprocessors.append_eos_after_trim,
        ],
        output_features=features,
    )


register("docstrings", jsonl.features(vocabularies.docstrings_vocabulary()))

"""Registers the seqio task `docstrings`: predict the first line of a docstring from its body.

The field `keywords` holds the words that an output should contain, one per line (see `keywords`).
"""

import seqio
import tensorflow as tf

from dera_jax.data.example_ids import hashed_id
from dera_jax.tasks import docstring_corpus, jsonl, text

_MOST_KEYWORDS = 3
_WORDS = """
about after all also and any are args argument arguments because been before being between both but
can could does during each either every false for from get gets given has have how into its made
make makes may more most must no none not only onto other otherwise over own parameters part per
return returns returned same shall should since some such than that the their them then there these
they this those through true until upon use used uses using via was were what when where whether
which while who whose will with within without would you your
"""
_STOP_WORDS = frozenset(_WORDS.split())


def dataset(split: str, shuffle_files: bool, seed: int | None = None) -> tf.data.Dataset:
    """Return examples with the fields `document`, `targets`, `keywords` and `example_id`.

    `example_id` is a non-negative int32 from the document's hash, so that a document has the same
    id in every run. Held-out splits come from the shipped list. `train` needs the versions of the
    packages that the list was made with.

    Raises:
        RuntimeError: `train` is read under other versions of the packages, where near duplicates of
            held-out documents cannot be recognized.
    """
    del shuffle_files, seed  # the data loader shuffles
    return tf.data.Dataset.from_tensor_slices(_columns(pairs(split)))


def pairs(split: str) -> list[docstring_corpus.DocstringPair]:
    """Return the pairs of a split, in the task's order; raises RuntimeError as `dataset`."""
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
            "the training split of `docstrings` is defined for the pinned package versions only; "
            f"installed: {differing}. Install the pinned versions with constraints.txt, or use "
            "a JSONL task."
        )
    return docstring_corpus.corpus()[split]


def _columns(selected: list[docstring_corpus.DocstringPair]) -> dict[str, list]:
    return {
        "document": [pair.document for pair in selected],
        "targets": [pair.summary for pair in selected],
        "keywords": ["\n".join(keywords(pair)) for pair in selected],
        "example_id": tf.constant([example_id(pair) for pair in selected], tf.int32),
    }


def keywords(pair: docstring_corpus.DocstringPair) -> list[str]:
    """Return up to three keywords: the longest content words that document and summary share."""
    shared = shared_words(pair)
    longest = sorted(shared, key=len, reverse=True)[:_MOST_KEYWORDS]
    return [word for word in shared if word in longest]


def shared_words(pair: docstring_corpus.DocstringPair) -> list[str]:
    """Return the content words of the summary that occur in the document, each once, in order."""
    known = set(text.words(pair.document))
    words = dict.fromkeys(text.words(pair.summary))
    return [word for word in words if word in known and is_content(word)]


def is_content(word: str) -> bool:
    """Return whether a word has three letters or more and is not a stop word.

    Stop words are function words, and words that occur in most docstrings, such as `returns`.
    """
    return len(word) >= 3 and word.isalpha() and word not in _STOP_WORDS


def example_id(pair: docstring_corpus.DocstringPair) -> int:
    """Return the example id of a pair, 31 bits of the document's hash."""
    return hashed_id(pair.document)


@seqio.map_over_dataset
def _with_inputs(row: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    template = tf.constant(jsonl.SUMMARIZE)
    inputs = jsonl.render(template, row["document"])
    return row | {"inputs": inputs, "template": template, "keep_end": tf.constant(False)}


seqio.TaskRegistry.add(
    "docstrings",
    source=seqio.FunctionDataSource(dataset, splits=docstring_corpus.SPLITS),
    preprocessors=[_with_inputs],
    output_features=jsonl.features(),
)

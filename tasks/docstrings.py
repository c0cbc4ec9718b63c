"""seqio task `docstrings`: the body of a docstring in, its first line out.

The field `keywords` has the words to be covered, one per line (see `keywords`).
"""

import seqio
import tensorflow as tf

from tasks import docstring_corpus, jsonl, text

_MOST_KEYWORDS = 3
_WORDS = """
about after all also and any are args argument arguments because been before being between both but
can could does during each either every false for from get gets given has have how into its made
make makes may more most must no none not only onto other otherwise over own parameters part per
return returns returned same shall should since some such than that the their them then there these
they this those through true until upon use used uses using via was were what when where whether
which while who whose will with within without would you your
"""
_EMPTY_WORDS = frozenset(_WORDS.split())


def dataset(split: str, shuffle_files: bool, seed: int | None = None) -> tf.data.Dataset:
    """Examples: `document`, `targets`, `keywords`, `example_id`.

    `example_id` is a non-negative int32 made from the document's hash: the same document has the
    same id in every run. Held-out splits come from the shipped list, and `train` needs the
    versions that list was made with.

    Raises:
        RuntimeError: `train` under other package versions, where twins of held-out documents
            cannot be told apart.
    """
    del shuffle_files, seed  # the loader permutes
    return tf.data.Dataset.from_tensor_slices(_columns(pairs(split)))


def pairs(split: str) -> list[docstring_corpus.Pair]:
    """The pairs of a split, in the task's order. Raises RuntimeError as `dataset`."""
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


def _columns(found: list[docstring_corpus.Pair]) -> dict[str, list]:
    return {
        "document": [pair.document for pair in found],
        "targets": [pair.summary for pair in found],
        "keywords": ["\n".join(keywords(pair)) for pair in found],
        "example_id": tf.constant([example_id(pair) for pair in found], tf.int32),
    }


def keywords(pair: docstring_corpus.Pair) -> list[str]:
    """Up to three words that a summary should have: the longest of those that both texts share."""
    shared = shared_words(pair)
    longest = sorted(shared, key=len, reverse=True)[:_MOST_KEYWORDS]
    return [word for word in shared if word in longest]


def shared_words(pair: docstring_corpus.Pair) -> list[str]:
    """The content words of the summary that stand in the document, each once, in order."""
    known = set(text.words(pair.document))
    told = dict.fromkeys(text.words(pair.summary))
    return [word for word in told if word in known and is_content(word)]


def is_content(word: str) -> bool:
    """Three letters or more, and about something: no function word, and none of every docstring."""
    return len(word) >= 3 and word.isalpha() and word not in _EMPTY_WORDS


def example_id(pair: docstring_corpus.Pair) -> int:
    """31 bits of the document's hash."""
    return int(pair.hash[:8], 16) & 0x7FFFFFFF


@seqio.map_over_dataset
def _asked(row: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    template = tf.constant(jsonl.SUMMARIZE)
    inputs = jsonl.render(template, row["document"])
    return row | {"inputs": inputs, "template": template, "keep_end": tf.constant(False)}


seqio.TaskRegistry.add(
    "docstrings",
    source=seqio.FunctionDataSource(dataset, splits=docstring_corpus.SPLITS),
    preprocessors=[_asked],
    output_features=jsonl.features(),
)

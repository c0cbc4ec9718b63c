"""The docstrings corpus: reading, cleaning, grouping, splitting, and what other versions change."""

import json
import sys

import numpy as np
import pytest

from dera_jax.checkpoints.sentencepiece_vocabulary import SentencePieceVocabulary
from dera_jax.checkpoints.tokenizer import Tokenizer
from dera_jax.data import task_data
from dera_jax.data.encoding import Sizes
from dera_jax.tasks import cache, docstring_corpus, docstrings, text, vocabularies
from dera_jax.tasks.docstring_corpus import DocstringPair

GOOGLE = '''
class Layer:
    def __init__(self, units, name=None):
        pass

    def call(self, inputs, *, training=False):
        """Applies `Dropout` to the inputs.

        The layer drops units with the rate given in `__init__`, see
        :class:`~pkg.layers.Dropout` and [the guide](https://example.org/a).
        Use it as follows:

        ```python
        x = layer(y)
        ```

        * Units that are not dropped are *scaled* up.

        Args:
            inputs: a tensor.

        Returns:
            Another tensor.
        """
'''
NUMPY = '''
def spread(a, axis, _hidden):
    """
    Compute the spread of an array.

    The spread is largest minus smallest, as for :func:`numpy.ptp` [1]_, and is given in the
    unit of the array. It is defined as:

    .. math:: \\\\max a - \\\\min a

    Examples
    --------
    >>> spread([1, 2])
    1
    """
'''
ARGUMENTS_ONLY = '''
def clip(x, low):
    """Clip the values of an array.

    Parameters
    ----------
    x : array_like
        Values to be clipped, of any shape.
    low : float, optional
        The smallest value that is kept.

    See Also
    --------
    maximum : not this
    """
'''


def _pairs(source):
    return [docstring_corpus.to_pair(item, "f.py") for item in text.documented(source)]


def test_a_google_docstring_becomes_name_arguments_and_plain_body():
    (pair,) = _pairs(GOOGLE)
    assert pair.summary == "applies dropout to the inputs."
    assert pair.document == (
        "layer.call(inputs, training): the layer drops units with the rate given in init, see "
        "pkg.layers.dropout and the guide. units that are not dropped are scaled up."
    )


def test_a_numpy_docstring_loses_doctest_formula_and_citation():
    (pair,) = _pairs(NUMPY)
    assert pair.summary == "compute the spread of an array."
    assert pair.document.startswith("spread(a, axis): the spread is largest minus smallest, as for")
    assert "numpy.ptp, and" in pair.document
    assert not any(mark in pair.document for mark in (">>>", "[1]", "max a", "`", ":func:"))


def test_code_without_a_fence_is_dropped_with_what_announces_it():
    lines = ["Some text. For example:", "    y = layer(x)", "", "More text."]
    assert text.paragraphs(lines) == ["Some text.", "More text."]


def test_arguments_stand_in_for_a_missing_body_and_other_sections_do_not():
    (pair,) = _pairs(ARGUMENTS_ONLY)
    assert pair.document == (
        "clip(x, low): parameters: x: array like. values to be clipped, of any shape. "
        "low: float, optional. the smallest value that is kept."
    )


@pytest.mark.parametrize(
    "docstring",
    [
        "Too short a body.\n\nFew words only here.",
        (
            "dot(a, b, out=None)\n\nThe dot of a and b goes to out, which is None unless given; "
            "nothing else does."
        ),
        (
            "Deprecated, use the other one.\n\nDeprecated things have another one to use, the other "
            "one named here, that is."
        ),
        (
            "Copies the tensor to the\n\nThe tensor it copies is not changed, and others that copy "
            "it see the same."
        ),
        (
            "Copies the tensor\n\nthat it copies is not changed, and others that copy the tensor see "
            "the same."
        ),
    ],
)
def test_docstrings_without_a_usable_summary_or_body_are_skipped(docstring):
    assert docstring_corpus.to_pair(text.Documented("f", (), docstring), "f.py") is None
    # They are skipped for what they are, not because their body does not support them.
    summary, _, body = docstring.partition("\n\n")
    assert "Too short" in summary or docstring_corpus.support(body, summary) >= 0.6


@pytest.mark.parametrize(
    "written, expected",
    [
        ("Converts a SparseTensor_v2", "converts a sparse tensor v2"),
        ("tf.data.Dataset.__init__(y_true)", "tf.data.dataset.init(y true)"),
        ("NumPy on GPUs, TPUv4 and the XLACompiler", "numpy on gpus, tpuv4 and the xla compiler"),
    ],
)
def test_identifiers_are_read_as_words(written, expected):
    assert text.uncased(written) == expected


def test_support_counts_stems_and_leaves_function_words_out():
    document = "sort.values(x): sorting is stable, and copies are made."
    assert docstring_corpus.support(document, "Sorts the copied values of x.") == 1
    assert docstring_corpus.support(document, "Sorts an array, copied to memory") == 0.5


def test_a_summary_that_cannot_be_told_from_the_document_is_left_out():
    body = "The spread is largest minus smallest, in the unit of the array and not squared."
    pair_of = lambda summary: docstring_corpus.to_pair(
        text.Documented("spread", ("array",), f"{summary}\n\n{body}"), "f.py"
    )
    assert pair_of("Largest minus smallest value.") is not None  # three of four words
    assert pair_of("How much values vary.") is None


def _random_body(seed, count=40):
    rng = np.random.default_rng(seed)
    return " ".join(f"w{i}" for i in rng.integers(0, 1000, count))


def test_near_copies_share_a_group_transitively_and_so_a_split():
    first, second = _random_body(0), _random_body(1)
    bridge = " ".join(first.split()[:30] + second.split()[10:])  # half of either
    bodies = [first, second, bridge, _random_body(2), _random_body(3)]
    pairs = [
        DocstringPair(f"f{i}(): {body}.", f"Summary number {i}.", "f.py")
        for i, body in enumerate(bodies)
    ]
    groups = docstring_corpus.group(pairs)
    assert groups[0] == groups[1] == groups[2]
    assert len(set(groups)) == 3
    splits = docstring_corpus.split_of_groups(pairs, groups)
    assert splits[0] == splits[1] == splits[2]


def test_pairs_with_the_same_summary_share_a_group():
    pairs = [
        DocstringPair(f"f{i}(): {_random_body(i)}.", "Returns the mean, maybe.", "")
        for i in range(2)
    ]
    assert len(set(docstring_corpus.group(pairs))) == 1


def test_the_split_depends_on_content_not_on_order_and_holds_out_six_percent():
    pairs = [
        DocstringPair(f"f{i}(): {_random_body(i)}.", f"Summary number {i}.", "")
        for i in range(3000)
    ]
    singles = list(range(len(pairs)))
    splits = docstring_corpus.split_of_groups(pairs, singles)
    assert docstring_corpus.split_of_groups(pairs[::-1], singles) == splits[::-1]
    for split in docstring_corpus.HELD_OUT:
        # binomial(3000, 0.03): mean 90, standard deviation 9.3
        assert 60 < splits.count(split) < 120


@pytest.fixture
def small_package(tmp_path, monkeypatch):
    """A package of two documents, the first one listed as held out for versions of `small`."""
    root = tmp_path / "small"
    root.mkdir()
    (root / "layers.py").write_text(GOOGLE + NUMPY)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "small", raising=False)
    monkeypatch.setenv("DERA_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(docstring_corpus, "PACKAGES", {"small": ("absent", "numpy")})
    (listed,) = _pairs(GOOGLE)
    record = {
        "packages": docstring_corpus.package_versions(),
        "corpus_hash": "0",
        "validation": {},
        "test": {"small/layers.py": [listed.hash]},
    }
    monkeypatch.setattr(docstring_corpus, "shipped", lambda: record)
    return record


def test_only_listed_documents_are_held_out_and_the_rest_is_unknown_elsewhere(small_package):
    pairs = docstring_corpus.extract()
    assert docstring_corpus.listed_splits(pairs) == ["test", "train"]
    small_package["packages"] = {"small": "0.0"}
    assert docstring_corpus.listed_splits(pairs) == ["test", "unknown"]
    assert docstring_corpus.held_out("test") == pairs[:1]
    assert docstring_corpus.held_out("validation") == []


def test_training_data_is_refused_under_other_versions(small_package):
    small_package["packages"] = {"small": "0.0"}
    with pytest.raises(RuntimeError, match=r"small .* \(expected 0\.0\)"):
        docstrings.dataset("train", shuffle_files=False)


def test_a_held_out_split_is_named_in_the_error():
    with pytest.raises(ValueError, match="found 'train'"):
        docstring_corpus.held_out("train")


def test_a_missing_package_is_named_in_the_error(monkeypatch):
    monkeypatch.setattr(docstring_corpus, "PACKAGES", {"nowhere": ("absent", "missing")})
    with pytest.raises(ModuleNotFoundError, match="'nowhere'.*absent, missing"):
        docstring_corpus.package_versions()


def test_the_task_adds_prefix_end_of_sequence_and_a_stable_id(small_package):
    vocabulary = vocabularies.docstrings_vocabulary()
    pieces = SentencePieceVocabulary(vocabulary.sentencepiece_model_file, vocabularies.EXTRA_IDS)
    examples = task_data.epoch("docstrings", "test", Tokenizer(pieces), Sizes(64, 16), seed=0)
    (pair,) = docstring_corpus.held_out("test")
    expected = vocabulary.encode("summarize: " + pair.document) + [1]
    assert examples.inputs.tokens[0, : len(expected)].tolist() == expected
    target = examples.targets.tokens[0].tolist()
    assert target[: target.index(1)] == vocabulary.encode(pair.summary)
    assert examples.targets.lengths[0] == target.index(1) + 1
    assert examples.inputs.lengths[0] == len(expected)
    assert examples.example_id.tolist() == [int(pair.hash[:8], 16) % 2**31]
    assert examples.summaries == [pair.summary]
    assert examples.documents == [pair.document]


def test_a_failed_write_leaves_neither_the_file_nor_a_temporary_one(tmp_path, monkeypatch):
    monkeypatch.setenv("DERA_JAX_CACHE", str(tmp_path))

    def rows():
        yield {"a": 1}
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.rows("x", {}, rows)
    assert list(tmp_path.iterdir()) == []
    assert cache.rows("x", {}, lambda: [{"a": 2}]) == [{"a": 2}]
    assert cache.rows("x", {}, rows) == [{"a": 2}]


def test_the_shipped_vocabulary_has_4096_ids_and_keeps_text():
    vocabulary = vocabularies.docstrings_vocabulary()
    assert (vocabulary.vocab_size, vocabulary.pad_id, vocabulary.eos_id) == (4096, 0, 1)
    sentence = "returns the mean_squared_error(y_true, y_pred) of 1024 examples~"
    assert vocabulary.decode(vocabulary.encode(sentence)) == sentence
    assert vocabulary.encode(sentence.upper()) == vocabulary.encode(sentence)


def _needs_pinned_versions():
    if docstring_corpus.shipped()["packages"] != docstring_corpus.package_versions():
        pytest.skip("other package versions than those of the shipped list")


@pytest.mark.evidence
def test_the_computed_split_is_the_shipped_one(tmp_path, monkeypatch):
    _needs_pinned_versions()
    monkeypatch.setenv("DERA_JAX_CACHE", str(tmp_path))  # computed here, not read back
    splits = docstring_corpus.corpus()
    assert (
        json.loads(json.dumps(docstring_corpus.held_out_record(splits)))
        == docstring_corpus.shipped()
    )
    for split in docstring_corpus.HELD_OUT:
        assert docstring_corpus.held_out(split) == splits[split]
    seen = {" ".join(text.words(pair.summary)) for pair in splits["train"]}
    assert not any(" ".join(text.words(pair.summary)) in seen for pair in splits["test"])

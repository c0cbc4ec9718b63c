"""Registers the seqio task `prose`: self-supervised examples from the prose of installed packages.

Every passage occurs once per epoch, with an objective of `dera_jax.tasks.objectives` that is drawn from the
seed. Every docstring that is not held out occurs once per epoch as in the task `docstrings`. The
task yields ids, since spans of ids are corrupted. Another seed draws other objectives and spans.
"""

import functools
import hashlib
import importlib.resources
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import seqio
import tensorflow as tf

from dera_jax.prompts import DOCUMENT
from dera_jax.tasks import cache, docstring_corpus, jsonl, objectives, prose_corpus, vocabularies

SPLITS = ("train", "validation")
PASSAGE = 64  # tokens at most
HEADLINE_INPUT, HEADLINE_TARGET = 79, 31  # tokens at most, end-of-sequence excluded
_MIN_PASSAGE = 12  # tokens; shorter remainders are dropped

Columns = dict[str, np.ndarray]


def dataset(split: str, shuffle_files: bool, seed: int | None = None) -> tf.data.Dataset:
    """Return one epoch of token ids `inputs` and `targets`, a function of (split, seed)."""
    del shuffle_files  # the data loader shuffles
    inputs, targets = zip(*examples(split, 0 if seed is None else int(seed)), strict=True)
    return tf.data.Dataset.from_tensor_slices(
        {"inputs": _ragged(inputs), "targets": _ragged(targets)}
    )


def _ragged(rows: Sequence[np.ndarray]) -> tf.RaggedTensor:
    lengths = np.fromiter(map(len, rows), np.int64, len(rows))
    return tf.RaggedTensor.from_row_lengths(np.concatenate(rows).astype(np.int32), lengths)


def examples(split: str, seed: int) -> Iterator[objectives.Example]:
    """Yields (inputs [S], targets [T]) of one epoch: the passages, then the docstrings."""
    rng = np.random.default_rng([seed, SPLITS.index(split)])
    data, marks = tokens(split), vocabulary_marks()
    for passage in _rows(data, "passages"):
        yield objectives.draw(passage, marks, rng)
    yield from zip(_rows(data, "documents"), _rows(data, "summaries"), strict=True)


def _rows(data: Columns, name: str) -> list[np.ndarray]:
    """Split a column, stored as concatenated ids and the end of each row, into rows."""
    return np.split(data[name].astype(np.int32), data[f"{name}_ends"])[:-1]


def tokens(split: str) -> Columns:
    """Return the ids of passages, documents and summaries, each with its `_ends`; cached."""
    model = importlib.resources.files("dera_jax") / "assets" / "docstrings.model"
    key = {
        "packages": prose_corpus.versions(),
        "formats": [prose_corpus.FORMAT, docstring_corpus.FORMAT, PASSAGE],
        "held_out": docstring_corpus.shipped()["corpus_hash"],
        "vocabulary": hashlib.sha256(model.read_bytes()).hexdigest(),
    }
    target = cache.path(f"prose_{split}", key, ".npz")
    if not target.exists():
        columns = _tokenized(prose_corpus.corpus()[split])
        cache.write_atomically(target, lambda path: np.savez(path, **columns))
    with np.load(target) as stored:
        return dict(stored)


def _tokenized(prose: list[prose_corpus.Prose]) -> Columns:
    tokenizer = vocabularies.docstrings_vocabulary().tokenizer
    columns = {"passages": [], "documents": [], "summaries": []}
    for file in prose:
        columns["passages"] += pack(tokenizer.encode(file.paragraphs))
        for document, summary in file.headlines:
            prompt = jsonl.SUMMARIZE.replace(DOCUMENT, document)
            columns["documents"].append(tokenizer.encode(prompt)[:HEADLINE_INPUT])
            columns["summaries"].append(tokenizer.encode(summary)[:HEADLINE_TARGET])
    stored = {}
    for name, rows in columns.items():
        stored[name] = np.concatenate([np.asarray(row, np.int16) for row in rows])
        stored[f"{name}_ends"] = np.cumsum([len(row) for row in rows])
    return stored


def pack(paragraphs: Iterable[list[int]]) -> list[list[int]]:
    """Pack the paragraphs of one file, in order, into passages of at most `PASSAGE` tokens.

    Paragraphs are joined while they fit, and longer ones are divided. Passages of fewer than 12
    tokens are dropped.
    """
    passages: list[list[int]] = [[]]
    for paragraph in paragraphs:
        if len(passages[-1]) + len(paragraph) > PASSAGE:
            passages.append([])
        pieces = [paragraph[i : i + PASSAGE] for i in range(0, len(paragraph), PASSAGE)]
        passages[-1] = passages[-1] + (pieces[0] if pieces else [])
        passages += pieces[1:]
    return [passage for passage in passages if len(passage) >= _MIN_PASSAGE]


@functools.cache
def vocabulary_marks() -> objectives.Marks:
    """Return the sentinels, sentence ends, word starts and prefixes of the shipped vocabulary."""
    vocabulary = vocabularies.docstrings_vocabulary()
    tokenizer = vocabulary.tokenizer
    size = vocabulary.vocab_size
    pieces = [tokenizer.id_to_piece(i) for i in range(size - vocabularies.EXTRA_IDS)]
    pieces += [""] * vocabularies.EXTRA_IDS
    prefixes = (np.asarray(tokenizer.encode(t), np.int32) for t in ("copy:", "find:", "gap:"))
    return objectives.Marks(
        np.arange(size - 1, size - 1 - vocabularies.EXTRA_IDS, -1, dtype=np.int32),
        np.array([piece.endswith((".", "!", "?")) for piece in pieces]),
        np.array([piece.startswith("▁") for piece in pieces]),
        *prefixes,
    )


seqio.TaskRegistry.add(
    "prose",
    source=seqio.FunctionDataSource(dataset, splits=SPLITS),
    preprocessors=[seqio.CacheDatasetPlaceholder(), seqio.preprocessors.append_eos_after_trim],
    output_features={
        name: seqio.Feature(vocabularies.docstrings_vocabulary(), add_eos=True)
        for name in ("inputs", "targets")
    },
)

"""Registers the tasks of `dera_jax.tasks` as T5X reads them: as ids of a vocabulary.

    --gin.MIXTURE_OR_TASK_MODULE=\\"dera_jax.t5x.tasks\\" --gin.MIXTURE_OR_TASK_NAME=\\"xsum_ids\\"

Importing this module registers every task of text again, as `<name>_ids` over T5's public
vocabulary. Use `register` for another vocabulary.
"""

import os
from collections.abc import Mapping

import dera_jax.tasks  # noqa: F401 (registers the tasks of text)
from dera_jax.data.seqio_extra import seqio, tf
from dera_jax.data.seqio_tasks import yields_text

_T5_PIECES = "gs://t5-data/vocabs/cc_all.32000/sentencepiece.model"
_TEXT_FIELDS = ("document", "template", "keep_end")


def t5_vocabulary() -> seqio.SentencePieceVocabulary:
    """Return T5's vocabulary of 32,000 pieces and 100 sentinels.

    It is read from the file named by DERA_JAX_T5_VOCABULARY, by default from T5's public bucket.
    """
    path = os.environ.get("DERA_JAX_T5_VOCABULARY") or _T5_PIECES
    return seqio.SentencePieceVocabulary(path, extra_ids=100)


def register(name: str, of: str, vocabulary: seqio.Vocabulary) -> seqio.Task:
    """Registers a task of text as a task of ids of a vocabulary.

    Sequences that are too long are truncated at their end and still end with the end token. Inputs
    of dialogues (`keep_end`) are truncated at their beginning. Unlike in the library itself, the
    part of a template that follows a long document is therefore truncated too.

    Args:
        name: of the new task; each name can be registered once.
        of: the name of a registered task of text.
        vocabulary: of inputs and completions.

    Raises:
        ValueError: `of` yields ids, or the name is already registered.
    """
    task = seqio.TaskRegistry.get(of)
    if not yields_text(task):
        raise ValueError(f"task {of!r} yields ids already; give a task of text")
    steps = (seqio.preprocessors.tokenize, _cut, seqio.preprocessors.append_eos_after_trim)
    return seqio.TaskRegistry.add(
        name,
        source=task.source,
        preprocessors=[*task.preprocessors, *steps],
        output_features={x: seqio.Feature(vocabulary) for x in task.output_features},
    )


def _cut(dataset: tf.data.Dataset, sequence_length: Mapping[str, int] | None) -> tf.data.Dataset:
    """Truncates dialogues at their beginning, and drops the fields that only text tasks need."""

    def cut(row: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        kept = {name: x for name, x in row.items() if name not in _TEXT_FIELDS}
        if not sequence_length or "keep_end" not in row:
            return kept
        ids, room = row["inputs"], sequence_length["inputs"] - 1  # minus the end token
        start = tf.where(row["keep_end"], tf.maximum(tf.size(ids) - room, 0), 0)
        return kept | {"inputs": ids[start:]}

    return dataset.map(cut)


for _name in sorted(seqio.TaskRegistry.names()):
    if yields_text(seqio.TaskRegistry.get(_name)):
        register(f"{_name}_ids", _name, t5_vocabulary())

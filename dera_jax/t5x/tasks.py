"""The tasks of `tasks` as T5X reads them: ids of a vocabulary.

    --gin.MIXTURE_OR_TASK_MODULE=\\"dera_jax.t5x.tasks\\" --gin.MIXTURE_OR_TASK_NAME=\\"xsum_ids\\"

Importing this module registers every task of texts once more, as `<name>_ids` over T5's public
vocabulary; for another one: `register`.
"""

import os
from collections.abc import Mapping

import seqio
import tensorflow as tf

import tasks  # noqa: F401 (registers those that are taken up here)
from dera_jax.seqio_tasks import yields_text

_T5_PIECES = "gs://t5-data/vocabs/cc_all.32000/sentencepiece.model"
_OF_TEXTS = ("document", "template", "keep_end")


def t5_vocabulary() -> seqio.SentencePieceVocabulary:
    """T5's 32,000 pieces and 100 sentinels, from its bucket or the file DERA_JAX_T5_VOCABULARY."""
    path = os.environ.get("DERA_JAX_T5_VOCABULARY") or _T5_PIECES
    return seqio.SentencePieceVocabulary(path, extra_ids=100)


def register(name: str, of: str, vocabulary: seqio.Vocabulary) -> seqio.Task:
    """Registers a task of texts over a vocabulary.

    What is too long is cut at its end and ends with the end token, of dialogues (`keep_end`) the
    inputs at their beginning. So a template's words after a long document are cut too, unlike in the
    library itself.

    Args:
        name: of the new task; each name can be registered once.
        of: the name of a registered task of texts.
        vocabulary: of inputs and completions.

    Raises:
        ValueError: `of` yields ids, or the name is taken.
    """
    task = seqio.TaskRegistry.get(of)
    if not yields_text(task):
        raise ValueError(f"task {of!r} yields ids already")
    steps = (seqio.preprocessors.tokenize, _cut, seqio.preprocessors.append_eos_after_trim)
    return seqio.TaskRegistry.add(
        name,
        source=task.source,
        preprocessors=[*task.preprocessors, *steps],
        output_features={x: seqio.Feature(vocabulary) for x in task.output_features},
    )


def _cut(dataset: tf.data.Dataset, sequence_length: Mapping[str, int] | None) -> tf.data.Dataset:
    """Of dialogues the beginning, before T5X cuts the end; and drops what only texts need."""

    def cut(row: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        kept = {name: x for name, x in row.items() if name not in _OF_TEXTS}
        if not sequence_length or "keep_end" not in row:
            return kept
        ids, room = row["inputs"], sequence_length["inputs"] - 1  # and the end token
        start = tf.where(row["keep_end"], tf.maximum(tf.size(ids) - room, 0), 0)
        return kept | {"inputs": ids[start:]}

    return dataset.map(cut)


for _name in sorted(seqio.TaskRegistry.names()):
    if yields_text(seqio.TaskRegistry.get(_name)):
        register(f"{_name}_ids", _name, t5_vocabulary())

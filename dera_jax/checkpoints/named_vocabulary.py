"""Finds a vocabulary by name, for checkpoints that hold none."""

import dataclasses
from pathlib import Path

from dera_jax.checkpoints.byte_vocabulary import ByteVocabulary
from dera_jax.checkpoints.json_vocabulary import JsonVocabulary
from dera_jax.checkpoints.recognise import open_vocabulary
from dera_jax.checkpoints.sentencepiece_vocabulary import SentencePieceVocabulary
from dera_jax.checkpoints.vocabulary import Vocabulary

BYTES = "bytes"


def named_vocabulary(name: str | Vocabulary | None, extra_ids: int = 0) -> Vocabulary | None:
    """Returns the vocabulary of a name; None for None.

    A SentencePiece file is not read here but at first use.

    Args:
        name: a SentencePiece file (`….model`), a tokenizer.json, 'bytes' for ByT5's vocabulary, the
            folder of a model that holds its vocabulary, its name on the Hugging Face hub, or a
            vocabulary.
        extra_ids: number of sentinels to add to a SentencePiece file or to the bytes; 100 in T5's
            public vocabulary.

    Raises:
        FileNotFoundError: there is no such local file or model.
        ValueError: the model holds no vocabulary, or `extra_ids` is given for a vocabulary that
            defines its own sentinels.
    """
    if name is None:
        return None
    if name == BYTES:
        return ByteVocabulary(extra_ids)
    if isinstance(name, str) and name.endswith((".model", ".json")) and "://" not in name:
        _check_exists(name)
    if isinstance(name, str) and name.endswith(".model"):
        return SentencePieceVocabulary(name, extra_ids)
    if extra_ids:
        raise ValueError(
            f"EXTRA_IDS is {extra_ids}: sentinels can be added to a SentencePiece file (….model) or to "
            f"'{BYTES}', but {name!r} defines its own; set EXTRA_IDS to 0"
        )
    if not isinstance(name, str):
        return name
    return _of_json(JsonVocabulary(name)) if name.endswith(".json") else open_vocabulary(name)


def _check_exists(path: str) -> None:
    if not Path(path).is_file():
        raise FileNotFoundError(f"VOCABULARY names {path!r}, but there is no such file")


def _of_json(vocabulary: JsonVocabulary) -> JsonVocabulary:
    return dataclasses.replace(vocabulary, begin=vocabulary.first_added())

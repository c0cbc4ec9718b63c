"""The vocabulary that somebody names, for checkpoints that do not say what their ids mean."""

import dataclasses
from pathlib import Path

from dera_jax.checkpoints.byte_vocabulary import ByteVocabulary
from dera_jax.checkpoints.json_vocabulary import JsonVocabulary
from dera_jax.checkpoints.recognise import open_checkpoint
from dera_jax.checkpoints.sentencepiece_vocabulary import SentencePieceVocabulary
from dera_jax.checkpoints.vocabulary import Vocabulary

BYTES = "bytes"


def named_vocabulary(name: str | Vocabulary | None, extra_ids: int = 0) -> Vocabulary | None:
    """The vocabulary of a name; None for None. A SentencePiece file is read when it is needed, not here.

    Args:
        name: a SentencePiece file (`….model`), a tokenizer.json, 'bytes' for ByT5's, or the folder of a
            model that says what its ids mean; or a vocabulary itself.
        extra_ids: sentinels above the pieces of a SentencePiece file, or above the bytes: 100 in
            T5's public vocabulary.

    Raises:
        FileNotFoundError, ValueError: no such local file or model, or sentinels for a vocabulary that says
            itself what it has.
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
            f"'{BYTES}', and {name!r} says itself what it has; leave them out"
        )
    if not isinstance(name, str):
        return name
    return _of_json(JsonVocabulary(name)) if name.endswith(".json") else _of_model(name)


def _check_exists(path: str) -> None:
    if not Path(path).is_file():
        raise FileNotFoundError(f"VOCABULARY names {path!r}, and there is no such file")


def _of_json(found: JsonVocabulary) -> JsonVocabulary:
    return dataclasses.replace(found, begin=found.first_added())


def _of_model(folder: str) -> Vocabulary:
    found = open_checkpoint(folder)
    if found.vocabulary is None:
        raise ValueError(found.no_vocabulary or f"{folder} does not say what its ids mean")
    return found.vocabulary

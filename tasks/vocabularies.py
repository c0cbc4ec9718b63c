"""Vocabularies of the tasks."""

import importlib.resources
import os

import seqio

EXTRA_IDS = 96  # sentinels; 4,000 pieces and these make 4,096 ids


def docstrings_vocabulary() -> seqio.SentencePieceVocabulary:
    """The shipped vocabulary of the tiny models: 4,000 pieces and 96 sentinels."""
    path = importlib.resources.files("dera_jax") / "assets" / "docstrings.model"
    return sentencepiece(str(path), EXTRA_IDS)


def sentencepiece(path: str, extra_ids: int = 0) -> seqio.SentencePieceVocabulary:
    """Any SentencePiece model file.

    extra_ids: sentinels above its pieces (T5's public vocabulary needs 100)

    Raises:
        FileNotFoundError: a local `path` that does not exist.
    """
    if "://" not in path and not os.path.exists(path):
        raise FileNotFoundError(f"no SentencePiece model at {path!r}")
    return seqio.SentencePieceVocabulary(path, extra_ids)


def bytes_vocabulary() -> seqio.ByteVocabulary:
    """UTF-8 bytes: no file needed; for tests."""
    return seqio.ByteVocabulary()

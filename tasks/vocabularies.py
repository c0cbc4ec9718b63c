"""Vocabularies of the tasks."""

import importlib.resources
import io
import os
from collections.abc import Iterable

import numpy as np
import sentencepiece as sentencepiece_library
import seqio
import tensorflow as tf

from dera_jax.checkpoints.recognise import open_checkpoint
from dera_jax.checkpoints.sentencepiece_vocabulary import SentencePieceVocabulary
from dera_jax.checkpoints.vocabulary import Vocabulary, check_end

EXTRA_IDS = 96  # sentinels; 4,000 pieces and these make 4,096 ids


def docstrings_vocabulary() -> seqio.SentencePieceVocabulary:
    """The shipped vocabulary of the tiny models: 4,000 pieces and 96 sentinels."""
    path = importlib.resources.files("dera_jax") / "assets" / "docstrings.model"
    return seqio.SentencePieceVocabulary(str(path), EXTRA_IDS)


def sentencepiece(path: str, extra_ids: int = 0) -> seqio.SentencePieceVocabulary:
    """Any SentencePiece model file.

    extra_ids: sentinels above its pieces (T5's public vocabulary needs 100)

    Raises:
        FileNotFoundError: a local `path` that does not exist.
        ValueError: a local file that is no SentencePiece model, or whose id 0 is not padding.
    """
    if "://" not in path:
        if not os.path.exists(path):
            raise FileNotFoundError(f"no SentencePiece model at {path!r}")
        check_end(SentencePieceVocabulary(path, extra_ids), path)
    return seqio.SentencePieceVocabulary(path, extra_ids)


class ModelVocabulary(seqio.Vocabulary):
    """The vocabulary of a model's folder for seqio, whatever kind of file it is from.

    Attributes:
        stored: the vocabulary.
    """

    def __init__(self, stored: Vocabulary):
        super().__init__()
        self.stored = stored

    @property
    def eos_id(self) -> int:
        return self.stored.end_id

    @property
    def unk_id(self) -> int | None:
        return self.stored.unknown_id

    @property
    def _base_vocab_size(self) -> int:
        return len(self.stored.pieces)

    def _encode(self, s: str) -> list[int]:
        return self.stored.encode(s)

    def _decode(self, ids: Iterable[int]) -> str:
        return self.stored.decode(list(ids))

    def _encode_tf(self, s: tf.Tensor) -> tf.Tensor:
        encode = lambda text: np.array(self.stored.encode(text.decode()), np.int32)
        ids = tf.numpy_function(encode, [s], tf.int32)
        ids.set_shape([None])
        return ids

    def _decode_tf(self, ids: tf.Tensor) -> tf.Tensor:
        decode = lambda row: self.stored.decode(row.tolist()).encode()
        text = tf.numpy_function(decode, [ids], tf.string)
        text.set_shape([])
        return text

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ModelVocabulary) and self.stored == other.stored

    __hash__ = None  # as seqio's own


def of_model(folder: str) -> ModelVocabulary:
    """The vocabulary of a model's folder: a tokenizer.json, a SentencePiece file with added tokens.

    Raises:
        FileNotFoundError: no model there.
        ValueError: it does not say what its ids mean, or id 0 is not padding.
    """
    found = open_checkpoint(folder)
    if found.vocabulary is None:
        raise ValueError(found.no_vocabulary or f"{folder} does not say what its ids mean")
    check_end(found.vocabulary, folder)
    return ModelVocabulary(found.vocabulary)


def bytes_vocabulary() -> seqio.ByteVocabulary:
    """UTF-8 bytes: no file needed; for tests."""
    return seqio.ByteVocabulary()


def train(texts: Iterable[str], path: str, pieces: int = 4000) -> None:
    """Trains a unigram SentencePiece model on `texts` and writes it to `path`.

    Its ids are T5's: padding 0, end-of-sequence 1, unknown 2. Digits are single pieces. Text is put
    in lower case, and no printable ASCII character is unknown.
    """
    model = io.BytesIO()
    sentencepiece_library.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=model,
        model_type="unigram",
        vocab_size=pieces,
        normalization_rule_name="nmt_nfkc_cf",
        character_coverage=0.9998,
        required_chars="".join(c for c in map(chr, range(33, 127)) if not c.isupper()),
        split_digits=True,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        num_threads=2,
        minloglevel=1,
    )
    with open(path, "wb") as out:
        out.write(model.getvalue())

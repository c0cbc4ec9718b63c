"""A reference and aligned models from their folders, checked to fit each other."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import sentencepiece

from dera_jax.checkpoints.model_folder import load_model
from dera_jax.checkpoints.vocabulary import BYTE_OFFSET, Vocabulary, check_same
from dera_jax.decoding.realign import Realigned
from dera_jax.models.language_model import PyTree


@dataclasses.dataclass(frozen=True)
class Pair:
    """A realigned model with its parameters (reference's first) and the text around it."""

    model: Realigned
    params: tuple[PyTree, ...]
    vocabulary: Vocabulary
    cards: tuple[dict, ...]


def load_pair(reference: str | Path, aligned: Sequence[str | Path]) -> Pair:
    """Loads model folders as one realigned model.

    Raises:
        FileNotFoundError, ValueError: a folder that is no complete model, or models whose
            vocabularies differ, naming the first piece that does.
    """
    loaded = [load_model(folder) for folder in (reference, *aligned)]
    for folder, model in zip(aligned, loaded[1:], strict=True):
        check_same(loaded[0].vocabulary, model.vocabulary, str(reference), str(folder))
    models = [x.model for x in loaded]
    return Pair(
        model=Realigned(models[0], tuple(models[1:])),
        params=tuple(x.params for x in loaded),
        vocabulary=loaded[0].vocabulary,
        cards=tuple(x.card for x in loaded),
    )


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """Text to ids and back, without TensorFlow; equal to the seqio vocabulary of the same file."""

    encode: Callable[[str], list[int]]
    decode: Callable[[Sequence[int]], str]


def tokenizer(vocabulary: Vocabulary) -> Tokenizer:
    """The tokenizer of a vocabulary. Decoding leaves out ids that stand for no text."""
    if vocabulary.file is None:
        return Tokenizer(
            encode=lambda text: [byte + BYTE_OFFSET for byte in text.encode()],
            decode=lambda ids: bytes(
                i - BYTE_OFFSET for i in ids if BYTE_OFFSET <= i < BYTE_OFFSET + 256
            ).decode(errors="ignore"),
        )
    processor = sentencepiece.SentencePieceProcessor(model_file=str(vocabulary.file))
    size = processor.vocab_size()
    return Tokenizer(
        encode=processor.encode,
        decode=lambda ids: processor.decode([int(i) for i in ids if 1 < i < size]),
    )

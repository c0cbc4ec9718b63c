"""A reference and aligned models from their folders, checked to fit each other."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import sentencepiece

from dera_jax.checkpoints.model_folder import Loaded, Vocabulary, load_model
from dera_jax.decoding.realign import Realigned
from dera_jax.models.language_model import PyTree

BYTE_OFFSET = 3  # seqio's byte vocabulary: 0, 1, 2 are padding, end and unknown


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
        check_vocabularies(loaded[0], model, str(reference), str(folder))
    models = [x.model for x in loaded]
    return Pair(
        model=Realigned(models[0], tuple(models[1:])),
        params=tuple(x.params for x in loaded),
        vocabulary=loaded[0].vocabulary,
        cards=tuple(x.card for x in loaded),
    )


def pieces(vocabulary: Vocabulary) -> list[str]:
    """What each id stands for."""
    if vocabulary.file is None:
        texts = [f"<special {i}>" for i in range(BYTE_OFFSET)] + [f"<byte {i}>" for i in range(256)]
    else:
        processor = sentencepiece.SentencePieceProcessor(model_file=str(vocabulary.file))
        texts = [processor.id_to_piece(i) for i in range(processor.vocab_size())]
    return texts + [f"<extra id {i}>" for i in range(vocabulary.extra_ids)]


def check_vocabularies(first: Loaded, second: Loaded, first_name: str, second_name: str) -> None:
    """Refuses two models whose ids mean different pieces.

    Raises:
        ValueError: naming the first id that differs, and both pieces.
    """
    ours, theirs = pieces(first.vocabulary), pieces(second.vocabulary)
    for i in range(max(len(ours), len(theirs))):
        a = ours[i] if i < len(ours) else "(no such id)"
        b = theirs[i] if i < len(theirs) else "(no such id)"
        if a != b:
            raise ValueError(
                f"vocabularies differ at id {i}: {a!r} in {first_name}, {b!r} in {second_name}; "
                "logits can only be combined over the same vocabulary"
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

"""What a model's ids mean, and whether two models mean the same."""

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import sentencepiece

BYTE_OFFSET = 3  # seqio's byte vocabulary: 0, 1, 2 are padding, end and unknown


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """A SentencePiece file with `extra_ids` sentinels above its pieces; file None: UTF-8 bytes."""

    file: Path | None
    extra_ids: int = 0

    @property
    def sha256(self) -> str | None:
        """Of the file's content."""
        return self.file and hashlib.sha256(self.file.read_bytes()).hexdigest()


def pieces(vocabulary: Vocabulary) -> list[str]:
    """What each id stands for."""
    if vocabulary.file is None:
        texts = [f"<special {i}>" for i in range(BYTE_OFFSET)] + [f"<byte {i}>" for i in range(256)]
    else:
        processor = sentencepiece.SentencePieceProcessor(model_proto=vocabulary.file.read_bytes())
        texts = [processor.id_to_piece(i) for i in range(processor.vocab_size())]
    return texts + [f"<extra id {i}>" for i in range(vocabulary.extra_ids)]


def check_same(first: Vocabulary, second: Vocabulary, first_name: str, second_name: str) -> None:
    """Refuses two vocabularies whose ids mean different pieces.

    Raises:
        ValueError: naming the first id that differs, and both pieces.
    """
    ours, theirs = pieces(first), pieces(second)
    for i in range(max(len(ours), len(theirs))):
        a = ours[i] if i < len(ours) else "(no such id)"
        b = theirs[i] if i < len(theirs) else "(no such id)"
        if a != b:
            raise ValueError(
                f"vocabularies differ at id {i}: {a!r} in {first_name}, {b!r} in {second_name}; "
                "ids can only be shared, and logits combined, over the same vocabulary"
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

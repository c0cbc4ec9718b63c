"""What rewards read once before a run: `rewards.protocol.Resources` over a vocabulary and folders."""

import dataclasses
from collections.abc import Callable

import jax
import sentencepiece
from jax import Array

from dera_jax.checkpoints.loading import load_params
from dera_jax.checkpoints.vocabulary import BYTE_OFFSET, Vocabulary, agreed, is_sentinel, tokenizer

PyTree = object
_UNKNOWN = " \N{DOUBLE QUESTION MARK} ".encode()  # how SentencePiece writes an unknown piece
_PIECE_BYTES = 16  # of the longest piece in most vocabularies


@dataclasses.dataclass(frozen=True)
class RunResources:
    """Of a run over this vocabulary."""

    vocabulary: Vocabulary

    def pieces(self) -> list[bytes]:
        """The text of every id in UTF-8; b"" for ids that stand for none."""
        if self.vocabulary.file is None:
            extra = [b""] * self.vocabulary.extra_ids
            return [b""] * BYTE_OFFSET + [bytes([i]) for i in range(256)] + extra
        processor = self.vocabulary.processor()
        return [_text(processor, i) for i in range(processor.vocab_size())]

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, without the end of sequence."""
        return tokenizer(self.vocabulary).encode(text)

    def params(self, folder: str | None, init: Callable[[Array], PyTree]) -> PyTree:
        """The parameters of a finished model's folder; raises as `rewards.protocol.Resources`."""
        if folder is None:
            raise ValueError("a learned reward needs the folder of its model")
        params, theirs = load_params(folder, init)
        agreed(theirs, self.vocabulary, folder, "this run")
        return params


def _text(processor: sentencepiece.SentencePieceProcessor, i: int) -> bytes:
    if processor.is_unknown(i):
        return _UNKNOWN
    piece = processor.id_to_piece(i)
    if processor.is_control(i) or processor.is_unused(i) or is_sentinel(piece):
        return b""
    if processor.is_byte(i):
        return bytes([int(piece[1:-1], 16)])
    return piece.replace("▁", " ").encode()


@dataclasses.dataclass(frozen=True)
class ShapesOnly:
    """For a dry run: nothing is read, and arrays have the shapes of a usual vocabulary."""

    vocab_size: int

    def pieces(self) -> list[bytes]:
        return [b"x" * _PIECE_BYTES] * self.vocab_size

    def encode(self, text: str) -> list[int]:
        return [0] * len(text.split())

    def params(self, folder: str | None, init: Callable[[Array], PyTree]) -> PyTree:
        del folder
        return jax.eval_shape(init, jax.random.key(0))

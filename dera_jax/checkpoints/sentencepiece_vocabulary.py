"""A SentencePiece file as a vocabulary, with the ids that seqio gives it."""

import dataclasses
import functools
import hashlib
import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import sentencepiece
from google.protobuf.message import DecodeError
from sentencepiece import sentencepiece_model_pb2

from dera_jax.checkpoints.storage import read_file
from dera_jax.checkpoints.vocabulary import is_sentinel, sentinel

_Piece = sentencepiece_model_pb2.ModelProto.SentencePiece
_UNKNOWN = " \N{DOUBLE QUESTION MARK} ".encode()  # how SentencePiece writes an unknown piece


@dataclasses.dataclass(frozen=True)
class SentencePieceVocabulary:
    """A SentencePiece file with `extra_ids` sentinels and added tokens above its pieces.

    As in T5 the first sentinel, <extra_id_0>, has the highest id of them; some files, those of T5X
    among them, hold the sentinels as pieces of their own.

    Attributes:
        file: its path or URL.
        extra_ids: sentinels that are not pieces of the file.
        added: texts with an id of their own, as transformers' `add_tokens` makes them; their ids
            follow the sentinels'. They are found in a text before SentencePiece sees the rest.
    """

    file: str
    extra_ids: int = 0
    added: tuple[str, ...] = ()

    def __post_init__(self):
        object.__setattr__(self, "file", str(self.file))
        object.__setattr__(self, "added", tuple(self.added))

    @property
    def name(self) -> str:
        """Of the file, without its folder."""
        return Path(self.file).name

    @property
    def sha256(self) -> str:
        """Of the file's content."""
        return hashlib.sha256(self.content()).hexdigest()

    def content(self) -> bytes:
        """The file's; raises FileNotFoundError where there is none."""
        return read_file(self.file)

    @functools.cached_property
    def processor(self) -> sentencepiece.SentencePieceProcessor:
        """Of the file, with the sentinels as pieces, as seqio has them; read once.

        Raises:
            FileNotFoundError, ValueError: there is no such file, or it is none of SentencePiece.
        """
        try:
            found = _processor(self.content(), self.extra_ids)
        except (DecodeError, RuntimeError) as error:
            raise ValueError(f"{self.file} is no SentencePiece model ({error})") from error
        if found.vocab_size() <= self.extra_ids:  # an empty file is a valid message of no pieces
            raise ValueError(f"{self.file} is no SentencePiece model: it has no pieces")
        return found

    @functools.cached_property
    def _of_texts(self) -> sentencepiece.SentencePieceProcessor:
        """The same, for which sentinels that a text spells are characters."""
        self.processor  # noqa: B018 (its errors)
        return _processor(self.content(), self.extra_ids, writable=False)

    @property
    def pieces(self) -> Sequence[str]:
        return (*_pieces(self.processor), *self.added)

    @property
    def padding_id(self) -> int | None:
        return _known(self.processor.pad_id())

    @property
    def begin_id(self) -> int | None:
        return _known(self.processor.bos_id())

    @property
    def end_id(self) -> int | None:
        return _known(self.processor.eos_id())

    @property
    def unknown_id(self) -> int | None:
        return _known(self.processor.unk_id())

    def encode(self, text: str) -> list[int]:
        return self._encode(self.processor, text)

    def encode_text(self, text: str) -> list[int]:
        return self._encode(self._of_texts, text)

    def _encode(self, processor: sentencepiece.SentencePieceProcessor, text: str) -> list[int]:
        if not self.added:
            return processor.encode(text)
        longest_first = sorted(self.added, key=len, reverse=True)
        parts = re.split(f"({'|'.join(map(re.escape, longest_first))})", text)
        size = processor.vocab_size()
        ids = [
            [size + self.added.index(part)] if i % 2 else processor.encode(part)
            for i, part in enumerate(parts)
        ]
        return list(itertools.chain.from_iterable(ids))

    def decode(self, ids: Sequence[int]) -> str:
        processor = self.processor
        size, silent = processor.vocab_size(), _silent(processor)
        kept = [int(i) for i in ids if 0 <= i < size + len(self.added) and i not in silent]
        if not self.added:
            return processor.decode(kept)
        text = ""
        for is_added, run in itertools.groupby(kept, lambda i: i >= size):
            run = list(run)
            if is_added:
                text += "".join(self.added[i - size] for i in run)
            else:
                apart = text and processor.id_to_piece(run[0]).startswith("▁")
                text += " " * bool(apart) + processor.decode(run)
        return text

    def piece_bytes(self) -> list[bytes]:
        processor = self.processor
        found = [_text(processor, i) for i in range(processor.vocab_size())]
        return found + [text.encode() for text in self.added]

    def described(self) -> dict[str, object]:
        found = {"file": self.name, "sha256": self.sha256, "extra_ids": self.extra_ids}
        return found | ({"added": list(self.added)} if self.added else {})

    def file_content(self) -> Mapping[str, bytes]:
        return {self.name: self.content()}


@functools.lru_cache(maxsize=8)
def _processor(
    content: bytes, extra_ids: int, writable: bool = True
) -> sentencepiece.SentencePieceProcessor:
    """`writable` says whether what spells a sentinel is one, also of those that the file holds."""
    model = sentencepiece_model_pb2.ModelProto.FromString(content)
    for i in reversed(range(extra_ids)):
        model.pieces.add(piece=f"▁<extra_id_{i}>", score=0.0, type=_Piece.USER_DEFINED)
    for piece in model.pieces:
        if not writable and is_sentinel(piece.piece):
            piece.type = _Piece.UNUSED
    return sentencepiece.SentencePieceProcessor(model_proto=model.SerializeToString())


@functools.lru_cache(maxsize=8)
def _pieces(processor: sentencepiece.SentencePieceProcessor) -> tuple[str, ...]:
    found = [processor.id_to_piece(i) for i in range(processor.vocab_size())]
    return tuple(sentinel(piece) or piece for piece in found)


@functools.lru_cache(maxsize=8)
def _silent(processor: sentencepiece.SentencePieceProcessor) -> frozenset[int]:
    """Ids that stand for no text: padding, begin and end of sequence, sentinels."""
    control = {i for i in range(processor.vocab_size()) if processor.is_control(i)}
    return frozenset(control | {i for i, x in enumerate(_pieces(processor)) if is_sentinel(x)})


def _known(special_id: int) -> int | None:
    return None if special_id < 0 else special_id


def _text(processor: sentencepiece.SentencePieceProcessor, i: int) -> bytes:
    if processor.is_unknown(i):
        return _UNKNOWN
    piece = processor.id_to_piece(i)
    if processor.is_control(i) or processor.is_unused(i) or is_sentinel(piece):
        return b""
    if processor.is_byte(i):
        return bytes([int(piece[1:-1], 16)])
    return piece.replace("▁", " ").encode()

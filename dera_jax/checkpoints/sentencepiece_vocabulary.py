"""Defines a vocabulary that is read from a SentencePiece file, with the same ids as in seqio."""

import dataclasses
import functools
import itertools
import re
from collections.abc import Mapping, Sequence

import sentencepiece
from google.protobuf.message import DecodeError
from sentencepiece import sentencepiece_model_pb2

from dera_jax.checkpoints.vocabulary import SpecialTokens, TextPart, is_sentinel, sentinel
from dera_jax.checkpoints.vocabulary_file import VocabularyFile

_Piece = sentencepiece_model_pb2.ModelProto.SentencePiece
_UNKNOWN = " \N{DOUBLE QUESTION MARK} ".encode()  # SentencePiece's text for an unknown piece


@dataclasses.dataclass(frozen=True)
class SentencePieceVocabulary(VocabularyFile):
    """A SentencePiece file with sentinels and added tokens; implements `vocabulary.Vocabulary`.

    The sentinels' ids follow the pieces' ids. As in T5, the first sentinel, <extra_id_0>, has the
    highest of them. Some files, such as those of T5X, hold the sentinels as pieces.

    Attributes:
        file: path or URL of the SentencePiece file.
        extra_ids: number of sentinels that are not pieces of the file.
        added: added tokens, as by transformers' `add_tokens`; their ids follow the sentinels'. A
            text is split at added tokens before SentencePiece encodes the parts between them.
    """

    file: str
    extra_ids: int = 0
    added: tuple[str, ...] = ()

    def __post_init__(self):
        object.__setattr__(self, "file", str(self.file))
        object.__setattr__(self, "added", tuple(self.added))

    @functools.cached_property
    def processor(self) -> sentencepiece.SentencePieceProcessor:
        """The processor with the sentinels as pieces, as in seqio; read at first use and cached.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is no SentencePiece model.
        """
        try:
            processor = _processor(self.content(), self.extra_ids)
        except (DecodeError, RuntimeError) as error:
            raise ValueError(f"{self.file} is no SentencePiece model ({error})") from error
        if (
            processor.vocab_size() <= self.extra_ids
        ):  # an empty file is a valid message of no pieces
            raise ValueError(f"{self.file} is no SentencePiece model: it has no pieces")
        return processor

    @functools.cached_property
    def _text_processor(self) -> sentencepiece.SentencePieceProcessor:
        """The processor that encodes the spelling of a sentinel as ordinary characters."""
        self.processor  # noqa: B018 (raises its errors)
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

    @property
    def special_tokens(self) -> SpecialTokens:
        ids = self.begin_id, self.end_id, self.padding_id, self.unknown_id
        return SpecialTokens(*(None if i is None else self.pieces[i] for i in ids))

    @property
    def control_ids(self) -> frozenset[int]:
        return _silent(self.processor)

    def encode(self, text: str) -> list[int]:
        return self._encode(self.processor, self._split(text, self.added))

    def encode_text(self, text: str) -> list[int]:
        return self.encode_parts([TextPart(text)])

    def encode_parts(self, parts: Sequence[TextPart]) -> list[int]:
        pieces, runs = self.pieces, [""]
        control = tuple(pieces[i] for i in self.control_ids)
        for part in parts:
            first, *others = self._split(part.text, self.added + control * part.has_control)
            runs[-1] += first
            runs += others
        return self._encode(self._text_processor, runs)

    @staticmethod
    def _split(text: str, tokens: Sequence[str]) -> list[str]:
        """Return the text between tokens and the tokens, alternately; of two the longer is taken."""
        longest_first = sorted(tokens, key=len, reverse=True)
        return re.split(f"({'|'.join(map(re.escape, longest_first)) or '(?!)'})", text)

    def _encode(
        self, processor: sentencepiece.SentencePieceProcessor, runs: Sequence[str]
    ) -> list[int]:
        """Return the ids of texts and tokens, which alternate."""
        ids = [
            [self.pieces.index(run)] if i % 2 else processor.encode(run)
            for i, run in enumerate(runs)
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
                spaced = text and processor.id_to_piece(run[0]).startswith("▁")
                text += " " * bool(spaced) + processor.decode(run)
        return text

    def piece_bytes(self) -> list[bytes]:
        processor = self.processor
        texts = [_text(processor, i) for i in range(processor.vocab_size())]
        return texts + [text.encode() for text in self.added]

    def described(self) -> dict[str, object]:
        entry = {"file": self.name, "sha256": self.sha256, "extra_ids": self.extra_ids}
        return entry | ({"added": list(self.added)} if self.added else {})

    def file_content(self) -> Mapping[str, bytes]:
        return {self.name: self.content()}


@functools.lru_cache(maxsize=8)
def _processor(
    content: bytes, extra_ids: int, writable: bool = True
) -> sentencepiece.SentencePieceProcessor:
    """Return a processor; unless `writable`, it encodes the spelling of sentinels as characters."""
    model = sentencepiece_model_pb2.ModelProto.FromString(content)
    for i in reversed(range(extra_ids)):
        model.pieces.add(piece=f"▁<extra_id_{i}>", score=0.0, type=_Piece.USER_DEFINED)
    for piece in model.pieces:
        if not writable and is_sentinel(piece.piece):
            piece.type = _Piece.UNUSED
    return sentencepiece.SentencePieceProcessor(model_proto=model.SerializeToString())


@functools.lru_cache(maxsize=8)
def _pieces(processor: sentencepiece.SentencePieceProcessor) -> tuple[str, ...]:
    pieces = [processor.id_to_piece(i) for i in range(processor.vocab_size())]
    return tuple(sentinel(piece) or piece for piece in pieces)


@functools.lru_cache(maxsize=8)
def _silent(processor: sentencepiece.SentencePieceProcessor) -> frozenset[int]:
    """Return the ids that decode to no text: padding, begin and end of sequence, sentinels."""
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

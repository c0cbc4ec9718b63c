"""What a model's ids mean, and whether two models mean the same."""

import dataclasses
import functools
import hashlib
import re
from collections.abc import Callable, Sequence

import sentencepiece
from google.protobuf.message import DecodeError
from sentencepiece import sentencepiece_model_pb2

from dera_jax.checkpoints.storage import read_file

BYTE_OFFSET = 3  # seqio's byte vocabulary: 0, 1, 2 are padding, end and unknown
_SENTINEL = re.compile(r"▁?(<extra_id_\d+>)")


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """A SentencePiece file with `extra_ids` sentinels above its pieces; file None: UTF-8 bytes.

    The file is a path or a URL. As in T5 the first sentinel, <extra_id_0>, has the highest id;
    some files, those of T5X among them, hold the sentinels as pieces of their own.
    """

    file: str | None
    extra_ids: int = 0

    def __post_init__(self):
        if self.file is not None:
            object.__setattr__(self, "file", str(self.file))

    @property
    def name(self) -> str | None:
        """Of the file, without its folder."""
        return self.file and self.file.rpartition("/")[2]

    @property
    def sha256(self) -> str | None:
        """Of the file's content."""
        return self.file and hashlib.sha256(self.content()).hexdigest()

    def content(self) -> bytes:
        """The file's; raises FileNotFoundError where there is none."""
        return read_file(self.file)

    def processor(self) -> sentencepiece.SentencePieceProcessor:
        """Of the file, with the sentinels as pieces, as seqio has them.

        Raises:
            FileNotFoundError, ValueError: there is no such file, or it is none of SentencePiece.
        """
        try:
            return _processor(self.content(), self.extra_ids)
        except (DecodeError, RuntimeError) as error:
            raise ValueError(f"{self.file} is no SentencePiece model ({error})") from error


@functools.lru_cache(maxsize=8)
def _processor(content: bytes, extra_ids: int) -> sentencepiece.SentencePieceProcessor:
    model = sentencepiece_model_pb2.ModelProto.FromString(content)
    for i in reversed(range(extra_ids)):
        kind = sentencepiece_model_pb2.ModelProto.SentencePiece.USER_DEFINED
        model.pieces.add(piece=f"▁<extra_id_{i}>", score=0.0, type=kind)
    return sentencepiece.SentencePieceProcessor(model_proto=model.SerializeToString())


def pieces(vocabulary: Vocabulary) -> list[str]:
    """What each id stands for."""
    if vocabulary.file is None:
        texts = [f"<special {i}>" for i in range(BYTE_OFFSET)] + [f"<byte {i}>" for i in range(256)]
        return texts + [f"<extra_id_{i}>" for i in reversed(range(vocabulary.extra_ids))]
    processor = vocabulary.processor()
    found = [processor.id_to_piece(i) for i in range(processor.vocab_size())]
    return [_sentinel(piece) or piece for piece in found]


def _sentinel(piece: str) -> str | None:
    """The name of a sentinel, however its file spells it."""
    match = _SENTINEL.fullmatch(piece)
    return match and match[1]


def is_sentinel(piece: str) -> bool:
    """Whether it stands for no text, but for a gap in one."""
    return _sentinel(piece) is not None


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


def agreed(
    known: Vocabulary | None, given: Vocabulary, known_name: str, given_name: str
) -> Vocabulary:
    """A checkpoint's vocabulary, or `given` where the checkpoint holds none (T5X's do not).

    Raises:
        ValueError: the checkpoint has one, and it differs.
    """
    if known is None:
        return given
    check_same(known, given, known_name, given_name)
    return known


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """Text to ids and back, without TensorFlow; ids as from the seqio vocabulary of the same file."""

    encode: Callable[[str], list[int]]
    decode: Callable[[Sequence[int]], str]


def tokenizer(vocabulary: Vocabulary | None) -> Tokenizer:
    """The tokenizer of a vocabulary.

    Decoding leaves out ids that stand for no text: padding, the end of sequence, sentinels, and
    those that a table padded to a round size has beyond the vocabulary.

    Raises:
        ValueError: the vocabulary is not known.
    """
    if vocabulary is None:
        raise ValueError(
            "this checkpoint does not say what its ids mean (T5X's never do); say it, as in "
            "load(path, vocabulary=Vocabulary('spiece.model', extra_ids=100)), or once for all "
            "with python -m dera_jax.checkpoints.convert"
        )
    if vocabulary.file is None:
        return Tokenizer(
            encode=lambda text: [byte + BYTE_OFFSET for byte in text.encode()],
            decode=lambda ids: bytes(
                i - BYTE_OFFSET for i in ids if BYTE_OFFSET <= i < BYTE_OFFSET + 256
            ).decode(errors="ignore"),
        )
    processor = vocabulary.processor()
    silent = [is_sentinel(processor.id_to_piece(i)) for i in range(processor.vocab_size())]
    return Tokenizer(
        encode=processor.encode,
        decode=lambda ids: processor.decode(
            [int(i) for i in ids if 1 < i < len(silent) and not silent[i]]
        ),
    )

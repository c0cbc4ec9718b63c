"""Defines the interface of vocabularies, and checks that two vocabularies agree.

Each kind of vocabulary has a module of its own:

SentencePieceVocabulary   a SentencePiece file (`sentencepiece_vocabulary`)
JsonVocabulary            a tokenizer.json of Hugging Face's tokenizers (`json_vocabulary`)
ByteVocabulary            UTF-8 bytes, no file (`byte_vocabulary`)
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from dera_jax import checks

VOCABULARY = dataclasses.replace(checks.with_attribute("piece_bytes"), words="a vocabulary")
_SENTINEL = re.compile(r"▁?(<extra_id_\d+>)")


class TextPart(NamedTuple):
    """A part of a text that is encoded as a whole.

    Attributes:
        text: the part.
        has_control: whether the control tokens that the part spells are control tokens, as in the
            text of a chat template, and not ordinary characters, as in a user's text.
    """

    text: str
    has_control: bool = False


class SpecialTokens(NamedTuple):
    """The special tokens of a vocabulary as strings; None for a token that it does not have."""

    begin: str | None = None
    end: str | None = None
    padding: str | None = None
    unknown: str | None = None


class Vocabulary(Protocol):
    """Converts between text and token ids.

    Implementations are frozen and hashable and read their file at first use. Every property and
    method that reads it raises FileNotFoundError if it does not exist, and ValueError if it is
    damaged or not supported.
    """

    @property
    def pieces(self) -> Sequence[str]:
        """The piece of every id; all kinds name sentinels <extra_id_0>, <extra_id_1>, ..."""

    @property
    def begin_id(self) -> int | None:
        """The id before every prompt of a decoder-only model; None if there is none."""

    @property
    def end_id(self) -> int | None:
        """The end-of-sequence id; None if there is none."""

    @property
    def padding_id(self) -> int | None:
        """The padding id; None if there is none."""

    @property
    def unknown_id(self) -> int | None:
        """The id of text that no piece covers; None if there is none."""

    @property
    def special_tokens(self) -> SpecialTokens:
        """The special tokens; the begin token even if it is not put before prompts."""

    @property
    def control_ids(self) -> frozenset[int]:
        """The ids of control tokens, which a user's text cannot spell."""

    def encode(self, text: str) -> list[int]:
        """Returns the ids of a text, without the end of sequence.

        Sentinels that the text spells are encoded as sentinels, except by `ByteVocabulary`.
        """

    def encode_text(self, text: str) -> list[int]:
        """Encodes a user's text as `encode`, but spelled control tokens as characters."""

    def encode_parts(self, parts: Sequence[TextPart]) -> list[int]:
        """Encodes the joined text of parts; each says whether its control tokens are such."""

    def decode(self, ids: Sequence[int]) -> str:
        """Returns the text of ids; ids without text and ids beyond the vocabulary are skipped."""

    def piece_bytes(self) -> list[bytes]:
        """Returns the text of every id in UTF-8; b"" for ids without text."""

    def described(self) -> dict[str, object]:
        """Returns the entry for the vocabulary in a model folder's config.json (`model_folder`)."""

    def file_content(self) -> Mapping[str, bytes]:
        """Returns the content of the vocabulary's files, by file name."""


def sentinel(piece: str) -> str | None:
    """Returns the name of a sentinel in any file's spelling; None for every other piece."""
    match = _SENTINEL.fullmatch(piece)
    return match and match[1]


def is_sentinel(piece: str) -> bool:
    """Returns whether a piece is a sentinel, which marks a gap in a text and has no text itself."""
    return sentinel(piece) is not None


def check_same(first: Vocabulary, second: Vocabulary, first_name: str, second_name: str) -> None:
    """Raises ValueError, naming the first difference, unless pieces, begin and end agree."""
    pieces_1, pieces_2 = first.pieces, second.pieces
    for i in range(max(len(pieces_1), len(pieces_2))):
        a = pieces_1[i] if i < len(pieces_1) else "(no such id)"
        b = pieces_2[i] if i < len(pieces_2) else "(no such id)"
        if a != b:
            raise ValueError(
                f"vocabularies differ at id {i}: {a!r} in {first_name}, {b!r} in {second_name}; "
                "ids can only be shared, and logits combined, over the same vocabulary"
            )
    for token in ("begin", "end"):
        a, b = (getattr(x, f"{token}_id") for x in (first, second))
        if a != b:
            raise ValueError(
                f"vocabularies differ in the {token} token: id {a} in {first_name}, {b} in "
                f"{second_name}"
            )


def check_known(vocabulary: Vocabulary, other: Vocabulary, name: str, other_name: str) -> None:
    """Raises ValueError, naming the first, unless all ids of a vocabulary have their piece in `other`.

    The other vocabulary may have further ids, such as an added padding token.
    """
    pieces = other.pieces
    for i, piece in enumerate(vocabulary.pieces):
        if i >= len(pieces) or pieces[i] != piece:
            theirs = repr(pieces[i]) if i < len(pieces) else "no such id"
            raise ValueError(
                f"vocabularies differ at id {i}: {piece!r} in {name}, {theirs} in {other_name}"
            )


def resolve_vocabulary(
    known: Vocabulary | None, given: Vocabulary, known_name: str, given_name: str
) -> Vocabulary:
    """Returns the checkpoint's vocabulary, or `given` if the checkpoint holds none, as in T5X.

    Args:
        known: vocabulary of the checkpoint, or None.
        given: vocabulary that the caller needs.
        known_name, given_name: names of both vocabularies, for error messages.

    Raises:
        ValueError: the two vocabularies differ.
    """
    if known is None:
        return given
    check_same(known, given, known_name, given_name)
    return known


def check_end(vocabulary: Vocabulary, where: str) -> None:
    """Raises ValueError if the vocabulary has no end-of-sequence id."""
    if vocabulary.end_id is None:
        raise ValueError(
            f"{where}: the vocabulary has no end-of-sequence piece; train the SentencePiece model "
            "with --eos_id=1, or name eos_token in tokenizer_config.json"
        )


def check_vocab_size(vocabulary: Vocabulary, rows: int, where: str) -> None:
    """Raises ValueError if the embedding table has fewer rows than the vocabulary has ids."""
    size = len(vocabulary.pieces)
    if size > rows:
        raise ValueError(
            f"the vocabulary of {where} has {size:,} ids, the model's tables only {rows:,} rows: "
            "use the vocabulary that the model was trained with (for a new model raise "
            "vocab_size)"
        )

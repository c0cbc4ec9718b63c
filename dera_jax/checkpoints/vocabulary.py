"""Defines the interface of vocabularies, and checks that two vocabularies agree.

Each kind of vocabulary has a module of its own:

SentencePieceVocabulary   a SentencePiece file (`sentencepiece_vocabulary`)
JsonVocabulary            a tokenizer.json of Hugging Face's tokenizers (`json_vocabulary`)
ByteVocabulary            UTF-8 bytes, no file (`byte_vocabulary`)
"""

import dataclasses
import itertools
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from dera_jax import checks

VOCABULARY = dataclasses.replace(checks.with_attribute("piece_bytes"), words="a vocabulary")
NO_PIECE = "(no piece)"  # stands for an id that a vocabulary does not assign
_SENTINEL = re.compile(r"▁?(<extra_id_\d+>)")


_PROBES = (  # texts on which tokenizers with the same pieces may differ
    "one", " two  spaces   and three", "they're WE'LL it's", "12345 1,234.5", "tab\tline\n\nend ",
    "(un)usual_names/paths", "naïve e\u0301", "日本語 中文", "🙂🙂👩‍👧",
)  # fmt: skip


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
        """The piece of every id, `NO_PIECE` for an id that is not assigned.

        All kinds of vocabularies name sentinels <extra_id_0>, <extra_id_1>, ...
        """

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
    _check_pieces(first.pieces, second.pieces, first_name, second_name)
    _check_ends(first, second, first_name, second_name)


def _check_pieces(
    pieces_1: Sequence[str], pieces_2: Sequence[str], first_name: str, second_name: str
) -> None:
    pairs = itertools.zip_longest(pieces_1, pieces_2, fillvalue="(no such id)")
    for i, (a, b) in enumerate(pairs):
        if a != b:
            raise ValueError(_difference(i, (a, first_name), (b, second_name)))


def _check_ends(first: Vocabulary, second: Vocabulary, first_name: str, second_name: str) -> None:
    for token in ("begin", "end"):
        a, b = (getattr(x, f"{token}_id") for x in (first, second))
        if a != b:
            raise ValueError(
                f"vocabularies differ in the {token} token: id {a} in {first_name}, {b} in "
                f"{second_name}"
            )


def check_begins(whole: Vocabulary, part: Vocabulary, whole_name: str, part_name: str) -> None:
    """Raises ValueError, naming the first difference, unless a vocabulary begins with `part`.

    It may have further ids, such as sentinels. The begin and end tokens must agree.
    """
    _check_pieces(whole.pieces[: len(part.pieces)], part.pieces, whole_name, part_name)
    _check_ends(whole, part, whole_name, part_name)


def check_shared(first: Vocabulary, second: Vocabulary, first_name: str, second_name: str) -> None:
    """Raises ValueError, naming the first difference, unless ids of both vocabularies mean the same.

    Either may have ids that the other does not assign. A text must have the same ids in both, which
    is checked on a few short texts.
    """
    pieces_1, pieces_2 = first.pieces, second.pieces
    for i, (a, b) in enumerate(zip(pieces_1, pieces_2, strict=False)):
        if a != b and NO_PIECE not in (a, b):
            raise ValueError(_difference(i, (a, first_name), (b, second_name)))
    ids_2 = {piece: i for i, piece in enumerate(pieces_2)}
    for i, piece in enumerate(pieces_1):
        j = ids_2.get(piece, i)
        if i != j and piece != NO_PIECE and pieces_2[i : i + 1] != pieces_1[i : i + 1]:
            raise ValueError(
                f"vocabularies differ: {piece!r} is id {i} in {first_name} and id {j} in {second_name}; "
                "ids can only be shared if they mean the same"
            )
    for text in _PROBES:
        ids_1, ids_2 = first.encode(text), second.encode(text)
        if ids_1 != ids_2:
            raise ValueError(
                f"the tokenizers of {first_name} and {second_name} share their pieces, but encode the "
                f"text {text!r} as {ids_1} and as {ids_2}; models that are decoded together need tokenizers "
                "with the same normalizer, pre-tokenizer and merges"
            )


def _difference(i: int, *found: tuple[str, str]) -> str:
    """Return the error message for an id with different pieces; `found` are pieces with names."""
    listed = ", ".join(f"{piece!r} in {name}" for piece, name in found)
    return (
        f"vocabularies differ at id {i}: {listed}; ids can only be shared, and logits combined, over "
        "the same vocabulary"
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

    A checkpoint that holds its vocabulary needs no other. One that is given must agree with it, but
    may lack its last ids: the folder knows how many sentinels follow a SentencePiece file's pieces.

    Args:
        known: vocabulary of the checkpoint, or None.
        given: vocabulary that the caller needs.
        known_name, given_name: names of both vocabularies, for error messages.

    Raises:
        ValueError: the two vocabularies differ.
    """
    if known is None:
        return given
    try:
        check_begins(known, given, known_name, given_name)
    except ValueError as error:
        raise ValueError(
            f"{error}; {known_name} holds its own vocabulary, so leave VOCABULARY and EXTRA_IDS "
            "unset, and use a task of text, or of ids of that vocabulary"
        ) from error
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

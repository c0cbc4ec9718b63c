"""What a model's ids mean, and whether two models mean the same.

The kinds of vocabularies, each in a module of its own:

SentencePieceVocabulary   a SentencePiece file (`sentencepiece_vocabulary`)
JsonVocabulary            a tokenizer.json of Hugging Face's tokenizers (`json_vocabulary`)
ByteVocabulary            UTF-8 bytes, no file (`byte_vocabulary`)
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Protocol

from dera_jax import checks

VOCABULARY = dataclasses.replace(checks.having("piece_bytes"), words="a vocabulary")
_SENTINEL = re.compile(r"▁?(<extra_id_\d+>)")


class Vocabulary(Protocol):
    """Text to ids and back. Implementations are frozen and hashable; files are read when used.

    Every property and method that reads a file raises FileNotFoundError where there is none, and
    ValueError where it is damaged or of a kind that is not supported.
    """

    @property
    def pieces(self) -> Sequence[str]:
        """The piece of every id, sentinels as <extra_id_0>, whatever file they are from."""

    @property
    def begin_id(self) -> int | None:
        """The id that a decoder's prompts begin with; None if they do with their text."""

    @property
    def end_id(self) -> int | None:
        """The id of the end of sequence; None if there is none."""

    @property
    def padding_id(self) -> int | None:
        """The id of padding; None if there is none."""

    @property
    def unknown_id(self) -> int | None:
        """The id of what has no piece; None if there is none."""

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without the end of sequence. What spells a token is that token."""

    def encode_text(self, text: str) -> list[int]:
        """As `encode`, of a text that somebody wrote: what spells a control token is characters."""

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids; those that stand for none are left out, those of no piece too."""

    def piece_bytes(self) -> list[bytes]:
        """The text of every id in UTF-8; b"" for ids that stand for none."""

    def described(self) -> dict[str, object]:
        """What a model folder's config.json says of it (`model_folder`)."""

    def file_content(self) -> Mapping[str, bytes]:
        """The files that it is read from, by name."""


def sentinel(piece: str) -> str | None:
    """The name of a sentinel, however its file spells it; None for every other piece."""
    match = _SENTINEL.fullmatch(piece)
    return match and match[1]


def is_sentinel(piece: str) -> bool:
    """Whether it stands for no text, but for a gap in one."""
    return sentinel(piece) is not None


def check_same(first: Vocabulary, second: Vocabulary, first_name: str, second_name: str) -> None:
    """Raise ValueError, naming the first id that differs and both pieces, unless all ids agree."""
    ours, theirs = first.pieces, second.pieces
    for i in range(max(len(ours), len(theirs))):
        a = ours[i] if i < len(ours) else "(no such id)"
        b = theirs[i] if i < len(theirs) else "(no such id)"
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


def check_end(vocabulary: Vocabulary, where: str) -> None:
    """Raise ValueError unless an id ends a sequence."""
    if vocabulary.end_id is None:
        raise ValueError(
            f"{where}: the vocabulary has no end-of-sequence piece; train the SentencePiece model "
            "with --eos_id=1, or name eos_token in tokenizer_config.json"
        )


def check_room(vocabulary: Vocabulary, rows: int, where: str) -> None:
    """Raise ValueError if a model's tables have fewer rows than the vocabulary has ids."""
    size = len(vocabulary.pieces)
    if size > rows:
        raise ValueError(
            f"the vocabulary of {where} has {size:,} ids, the model's tables only {rows:,} rows: "
            "use the vocabulary that the model was trained with (for a new model raise "
            "vocab_size)"
        )

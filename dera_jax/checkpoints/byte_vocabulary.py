"""Defines the byte vocabulary of ByT5, whose ids are UTF-8 bytes; it needs no file."""

import dataclasses
from collections.abc import Mapping, Sequence

from dera_jax.checkpoints.vocabulary import SpecialTokens, TextPart

_OFFSET = 3  # ids 0, 1 and 2 are padding, end of sequence and unknown, as in seqio
_BYTES = range(_OFFSET, _OFFSET + 256)


@dataclasses.dataclass(frozen=True)
class ByteVocabulary:
    """Maps UTF-8 bytes to ids; implements `vocabulary.Vocabulary`.

    Attributes:
        extra_ids: number of sentinels. Their ids follow those of the bytes, and the first sentinel,
            <extra_id_0>, has the highest id.
    """

    extra_ids: int = 0

    @property
    def pieces(self) -> Sequence[str]:
        names = [f"<special {i}>" for i in range(_OFFSET)] + [f"<byte {i}>" for i in range(256)]
        return tuple(names + [f"<extra_id_{i}>" for i in reversed(range(self.extra_ids))])

    @property
    def padding_id(self) -> int:
        return 0

    @property
    def begin_id(self) -> None:
        return None

    @property
    def end_id(self) -> int:
        return 1

    @property
    def unknown_id(self) -> int:
        return 2

    @property
    def special_tokens(self) -> SpecialTokens:
        return SpecialTokens()

    @property
    def control_ids(self) -> frozenset[int]:
        return frozenset(range(_OFFSET)) | frozenset(
            range(_BYTES.stop, _BYTES.stop + self.extra_ids)
        )

    def encode(self, text: str) -> list[int]:
        return [byte + _OFFSET for byte in text.encode()]

    def encode_text(self, text: str) -> list[int]:
        return self.encode(text)

    def encode_parts(self, parts: Sequence[TextPart]) -> list[int]:
        return self.encode("".join(part.text for part in parts))

    def decode(self, ids: Sequence[int]) -> str:
        values = (int(i) - _OFFSET for i in ids if int(i) in _BYTES)
        return bytes(values).decode(errors="ignore")

    def piece_bytes(self) -> list[bytes]:
        return [b""] * _OFFSET + [bytes([i]) for i in range(256)] + [b""] * self.extra_ids

    def described(self) -> dict[str, object]:
        return {"file": None, "sha256": None, "extra_ids": self.extra_ids}

    def file_content(self) -> Mapping[str, bytes]:
        return {}

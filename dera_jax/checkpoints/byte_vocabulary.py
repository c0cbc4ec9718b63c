"""UTF-8 bytes as ids, as in ByT5; no file."""

import dataclasses
from collections.abc import Mapping, Sequence

_OFFSET = 3  # seqio's byte vocabulary: 0, 1, 2 are padding, end and unknown
_BYTES = range(_OFFSET, _OFFSET + 256)


@dataclasses.dataclass(frozen=True)
class ByteVocabulary:
    """Bytes with `extra_ids` sentinels above them, the first of which has the highest id."""

    extra_ids: int = 0

    @property
    def pieces(self) -> Sequence[str]:
        texts = [f"<special {i}>" for i in range(_OFFSET)] + [f"<byte {i}>" for i in range(256)]
        return tuple(texts + [f"<extra_id_{i}>" for i in reversed(range(self.extra_ids))])

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

    def encode(self, text: str) -> list[int]:
        return [byte + _OFFSET for byte in text.encode()]

    def encode_text(self, text: str) -> list[int]:
        return self.encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        known = (int(i) - _OFFSET for i in ids if int(i) in _BYTES)
        return bytes(known).decode(errors="ignore")

    def piece_bytes(self) -> list[bytes]:
        return [b""] * _OFFSET + [bytes([i]) for i in range(256)] + [b""] * self.extra_ids

    def described(self) -> dict[str, object]:
        return {"file": None, "sha256": None, "extra_ids": self.extra_ids}

    def file_content(self) -> Mapping[str, bytes]:
        return {}

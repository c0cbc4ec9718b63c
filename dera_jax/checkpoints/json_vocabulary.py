"""A tokenizer.json of Hugging Face's tokenizers as a vocabulary."""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import tokenizers

from dera_jax.checkpoints.storage import read_file
from dera_jax.checkpoints.vocabulary import is_sentinel

JSON = "tokenizer.json"  # the kind, as a model folder's config.json names it
_NOTHING = "(no piece)"  # of an id between others that has none
_UNWRITABLE = "\uffff"  # Unicode has no such character and never will


@dataclasses.dataclass(frozen=True)
class JsonVocabulary:
    """A tokenizer.json, and which of its tokens are special: the file itself does not say.

    Ids and texts are those of transformers' tokenizer of the same files: encoding as with
    add_special_tokens=False, decoding as with skip_special_tokens=True.

    Attributes:
        file: its path or URL.
        end, padding, unknown: tokens, by their text; None where there is none.
        begin: the token that a decoder's prompts begin with; None where they do with their text.
    """

    file: str
    end: str | None = "</s>"
    padding: str | None = "<pad>"
    unknown: str | None = "<unk>"
    begin: str | None = None

    def __post_init__(self):
        object.__setattr__(self, "file", str(self.file))

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
    def tokenizer(self) -> tokenizers.Tokenizer:
        """Of the file; read once.

        Raises:
            FileNotFoundError, ValueError: there is no such file, or it is none of tokenizers.
        """
        content = self.content()
        try:
            return _plain(tokenizers.Tokenizer.from_str(content.decode()))
        except Exception as error:  # tokenizers raises nothing more special
            raise ValueError(f"{self.file} is no file of tokenizers ({error})") from error

    @functools.cached_property
    def _of_texts(self) -> tokenizers.Tokenizer:
        """The same, for which control tokens that a text spells are characters."""
        names = {self.pieces[i] for i in self._control}
        return _plain(tokenizers.Tokenizer.from_str(_unwritable(self.content(), names)))

    @functools.cached_property
    def pieces(self) -> Sequence[str]:
        by_id = {i: piece for piece, i in self.tokenizer.get_vocab(with_added_tokens=True).items()}
        return tuple(by_id.get(i, _NOTHING) for i in range(max(by_id) + 1))

    @property
    def begin_id(self) -> int | None:
        return self._id(self.begin)

    def first_added(self) -> str | None:
        """The special token that the file itself puts before a text; None if none."""
        found = self.tokenizer.encode("a")
        return found.tokens[0] if found.special_tokens_mask[:1] == [1] else None

    @property
    def end_id(self) -> int | None:
        return self._id(self.end)

    @property
    def padding_id(self) -> int | None:
        return self._id(self.padding)

    @property
    def unknown_id(self) -> int | None:
        return self._id(self.unknown)

    def _id(self, token: str | None) -> int | None:
        return None if token is None else self.tokenizer.token_to_id(token)

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def encode_text(self, text: str) -> list[int]:
        return self._of_texts.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        kept = [int(i) for i in ids if 0 <= i < len(self.pieces) and i not in self._silent]
        return self.tokenizer.decode(kept, skip_special_tokens=True)

    @functools.cached_property
    def _control(self) -> frozenset[int]:
        """Ids of special tokens and sentinels."""
        added = self.tokenizer.get_added_tokens_decoder()
        named = {self.begin_id, self.end_id, self.padding_id}
        special = {i for i, token in added.items() if token.special or i in named}
        return frozenset(special | {i for i, x in enumerate(self.pieces) if is_sentinel(x)})

    @functools.cached_property
    def _silent(self) -> frozenset[int]:
        """Ids that stand for no text: special tokens, sentinels, those without a piece."""
        nothing = {i for i, x in enumerate(self.pieces) if x == _NOTHING}
        named = {self.begin_id, self.end_id, self.padding_id} - {None}
        return self._control | nothing | named

    def piece_bytes(self) -> list[bytes]:
        added = self.tokenizer.get_added_tokens_decoder()
        to_bytes = _to_bytes(json.loads(self.content()).get("decoder"), self.file)
        found = []
        for i, piece in enumerate(self.pieces):
            if i in self._silent:
                found.append(b"")
            else:
                found.append(piece.encode() if i in added else to_bytes(piece))
        return found

    def described(self) -> dict[str, object]:
        return {
            "kind": JSON,
            "file": self.name,
            "sha256": self.sha256,
            "end": self.end,
            "padding": self.padding,
            "unknown": self.unknown,
        } | ({"begin": self.begin} if self.begin else {})

    def file_content(self) -> Mapping[str, bytes]:
        return {self.name: self.content()}


def _plain(found: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """Neither cuts nor pads."""
    found.no_truncation()
    found.no_padding()
    return found


def _unwritable(content: bytes, names: set[str]) -> str:
    """A tokenizer.json whose tokens of these names have others, that no text spells.

    It is not enough that tokenizers leaves them out of its search for added tokens: a Unigram model,
    T5's, finds those among its pieces that it has.
    """
    described = json.loads(content)
    renamed = lambda name: _UNWRITABLE + name if name in names else name
    for token in described["added_tokens"]:
        if token["content"] in names:
            token |= {"content": renamed(token["content"]), "normalized": False}
    model = described["model"]
    if isinstance(model["vocab"], list):
        model["vocab"] = [[renamed(name), score] for name, score in model["vocab"]]
    else:
        model["vocab"] = {renamed(name): i for name, i in model["vocab"].items()}
    if "unk_token" in model:
        model["unk_token"] = renamed(model["unk_token"])
    return json.dumps(described)


def _to_bytes(decoder: Mapping | None, where: str) -> Callable[[str], bytes]:
    """What a decoder of tokenizers makes of one piece in the middle of a text.

    Raises:
        ValueError: a decoder that is not known here, or whose text of a piece depends on others.
    """
    parts = _flat(decoder)
    kinds = [part.get("type") for part in parts]
    if kinds == ["ByteLevel"]:
        return lambda piece: bytes(_BYTE_OF[character] for character in piece)
    replaced = {}
    for part in parts:
        if part["type"] == "Metaspace":
            replaced[part.get("replacement", "▁")] = " "
        elif part["type"] == "Replace" and "String" in part.get("pattern", {}):
            replaced[part["pattern"]["String"]] = part["content"]
        elif part["type"] not in ("ByteFallback", "Fuse", "Strip"):  # Strip: the text's first space
            kinds = []
    if not kinds or not replaced:
        raise ValueError(
            f"{where}: rewards need the text of every piece, and of the decoder {decoder} it is not "
            "known; supported are Metaspace, ByteLevel, and Replace with ByteFallback, Fuse and "
            "Strip. Choose a reward that reads token ids, or a reward in Python (rewards.host)"
        )

    def to_bytes(piece: str) -> bytes:
        if "ByteFallback" in kinds and _is_byte(piece):
            return bytes([int(piece[1:-1], 16)])
        for old, new in replaced.items():
            piece = piece.replace(old, new)
        return piece.encode()

    return to_bytes


def _flat(decoder: Mapping | None) -> list[Mapping]:
    if not decoder:
        return []
    if decoder["type"] != "Sequence":
        return [decoder]
    return [part for inner in decoder["decoders"] for part in _flat(inner)]


def _is_byte(piece: str) -> bool:
    return len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">")


def _byte_of() -> dict[str, int]:
    """GPT-2's characters for bytes: printable ones for themselves, the others from U+0100 on."""
    kept = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in kept]
    shown = {chr(byte): byte for byte in kept}
    return shown | {chr(0x100 + i): byte for i, byte in enumerate(others)}


_BYTE_OF = _byte_of()

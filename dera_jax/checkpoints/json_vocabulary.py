"""Defines a vocabulary that is read from a tokenizer.json of Hugging Face's tokenizers."""

import dataclasses
import functools
import itertools
import json
import re
from collections.abc import Callable, Mapping, Sequence

import tokenizers

from dera_jax.checkpoints.vocabulary import NO_PIECE, SpecialTokens, TextPart, is_sentinel
from dera_jax.checkpoints.vocabulary_file import VocabularyFile

JSON = "tokenizer.json"  # also the value of "kind" in a model folder's config.json
_UNWRITABLE = "\uffff"  # a noncharacter: Unicode will never assign it
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


@dataclasses.dataclass(frozen=True)
class JsonVocabulary(VocabularyFile):
    """A tokenizer.json with the roles of its special tokens; implements `vocabulary.Vocabulary`.

    The roles are fields because tokenizer.json does not hold them. Results equal those of
    transformers' tokenizer for the same files: encoding as with add_special_tokens=False, decoding
    as with skip_special_tokens=True.

    Attributes:
        file: path or URL of the tokenizer.json.
        end, padding, unknown: special tokens, as strings; None if there is none.
        begin: the token at the beginning of sequences; None if there is none.
        adds_begin: whether `begin` is put before every prompt of a decoder-only model. Where it is
            not, a chat template can still write it.
        converted: content of the tokenizer.json, where `file` has another format and was converted;
            None where `file` is the tokenizer.json.
    """

    file: str
    end: str | None = "</s>"
    padding: str | None = "<pad>"
    unknown: str | None = "<unk>"
    begin: str | None = None
    adds_begin: bool = True
    converted: str | None = dataclasses.field(default=None, repr=False)

    def __post_init__(self):
        object.__setattr__(self, "file", str(self.file))

    @property
    def name(self) -> str:
        return super().name if self.converted is None else JSON

    def content(self) -> bytes:
        return super().content() if self.converted is None else self.converted.encode()

    @functools.cached_property
    def tokenizer(self) -> tokenizers.Tokenizer:
        """The tokenizer, read from the file at first use and cached.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the tokenizers library cannot read the file.
        """
        content = self.content()
        try:
            return _untruncated(tokenizers.Tokenizer.from_str(content.decode()))
        except Exception as error:  # tokenizers raises no subclass
            raise ValueError(f"{self.file} is no file of tokenizers ({error})") from error

    @functools.cached_property
    def _text_tokenizer(self) -> tokenizers.Tokenizer:
        """The tokenizer that encodes the spelling of a control token as ordinary characters."""
        names = {self.pieces[i] for i in self.control_ids}
        return _untruncated(tokenizers.Tokenizer.from_str(_unwritable(self.content(), names)))

    @functools.cached_property
    def pieces(self) -> Sequence[str]:
        by_id = {i: piece for piece, i in self.tokenizer.get_vocab(with_added_tokens=True).items()}
        return tuple(by_id.get(i, NO_PIECE) for i in range(max(by_id) + 1))

    @property
    def begin_id(self) -> int | None:
        return self._id(self.begin) if self.adds_begin else None

    def first_added(self) -> str | None:
        """Returns the special token that the file adds before every sequence, or None."""
        encoding = self.tokenizer.encode("a")
        return encoding.tokens[0] if encoding.special_tokens_mask[:1] == [1] else None

    @property
    def end_id(self) -> int | None:
        return self._id(self.end)

    @property
    def padding_id(self) -> int | None:
        return self._id(self.padding)

    @property
    def unknown_id(self) -> int | None:
        return self._id(self.unknown)

    @property
    def special_tokens(self) -> SpecialTokens:
        tokens = self.begin, self.end, self.padding, self.unknown
        return SpecialTokens(*(None if self._id(token) is None else token for token in tokens))

    def _id(self, token: str | None) -> int | None:
        return None if token is None else self.tokenizer.token_to_id(token)

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def encode_text(self, text: str) -> list[int]:
        return self.encode_parts([TextPart(text)])

    def encode_parts(self, parts: Sequence[TextPart]) -> list[int]:
        # One pass over the whole text, so that its pieces do not depend on where the parts meet.
        names, text = self._control_pattern, ""
        for has_control, run in itertools.groupby(parts, lambda part: part.has_control):
            joined = "".join(part.text for part in run)
            if has_control:
                text += names.sub(lambda name: _UNWRITABLE + name[0], joined)
            else:
                text += re.sub(f"{_UNWRITABLE}(?={names.pattern})", _REPLACEMENT, joined)
        return self._text_tokenizer.encode(text, add_special_tokens=False).ids

    @functools.cached_property
    def _control_pattern(self) -> re.Pattern:
        """The pattern of the names of control tokens; of two that match, it takes the longer one."""
        names = sorted((self.pieces[i] for i in self.control_ids), key=len, reverse=True)
        return re.compile("|".join(map(re.escape, names)) or "(?!)")  # (?!) never matches

    def decode(self, ids: Sequence[int]) -> str:
        kept = [int(i) for i in ids if 0 <= i < len(self.pieces) and i not in self._silent]
        return self.tokenizer.decode(kept, skip_special_tokens=True)

    @functools.cached_property
    def control_ids(self) -> frozenset[int]:
        """The ids of special tokens and sentinels."""
        added = self.tokenizer.get_added_tokens_decoder()
        named = {self._id(self.begin), self.end_id, self.padding_id}
        special = {i for i, token in added.items() if token.special or i in named}
        return frozenset(special | {i for i, x in enumerate(self.pieces) if is_sentinel(x)})

    @functools.cached_property
    def _silent(self) -> frozenset[int]:
        """The ids that decode to no text: special tokens, sentinels and unassigned ids."""
        unassigned = {i for i, x in enumerate(self.pieces) if x == NO_PIECE}
        named = {self._id(self.begin), self.end_id, self.padding_id} - {None}
        return self.control_ids | unassigned | named

    def piece_bytes(self) -> list[bytes]:
        added = self.tokenizer.get_added_tokens_decoder()
        to_bytes = _to_bytes(json.loads(self.content()).get("decoder"), self.file)
        texts = []
        for i, piece in enumerate(self.pieces):
            if i in self._silent:
                texts.append(b"")
            else:
                texts.append(piece.encode() if i in added else to_bytes(piece))
        return texts

    def described(self) -> dict[str, object]:
        return {
            "kind": JSON,
            "file": self.name,
            "sha256": self.sha256,
            "end": self.end,
            "padding": self.padding,
            "unknown": self.unknown,
            **({"begin": self.begin} if self.begin else {}),
            **({} if self.adds_begin else {"adds_begin": False}),
        }

    def file_content(self) -> Mapping[str, bytes]:
        return {self.name: self.content()}


def _untruncated(tokenizer: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """Switch truncation and padding off."""
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _unwritable(content: bytes, names: set[str]) -> str:
    """Return a tokenizer.json in which these tokens are renamed to names that no text contains.

    Excluding them from the search for added tokens is not enough: a Unigram model, as in T5, would
    still find those that are among its pieces.
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
    if "merges" in model:  # none may form a control token
        pairs = (x.split(" ", 1) if isinstance(x, str) else x for x in model["merges"])
        model["merges"] = [x for x in pairs if "".join(x) not in names]
    if "unk_token" in model:
        model["unk_token"] = renamed(model["unk_token"])
    return json.dumps(described)


def _to_bytes(decoder: Mapping | None, where: str) -> Callable[[str], bytes]:
    """Return the function from a piece inside a sequence to its UTF-8 bytes.

    Args:
        decoder: the "decoder" object of a tokenizer.json.
        where: the file, for error messages.

    Raises:
        ValueError: the decoder is not supported, or decodes a piece depending on its neighbours.
    """
    parts = _flat(decoder)
    kinds = [part.get("type") for part in parts]
    if kinds == ["ByteLevel"]:
        return lambda piece: bytes(_BYTE_OF[character] for character in piece)
    replacements = {}
    for part in parts:
        if part["type"] == "Metaspace":
            replacements[part.get("replacement", "▁")] = " "
        elif part["type"] == "Replace" and "String" in part.get("pattern", {}):
            replacements[part["pattern"]["String"]] = part["content"]
        elif part["type"] not in (
            "ByteFallback",
            "Fuse",
            "Strip",
        ):  # Strip removes the first space of a text
            kinds = []
    if not kinds or not replacements:
        raise ValueError(
            f"{where}: rewards need the text of every piece, and it cannot be derived for the decoder "
            f"{decoder}; supported are Metaspace, ByteLevel, and Replace with ByteFallback, Fuse and "
            "Strip. Choose a reward that reads token ids, or a reward in Python (rewards.host)"
        )

    def to_bytes(piece: str) -> bytes:
        if "ByteFallback" in kinds and _is_byte(piece):
            return bytes([int(piece[1:-1], 16)])
        for old, new in replacements.items():
            piece = piece.replace(old, new)
        return piece.encode()

    return to_bytes


def _flat(decoder: Mapping | None) -> list[Mapping]:
    """Return the elementary decoders of a possibly nested sequence of decoders."""
    if not decoder:
        return []
    if decoder["type"] != "Sequence":
        return [decoder]
    return [part for inner in decoder["decoders"] for part in _flat(inner)]


def _is_byte(piece: str) -> bool:
    return len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">")


def _byte_of() -> dict[str, int]:
    """Return GPT-2's bytes by character: printable bytes map to themselves, others from U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    own = {chr(byte): byte for byte in printable}
    return own | {chr(0x100 + i): byte for i, byte in enumerate(others)}


_BYTE_OF = _byte_of()

"""Converts the byte-level BPE inside a GGUF file to a tokenizer.json of Hugging Face's tokenizers.

Source of the names of pre-tokenizers, their expressions and defaults: `llama-vocab.cpp` in
ggml-org/llama.cpp, and the tokenizer.json of the models that they are named after.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import gguf
import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

from dera_jax.checkpoints.gguf_file import GgufFile
from dera_jax.checkpoints.json_vocabulary import JsonVocabulary
from dera_jax.checkpoints.storage import prefix_errors

_CONTROL, _USER_DEFINED = gguf.TokenType.CONTROL, gguf.TokenType.USER_DEFINED
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _byte_level(use_regex: bool = True) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)


def _split_by(pattern: str) -> pre_tokenizers.PreTokenizer:
    split = pre_tokenizers.Split(Regex(pattern), "isolated")
    return pre_tokenizers.Sequence([split, _byte_level(use_regex=False)])


@dataclasses.dataclass(frozen=True)
class _Kind:
    """What `tokenizer.ggml.pre` stands for.

    Attributes:
        split: makes the pre-tokenizer, which splits a text into words.
        normalizer: makes the normalizer; None for none.
        ignore_merges: whether a word that is a piece is not split, whatever the merges are.
        adds_begin: whether the begin token is put before prompts if `add_bos_token` is absent.
    """

    split: Callable[[], pre_tokenizers.PreTokenizer]
    normalizer: Callable[[], normalizers.Normalizer] | None = None
    ignore_merges: bool = False
    adds_begin: bool = False


_KINDS: Mapping[str, _Kind] = {
    "gpt-2": _Kind(_byte_level),
    "smollm": _Kind(lambda: pre_tokenizers.Sequence([pre_tokenizers.Digits(True), _byte_level()])),
    "llama-bpe": _Kind(
        lambda: _split_by(_WORDS % r"\p{N}{1,3}"), ignore_merges=True, adds_begin=True
    ),
    "qwen2": _Kind(lambda: _split_by(_WORDS % r"\p{N}"), normalizers.NFC),
}


def vocabulary_of(file: GgufFile) -> JsonVocabulary:
    """Returns the vocabulary that the metadata of a GGUF file describe.

    Raises:
        ValueError: the tokenizer is no byte-level BPE, its pre-tokenizer is not known, or its
            metadata are not valid.
    """
    with prefix_errors(file.where):
        kind, pieces = _kind(file), _pieces(file)
        begin, end, padding, unknown = (
            _token(file, name, pieces) for name in ("bos", "eos", "padding", "unknown")
        )
        adds_begin = file.fields.get("tokenizer.ggml.add_bos_token", kind.adds_begin)
        if adds_begin and begin is None:
            raise ValueError(
                "a begin token is put before prompts, and none is named (bos_token_id)"
            )
        converted = _tokenizer(file, kind, pieces).to_str()
    return JsonVocabulary(file.where, end, padding, unknown, begin, bool(adds_begin), converted)


def end_ids(file: GgufFile) -> tuple[int, ...]:
    """Returns the ids that end a sequence: the end of a text, of a turn and of a message."""
    keys = (f"tokenizer.ggml.{name}_token_id" for name in ("eos", "eot", "eom"))
    return tuple(dict.fromkeys(file.fields[key] for key in keys if key in file.fields))


def _kind(file: GgufFile) -> _Kind:
    model, pre = file.field("tokenizer.ggml.model"), file.fields.get("tokenizer.ggml.pre")
    if model != "gpt2":
        raise ValueError(
            f"tokenizer.ggml.model is {model!r}; only 'gpt2' (byte-level BPE) is supported. Load the Hugging "
            "Face folder of the model, which has its tokenizer file"
        )
    if pre not in _KINDS:
        raise ValueError(
            f"tokenizer.ggml.pre is {pre!r}, and it is not known how this pre-tokenizer splits a text; "
            f"supported are {', '.join(_KINDS)}. Load the Hugging Face folder of the model"
        )
    if file.fields.get("tokenizer.ggml.add_space_prefix"):
        raise ValueError("tokenizer.ggml.add_space_prefix is true; only false is supported")
    return _KINDS[pre]


def _pieces(file: GgufFile) -> list[str]:
    """Returns the pieces, without the unused ones at the end that fill up the embedding table."""
    pieces, types = (file.field(f"tokenizer.ggml.{name}") for name in ("tokens", "token_type"))
    if len(types) != len(pieces) or len(set(pieces)) != len(pieces):
        raise ValueError(
            f"the tokenizer has {len(pieces)} tokens, {len(set(pieces))} different ones, and {len(types)} "
            "types; each token needs a name and a type of its own"
        )
    size = len(pieces)
    while size and types[size - 1] == gguf.TokenType.UNUSED:
        size -= 1
    return pieces[:size]


def _tokenizer(file: GgufFile, kind: _Kind, pieces: Sequence[str]) -> tokenizers.Tokenizer:
    merges = [tuple(merge.split(" ", 1)) for merge in file.field("tokenizer.ggml.merges")]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    try:
        model = models.BPE(vocabulary, merges, ignore_merges=kind.ignore_merges)
    except Exception as error:  # tokenizers raises no subclass
        raise ValueError(f"tokenizer.ggml.merges do not fit the tokens ({error})") from error
    built = tokenizers.Tokenizer(model)
    if kind.normalizer is not None:
        built.normalizer = kind.normalizer()
    built.pre_tokenizer, built.decoder = kind.split(), decoders.ByteLevel()
    types = zip(pieces, file.field("tokenizer.ggml.token_type"), strict=False)
    built.add_tokens(
        [
            AddedToken(piece, special=x == _CONTROL, normalized=False)
            for piece, x in types
            if x in (_CONTROL, _USER_DEFINED)
        ]
    )
    return built


def _token(file: GgufFile, name: str, pieces: Sequence[str]) -> str | None:
    """Returns a special token as a piece; None if the file names none."""
    key = f"tokenizer.ggml.{name}_token_id"
    i = file.fields.get(key)
    if i is not None and i not in range(len(pieces)):
        raise ValueError(f"{key} is {i!r}; the file has {len(pieces)} tokens")
    return None if i is None else pieces[i]

"""Converts the byte-level BPE inside a GGUF file to a tokenizer.json of Hugging Face's tokenizers.

Source of the names of pre-tokenizers and their expressions: `llama-vocab.cpp` in ggml-org/llama.cpp, and
the tokenizer.json of the models that they are named after.
"""

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

from dera_jax.checkpoints.gguf_file import GgufFile
from dera_jax.checkpoints.json_vocabulary import JsonVocabulary

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = range(1, 7)
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _split_by(pattern: str) -> pre_tokenizers.PreTokenizer:
    split = pre_tokenizers.Split(Regex(pattern), "isolated")
    return pre_tokenizers.Sequence([split, _byte_level(use_regex=False)])


def _byte_level(use_regex: bool = True) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)


_PRE_TOKENIZERS = {  # by tokenizer.ggml.pre
    "gpt-2": _byte_level,
    "smollm": lambda: pre_tokenizers.Sequence([pre_tokenizers.Digits(True), _byte_level()]),
    "llama-bpe": lambda: _split_by(_WORDS % r"\p{N}{1,3}"),
    "qwen2": lambda: _split_by(_WORDS % r"\p{N}"),
}
_WHOLE_PIECES_FIRST = ("llama-bpe",)  # a word that is a piece is not split by merges
_NORMALIZERS = {"qwen2": normalizers.NFC}


def vocabulary_of(file: GgufFile) -> JsonVocabulary:
    """Returns the vocabulary that the metadata of a GGUF file describe.

    Raises:
        ValueError: the tokenizer is no byte-level BPE, its pre-tokenizer is not known, or its
            metadata are not valid.
    """
    kind = file.field("tokenizer.ggml.model")
    if kind != "gpt2":
        raise ValueError(
            f"{file.where}: tokenizer.ggml.model is {kind!r}; only 'gpt2' (byte-level BPE) is supported. Load the "
            "Hugging Face folder of the model, which has its tokenizer file"
        )
    pre = file.fields.get("tokenizer.ggml.pre")
    if pre not in _PRE_TOKENIZERS:
        raise ValueError(
            f"{file.where}: the pre-tokenizer tokenizer.ggml.pre is {pre!r}, and how it splits a text is not known; "
            f"supported are {', '.join(_PRE_TOKENIZERS)}. Load the Hugging Face folder of the model"
        )
    if file.fields.get("tokenizer.ggml.add_space_prefix"):
        raise ValueError(
            f"{file.where}: tokenizer.ggml.add_space_prefix is true; only false is supported"
        )
    token = lambda name: _token(file, f"tokenizer.ggml.{name}_token_id")
    return JsonVocabulary(
        file.where,
        end=token("eos"),
        padding=token("padding"),
        unknown=token("unknown"),
        begin=token("bos"),
        adds_begin=bool(file.fields.get("tokenizer.ggml.add_bos_token", False)),
        converted=_tokenizer(file, pre).to_str(),
    )


def _tokenizer(file: GgufFile, pre: str) -> tokenizers.Tokenizer:
    pieces = file.field("tokenizer.ggml.tokens")
    types = file.fields.get("tokenizer.ggml.token_type", [_NORMAL] * len(pieces))
    merges = [tuple(merge.split(" ", 1)) for merge in file.field("tokenizer.ggml.merges")]
    if len(types) != len(pieces) or len(set(pieces)) != len(pieces):
        raise ValueError(
            f"{file.where}: {len(pieces)} tokens of {len(set(pieces))} names, and {len(types)} types; each token "
            "needs a name and a type of its own"
        )
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    model = models.BPE(vocabulary, merges, ignore_merges=pre in _WHOLE_PIECES_FIRST)
    tokenizer = tokenizers.Tokenizer(model)
    if pre in _NORMALIZERS:
        tokenizer.normalizer = _NORMALIZERS[pre]()
    tokenizer.pre_tokenizer = _PRE_TOKENIZERS[pre]()
    tokenizer.decoder = decoders.ByteLevel()
    for piece, kind in zip(pieces, types, strict=True):
        if kind in (_CONTROL, _USER_DEFINED):
            tokenizer.add_tokens([AddedToken(piece, special=kind == _CONTROL, normalized=False)])
    return tokenizer


def _token(file: GgufFile, key: str) -> str | None:
    """Returns the piece of the id under a key; None if there is no key."""
    i, pieces = file.fields.get(key), file.field("tokenizer.ggml.tokens")
    if i is not None and not 0 <= i < len(pieces):
        raise ValueError(f"{file.where}: {key} is {i}; the file has {len(pieces)} tokens")
    return None if i is None else pieces[i]

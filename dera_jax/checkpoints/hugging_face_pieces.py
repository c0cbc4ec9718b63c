"""Reads the SentencePiece file of a decoder-only model in a transformers folder, tokenizer.model."""

from collections.abc import Mapping

from tokenizers import AddedToken

from dera_jax.checkpoints.hugging_face_tokens import (
    TOKENIZER,
    added_tokens,
    further_special,
    named_token,
)
from dera_jax.checkpoints.json_vocabulary import JSON, JsonVocabulary
from dera_jax.checkpoints.sentencepiece_json import read_pieces, tokenizer_json
from dera_jax.checkpoints.storage import Folder

BPE_PIECES = "tokenizer.model"
_CLASS = "LlamaTokenizer"
_KEYS = {"begin": "bos_token", "end": "eos_token", "padding": "pad_token", "unknown": "unk_token"}


def vocabulary_of_pieces(folder: Folder, tokenizer_config: Mapping) -> JsonVocabulary:
    """Returns the vocabulary of a tokenizer.model.

    Absent keys of tokenizer_config.json mean what they mean in transformers 5, except that a begin
    token is put before prompts, as in transformers 4.

    Raises:
        ValueError: the file is no SentencePiece model or not supported, see `tokenizer_json`; or
            tokenizer_config.json names another class of tokenizers.
    """
    where = folder.path(BPE_PIECES)
    kind = str(tokenizer_config.get("tokenizer_class") or _CLASS).removesuffix("Fast")
    if kind != _CLASS:
        raise ValueError(
            f"{folder.path(TOKENIZER)}: tokenizer_class is {kind!r}; with a {BPE_PIECES} and no {JSON} it must "
            f"be {_CLASS!r}. Save the tokenizer as {JSON}"
        )
    model = read_pieces(folder.read(BPE_PIECES), where)
    own = {"begin": model.trainer_spec.bos_id, "end": model.trainer_spec.eos_id}
    own |= {"unknown": model.trainer_spec.unk_id, "padding": model.trainer_spec.pad_id}
    inside = range(len(model.pieces))
    names = {name: model.pieces[i].piece if i in inside else None for name, i in own.items()}
    tokens = {
        name: named_token(folder, tokenizer_config, key, names[name]) for name, key in _KEYS.items()
    }
    special = {*tokens.values(), *further_special(folder, tokenizer_config)}
    added = _flagged_tokens(folder, tokenizer_config, special)
    return JsonVocabulary(
        where,
        **tokens,
        adds_begin=bool(tokenizer_config.get("add_bos_token", True)),
        converted=tokenizer_json(model, added, _prefix(tokenizer_config), where),
    )


def _prefix(tokenizer_config: Mapping) -> str | None:
    """Return the argument `prefix` of `tokenizer_json`."""
    space = tokenizer_config.get("add_prefix_space")
    if space is False:
        return "never"
    if tokenizer_config.get("legacy"):
        return "always"
    return "first" if space else None


def check_pieces(folder: Folder, tokenizer_config: Mapping, vocabulary: JsonVocabulary) -> None:
    """Raises ValueError if tokenizer.model has other pieces than tokenizer.json.

    Added tokens may replace pieces. Llama 3's tokenizer.model is no SentencePiece file.
    """
    try:
        pieces = read_pieces(folder.read(BPE_PIECES), folder.path(BPE_PIECES)).pieces
    except ValueError:
        return
    added = added_tokens(folder, tokenizer_config)
    for i, piece in enumerate(pieces):
        found = vocabulary.pieces[i] if i < len(vocabulary.pieces) else "(no such id)"
        if found != piece.piece and i not in added:
            raise ValueError(
                f"{folder.where}: id {i} is {piece.piece!r} in {BPE_PIECES}, but {found!r} in {JSON}; they must "
                "agree"
            )


def _flagged_tokens(
    folder: Folder, tokenizer_config: Mapping, special_tokens: set[str | None]
) -> dict[int, AddedToken]:
    """Return the added tokens by id with their flags; `special_tokens` are special."""
    described = tokenizer_config.get("added_tokens_decoder") or {}
    tokens = {}
    for i, content in added_tokens(folder, tokenizer_config).items():
        flags = dict(described.get(str(i), {}))
        special = flags.pop("special", False) or content in special_tokens
        flags = {"normalized": not special} | flags | {"content": content, "special": special}
        tokens[i] = AddedToken(**{k: x for k, x in flags.items() if not k.startswith("__")})
    return tokens

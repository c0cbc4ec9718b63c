"""Reads and writes the tokenizer files of a transformers folder.

tokenizer.json              the tokenizer, as transformers 5 saves it
spiece.model                the SentencePiece file of a T5, as transformers 4 saves it; ByT5 has neither
tokenizer.model             the SentencePiece file of a decoder-only model (Llama 1 and 2, Mistral)
tokenizer_config.json       tokenizer class, number of sentinels, special and added tokens
special_tokens_map.json     special tokens, repeated
added_tokens.json           added tokens, repeated
chat_template.jinja         chat template; older folders have it in tokenizer_config.json
config.json, generation_config.json   ids of end of sequence, padding and the decoder's start token

If two files define the same token or id differently, a ValueError is raised.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from dera_jax.checkpoints import sampling_fields
from dera_jax.checkpoints.byte_vocabulary import ByteVocabulary
from dera_jax.checkpoints.chat_template import TEMPLATE, stored_template
from dera_jax.checkpoints.hugging_face_pieces import (
    BPE_PIECES,
    check_pieces,
    vocabulary_of_pieces,
)
from dera_jax.checkpoints.hugging_face_tokens import (
    ADDED,
    TOKENIZER,
    added_tokens,
    named_token,
    optional_json,
)
from dera_jax.checkpoints.json_vocabulary import JSON, JsonVocabulary
from dera_jax.checkpoints.sentencepiece_vocabulary import SentencePieceVocabulary
from dera_jax.checkpoints.storage import Folder
from dera_jax.checkpoints.vocabulary import Vocabulary, check_same, is_sentinel
from dera_jax.files import json_files

CONFIG, GENERATION = "config.json", "generation_config.json"
PIECES = "spiece.model"
_SENTINELS = 100  # number of sentinels if tokenizer_config.json has no extra_ids
_BEGIN = ("bos_token", None)
_NAMES = {"end": ("eos_token", "</s>"), "padding": ("pad_token", "<pad>"), "unknown": ("unk_token", "<unk>")}  # fmt: skip


def vocabulary_of(folder: Folder) -> Vocabulary | None:
    """Returns the folder's vocabulary, or None if it holds no tokenizer file.

    Raises:
        ValueError: two files contradict each other, a file is damaged, or an added token is not
            supported.
    """
    tokenizer_config = optional_json(folder, TOKENIZER)
    if str(tokenizer_config.get("tokenizer_class") or "").startswith("ByT5"):
        vocabulary = ByteVocabulary()  # ByT5's sentinels have ids in the padding of the table
        _check_byte_tokens(folder, added_tokens(folder, tokenizer_config))
        return vocabulary
    tokens = {name: named_token(folder, tokenizer_config, *known) for name, known in _NAMES.items()}
    pieces = _pieces(folder, tokenizer_config) if folder.has(PIECES) else None
    if not folder.has(JSON):
        if pieces is None and folder.has(BPE_PIECES):
            return vocabulary_of_pieces(folder, tokenizer_config)
        return pieces and _with_named_end(folder, pieces, tokenizer_config)
    vocabulary = JsonVocabulary(folder.path(JSON), **tokens)
    begin, adds_begin = _begin(folder, tokenizer_config, vocabulary)
    vocabulary = dataclasses.replace(vocabulary, begin=begin, adds_begin=adds_begin)
    _check_added(folder, vocabulary, added_tokens(folder, tokenizer_config))
    if pieces:
        check_same(pieces, vocabulary, folder.path(PIECES), folder.path(JSON))
    if folder.has(BPE_PIECES):
        check_pieces(folder, tokenizer_config, vocabulary)
    return vocabulary


def chat_template_of(folder: Folder) -> str | None:
    """Returns the source of the folder's chat template, or None; chat_template.jinja takes precedence.

    Raises:
        ValueError: tokenizer_config.json has several templates and none with the name 'default'.
    """
    stored = stored_template(folder)
    source = optional_json(folder, TOKENIZER).get("chat_template") if stored is None else stored
    if isinstance(source, list):
        by_name = {x.get("name"): x.get("template") for x in source if isinstance(x, Mapping)}
        if "default" not in by_name:
            raise ValueError(
                f"{folder.path(TOKENIZER)}: chat_template has no template 'default', only "
                f"{', '.join(map(repr, by_name))}; write the one to use into {TEMPLATE}"
            )
        source = by_name["default"]
    if source is not None and not isinstance(source, str):
        raise ValueError(f"{folder.path(TOKENIZER)}: chat_template is {source!r:.100}, not a text")
    return source


def sampling_notes(folder: Folder) -> tuple[str, ...]:
    """Returns sentences about the sampling fields of generation_config.json, which are not applied."""
    fields = sampling_fields.effective(optional_json(folder, GENERATION))
    return sampling_fields.notes(folder.path(GENERATION), fields)


def has_tokenizer(folder: Folder) -> bool:
    """Returns whether the folder has tokenizer files that transformers can read."""
    return any(folder.has(name) for name in (JSON, PIECES, BPE_PIECES, TOKENIZER))


def no_vocabulary(folder: Folder) -> str:
    """Returns an error message: the folder has no tokenizer, the files expected, and what to do."""
    return (
        f"{folder.where} does not say what its ids mean: it has no {JSON}, {PIECES} or {BPE_PIECES}, nor a "
        f"{TOKENIZER} that names ByT5Tokenizer; save the model's tokenizer there (transformers' "
        "AutoTokenizer.from_pretrained(...).save_pretrained(...)), or pass its vocabulary: "
        "load(path, vocabulary=...), or python -m dera_jax.checkpoints.convert --vocabulary"
    )


def end_ids(folder: Folder, joined: bool) -> tuple[int, ...]:
    """Returns the end token ids; () if no file gives any.

    Args:
        folder: the model's folder.
        joined: whether the end ids of several files are joined. Otherwise they must agree.

    Raises:
        ValueError: two files contradict each other, or name something else than token ids.
    """
    return _special_ids(folder, "eos_token_id", joined)


def start_id(folder: Folder) -> int:
    """Returns the id of the decoder's start token of an encoder-decoder.

    Without decoder_start_token_id, it is the padding id, as in every T5.

    Raises:
        ValueError: there are several start or padding tokens, or two files contradict each other.
    """
    padding, start = (
        _special_ids(folder, key) for key in ("pad_token_id", "decoder_start_token_id")
    )
    for key, ids in (("pad_token_id", padding), ("decoder_start_token_id", start)):
        if len(ids) > 1:
            raise ValueError(f"{folder.where}: {key} lists the ids {list(ids)}; it must be one id")
    return (start or padding or (0,))[0]


def save_tokenizer(folder: Path, vocabulary: Vocabulary, chat_template: str | None = None) -> None:
    """Writes a vocabulary, and a chat template, as files that transformers' AutoTokenizer can load.

    Raises:
        ValueError: a byte vocabulary has sentinels, which transformers numbers in another order.
    """
    tokenizer_config = {}
    if isinstance(vocabulary, ByteVocabulary):
        if vocabulary.extra_ids:
            raise ValueError(
                f"a byte vocabulary with {vocabulary.extra_ids} sentinels: transformers' ByT5Tokenizer "
                "numbers them in the opposite order; only one without sentinels can be written"
            )
        tokenizer_config["tokenizer_class"] = "ByT5Tokenizer"
    elif isinstance(vocabulary, SentencePieceVocabulary):
        size = len(vocabulary.pieces) - len(vocabulary.added)
        added = {token: size + i for i, token in enumerate(vocabulary.added)}
        tokenizer_config |= {"tokenizer_class": "T5Tokenizer", "extra_ids": vocabulary.extra_ids}
        special = _special_tokens(vocabulary)
        tokenizer_config |= {_NAMES[name][0]: token for name, token in special.items()}
        if added:
            flags = dict.fromkeys(
                ("lstrip", "rstrip", "normalized", "single_word", "special"), False
            )
            entries = {str(i): {"content": token, **flags} for token, i in added.items()}
            tokenizer_config["added_tokens_decoder"] = entries
            json_files.write(folder / ADDED, added, sort_keys=True)
        (folder / PIECES).write_bytes(vocabulary.content())
    else:
        tokens = {
            "end": vocabulary.end,
            "padding": vocabulary.padding,
            "unknown": vocabulary.unknown,
            "begin": vocabulary.begin,
        }
        tokenizer_config["tokenizer_class"] = "PreTrainedTokenizerFast"
        tokenizer_config["add_bos_token"] = vocabulary.begin_id is not None
        names = {name: key for name, (key, _) in {**_NAMES, "begin": _BEGIN}.items()}
        tokenizer_config |= {
            names[name]: token for name, token in tokens.items() if token is not None
        }
        (folder / JSON).write_bytes(vocabulary.content())
    json_files.write(folder / TOKENIZER, tokenizer_config, sort_keys=True)
    if chat_template is not None:
        (folder / TEMPLATE).write_bytes(chat_template.encode())


def _special_tokens(vocabulary: SentencePieceVocabulary) -> dict[str, str]:
    ids = {
        "end": vocabulary.end_id,
        "padding": vocabulary.padding_id,
        "unknown": vocabulary.unknown_id,
    }
    return {name: vocabulary.pieces[i] for name, i in ids.items() if i is not None}


def _pieces(folder: Folder, tokenizer_config: Mapping) -> SentencePieceVocabulary:
    extra_ids = tokenizer_config.get("extra_ids")
    if extra_ids is None:  # some files, such as those of mT5, hold the sentinels as pieces
        inside = SentencePieceVocabulary(folder.path(PIECES)).pieces
        extra_ids = 0 if any(map(is_sentinel, inside)) else _SENTINELS
    if not isinstance(extra_ids, int) or extra_ids < 0:
        raise ValueError(
            f"{folder.path(TOKENIZER)}: extra_ids is {extra_ids!r}; it must be an integer of at least 0"
        )
    plain = SentencePieceVocabulary(folder.path(PIECES), extra_ids)
    tokens = added_tokens(folder, tokenizer_config)
    if not tokens:
        return plain
    size = len(plain.pieces)
    beyond = sorted(i for i in tokens if i >= size)
    if beyond != list(range(size, size + len(beyond))):
        raise ValueError(
            f"{folder.where}: added tokens have the ids {beyond[:4]}; they must follow the {size} "
            f"ids of {PIECES} and its sentinels without a gap"
        )
    vocabulary = SentencePieceVocabulary(plain.file, extra_ids, tuple(tokens[i] for i in beyond))
    _check_added(folder, vocabulary, tokens)
    return vocabulary


def _with_named_end(
    folder: Folder, vocabulary: SentencePieceVocabulary, tokenizer_config: Mapping
) -> SentencePieceVocabulary:
    """Return the vocabulary, or raise ValueError if its end of sequence is not eos_token."""
    named = tokenizer_config.get("eos_token") and named_token(
        folder, tokenizer_config, *_NAMES["end"]
    )
    if named and vocabulary.pieces.index(named) != vocabulary.end_id:
        raise ValueError(
            f"{folder.path(TOKENIZER)}: eos_token is {named!r}, but {PIECES} ends sequences with id "
            f"{vocabulary.end_id}; they must agree"
        )
    return vocabulary


def _check_added(folder: Folder, vocabulary: Vocabulary, tokens: Mapping[int, str]) -> None:
    pieces = vocabulary.pieces
    for i, text in sorted(tokens.items()):
        piece = pieces[i] if i < len(pieces) else "(no such id)"
        if piece != text:
            raise ValueError(
                f"{folder.where}: id {i} is {text!r} among the added tokens ({TOKENIZER}, {ADDED}), "
                f"but {piece!r} in {Path(vocabulary.file).name}; they must agree"
            )


def _check_byte_tokens(folder: Folder, tokens: Mapping[int, str]) -> None:
    names = dict(enumerate(("<pad>", "</s>", "<unk>")))
    for i, text in sorted(tokens.items()):
        if names.get(i) != text and not is_sentinel(text):
            raise ValueError(
                f"{folder.where}: added token {text!r} with id {i}; a byte vocabulary (ByT5) with "
                "added tokens is not supported"
            )


def _begin(
    folder: Folder, tokenizer_config: Mapping, vocabulary: JsonVocabulary
) -> tuple[str | None, bool]:
    """Return the begin token, and whether it is put before every prompt.

    Without `add_bos_token`, tokenizer.json decides.
    """
    add_bos = tokenizer_config.get("add_bos_token")
    token = named_token(folder, tokenizer_config, *_BEGIN)
    if add_bos is None:
        added = vocabulary.first_added()
        return added or token, added is not None
    if add_bos and (token is None or vocabulary.tokenizer.token_to_id(token) is None):
        raise ValueError(
            f"{folder.path(TOKENIZER)}: add_bos_token is true, but bos_token is {token!r}; it must be "
            f"a token of {JSON}"
        )
    return token, bool(add_bos)


def _special_ids(folder: Folder, key: str, joined: bool = False) -> tuple[int, ...]:
    """Return the ids in config.json or generation_config.json, or () if neither holds the key."""
    ids_by_file = {}
    for name in (CONFIG, GENERATION):
        value = optional_json(folder, name).get(key)
        if value is None:
            continue
        ids = tuple(value) if isinstance(value, list) else (value,)
        if not ids or any(type(x) is not int or x < 0 for x in ids):
            raise ValueError(f"{folder.path(name)}: {key} is {value!r}; it must be a token id")
        ids_by_file[name] = ids
    if joined:
        return tuple(dict.fromkeys(i for ids in ids_by_file.values() for i in ids))
    if len({frozenset(ids) for ids in ids_by_file.values()}) > 1:
        listed = " and ".join(
            f"{', '.join(map(str, ids))} in {name}" for name, ids in ids_by_file.items()
        )
        raise ValueError(f"{folder.where}: {key} is {listed}; they must agree")
    return next(iter(ids_by_file.values()), ())

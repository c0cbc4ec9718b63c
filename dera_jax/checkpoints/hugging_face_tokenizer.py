"""What a folder of transformers says of its ids, read and written.

tokenizer.json              the tokenizer, as transformers 5 saves it
spiece.model                the SentencePiece file, as transformers 4 saves it; ByT5 has neither
tokenizer_config.json       its class, number of sentinels, special and added tokens
special_tokens_map.json     special tokens once more
added_tokens.json           added tokens once more
config.json, generation_config.json   ids of end, padding and the decoder's first token

Where two files say the same thing, they must agree.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from dera_jax import json_files
from dera_jax.checkpoints.byte_vocabulary import ByteVocabulary
from dera_jax.checkpoints.json_vocabulary import JSON, JsonVocabulary
from dera_jax.checkpoints.sentencepiece_vocabulary import SentencePieceVocabulary
from dera_jax.checkpoints.storage import Folder
from dera_jax.checkpoints.vocabulary import Vocabulary, check_same, is_sentinel

CONFIG, GENERATION = "config.json", "generation_config.json"
PIECES, TOKENIZER = "spiece.model", "tokenizer_config.json"
SPECIAL, ADDED = "special_tokens_map.json", "added_tokens.json"
_SENTINELS = 100  # of a T5 whose tokenizer_config.json does not say
_BEGIN = ("bos_token", None)
_NAMES = {"end": ("eos_token", "</s>"), "padding": ("pad_token", "<pad>"), "unknown": ("unk_token", "<unk>")}  # fmt: skip


def vocabulary_of(folder: Folder) -> Vocabulary | None:
    """What the ids mean; None where no file says so.

    Raises:
        ValueError: two files contradict each other, or added tokens that are not supported.
    """
    described = _json(folder, TOKENIZER)
    if str(described.get("tokenizer_class") or "").startswith("ByT5"):
        vocabulary = ByteVocabulary()  # its sentinels are names of ids that pad the table
        _check_byte_tokens(folder, _added_tokens(folder, described))
        return vocabulary
    tokens = {name: _token(folder, described, *known) for name, known in _NAMES.items()}
    pieces = _pieces(folder, described) if folder.has(PIECES) else None
    if not folder.has(JSON):
        return pieces and _with_named_end(folder, pieces, described)
    vocabulary = JsonVocabulary(folder.path(JSON), **tokens)
    vocabulary = dataclasses.replace(vocabulary, begin=_begin(folder, described, vocabulary))
    _check_added(folder, vocabulary, _added_tokens(folder, described))
    if pieces:
        check_same(pieces, vocabulary, folder.path(PIECES), folder.path(JSON))
    return vocabulary


def has_tokenizer(folder: Folder) -> bool:
    """Whether there is a tokenizer for transformers to read."""
    return any(folder.has(name) for name in (JSON, PIECES, TOKENIZER))


def no_vocabulary(folder: Folder) -> str:
    """Say that a folder lacks a tokenizer, which files were looked for, and what to do."""
    return (
        f"{folder.where} does not say what its ids mean: it has neither {JSON} nor {PIECES}, nor a "
        f"{TOKENIZER} that names ByT5Tokenizer; save the model's tokenizer there (transformers' "
        "AutoTokenizer.from_pretrained(...).save_pretrained(...)), or name it: "
        "load(path, vocabulary=...), or python -m dera_jax.checkpoints.convert --vocabulary"
    )


def special_ids(folder: Folder) -> tuple[int, tuple[int, ...]]:
    """The decoder's first token, and the end tokens; none of the latter where no file says them.

    Where decoder_start_token_id is not said it is that of padding, as for every T5.

    Raises:
        ValueError: several first tokens, or files that contradict each other.
    """
    padding, start = (
        _special_ids(folder, key) for key in ("pad_token_id", "decoder_start_token_id")
    )
    for key, ids in (("pad_token_id", padding), ("decoder_start_token_id", start)):
        if len(ids) > 1:
            raise ValueError(f"{folder.where}: {key} lists the ids {list(ids)}; leave one")
    first = start or padding or (0,)
    return first[0], _special_ids(folder, "eos_token_id")


def save_tokenizer(folder: Path, vocabulary: Vocabulary) -> None:
    """Write the files by which transformers' AutoTokenizer reads a vocabulary.

    Raises:
        ValueError: a byte vocabulary with sentinels, whose ids transformers numbers otherwise.
    """
    described = {}
    if isinstance(vocabulary, ByteVocabulary):
        if vocabulary.extra_ids:
            raise ValueError(
                f"a byte vocabulary with {vocabulary.extra_ids} sentinels: transformers' ByT5Tokenizer "
                "numbers them in the opposite order; only one without sentinels can be written"
            )
        described["tokenizer_class"] = "ByT5Tokenizer"
    elif isinstance(vocabulary, SentencePieceVocabulary):
        size = len(vocabulary.pieces) - len(vocabulary.added)
        added = {text: size + i for i, text in enumerate(vocabulary.added)}
        described |= {"tokenizer_class": "T5Tokenizer", "extra_ids": vocabulary.extra_ids}
        described |= {_NAMES[name][0]: text for name, text in _special_tokens(vocabulary).items()}
        if added:
            flags = dict.fromkeys(
                ("lstrip", "rstrip", "normalized", "single_word", "special"), False
            )
            entries = {str(i): {"content": text, **flags} for text, i in added.items()}
            described["added_tokens_decoder"] = entries
            json_files.write(folder / ADDED, added, sort_keys=True)
        (folder / PIECES).write_bytes(vocabulary.content())
    else:
        tokens = {
            "end": vocabulary.end,
            "padding": vocabulary.padding,
            "unknown": vocabulary.unknown,
            "begin": vocabulary.begin,
        }
        described["tokenizer_class"] = "PreTrainedTokenizerFast"
        described["add_bos_token"] = vocabulary.begin is not None
        names = {name: key for name, (key, _) in {**_NAMES, "begin": _BEGIN}.items()}
        described |= {names[name]: text for name, text in tokens.items() if text is not None}
        (folder / JSON).write_bytes(vocabulary.content())
    json_files.write(folder / TOKENIZER, described, sort_keys=True)


def _json(folder: Folder, name: str) -> Mapping:
    return folder.read_json(name) if folder.has(name) else {}


def _special_tokens(vocabulary: SentencePieceVocabulary) -> dict[str, str]:
    ids = {
        "end": vocabulary.end_id,
        "padding": vocabulary.padding_id,
        "unknown": vocabulary.unknown_id,
    }
    return {name: vocabulary.pieces[i] for name, i in ids.items() if i is not None}


def _pieces(folder: Folder, described: Mapping) -> SentencePieceVocabulary:
    extra_ids = described.get("extra_ids")
    if extra_ids is None:  # some files, mT5's among them, hold the sentinels themselves
        inside = SentencePieceVocabulary(folder.path(PIECES)).pieces
        extra_ids = 0 if any(map(is_sentinel, inside)) else _SENTINELS
    if not isinstance(extra_ids, int) or extra_ids < 0:
        raise ValueError(
            f"{folder.path(TOKENIZER)}: extra_ids is {extra_ids!r}; it must be a number, at least 0"
        )
    plain = SentencePieceVocabulary(folder.path(PIECES), extra_ids)
    tokens = _added_tokens(folder, described)
    if not tokens:
        return plain
    size = len(plain.pieces)
    beyond = sorted(i for i in tokens if i >= size)
    if beyond != list(range(size, size + len(beyond))):
        raise ValueError(
            f"{folder.where}: added tokens have the ids {beyond[:4]}; they must follow the {size} "
            f"ids of {PIECES} and its sentinels without a gap"
        )
    found = SentencePieceVocabulary(plain.file, extra_ids, tuple(tokens[i] for i in beyond))
    _check_added(folder, found, tokens)
    return found


def _with_named_end(
    folder: Folder, vocabulary: SentencePieceVocabulary, described: Mapping
) -> SentencePieceVocabulary:
    """The vocabulary, if the file's own end of sequence is the one that is named."""
    named = described.get("eos_token") and _token(folder, described, *_NAMES["end"])
    if named and vocabulary.pieces.index(named) != vocabulary.end_id:
        raise ValueError(
            f"{folder.path(TOKENIZER)}: eos_token is {named!r}, and {PIECES} ends sequences with id "
            f"{vocabulary.end_id}"
        )
    return vocabulary


def _added_tokens(folder: Folder, described: Mapping) -> dict[int, str]:
    """Added tokens by id, from both files that may hold them."""
    found = {}
    for i, token in (described.get("added_tokens_decoder") or {}).items():
        if not (i.isdecimal() and isinstance(token, Mapping) and "content" in token):
            raise ValueError(
                f"{folder.path(TOKENIZER)}: added_tokens_decoder has {i!r}: {token!r}; expected an id "
                "and a token with its content"
            )
        if token.get("single_word"):
            raise ValueError(
                f"{folder.path(TOKENIZER)}: added token {token['content']!r} has single_word, which "
                "is not supported beside a SentencePiece file; save a tokenizer.json"
            )
        found[int(i)] = token["content"]
    for text, i in _json(folder, ADDED).items():
        if found.setdefault(i, text) != text:
            raise ValueError(
                f"{folder.path(ADDED)}: id {i} is {text!r}, and {found[i]!r} in {TOKENIZER}"
            )
    return found


def _check_added(folder: Folder, vocabulary: Vocabulary, tokens: Mapping[int, str]) -> None:
    pieces = vocabulary.pieces
    for i, text in sorted(tokens.items()):
        piece = pieces[i] if i < len(pieces) else "(no such id)"
        if piece != text:
            raise ValueError(
                f"{folder.where}: id {i} is {text!r} among the added tokens ({TOKENIZER}, {ADDED}), "
                f"and {piece!r} in {Path(vocabulary.file).name}"
            )


def _check_byte_tokens(folder: Folder, tokens: Mapping[int, str]) -> None:
    names = dict(enumerate(("<pad>", "</s>", "<unk>")))
    for i, text in sorted(tokens.items()):
        if names.get(i) != text and not is_sentinel(text):
            raise ValueError(
                f"{folder.where}: added token {text!r} with id {i}; a byte vocabulary (ByT5) with "
                "added tokens is not supported"
            )


def _token(folder: Folder, described: Mapping, key: str, default: str) -> str | None:
    """A special token by its text, as both files have it; T5's where neither says it."""
    said = {}
    for name, content in ((TOKENIZER, described), (SPECIAL, _json(folder, SPECIAL))):
        if content.get(key) is not None:
            value = content[key]
            said[name] = value["content"] if isinstance(value, Mapping) else value
    if len(set(said.values())) > 1:
        listed = " and ".join(f"{text!r} in {name}" for name, text in said.items())
        raise ValueError(f"{folder.where}: {key} is {listed}; they must agree")
    return next(iter(said.values()), default)


def _begin(folder: Folder, described: Mapping, vocabulary: JsonVocabulary) -> str | None:
    """The token before every prompt: where `add_bos_token` does not say it, what the file adds."""
    said = described.get("add_bos_token")
    if said is None:
        return vocabulary.first_added()
    token = _token(folder, described, *_BEGIN)
    if said and (token is None or vocabulary.tokenizer.token_to_id(token) is None):
        raise ValueError(
            f"{folder.path(TOKENIZER)}: add_bos_token is true, and bos_token is {token!r}; it must be "
            f"a token of {JSON}"
        )
    return token if said else None


def _special_ids(folder: Folder, key: str) -> tuple[int, ...]:
    """Ids as config.json and generation_config.json have them; none where neither says them."""
    said = {}
    for name in (CONFIG, GENERATION):
        value = _json(folder, name).get(key)
        if value is None:
            continue
        ids = tuple(value) if isinstance(value, list) else (value,)
        if not ids or any(type(x) is not int or x < 0 for x in ids):
            raise ValueError(f"{folder.path(name)}: {key} is {value!r}; it must be a token id")
        said[name] = ids
    if len({frozenset(ids) for ids in said.values()}) > 1:
        listed = " and ".join(f"{', '.join(map(str, ids))} in {name}" for name, ids in said.items())
        raise ValueError(f"{folder.where}: {key} is {listed}; they must agree")
    return next(iter(said.values()), ())

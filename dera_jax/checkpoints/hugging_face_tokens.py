"""Reads the special and added tokens of a transformers folder, which several files repeat."""

from collections.abc import Mapping

from dera_jax.checkpoints.storage import Folder

TOKENIZER, SPECIAL, ADDED = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"


def optional_json(folder: Folder, name: str) -> Mapping:
    """Returns the content of a JSON file of the folder; empty if there is no such file."""
    return folder.read_json(name) if folder.has(name) else {}


def added_tokens(folder: Folder, tokenizer_config: Mapping) -> dict[int, str]:
    """Returns the added tokens by id, from both files that may hold them.

    Raises:
        ValueError: the files contradict each other, or a token is not valid or not supported.
    """
    tokens = {}
    for i, token in (tokenizer_config.get("added_tokens_decoder") or {}).items():
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
        tokens[int(i)] = token["content"]
    for text, i in optional_json(folder, ADDED).items():
        if tokens.setdefault(i, text) != text:
            raise ValueError(
                f"{folder.path(ADDED)}: id {i} is {text!r}, but {tokens[i]!r} in {TOKENIZER}; they must agree"
            )
    return tokens


def named_token(
    folder: Folder, tokenizer_config: Mapping, key: str, default: str | None
) -> str | None:
    """Returns a special token; `default` if no file names it.

    Raises:
        ValueError: the files contradict each other.
    """
    tokens = {}
    for name, content in ((TOKENIZER, tokenizer_config), (SPECIAL, optional_json(folder, SPECIAL))):
        if content.get(key) is not None:
            value = content[key]
            tokens[name] = value["content"] if isinstance(value, Mapping) else value
    if len(set(tokens.values())) > 1:
        listed = " and ".join(f"{token!r} in {name}" for name, token in tokens.items())
        raise ValueError(f"{folder.where}: {key} is {listed}; they must agree")
    return next(iter(tokens.values()), default)


def further_special(folder: Folder, tokenizer_config: Mapping) -> list[str]:
    """Returns the special tokens that have no role, of all files that name some."""
    found = []
    for content in (tokenizer_config, optional_json(folder, SPECIAL)):
        for token in content.get("additional_special_tokens") or ():
            found.append(token["content"] if isinstance(token, Mapping) else token)
    return found

"""Reads and writes dera_jax's own format: a self-contained folder for each trained model.

config.json        architecture and sizes, vocabulary, and the pooling of a reward model's head
model.safetensors  parameters; the names of nested dictionaries are joined by '/'
card.json          how the model was trained, and its metrics
*.model            the SentencePiece file, unless it ships with the package; or
tokenizer.json     the file of Hugging Face's tokenizers
chat_template.jinja  the chat template, if the model has one
"""

import dataclasses
import shutil
from collections.abc import Mapping
from importlib import resources
from pathlib import Path

import flax.traverse_util
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from dera_jax import checks
from dera_jax.checkpoints.byte_vocabulary import ByteVocabulary
from dera_jax.checkpoints.chat_template import TEMPLATE, stored_template
from dera_jax.checkpoints.json_vocabulary import JSON, JsonVocabulary
from dera_jax.checkpoints.safetensors_file import open_safetensors
from dera_jax.checkpoints.sentencepiece_vocabulary import SentencePieceVocabulary
from dera_jax.checkpoints.storage import Folder, prefix_errors
from dera_jax.checkpoints.vocabulary import Vocabulary
from dera_jax.files import json_files
from dera_jax.models.finite import check_params
from dera_jax.models.heads import MEAN_OF_PREFIXES, Pooling
from dera_jax.models.language_model import PyTree
from dera_jax.models.registry import family_named, family_of
from dera_jax.partitioning import to_host, write_once

CONFIG, PARAMETERS, CARD = "config.json", "model.safetensors", "card.json"
_SCALAR = "scalar"  # how earlier versions wrote the head of a reward model, which was the mean


def save_model(
    folder: Path,
    config: object,
    vocabulary: Vocabulary | None,
    params: PyTree,
    card: Mapping[str, object],
    dtype: str = "float32",
    chat_template: str | None = None,
    pooling: Pooling = MEAN_OF_PREFIXES,
) -> None:
    """Writes a model folder, completely or not at all; an existing folder is replaced.

    Parameters may be sharded over a mesh. Of several processes, all must call this and one writes.

    Args:
        folder: folder to create.
        config: configuration of a model of `models.registry`. If it has no end tokens, the
            vocabulary's end token is stored.
        vocabulary: the model's vocabulary; None if it is not known.
        params: parameters of the model, or of a `ValueHead` on it.
        card: any content that JSON can hold.
        dtype: dtype of the stored parameters, 'float32' or 'bfloat16'.
        chat_template: source of the model's chat template; None for a model without one.
        pooling: that of the `ValueHead`; not used for a language model.

    Raises:
        FloatingPointError: a parameter is NaN or infinite, which `load` would not accept.
    """
    folder = Path(folder)
    flat = flax.traverse_util.flatten_dict(params, sep="/")
    arrays = to_host({name: jnp.asarray(x, dtype) for name, x in flat.items()})
    check_params(arrays, f"the model to be written to {folder}")
    text, head = (vocabulary, chat_template), pooling if "head" in params else None
    write_once(lambda: _write(folder, config, text, arrays, card, head))


def _write(
    folder: Path,
    config: object,
    text: tuple[Vocabulary | None, str | None],
    arrays: Mapping[str, np.ndarray],
    card: Mapping[str, object],
    head: Pooling | None,
) -> None:
    vocabulary, chat_template = text
    draft = folder.with_name(f".{folder.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    safetensors.numpy.save_file(arrays, draft / PARAMETERS)
    json_files.write(draft / CARD, dict(card), sort_keys=True)
    if vocabulary and vocabulary.end_id is not None and not config.end_ids:
        config = dataclasses.replace(config, end_ids=(vocabulary.end_id,))
    content = {
        "architecture": family_of(config).name,
        "model": dataclasses.asdict(config),
        "vocabulary": vocabulary and vocabulary.described(),
    }
    if head:
        content["head"] = dataclasses.asdict(head)
    json_files.write(draft / CONFIG, content, sort_keys=True)
    if vocabulary and not _is_shipped(vocabulary):
        for name, file_bytes in vocabulary.file_content().items():
            (draft / name).write_bytes(file_bytes)
    if chat_template is not None:
        (draft / TEMPLATE).write_bytes(chat_template.encode())
    put_in_place(draft, folder)


def put_in_place(draft: Path, folder: Path) -> None:
    """Renames a complete draft to `folder`; an existing folder is removed last."""
    replaced = _replaced(folder)
    shutil.rmtree(replaced, ignore_errors=True)
    if folder.exists():
        folder.rename(replaced)
    draft.rename(folder)
    shutil.rmtree(replaced, ignore_errors=True)


def restore_replaced(folder: Path) -> None:
    """Restores the previous folder if the process was killed while `put_in_place` replaced it."""
    write_once(lambda: _restore(folder))


def _restore(folder: Path) -> None:
    if not folder.exists() and _replaced(folder).exists():
        _replaced(folder).rename(folder)


def _replaced(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.replaced")


def open_model(folder: Folder) -> dict[str, object]:
    """Opens a model folder without reading its parameters.

    Returns:
        The fields config, arrays, vocabulary, card, head and chat_template of
        `recognise.Checkpoint`.

    Raises:
        FileNotFoundError: a file of the folder is missing.
        ValueError: a file is damaged, config.json is not valid, or the vocabulary is not the one
            that the model was trained with.
    """
    content, where = _read_json(folder, CONFIG), folder.path(CONFIG)
    with prefix_errors(where):
        _check_keys(
            "it", content, needed={"model", "vocabulary"}, possible={"architecture", "head"}
        )
        config = _config(content)
        head = pooling_of(content["head"]) if "head" in content else None
        _check_extra_ids(content["vocabulary"], config.vocab_size)
    return {
        "config": config,
        "arrays": open_safetensors(folder, _existing(folder, PARAMETERS)),
        "vocabulary": _vocabulary(folder, content["vocabulary"]),
        "card": _read_json(folder, CARD),
        "head": head,
        "chat_template": stored_template(folder),
    }


def pooling_of(head: object) -> Pooling:
    """Returns the pooling of a reward model from the entry `head` of its config.json or card.

    Raises:
        ValueError: the entry is not valid.
    """
    if head == _SCALAR:
        return MEAN_OF_PREFIXES
    if not isinstance(head, Mapping):
        raise ValueError(f"the head is {head!r}; it must be an object that says its pooling")  # noqa: TRY004 (of a file)
    _check_keys("'head'", head, {x.name for x in dataclasses.fields(Pooling)}, set())
    return Pooling(**head)


def _config(content: Mapping) -> object:
    """Return the configuration that config.json holds.

    Earlier versions wrote only T5 models, with `end_token` and without `architecture`.
    """
    sizes, kind = content["model"], family_named(content.get("architecture", "t5")).config
    fields, is_earlier = dataclasses.fields(kind), "architecture" not in content
    needed = {x.name for x in fields if x.default is dataclasses.MISSING}
    possible = {x.name for x in fields} | ({"end_token"} if is_earlier else set())
    _check_keys("'model'", sizes, needed, possible)
    if is_earlier and "end_token" in sizes:
        end = sizes["end_token"]
        sizes = {k: x for k, x in sizes.items() if k != "end_token"}
        sizes |= {} if end is None else {"end_ids": (end,)}
    return kind(**sizes)


def _check_extra_ids(vocabulary: object, vocab_size: int) -> None:
    """Raise ValueError for more sentinels than the model has ids, before they are created."""
    extra_ids = vocabulary.get("extra_ids", 0) if isinstance(vocabulary, dict) else 0
    if not checks.is_size(extra_ids, least=0) or extra_ids > vocab_size:
        raise ValueError(
            f"extra_ids is {extra_ids!r}; it must be an integer from 0 to vocab_size, {vocab_size}"
        )


def _check_keys(name: str, value: object, needed: set[str], possible: set[str]) -> None:
    """Raise ValueError unless an object of config.json has the needed keys and no unknown ones."""
    if not isinstance(value, dict):
        raise ValueError(f"{name} is {value!r:.100}; it must be an object")  # noqa: TRY004 (of a file)
    for key in sorted(needed - value.keys()):
        raise ValueError(f"{name} has no key {key!r}")
    known = needed | possible
    for key in sorted(value.keys() - known):
        raise ValueError(
            f"{name} has the unknown key {key!r}; known are {', '.join(sorted(known))}. A later version "
            "of dera_jax may have written it"
        )


def _is_shipped(vocabulary: Vocabulary) -> bool:
    """Return whether the vocabulary's file ships with the package, so that no copy is needed."""
    if not isinstance(vocabulary, SentencePieceVocabulary):
        return False
    return Path(vocabulary.file).resolve() == _shipped(vocabulary.name).resolve()


def _shipped(name: str) -> Path:
    return Path(str(resources.files("dera_jax"))) / "assets" / name


def _vocabulary(folder: Folder, entry: Mapping | None) -> Vocabulary | None:
    """Return the vocabulary that an entry of config.json describes."""
    if entry is None:
        return None
    if entry["file"] is None:
        return ByteVocabulary(entry["extra_ids"])
    shipped = _shipped(entry["file"])
    if folder.has(entry["file"]):
        file = folder.path(entry["file"])
    elif shipped.exists():
        file = shipped
    else:
        raise FileNotFoundError(
            f"{folder.path(CONFIG)} names the vocabulary {entry['file']!r}, which is neither in that "
            f"folder nor in {shipped.parent}"
        )
    if entry.get("kind") == JSON:
        special = (entry[token] for token in ("end", "padding", "unknown"))
        begin = entry.get("begin"), entry.get("adds_begin", True)
        vocabulary = JsonVocabulary(file, *special, *begin)
    else:
        added = tuple(entry.get("added", ()))
        vocabulary = SentencePieceVocabulary(file, entry["extra_ids"], added)
    if vocabulary.sha256 != entry["sha256"]:
        raise ValueError(
            f"{vocabulary.file} is not the vocabulary that {folder.where} was trained with: its "
            f"SHA-256 begins with {vocabulary.sha256[:12]}, expected {entry['sha256'][:12]}"
        )
    return vocabulary


def _existing(folder: Folder, name: str) -> str:
    if not folder.has(name):
        raise FileNotFoundError(f"{folder.where} is no complete model: it has no {name}")
    return name


def _read_json(folder: Folder, name: str) -> dict:
    return folder.read_json(_existing(folder, name))

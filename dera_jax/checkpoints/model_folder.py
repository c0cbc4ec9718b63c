"""A finished model as a folder that stands for itself.

config.json        architecture and sizes, vocabulary, and whether a scalar head is on it
model.safetensors  parameters, names joined by '/'
card.json          how it was made and what it scores
*.model            the SentencePiece file, unless it is one that ships with the package; or
tokenizer.json     the file of tokenizers
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

from dera_jax import checks, json_files
from dera_jax.checkpoints.byte_vocabulary import ByteVocabulary
from dera_jax.checkpoints.json_vocabulary import JSON, JsonVocabulary
from dera_jax.checkpoints.safetensors_file import open_safetensors
from dera_jax.checkpoints.sentencepiece_vocabulary import SentencePieceVocabulary
from dera_jax.checkpoints.storage import Folder, naming
from dera_jax.checkpoints.vocabulary import Vocabulary
from dera_jax.models.finite import check_params
from dera_jax.models.language_model import PyTree
from dera_jax.models.registry import family_named, family_of
from dera_jax.partitioning import once, to_host

CONFIG, PARAMETERS, CARD = "config.json", "model.safetensors", "card.json"
SCALAR = "scalar"  # the one head there is


def save_model(
    folder: Path,
    config: object,
    vocabulary: Vocabulary | None,
    params: PyTree,
    card: Mapping[str, object],
    dtype: str = "float32",
) -> None:
    """Writes a model's folder, complete or not at all; one of that name is replaced.

    Parameters may lie over a mesh; of several processes, all of which call this, one writes.

    Args:
        folder: to be made.
        config: of a model of `models.registry`; its end token is the vocabulary's where the
            configuration does not say it.
        vocabulary: what its ids mean; None if nobody knows.
        params: the model's, or a `ValueHead`'s on it.
        card: anything JSON can hold.
        dtype: of the stored parameters, 'float32' or 'bfloat16'.

    Raises:
        FloatingPointError: a parameter is NaN or infinite; `load` would not read the folder.
    """
    folder = Path(folder)
    flat = flax.traverse_util.flatten_dict(params, sep="/")
    arrays = to_host({name: jnp.asarray(x, dtype) for name, x in flat.items()})
    check_params(arrays, f"the model to be written to {folder}")
    once(lambda: _write(folder, config, vocabulary, arrays, card, "head" in params))


def _write(
    folder: Path,
    config: object,
    vocabulary: Vocabulary | None,
    arrays: Mapping[str, np.ndarray],
    card: Mapping[str, object],
    has_head: bool,
) -> None:
    draft = folder.with_name(f".{folder.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    safetensors.numpy.save_file(arrays, draft / PARAMETERS)
    json_files.write(draft / CARD, dict(card), sort_keys=True)
    if vocabulary and vocabulary.end_id is not None and not config.end_ids:
        config = dataclasses.replace(config, end_ids=(vocabulary.end_id,))
    names = {
        "architecture": family_of(config).name,
        "model": dataclasses.asdict(config),
        "vocabulary": vocabulary and vocabulary.described(),
    }
    if has_head:
        names["head"] = SCALAR
    json_files.write(draft / CONFIG, names, sort_keys=True)
    if vocabulary and not _ships(vocabulary):
        for name, content in vocabulary.file_content().items():
            (draft / name).write_bytes(content)
    replaced = _replaced(folder)
    shutil.rmtree(replaced, ignore_errors=True)
    if folder.exists():
        folder.rename(replaced)
    draft.rename(folder)
    shutil.rmtree(replaced, ignore_errors=True)


def restore_replaced(folder: Path) -> None:
    """Puts back the model that `save_model` was about to replace when its process was killed."""
    once(lambda: _restore(folder))


def _restore(folder: Path) -> None:
    if not folder.exists() and _replaced(folder).exists():
        _replaced(folder).rename(folder)


def _replaced(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.replaced")


def open_model(folder: Folder) -> dict[str, object]:
    """Sizes, parameters (not read yet), vocabulary, card and head, as `recognise.Checkpoint` has them.

    Raises:
        FileNotFoundError: a file of the folder is missing.
        ValueError: a file is half written, or the vocabulary is not the one the model was trained
            with.
    """
    names, where = _read_json(folder, CONFIG), folder.path(CONFIG)
    with naming(where):
        _check_keys("it", names, needed={"model", "vocabulary"}, possible={"architecture", "head"})
        config, head = _config(names), names.get("head")
        if head not in (None, SCALAR):
            raise ValueError(f"the head is {head!r}; known is {SCALAR!r} alone, or none")
        _check_extra_ids(names["vocabulary"], config.vocab_size)
    return {
        "config": config,
        "arrays": open_safetensors(folder, _existing(folder, PARAMETERS)),
        "vocabulary": _vocabulary(folder, names["vocabulary"]),
        "card": _read_json(folder, CARD),
        "head": head,
    }


def _config(names: Mapping) -> object:
    """The configuration. Earlier versions wrote T5s alone, without `architecture`, and `end_token`."""
    sizes, kind = names["model"], family_named(names.get("architecture", "t5")).config
    fields, is_earlier = dataclasses.fields(kind), "architecture" not in names
    needed = {x.name for x in fields if x.default is dataclasses.MISSING}
    possible = {x.name for x in fields} | ({"end_token"} if is_earlier else set())
    _check_keys("'model'", sizes, needed, possible)
    if is_earlier and "end_token" in sizes:
        end = sizes["end_token"]
        sizes = {k: x for k, x in sizes.items() if k != "end_token"}
        sizes |= {} if end is None else {"end_ids": (end,)}
    return kind(**sizes)


def _check_extra_ids(vocabulary: object, vocab_size: int) -> None:
    """Raises ValueError for more sentinels than the model has ids, before they are made."""
    extra_ids = vocabulary.get("extra_ids", 0) if isinstance(vocabulary, dict) else 0
    if not checks.is_size(extra_ids, least=0) or extra_ids > vocab_size:
        raise ValueError(
            f"extra_ids is {extra_ids!r}; it must be an integer from 0 to vocab_size, {vocab_size}"
        )


def _check_keys(name: str, found: object, needed: set[str], possible: set[str]) -> None:
    """Raises ValueError unless an object of config.json has the needed keys, and no unknown ones."""
    if not isinstance(found, dict):
        raise ValueError(f"{name} is {found!r:.100}; it must be an object")  # noqa: TRY004 (of a file)
    for key in sorted(needed - found.keys()):
        raise ValueError(f"{name} has no key {key!r}")
    known = needed | possible
    for key in sorted(found.keys() - known):
        raise ValueError(
            f"{name} has the unknown key {key!r}; known are {', '.join(sorted(known))}. A later version "
            "may have written it"
        )


def _ships(vocabulary: Vocabulary) -> bool:
    """Whether the package holds it, so that it needs no copy."""
    if not isinstance(vocabulary, SentencePieceVocabulary):
        return False
    return Path(vocabulary.file).resolve() == _shipped(vocabulary.name).resolve()


def _shipped(name: str) -> Path:
    return Path(str(resources.files("dera_jax"))) / "assets" / name


def _vocabulary(folder: Folder, names: Mapping | None) -> Vocabulary | None:
    if names is None:
        return None
    if names["file"] is None:
        return ByteVocabulary(names["extra_ids"])
    shipped = _shipped(names["file"])
    if folder.has(names["file"]):
        file = folder.path(names["file"])
    elif shipped.exists():
        file = shipped
    else:
        raise FileNotFoundError(
            f"{folder.path(CONFIG)} names the vocabulary {names['file']!r}, which is neither in that "
            f"folder nor in {shipped.parent}"
        )
    if names.get("kind") == JSON:
        special = (names[token] for token in ("end", "padding", "unknown"))
        vocabulary = JsonVocabulary(file, *special, names.get("begin"))
    else:
        added = tuple(names.get("added", ()))
        vocabulary = SentencePieceVocabulary(file, names["extra_ids"], added)
    if vocabulary.sha256 != names["sha256"]:
        raise ValueError(
            f"{vocabulary.file} is not the vocabulary that {folder.where} was trained with: its "
            f"SHA-256 begins with {vocabulary.sha256[:12]}, expected {names['sha256'][:12]}"
        )
    return vocabulary


def _existing(folder: Folder, name: str) -> str:
    if not folder.has(name):
        raise FileNotFoundError(f"{folder.where} is no complete model: it has no {name}")
    return name


def _read_json(folder: Folder, name: str) -> dict:
    return folder.read_json(_existing(folder, name))

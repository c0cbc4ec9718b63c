"""Recognises the kind of a checkpoint, and validates its shapes before parameters are read.

dera_jax       config.json with the key "model", model.safetensors (`model_folder`)
Hugging Face   config.json with a model_type, *.safetensors (`hugging_face`)
GGUF           a file *.gguf (`gguf_file`), or a folder with one such file
T5X            a file `checkpoint` with zarr folders, or a folder `state` by orbax (`t5x`)
LoRA           adapter_config.json, *.safetensors (`adapters`), on a base of another kind

From a folder of several T5X checkpoints the latest is taken. Pickles are never read. A name on the
Hugging Face hub stands for the folder in the cache to which `hub` downloads it.
"""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path

from dera_jax.checkpoints import (
    adapters,
    default_model,
    gguf_file,
    gguf_llama,
    gguf_tokenizer,
    hub,
    hugging_face,
    hugging_face_tokenizer,
    importers,
    model_folder,
    t5x,
)
from dera_jax.checkpoints.mismatch import check_shapes
from dera_jax.checkpoints.storage import REAL, Folder, StoredArray, open_folder, prefix_errors
from dera_jax.checkpoints.vocabulary import Vocabulary, check_known
from dera_jax.models.heads import Pooling, ValueHead
from dera_jax.models.registry import model_of

_STEP = re.compile(r"checkpoint_(\d+)/")
GGUF = "GGUF"  # the kind of a checkpoint in a GGUF file
_MODELS_OF_RUNS = (
    "best",
    "aligned",
    "distilled",
)  # model folders inside the folders of training runs
_OTHER_FILES = {
    ".model": "a SentencePiece model (a vocabulary)",
    ".safetensors": "a file of parameters without its config.json",
    ".bin": "a file of parameters that is a pickle, which is never read",
    ".pt": "a file of parameters that is a pickle, which is never read",
    ".pth": "a file of parameters that is a pickle, which is never read",
    ".json": "a JSON file",
    ".jsonl": "a file of JSON lines",
    ".gin": "a gin file",
    ".txt": "a text file",
}


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A recognised checkpoint, whose arrays are read on request.

    Attributes:
        kind: name of the format, for messages.
        where: its path or URL.
        config: configuration of a model of `models.registry`.
        arrays: parameters by dera_jax names, joined by '/'; below 'trunk/' if there is a head.
        vocabulary: None if the checkpoint holds none.
        card: see `loaded.LoadedModel`.
        head: the pooling of a reward model's scalar head; None for a language model.
        no_vocabulary: see `loaded.LoadedModel`.
        chat_template: source of the model's chat template; None if the checkpoint holds none.
        notes: sentences to print when the model is loaded.
        adapter: a LoRA adapter on the checkpoint, which is its base; the card is the adapter's.
    """

    kind: str
    where: str
    config: object
    arrays: Mapping[str, StoredArray]
    vocabulary: Vocabulary | None
    card: dict
    head: Pooling | None = None
    no_vocabulary: str = ""
    chat_template: str | None = None
    notes: tuple[str, ...] = ()
    adapter: adapters.StoredAdapter | None = None

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """The shapes of the parameters, by name."""
        return {name: x.shape for name, x in self.arrays.items()}


def open_checkpoint(path: str | Path, base: Checkpoint | None = None) -> Checkpoint:
    """Opens the checkpoint at a path and checks that its arrays match its configuration.

    No model is built or traced for this check, because an untrusted file may claim any sizes.

    Args:
        path: the checkpoint.
        base: of an adapter, the base in place of the one that it names.

    Raises:
        FileNotFoundError, ValueError: as in `loading.load`.
    """
    folder, found = _open(path)
    if adapters.is_adapter(folder):
        return with_adapter(_adapter(folder, found), base)
    checkpoint = _recognise(folder)
    if found:  # its name on the hub and its commit, instead of a folder in the cache
        card = checkpoint.card | _source(found)
        checkpoint = dataclasses.replace(checkpoint, where=found.pinned, card=card)
    model = model_of(checkpoint.config)
    model = ValueHead(model, checkpoint.head) if checkpoint.head else model
    check_shapes(checkpoint.shapes, model.param_shapes(), checkpoint.where)
    for array in checkpoint.arrays.values():
        if array.dtype not in REAL:
            raise ValueError(
                f"{array.where} is of type {array.dtype}; parameters must be of one of "
                f"{', '.join(map(str, REAL))}: quantized weights have to be dequantized first"
            )
    return checkpoint


def open_adapter(path: str | Path) -> adapters.StoredAdapter:
    """Opens the adapter at a path, without its base.

    Raises:
        FileNotFoundError, ValueError: as in `loading.load`; or there is no adapter.
    """
    folder, found = _open(path)
    if not adapters.is_adapter(folder):
        raise ValueError(
            f"{path} is no LoRA adapter: it has no {adapters.CONFIG}. With load.reference, reference and "
            "aligned models must be adapters of the first model, or that model itself"
        )
    return _adapter(folder, found)


def with_adapter(stored: adapters.StoredAdapter, base: Checkpoint | None = None) -> Checkpoint:
    """Returns the checkpoint of a base with an adapter; without `base`, of the one the adapter names.

    The chat template is the adapter's if its folder has one, since it was trained with that.

    Raises:
        FileNotFoundError, ValueError: as in `loading.load`; or the base is not named, or is an adapter;
            or the adapter's folder has a tokenizer with ids that the base's does not have.
    """
    if base is None and not stored.base:
        raise ValueError(
            f"{stored.where}: {adapters.CONFIG} names no base (base_model_name_or_path); load it as "
            "load(base, adapter)"
        )
    if base is None and stored.revision and not hub.is_hub_name(stored.base):
        raise ValueError(
            f"{stored.where}: {adapters.CONFIG} names a revision of the base ({stored.base}), which is no model of "
            "the hub; load it as load(base, adapter)"
        )
    base = base or open_checkpoint(default_model.located(stored.base))
    if base.adapter or base.head:
        raise ValueError(
            f"{stored.where} is an adapter of {base.where}, which is no language model of its own; merge it first"
        )
    with prefix_errors(stored.folder.path(adapters.CARD)):
        head = model_folder.pooling_of(stored.card.get("head")) if stored.has_head else None
    base = dataclasses.replace(base, adapter=stored, card=stored.card, head=head)
    own = hugging_face_tokenizer.vocabulary_of(stored.folder)
    if own and base.vocabulary:
        check_known(own, base.vocabulary, stored.where, base.where)
    template = hugging_face_tokenizer.chat_template_of(stored.folder)
    if template in (None, base.chat_template):
        return base
    note = f"{stored.where}: prompts are written by the adapter's own chat template, not the base's"
    return dataclasses.replace(base, chat_template=template, notes=(*base.notes, note))


def open_vocabulary(path: str | Path) -> Vocabulary:
    """Opens a checkpoint's vocabulary; of transformers models on the hub, no parameters are downloaded.

    Raises:
        FileNotFoundError, ValueError: as in `loading.load`; or the checkpoint holds no vocabulary.
    """
    if hub.is_hub_name(path):
        folder = open_folder(hub.download(path, weights=False).path)
        if folder.has(hugging_face.CONFIG) and not folder.has(model_folder.CARD):
            vocabulary = hugging_face_tokenizer.vocabulary_of(folder)
            return _required(vocabulary, hugging_face_tokenizer.no_vocabulary(folder))
    checkpoint = open_checkpoint(path)
    problem = checkpoint.no_vocabulary or f"{path} does not say what its ids mean"
    return _required(checkpoint.vocabulary, problem)


def _required(vocabulary: Vocabulary | None, problem: str) -> Vocabulary:
    """Return the vocabulary; raise ValueError with this message if it is None."""
    if vocabulary is None:
        raise ValueError(problem)
    return vocabulary


def _open(path: str | Path) -> tuple[Folder, hub.HubModel | None]:
    """Open a path, or what is downloaded of a name on the hub; the second result is None for a path."""
    found = hub.download(path) if hub.is_hub_name(path) else None
    return open_folder(found.path if found else path), found


def _adapter(folder: Folder, found: hub.HubModel | None) -> adapters.StoredAdapter:
    stored = adapters.open_adapter(folder)
    return dataclasses.replace(stored, card=stored.card | _source(found)) if found else stored


def _source(found: hub.HubModel) -> dict[str, str]:
    return {"imported_from": found.name, "revision": found.revision}


def _recognise(folder: Folder) -> Checkpoint:
    if folder.has("config.json"):
        return _open_with_config(folder)
    if folder.has(t5x.LEGACY):
        return _t5x(folder, "T5X", t5x.open_legacy(folder))
    if t5x.is_orbax(folder):
        return _t5x(folder, "T5X (orbax)", t5x.open_orbax(folder))
    above, _, name = folder.where.rpartition("/")
    if name != "." and open_folder(above or ".").has(name):
        return _open_file(folder, open_folder(above or "."), name)
    return _open_latest(folder)


def _open_file(path: Folder, folder: Folder, name: str) -> Checkpoint:
    """Open a T5X checkpoint in one file; raise ValueError that names the kind of any other file."""
    expected = (
        "give the folder of a checkpoint, with config.json and model.safetensors (dera_jax, "
        "Hugging Face), a GGUF file or a T5X checkpoint"
    )
    suffix = Path(name).suffix
    if suffix == gguf_file.SUFFIX:
        return _open_gguf(path)
    if suffix in _OTHER_FILES:
        raise ValueError(f"{path.where} is {_OTHER_FILES[suffix]}, not a checkpoint; {expected}")
    try:
        return _t5x(path, "T5X, one file", t5x.open_legacy(folder, name))
    except ValueError as error:
        raise ValueError(f"{error}; if this file is not meant as one of T5X, {expected}") from error


def _open_gguf(path: Folder) -> Checkpoint:
    file = gguf_file.open_gguf(path.local())
    config, arrays = gguf_llama.open_llama(file, gguf_tokenizer.end_ids(file))
    return Checkpoint(
        GGUF,
        path.where,
        config,
        arrays,
        gguf_tokenizer.vocabulary_of(file),
        card={"imported_from": default_model.public_name(path.where)},
        chat_template=file.fields.get("tokenizer.chat_template"),
        notes=gguf_file.sampling_notes(file),
    )


def _open_with_config(folder: Folder) -> Checkpoint:
    if "model" in folder.read_json("config.json"):
        return Checkpoint("dera_jax", folder.where, **model_folder.open_model(folder))
    if not folder.has(hugging_face.WEIGHTS) and not folder.has(hugging_face.INDEX):
        others = [name for name in hugging_face.OTHER_WEIGHTS if folder.has(name)]
        source = repr(folder.where)
        raise FileNotFoundError(hugging_face.no_safetensors(folder, folder.where, source, others))
    config, arrays, head = hugging_face.open_hugging_face(folder)
    vocabulary = hugging_face_tokenizer.vocabulary_of(folder)
    return Checkpoint(
        "Hugging Face",
        folder.where,
        config,
        arrays,
        vocabulary,
        card={"imported_from": folder.where},
        head=head,
        no_vocabulary="" if vocabulary else hugging_face_tokenizer.no_vocabulary(folder),
        chat_template=hugging_face_tokenizer.chat_template_of(folder),
        notes=hugging_face_tokenizer.sampling_notes(folder),
    )


def _t5x(folder: Folder, kind: str, arrays: Mapping[str, StoredArray]) -> Checkpoint:
    shapes = {name: x.shape for name, x in arrays.items()}
    config = importers.config_from_shapes(shapes, folder.where)
    return Checkpoint(kind, folder.where, config, arrays, None, {"imported_from": folder.where})


def _open_latest(folder: Folder) -> Checkpoint:
    """Open the latest T5X checkpoint, or the GGUF file, in a folder; raise FileNotFoundError if there is none."""
    names = folder.names()
    steps = [int(match[1]) for name in names if (match := _STEP.match(name))]
    if steps:
        return _recognise(folder.inside(f"checkpoint_{max(steps)}"))
    files = [name for name in names if name.endswith(gguf_file.SUFFIX) and "/" not in name]
    if len(files) == 1:
        return _open_gguf(folder.inside(files[0]))
    if files:
        raise ValueError(
            f"{folder.where} holds {len(files)} GGUF files; give the path of one of {', '.join(files)}"
        )
    configs = ("config.json", adapters.CONFIG)
    runs = [name for name in _MODELS_OF_RUNS if any(f"{name}/{x}" in names for x in configs)]
    if runs:
        raise FileNotFoundError(
            f"{folder.where} is the folder of a run; load its model from {folder.path(runs[0])}"
        )
    if not names:
        hint = (
            "" if "/" in folder.where else "; models of the Hugging Face hub are named owner/name"
        )
        raise FileNotFoundError(f"no model folder {folder.where}{hint}")
    raise FileNotFoundError(
        f"{folder.where} holds no supported checkpoint: expected config.json (dera_jax, Hugging "
        f"Face), a GGUF file, or 'checkpoint' or '{t5x.ORBAX}' (T5X); found {', '.join(names[:4])}"
    )

"""One `load` for every kind of checkpoint.

ours           config.json with our sizes, model.safetensors (`model_folder`)
Hugging Face   config.json with a model_type, *.safetensors (`hugging_face`)
T5X            a `checkpoint` file with zarr folders, or `state` by orbax (`t5x`)

A folder of several T5X checkpoints stands for the latest. Nothing is ever unpickled.
"""

import dataclasses
import math
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import flax.traverse_util
import jax
from jax import Array
from jax.sharding import Mesh

from dera_jax import checks, partitioning
from dera_jax.checkpoints import (
    hugging_face,
    hugging_face_tokenizer,
    importers,
    model_folder,
    t5x,
)
from dera_jax.checkpoints.mismatch import check_shapes
from dera_jax.checkpoints.storage import REAL, Folder, StoredArray, open_folder, read_arrays
from dera_jax.checkpoints.vocabulary import (
    Vocabulary,
    agreed,
    check_end,
    check_room,
)
from dera_jax.models.heads import ValueHead
from dera_jax.models.language_model import PyTree, TrainableModel
from dera_jax.models.registry import model_of

_STEP = re.compile(r"checkpoint_(\d+)/")
_IN_RUNS = ("best", "aligned")  # model folders in those of trainings
_NO_CHECKPOINTS = {
    ".model": "a SentencePiece model (a vocabulary)",
    ".safetensors": "a file of parameters without its config.json",
    ".bin": "a file of parameters that is a pickle, which is never read",
    ".pt": "a file of parameters that is a pickle, which is never read",
    ".pth": "a file of parameters that is a pickle, which is never read",
    ".gguf": "a GGUF file, which is not supported",
    ".json": "a JSON file",
    ".jsonl": "a file of JSON lines",
    ".gin": "a gin file",
    ".txt": "a text file",
}


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A model.

    Attributes:
        model: its architecture.
        params: of it.
        vocabulary: what its ids mean; None where the checkpoint does not say, and nobody else.
        card: how it was made, or where it is from.
        no_vocabulary: why no other vocabulary may be assumed, a sentence: the checkpoint is of a
            kind that holds its tokenizer, and has none. Empty for all others.
    """

    model: TrainableModel
    params: PyTree
    vocabulary: Vocabulary | None
    card: dict
    no_vocabulary: str = ""

    def agreeing_with(self, vocabulary: Vocabulary, name: str) -> "Loaded":
        """With this vocabulary, if its own is the same, or its kind of checkpoint holds none.

        Raises:
            ValueError: its own differs, naming the first piece; `no_vocabulary`; or as
                `over_vocabulary`.
        """
        if self.no_vocabulary:
            raise ValueError(self.no_vocabulary)
        own = agreed(self.vocabulary, vocabulary, "the model", name)
        model = over_vocabulary(self.model, own, name)
        return dataclasses.replace(self, vocabulary=own, model=model)


MODEL = checks.either(checks.instance(Loaded), checks.FUNCTION)


def loaded(model: Loaded | Callable[[], Loaded]) -> Loaded:
    """The model, read now if it was not."""
    return model if isinstance(model, Loaded) else model()


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was recognised, and of which no array has been read.

    Attributes:
        kind: what it is, in words.
        where: its path.
        config: of a model of `models.registry`.
        arrays: parameters under our names joined by '/'; below 'trunk/' if it has a head.
        vocabulary: None where it names none.
        card: see `Loaded`.
        head: 'scalar' for a reward model, None for a language model.
        no_vocabulary: see `Loaded`.
    """

    kind: str
    where: str
    config: object
    arrays: Mapping[str, StoredArray]
    vocabulary: Vocabulary | None
    card: dict
    head: str | None = None
    no_vocabulary: str = ""


def over_vocabulary(model: TrainableModel, vocabulary: Vocabulary, where: str) -> TrainableModel:
    """The model with the end token of its vocabulary, and without ids beyond it.

    Args:
        model: whose end tokens, if it says them, contain the vocabulary's.
        vocabulary: what the ids mean.
        where: the vocabulary is from, for messages.

    Raises:
        ValueError: no end token, or one that is none of the model's, or more ids than the model has
            rows.
    """
    check_end(vocabulary, where)
    rows, size = model.vocab_size, len(vocabulary.pieces)
    check_room(vocabulary, rows, where)
    end = vocabulary.end_id
    if model.end_ids and end not in model.end_ids:
        raise ValueError(
            f"{where}: the vocabulary ends sequences with id {end}, {vocabulary.pieces[end]!r}, the "
            f"model with {', '.join(map(str, model.end_ids))} (its end_ids, or eos_token_id of a Hugging Face "
            "config.json); they must agree"
        )
    config = dataclasses.replace(model.config, end_ids=model.end_ids or (end,))
    return model_of(config, num_ids=size if size < rows else None)


def load(
    path: str | Path,
    vocabulary: Vocabulary | None = None,
    mesh: Mesh | None = None,
    dtype: str = "float32",
) -> Loaded:
    """Reads a model, and says what it was.

    Args:
        path: of a folder, or a T5X checkpoint in one file; local, or a URL such as gs://...
        vocabulary: what the ids mean, where the checkpoint does not say.
        mesh: to spread the parameters over, see `partitioning`; every process reads its part. None
            for the default device.
        dtype: of the parameters in memory.

    Raises:
        FileNotFoundError: no checkpoint there, or a file of it is missing.
        ValueError: a file that is damaged, an architecture that is not known, parameters that are
            not those of its sizes, a reward model, another vocabulary than the one given, or a
            vocabulary that is not the model's (`over_vocabulary`).
    """
    found = open_checkpoint(path)
    if found.head:
        raise ValueError(f"{path} holds a reward model (with a scalar head), not a language model")
    if vocabulary is not None:
        vocabulary = agreed(found.vocabulary, vocabulary, found.where, "the vocabulary given")
    vocabulary = vocabulary or found.vocabulary
    model = model_of(found.config)
    if vocabulary is not None:
        model = over_vocabulary(model, vocabulary, found.where)
    shardings = mesh and partitioning.param_shardings(model, mesh)
    params = _read(found, shardings, dtype)
    if vocabulary is not None:
        return Loaded(model, params, vocabulary, found.card)
    silent = f"{found.where}: a {found.kind} checkpoint that does not say what its ids mean; "
    remedy = "its task has to, or load(path, vocabulary=...)"
    print(found.no_vocabulary or silent + remedy, file=sys.stderr)
    return Loaded(model, params, None, found.card, found.no_vocabulary)


def load_params(
    path: str | Path, init: Callable[[Array], PyTree], vocabulary: Vocabulary, name: str
) -> PyTree:
    """Parameters of the shapes that init(key) gives, for ids of a vocabulary.

    Args:
        path: see `load`.
        init: gives parameters of the shapes that are expected.
        vocabulary: of the run `name` that they are for.

    Raises:
        FileNotFoundError, ValueError: as `load`, or the checkpoint is over another vocabulary.
    """
    found = open_checkpoint(path)
    if found.no_vocabulary:
        raise ValueError(found.no_vocabulary)
    agreed(found.vocabulary, vocabulary, found.where, name)
    check_room(vocabulary, found.config.vocab_size, name)
    expected = flax.traverse_util.flatten_dict(jax.eval_shape(init, jax.random.key(0)), sep="/")
    needed = ((name, x.shape) for name, x in expected.items())
    check_shapes(_shapes(found), needed, found.where)
    return _read(found, None, "float32")


def read_config(path: str | Path) -> object:
    """The configuration of a checkpoint's model alone; raises as `load`."""
    return open_checkpoint(path).config


def read_value(path: str | Path) -> ValueHead:
    """The architecture of a reward model's folder; raises as `load`."""
    found = open_checkpoint(path)
    if found.head != model_folder.SCALAR:
        raise ValueError(f"{path} is no reward model: no scalar head is named there")
    return ValueHead(model_of(found.config))


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Recognises what lies at a path, and checks that its arrays are those of its sizes.

    Nothing is built or traced for it: a stranger's file may claim any sizes. Raises as `load`.
    """
    found = _recognise(open_folder(path))
    model = model_of(found.config)
    model = ValueHead(model) if found.head else model
    check_shapes(_shapes(found), model.param_shapes(), found.where)
    for array in found.arrays.values():
        if array.dtype not in REAL:
            raise ValueError(
                f"{array.where} is of type {array.dtype}; parameters must be of one of "
                f"{', '.join(map(str, REAL))}: quantized weights have to be dequantized first"
            )
    return found


def _shapes(found: Checkpoint) -> Mapping[str, tuple[int, ...]]:
    return {name: x.shape for name, x in found.arrays.items()}


def _recognise(folder: Folder) -> Checkpoint:
    if folder.has("config.json"):
        return _with_config(folder)
    if folder.has(t5x.LEGACY):
        return _t5x(folder, "T5X", t5x.open_legacy(folder))
    if t5x.is_orbax(folder):
        return _t5x(folder, "T5X (orbax)", t5x.open_orbax(folder))
    above, _, name = folder.where.rpartition("/")
    if name != "." and open_folder(above or ".").has(name):
        return _in_file(folder, open_folder(above or "."), name)
    return _in_folder(folder)


def _in_file(path: Folder, folder: Folder, name: str) -> Checkpoint:
    """Open a T5X checkpoint in one file; raise ValueError saying what any other file is."""
    expected = (
        "give the folder of a checkpoint, with config.json and model.safetensors (ours, Hugging "
        "Face's), or a checkpoint of T5X"
    )
    suffix = Path(name).suffix
    if suffix in _NO_CHECKPOINTS:
        raise ValueError(f"{path.where} is {_NO_CHECKPOINTS[suffix]}, not a checkpoint; {expected}")
    try:
        return _t5x(path, "T5X, one file", t5x.open_legacy(folder, name))
    except ValueError as error:
        raise ValueError(f"{error}; if this file is not meant as one of T5X, {expected}") from error


def _with_config(folder: Folder) -> Checkpoint:
    if "model" in folder.read_json("config.json"):
        return Checkpoint("dera_jax", folder.where, **model_folder.open_model(folder))
    if not folder.has(hugging_face.WEIGHTS) and not folder.has(hugging_face.INDEX):
        raise FileNotFoundError(_no_safetensors(folder))
    config, arrays = hugging_face.open_hugging_face(folder)
    vocabulary = hugging_face_tokenizer.vocabulary_of(folder)
    return Checkpoint(
        "Hugging Face",
        folder.where,
        config,
        arrays,
        vocabulary,
        card={"imported_from": folder.where},
        no_vocabulary="" if vocabulary else hugging_face_tokenizer.no_vocabulary(folder),
    )


def _no_safetensors(folder: Folder) -> str:
    others = [name for name in hugging_face.OTHER_WEIGHTS if folder.has(name)]
    start = f"{folder.where} is no complete model: it has no {hugging_face.WEIGHTS}"
    if not others:
        return start
    classes = [importers.transformers_class(folder.read_json("config.json"), folder.where)]
    if hugging_face_tokenizer.has_tokenizer(folder):
        classes.append("AutoTokenizer")
    saved = [f"{x}.from_pretrained('{folder.where}').save_pretrained('converted')" for x in classes]
    return (
        f"{start}, but {others[0]}, which is not read here (a pickle can run any program). Convert "
        f'it once, where you trust it: python -c "from transformers import {", ".join(classes)}; '
        f'{"; ".join(saved)}"'
    )


def _t5x(folder: Folder, kind: str, arrays: Mapping[str, StoredArray]) -> Checkpoint:
    shapes = {name: x.shape for name, x in arrays.items()}
    config = importers.by_tree(shapes, folder.where)
    return Checkpoint(kind, folder.where, config, arrays, None, {"imported_from": folder.where})


def _in_folder(folder: Folder) -> Checkpoint:
    """The latest of several checkpoints, or a sentence about what is there instead."""
    names = folder.names()
    steps = [int(match[1]) for name in names if (match := _STEP.match(name))]
    if steps:
        return _recognise(folder.inside(f"checkpoint_{max(steps)}"))
    runs = [name for name in _IN_RUNS if f"{name}/config.json" in names]
    if runs:
        raise FileNotFoundError(
            f"{folder.where} is the folder of a run; its model is in {folder.path(runs[0])}"
        )
    if not names:
        raise FileNotFoundError(f"no model folder {folder.where}")
    raise FileNotFoundError(
        f"{folder.where} holds no checkpoint that is known: neither config.json (ours, Hugging "
        f"Face's) nor 'checkpoint' or '{t5x.ORBAX}' (T5X's), but {', '.join(names[:4])}"
    )


def _read(found: Checkpoint, shardings, dtype: str) -> PyTree:
    size = sum(math.prod(x.shape) for x in found.arrays.values())
    print(f"{found.where}: a {found.kind} checkpoint, {size:,} parameters", file=sys.stderr)
    flat = read_arrays(found.arrays, shardings, dtype)
    return flax.traverse_util.unflatten_dict(flat, sep="/")

"""What lies at a path: a checkpoint is recognised and compared with its sizes before it is read.

ours           config.json with our sizes, model.safetensors (`model_folder`)
Hugging Face   config.json with a model_type, *.safetensors (`hugging_face`)
T5X            a `checkpoint` file with zarr folders, or `state` by orbax (`t5x`)

A folder of several T5X checkpoints stands for the latest. Nothing is ever unpickled.
"""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path

from dera_jax.checkpoints import (
    hugging_face,
    hugging_face_tokenizer,
    importers,
    model_folder,
    t5x,
)
from dera_jax.checkpoints.mismatch import check_shapes
from dera_jax.checkpoints.storage import REAL, Folder, StoredArray, open_folder
from dera_jax.checkpoints.vocabulary import Vocabulary
from dera_jax.models.heads import ValueHead
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

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Of the parameters, by name."""
        return {name: x.shape for name, x in self.arrays.items()}


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Recognises what lies at a path, and checks that its arrays are those of its sizes.

    Nothing is built or traced for it: a stranger's file may claim any sizes. Raises as `load`.
    """
    found = _recognise(open_folder(path))
    model = model_of(found.config)
    model = ValueHead(model) if found.head else model
    check_shapes(found.shapes, model.param_shapes(), found.where)
    for array in found.arrays.values():
        if array.dtype not in REAL:
            raise ValueError(
                f"{array.where} is of type {array.dtype}; parameters must be of one of "
                f"{', '.join(map(str, REAL))}: quantized weights have to be dequantized first"
            )
    return found


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

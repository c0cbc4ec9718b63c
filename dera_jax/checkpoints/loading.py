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

from dera_jax import partitioning
from dera_jax.checkpoints import hugging_face, model_folder, t5x
from dera_jax.checkpoints.mismatch import check_shapes
from dera_jax.checkpoints.storage import REAL, Folder, StoredArray, open_folder, read_arrays
from dera_jax.checkpoints.vocabulary import Vocabulary, agreed
from dera_jax.models.heads import T5Value
from dera_jax.models.language_model import PyTree
from dera_jax.models.t5 import T5Config, param_shapes
from dera_jax.models.t5_lm import T5

_STEP = re.compile(r"checkpoint_(\d+)/")
_IN_RUNS = ("best", "aligned")  # model folders in those of trainings


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A model.

    Attributes:
        model: its architecture.
        params: T5X's tree.
        vocabulary: what its ids mean; None where the checkpoint does not say, and nobody else.
        card: how it was made, or where it is from.
    """

    model: T5
    params: PyTree
    vocabulary: Vocabulary | None
    card: dict

    def agreeing_with(self, vocabulary: Vocabulary, name: str) -> "Loaded":
        """With this vocabulary, if its own is none or the same; raises ValueError otherwise."""
        own = agreed(self.vocabulary, vocabulary, "the model", name)
        return dataclasses.replace(self, vocabulary=own)


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was recognised, and of which no array has been read.

    Attributes:
        kind: what it is, in words.
        where: its path.
        config: sizes of its T5.
        arrays: parameters under T5X's names joined by '/'; below 'trunk/' if it has a head.
        vocabulary: None where it names none.
        card: see `Loaded`.
        head: 'scalar' for a reward model, None for a T5.
    """

    kind: str
    where: str
    config: T5Config
    arrays: Mapping[str, StoredArray]
    vocabulary: Vocabulary | None
    card: dict
    head: str | None = None


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
            not those of its sizes, a reward model, or another vocabulary than the one given.
    """
    found = open_checkpoint(path)
    if found.head:
        raise ValueError(f"{path} holds a reward model (a T5 with a scalar head), not a T5")
    if vocabulary is not None:
        vocabulary = agreed(found.vocabulary, vocabulary, found.where, "the vocabulary given")
    vocabulary = vocabulary or found.vocabulary
    model = T5(found.config)
    shardings = mesh and partitioning.param_shardings(found.config, mesh)
    params = _read(found, shardings, dtype)
    return Loaded(model, params, vocabulary, found.card)


def load_params(
    path: str | Path, init: Callable[[Array], PyTree]
) -> tuple[PyTree, Vocabulary | None]:
    """Parameters of the shapes that init(key) gives, and what their ids mean; raises as `load`."""
    found = open_checkpoint(path)
    expected = flax.traverse_util.flatten_dict(jax.eval_shape(init, jax.random.key(0)), sep="/")
    needed = ((name, x.shape) for name, x in expected.items())
    check_shapes(_shapes(found), needed, found.where)
    return _read(found, None, "float32"), found.vocabulary


def read_config(path: str | Path) -> T5Config:
    """The sizes of a checkpoint's model alone; raises as `load`."""
    return open_checkpoint(path).config


def read_value(path: str | Path) -> T5Value:
    """The architecture of a reward model's folder; raises as `load`."""
    found = open_checkpoint(path)
    if found.head != model_folder.SCALAR:
        raise ValueError(f"{path} is no reward model: no scalar head is named there")
    return T5Value(T5(found.config))


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Recognises what lies at a path, and checks that its arrays are those of its sizes.

    Nothing is built or traced for it: a stranger's file may claim any sizes. Raises as `load`.
    """
    found = _recognise(open_folder(path))
    config = found.config
    shapes = T5Value(T5(config)).param_shapes() if found.head else param_shapes(config)
    check_shapes(_shapes(found), shapes, found.where)
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
        return _t5x(folder, "T5X, one file", t5x.open_legacy(open_folder(above or "."), name))
    return _in_folder(folder)


def _with_config(folder: Folder) -> Checkpoint:
    if "model" in folder.read_json("config.json"):
        return Checkpoint("dera_jax", folder.where, **model_folder.open_model(folder))
    if not folder.has(hugging_face.WEIGHTS) and not folder.has(hugging_face.INDEX):
        raise FileNotFoundError(_no_safetensors(folder))
    config, arrays = hugging_face.open_hugging_face(folder)
    vocabulary = hugging_face.vocabulary_of(folder)
    card = {"imported_from": folder.where}
    return Checkpoint("Hugging Face", folder.where, config, arrays, vocabulary, card)


def _no_safetensors(folder: Folder) -> str:
    others = [name for name in hugging_face.OTHER_WEIGHTS if folder.has(name)]
    start = f"{folder.where} is no complete model: it has no {hugging_face.WEIGHTS}"
    if not others:
        return start
    return (
        f"{start}, but {others[0]}, which is not read here (a pickle can run any program). Convert "
        'it once, where you trust it: python -c "from transformers import T5ForConditionalGeneration '
        f"as T5; T5.from_pretrained('{folder.where}').save_pretrained('converted')\""
    )


def _t5x(folder: Folder, kind: str, arrays: Mapping[str, StoredArray]) -> Checkpoint:
    shapes = {name: x.shape for name, x in arrays.items()}
    config = t5x.config_of(shapes, folder.where)
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

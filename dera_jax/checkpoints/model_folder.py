"""A finished model as a folder that stands for itself.

config.json        sizes of the T5 (`T5Config`), its vocabulary, and whether a scalar head is on it
model.safetensors  parameters, names joined by '/'
card.json          how it was made and what it scores
*.model            the SentencePiece file, unless it is one that ships with the package
"""

import dataclasses
import json
import shutil
from collections.abc import Callable, Mapping
from importlib import resources
from pathlib import Path

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.flax
from jax import Array

from dera_jax.checkpoints.mismatch import check_shapes
from dera_jax.checkpoints.vocabulary import Vocabulary
from dera_jax.models.heads import T5Value
from dera_jax.models.t5 import T5Config
from dera_jax.models.t5_lm import T5

PyTree = object
CONFIG, PARAMETERS, CARD = "config.json", "model.safetensors", "card.json"
SCALAR = "scalar"  # the one head there is


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A model from its folder. params: float32, T5X's tree."""

    model: T5
    params: PyTree
    vocabulary: Vocabulary
    card: dict


def save_model(
    folder: Path,
    config: T5Config,
    vocabulary: Vocabulary,
    params: PyTree,
    card: Mapping[str, object],
    dtype: str = "float32",
) -> None:
    """Writes a model's folder, complete or not at all; one of that name is replaced.

    Args:
        folder: to be made.
        config: the model's sizes.
        vocabulary: what its ids mean.
        params: T5X's tree, without `params_axes`; or a `T5Value`'s.
        card: anything JSON can hold.
        dtype: of the stored parameters, 'float32' or 'bfloat16'.
    """
    folder = Path(folder)
    draft = folder.with_name(f".{folder.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    flat = flax.traverse_util.flatten_dict(params, sep="/")
    arrays = {name: jnp.asarray(x, dtype) for name, x in flat.items()}
    safetensors.flax.save_file(arrays, draft / PARAMETERS)
    _write_json(draft / CARD, dict(card))
    names = {
        "model": dataclasses.asdict(config),
        "vocabulary": {
            "file": vocabulary.file and vocabulary.file.name,
            "sha256": vocabulary.sha256,
            "extra_ids": vocabulary.extra_ids,
        },
    }
    if "head" in params:
        names["head"] = SCALAR
    _write_json(draft / CONFIG, names)
    if vocabulary.file and vocabulary.file.resolve() != _shipped(vocabulary.file.name).resolve():
        (draft / vocabulary.file.name).write_bytes(vocabulary.file.read_bytes())
    shutil.rmtree(folder, ignore_errors=True)
    draft.rename(folder)


def load_model(folder: str | Path) -> Loaded:
    """Reads a model's folder.

    Raises:
        FileNotFoundError: no such folder, or a file of it is missing.
        ValueError: a file is half written, the parameters are not those of the sizes given, or the
            vocabulary is not the one the model was trained with.
    """
    model = T5(read_config(folder))
    if _head(folder):
        raise ValueError(f"{folder} holds a reward model (a T5 with a scalar head), not a T5")
    return Loaded(model, *load_params(Path(folder), model.init), _read_json(Path(folder), CARD))


def read_value(folder: str | Path) -> T5Value:
    """The architecture of a reward model's folder; raises as `load_model` does."""
    if _head(folder) != SCALAR:
        raise ValueError(f"{folder} is no reward model: its {CONFIG} names no scalar head")
    return T5Value(T5(read_config(folder)))


def _head(folder: str | Path) -> str | None:
    return _read_json(Path(folder), CONFIG).get("head")


def load_params(folder: Path, init: Callable[[Array], PyTree]) -> tuple[PyTree, Vocabulary]:
    """Parameters of the shapes that init(key) gives, and what their ids mean; raises likewise."""
    vocabulary = _vocabulary(folder, _read_json(folder, CONFIG)["vocabulary"])
    return _read_parameters(folder, init), vocabulary


def read_config(folder: str | Path) -> T5Config:
    """The sizes of a folder's model alone; raises as `load_model` does."""
    return T5Config(**_read_json(Path(folder), CONFIG)["model"])


def _shipped(name: str) -> Path:
    return Path(str(resources.files("dera_jax"))) / "assets" / name


def _vocabulary(folder: Path, names: Mapping) -> Vocabulary:
    if names["file"] is None:
        return Vocabulary(None, names["extra_ids"])
    places = [folder / names["file"], _shipped(names["file"])]
    for place in filter(Path.exists, places):
        vocabulary = Vocabulary(place, names["extra_ids"])
        if vocabulary.sha256 != names["sha256"]:
            raise ValueError(
                f"{place} is not the vocabulary that {folder} was trained with: its SHA-256 begins "
                f"with {vocabulary.sha256[:12]}, expected {names['sha256'][:12]}"
            )
        return vocabulary
    raise FileNotFoundError(
        f"{folder / CONFIG} names the vocabulary {names['file']!r}, which is neither in that folder "
        f"nor in {places[1].parent}"
    )


def _read_parameters(folder: Path, init: Callable[[Array], PyTree]) -> PyTree:
    where = _existing(folder, PARAMETERS)
    try:
        arrays: dict[str, Array] = safetensors.flax.load_file(where)
    except (safetensors.SafetensorError, ValueError) as error:
        raise ValueError(f"{where}: half written or damaged ({error})") from error
    like = jax.eval_shape(init, jax.random.key(0))
    expected = flax.traverse_util.flatten_dict(like, sep="/")
    check_shapes(
        {name: x.shape for name, x in arrays.items()},
        {name: x.shape for name, x in expected.items()},
        str(where),
    )
    params = {name: np.asarray(x, np.float32) for name, x in arrays.items()}
    return flax.traverse_util.unflatten_dict(params, sep="/")


def _existing(folder: Path, name: str) -> Path:
    if not folder.is_dir():
        raise FileNotFoundError(f"no model folder {folder}")
    if not (folder / name).exists():
        raise FileNotFoundError(f"{folder} is no complete model: it has no {name}")
    return folder / name


def _read_json(folder: Path, name: str) -> dict:
    where = _existing(folder, name)
    try:
        return json.loads(where.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{where}: half written or damaged ({error})") from error


def _write_json(path: Path, content: Mapping) -> None:
    path.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")

"""Saves what a training changed, and reads it back: a model folder, or an adapter folder."""

from collections.abc import Callable, Mapping
from pathlib import Path

from jax import Array

from dera_jax.checkpoints import adapters
from dera_jax.checkpoints.loaded import LoadedModel
from dera_jax.checkpoints.loading import load_params
from dera_jax.checkpoints.model_folder import save_model
from dera_jax.checkpoints.storage import open_folder
from dera_jax.models.language_model import PyTree


def save_trained(
    folder: Path, origin: LoadedModel, params: PyTree, card: Mapping[str, object]
) -> None:
    """Saves trained parameters, completely or not at all; an existing folder is replaced.

    Args:
        folder: folder to create.
        origin: the model from which training started.
        params: parameters in place of `origin.trainable`, or those of a `ValueHead` on it.
        card: how they were trained, as JSON values. For an adapter, name and hash of its base are added.

    Raises:
        FloatingPointError: a parameter is NaN or infinite.
    """
    if origin.adapter is None:
        save_model(folder, origin.model.config, origin.vocabulary, params, card)
        return
    base = {"name": origin.base.name, "sha256": origin.base.sha256}
    adapters.save_adapter(folder, origin.model, params, base["name"], {**card, "base": base})


def load_trained(
    folder: Path, origin: LoadedModel, init: Callable[[Array], PyTree], name: str
) -> PyTree:
    """Reads what `save_trained` saved; arguments and errors are those of `loading.load_params`."""
    if origin.adapter is None:
        return load_params(folder, init, origin.vocabulary, name)
    stored = adapters.open_adapter(open_folder(folder))
    adapter = adapters.read_adapter(stored, origin.model)
    return {"trunk": adapter, "head": adapters.read_head(stored)} if stored.has_head else adapter

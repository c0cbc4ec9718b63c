"""Locates the files that the package ships."""

from importlib import resources
from pathlib import Path

ASSETS = Path(str(resources.files("dera_jax"))) / "assets"  # has the small T5 pair
ADAPTERS = ASSETS / "aclsum"  # of SmolLM2


def name_of(path: str | Path) -> str:
    """Returns the path of a model for people: of a shipped one, where it lies in the package."""
    path = Path(path)
    inside = path.is_relative_to(ASSETS)
    return f"dera_jax/assets/{path.relative_to(ASSETS)}" if inside else str(path)

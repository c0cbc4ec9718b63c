"""Locates the files that the package ships."""

from importlib import resources
from pathlib import Path

ASSETS = Path(str(resources.files("dera_jax"))) / "assets"  # has the small T5 pair
ADAPTERS = ASSETS / "aclsum"  # of SmolLM2

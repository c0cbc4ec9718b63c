"""Rounds a finished model to bfloat16 in a folder of its own; `make tiny` ships models so.

python -m dera_jax.checkpoints.ship out/tiny/sft/best dera_jax/assets/reference
"""

import argparse
from pathlib import Path

from dera_jax.checkpoints.model_folder import load_model, save_model


def ship(source: str, target: str) -> None:
    """Raises what `load_model` does if `source` is no complete model."""
    loaded = load_model(source)
    config, vocabulary = loaded.model.config, loaded.vocabulary
    save_model(Path(target), config, vocabulary, loaded.params, loaded.card, dtype="bfloat16")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", help="model folder")
    parser.add_argument("target", help="folder to write")
    ship(**vars(parser.parse_args()))

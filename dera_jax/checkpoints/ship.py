"""Copy a trained model in bfloat16 to a new folder, as `make tiny` does for shipped models.

python -m dera_jax.checkpoints.ship out/tiny/sft/best dera_jax/assets/reference --temperature 0.8
"""

import argparse
import math

from dera_jax import command_line
from dera_jax.checkpoints.loading import load
from dera_jax.files.destinations import output_folder


def ship(source: str, target: str, temperature: float = 1.0) -> None:
    """Rounds a model to bfloat16, optionally divides its logits, and writes it to `target`.

    Args:
        source: model folder, or folder of a LoRA adapter.
        target: folder to write; an existing model there is replaced.
        temperature: positive number by which all logits are divided.

    Raises:
        ValueError: `temperature` is not positive and finite, or not 1 for an adapter.
        FileNotFoundError, ValueError, OSError, FloatingPointError: as in `output_folder`, `load`
            and `model_folder.save_model`.
    """
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature must be above 0 and finite; found {temperature}")
    folder = output_folder(target)
    loaded = load(source)
    params, card = loaded.trainable, loaded.card
    if temperature != 1:
        if loaded.adapter is not None:
            raise ValueError(f"{source} is a LoRA adapter, whose logits cannot be divided")
        # A small model's samples at temperature 1 are often incoherent. KL, DeRa and PPO's
        # probability ratios assume temperature 1, so the temperature goes into the parameters.
        params = loaded.model.with_temperature(params, temperature)
        card = {"temperature": temperature, "from": card}
    loaded.save(folder, params, card, dtype="bfloat16")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", help="model folder")
    parser.add_argument("target", help="folder to write")
    parser.add_argument("--temperature", type=float, default=1.0, help="divides all logits")
    options = parser.parse_args()
    command_line.run(lambda: ship(**vars(options)), lambda: options.target)

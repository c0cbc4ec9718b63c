"""One error for all checkpoints of another size."""

from collections.abc import Mapping

Shape = tuple[int, ...]


def check_shapes(found: Mapping[str, Shape], expected: Mapping[str, Shape], where: str) -> None:
    """Compares the arrays of a checkpoint with those a model needs.

    Args:
        found: shape by name in the checkpoint.
        expected: shape by name in the model.
        where: the checkpoint, for the message.

    Raises:
        ValueError: naming the first array that is missing, superfluous or of another shape.
    """
    for name in sorted({*found, *expected}):
        there, here = found.get(name), expected.get(name)
        if there is not None and here is not None and tuple(there) == tuple(here):
            continue
        raise ValueError(
            f"{where}: a checkpoint of another model: {name} has {_words(there)} in the checkpoint "
            f"and {_words(here)} in the model"
        )


def _words(shape: Shape | None) -> str:
    return "no such array" if shape is None else f"shape {tuple(shape)}"

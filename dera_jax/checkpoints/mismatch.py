"""One error for all checkpoints of another size."""

from collections.abc import Iterable, Mapping

Shape = tuple[int, ...]


def check_shapes(
    found: Mapping[str, Shape], expected: Iterable[tuple[str, Shape]], where: str
) -> None:
    """Compares the arrays of a checkpoint with those a model needs.

    Args:
        found: shape by name in the checkpoint.
        expected: name and shape of each array of the model. Nothing is taken beyond the first that
            differs, so a model may have any number of them.
        where: the checkpoint, for the message.

    Raises:
        ValueError: naming the first array that is missing, superfluous or of another shape.
    """
    left = dict(found)
    for name, here in expected:
        there = left.pop(name, None)
        if there is None or tuple(there) != tuple(here):
            raise _mismatch(name, there, here, where)
    if left:
        name = min(left)
        raise _mismatch(name, left[name], None, where)


def _mismatch(name: str, there: Shape | None, here: Shape | None, where: str) -> ValueError:
    return ValueError(
        f"{where}: a checkpoint of another model: {name} has {_words(there)} in the checkpoint "
        f"and {_words(here)} in the model"
    )


def _words(shape: Shape | None) -> str:
    return "no such array" if shape is None else f"shape {tuple(shape)}"

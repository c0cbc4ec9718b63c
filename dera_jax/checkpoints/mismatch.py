"""Checks that the arrays of a checkpoint have the names and shapes that a model needs."""

from collections.abc import Iterable, Mapping

Shape = tuple[int, ...]


def check_shapes(
    found: Mapping[str, Shape], expected: Iterable[tuple[str, Shape]], where: str
) -> None:
    """Compares the arrays of a checkpoint with those that a model needs.

    Args:
        found: shapes in the checkpoint, by array name.
        expected: name and shape of each array of the model. It is not iterated beyond the first
            difference, so a configuration may claim any number of layers.
        where: the checkpoint, for the error message.

    Raises:
        ValueError: an array is missing, superfluous or of another shape; the first one is named.
    """
    remaining = dict(found)
    for name, needed in expected:
        stored = remaining.pop(name, None)
        if stored is None or tuple(stored) != tuple(needed):
            raise _mismatch(name, stored, needed, where)
    if remaining:
        name = min(remaining)
        raise _mismatch(name, remaining[name], None, where)


def _mismatch(name: str, stored: Shape | None, needed: Shape | None, where: str) -> ValueError:
    return ValueError(
        f"{where}: the checkpoint does not match the model: array {name} {_words(stored)} in the "
        f"checkpoint and {_words(needed)} in the model"
    )


def _words(shape: Shape | None) -> str:
    return "is missing" if shape is None else f"has shape {tuple(shape)}"

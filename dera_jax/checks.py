"""Validate settings and arguments where they are given, and raise ValueError in one sentence.

A class of settings checks its fields when it is made, which is before a model is loaded:

    def __post_init__(self):
        check_fields(self, batch_size=whole(1), seed=SEED)

    Data.batch_size must be an integer of at least 1; found 0.

True and 2.0 are not integers; '0.5', NaN and infinity are not numbers. A list or an array becomes a
tuple where a tuple is expected, and scalars of NumPy and JAX become Python's.
"""

import dataclasses
import os
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

LARGEST = 2**31 - 1  # of a size
_SHOWN = 80  # characters of a wrong value


@dataclasses.dataclass(frozen=True)
class Check:
    """A condition on a value.

    Attributes:
        words: what is accepted, in words that follow "must be".
        allows: whether a value is accepted.
    """

    words: str
    allows: Callable[[object], bool]


def check_fields(settings: object, **accepted: Check) -> None:
    """Validates fields of a frozen dataclass; called from its `__post_init__`.

    Raises:
        ValueError: naming class and field, what is accepted and what was found.
    """
    for field, kind in accepted.items():
        given = getattr(settings, field)
        value = check(f"{type(settings).__name__}.{field}", given, kind)
        if value is not given:
            object.__setattr__(settings, field, value)


def check(name: str, value: object, accepted: Check) -> object:
    """Validates one value and returns it as a plain Python object.

    Raises:
        ValueError: as `check_fields`.
    """
    plain = _plain(value)
    if not accepted.allows(plain):
        raise ValueError(_sentence(name, accepted, value))
    return plain


def check_distinct(name: str, values: Sequence[object]) -> None:
    """Raises ValueError for a value that is given twice, which would count twice."""
    twice = [value for i, value in enumerate(values) if value in values[:i]]
    if twice:
        raise ValueError(f"{name} must be different values; found {_shown(twice[0])} twice.")


def check_traced(settings: object, **accepted: Check) -> None:
    """Validates fields of a pytree: of a leaf that is an array, every element.

    Values traced by `jax.jit` are not known and are skipped. Call this outside of jit, and not from
    the `__post_init__` of a pytree, which JAX also calls with leaves of any kind.

    Raises:
        ValueError: as `check_fields`.
    """
    static = {
        x.name for x in dataclasses.fields(settings) if not x.metadata.get("pytree_node", True)
    }
    for field, kind in accepted.items():
        value = getattr(settings, field)
        value = _plain(value) if field in static else value
        if not isinstance(value, jax.core.Tracer) and not kind.allows(value):
            raise ValueError(_sentence(f"{type(settings).__name__}.{field}", kind, value))


def whole(least: int | None = None, most: int | None = None) -> Check:
    """Integers within the bounds."""
    return Check(
        f"an integer{_bounds(least, None, most, None)}",
        lambda value: _is_number(value, jnp.integer) and _is_within(value, least, None, most, None),
    )


def below_limit(least: int, limit: int, name: str = "max_length") -> Check:
    """Integers from `least` on, below a limit with a name."""
    return Check(f"an integer in [{least}, {limit}), below {name}", whole(least, limit - 1).allows)


def number(
    least: float | None = None,
    most: float | None = None,
    above: float | None = None,
    below: float | None = None,
) -> Check:
    """Finite numbers within the bounds, integers among them."""
    bounds = least, above, most, below
    return Check(
        f"a finite number{_bounds(*bounds)}",
        lambda value: (
            (_is_number(value, jnp.integer) or _is_number(value, jnp.floating))
            and bool(np.isfinite(np.asarray(value, np.float64)).all())
            and _is_within(value, *bounds)
        ),
    )


def optional(accepted: Check) -> Check:
    """None, or what is accepted."""
    return Check(
        f"{accepted.words}, or None", lambda value: value is None or accepted.allows(value)
    )


def several(accepted: Check, example: str, least: int = 1) -> Check:
    """Tuples of at least so many values, each accepted."""
    size = ("tuple or list", "non-empty tuple or list", f"tuple or list of at least {least}")
    return Check(
        f"a {size[min(least, 2)]} such as {example}, each entry {accepted.words}",
        lambda value: (
            isinstance(value, tuple) and len(value) >= least and all(map(accepted.allows, value))
        ),
    )


def either(*accepted: Check) -> Check:
    """What one of them accepts."""
    words = ", or ".join(kind.words for kind in accepted)
    return Check(words, lambda value: any(kind.allows(value) for kind in accepted))


def instance(*kinds: type, words: str = "") -> Check:
    """Objects of these classes."""
    named = lambda name: f"a{'n' if name[0] in 'AEIOU' else ''} {name}"
    names = " or ".join(named(kind.__name__) for kind in kinds)
    return Check(words or names, lambda value: isinstance(value, kinds))


def having(method: str) -> Check:
    """Objects with a method of this name, as protocols ask for."""
    words = f"an object with the method `{method}`"
    return Check(words, lambda value: callable(getattr(value, method, None)))


def check_array(
    name: str, value: object, words: str, dtype: object, **axes: int | None
) -> tuple[int, ...]:
    """Validates element type and shape of an array, traced or not, and returns the shape.

    Args:
        name: of the argument.
        value: what was given.
        words: what its elements are.
        dtype: of the elements, as `jnp.issubdtype` takes it.
        axes: the axes in order, with the size of each or None for any.

    Raises:
        ValueError: no array, or one of another type or shape, naming all that is expected.
    """
    sizes = tuple(axes.values())
    is_array = isinstance(value, (np.ndarray, jax.Array))
    fits = is_array and len(sizes) == value.ndim and jnp.issubdtype(value.dtype, dtype)
    if not fits or any(size not in (None, n) for size, n in zip(sizes, value.shape, strict=True)):
        known = ", ".join(f"{axis} = {size}" for axis, size in axes.items() if size is not None)
        kind = f"an array [{', '.join(axes)}] of {words}{known and f' with {known}'}"
        found = f"{value.dtype} of shape {value.shape}" if is_array else _shown(value)
        raise ValueError(f"{name} must be {kind}; found {found}.")
    return value.shape


def is_known(array: jax.Array | np.ndarray) -> bool:
    """Whether the values of an array can be read here: it is not traced, and wholly on this process."""
    traced = isinstance(array, jax.core.Tracer)
    return not traced and getattr(array, "is_fully_addressable", True)


def check_token_ids(name: str, ids: jax.Array | np.ndarray, size: int) -> None:
    """Validates that ids are in [0, size). Those that are not known here are skipped.

    Raises:
        ValueError: naming the first that is not, and its place.
    """
    if not is_known(ids):
        return
    ids = np.asarray(ids)
    wrong = np.argwhere((ids < 0) | (ids >= size))
    if len(wrong):
        place = tuple(map(int, wrong[0]))
        raise ValueError(
            f"{name} must be in [0, {size}), the ids of the model's table; found {ids[place]} at "
            f"{list(place)}."
        )


def is_size(value: object, least: int = 1) -> bool:
    """Whether it can be a size: an integer (True is none) from `least` to 2**31 - 1."""
    return type(value) is int and least <= value <= LARGEST


def _plain(value: object) -> object:
    """Scalars as Python's, lists and arrays as tuples."""
    if isinstance(value, jax.core.Tracer):
        return value
    if isinstance(value, (np.generic, np.ndarray, jax.Array)):
        value = value.tolist()
    return tuple(map(_plain, value)) if isinstance(value, (list, tuple)) else value


def _is_number(value: object, dtype: object) -> bool:
    """Whether a number, or an array of them, is of this kind. Booleans are of none."""
    known = isinstance(value, (int, float, np.generic, np.ndarray, jax.Array))
    return known and jnp.issubdtype(np.asarray(value).dtype, dtype)


def _is_within(value: object, least, above, most, below) -> bool:
    x = np.asarray(value)
    return bool(
        (least is None or np.all(x >= least))
        and (above is None or np.all(x > above))
        and (most is None or np.all(x <= most))
        and (below is None or np.all(x < below))
    )


def _bounds(least, above, most, below) -> str:
    """In words, with a space before."""
    has_lower = least is not None or above is not None
    has_upper = most is not None or below is not None
    if has_lower and has_upper:
        lower = f"({above}" if least is None else f"[{least}"
        return f" in {lower}, {f'{below})' if most is None else f'{most}]'}"
    if has_lower:
        return f" above {above}" if least is None else f" of at least {least}"
    if has_upper:
        return f" below {below}" if most is None else f" of at most {most}"
    return ""


def _sentence(name: str, accepted: Check, value: object) -> str:
    return f"{name} must be {accepted.words}; found {_shown(value)}."


def _shown(value: object) -> str:
    """A value on one line and not too long."""
    is_array = isinstance(value, (np.ndarray, jax.Array)) and value.ndim
    text = " ".join(repr(np.asarray(value).tolist() if is_array else value).split())
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


FLAG = Check("True or False", lambda value: isinstance(value, (bool, np.bool_)))
STRING = Check("a string", lambda value: isinstance(value, str))
TEXT = Check("a non-empty string", lambda value: isinstance(value, str) and bool(value))
PATH = Check(
    "a path, as a non-empty string",
    lambda value: isinstance(value, (str, os.PathLike)) and bool(os.fspath(value)),
)
PATHS = several(PATH, "['a/folder']")
FUNCTION = Check("a function", callable)
SEED = whole(0, 2**32 - 1)  # JAX's keys hold 32 bits of it: seeds beyond would draw like others

"""Validates configurations and arguments; raises ValueError with a message of one sentence.

A configuration class validates its fields at construction, which is before a model is loaded:

    def __post_init__(self):
        check_fields(self, batch_size=integer(1), seed=SEED)

    Data.batch_size must be an integer of at least 1; found 0.

True and 2.0 are not integers; '0.5', NaN and infinity are not numbers. Lists and arrays are
converted to tuples, and scalars of NumPy and JAX to Python scalars.
"""

import dataclasses
import os
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

LARGEST = 2**31 - 1  # the largest size
_MOST_CHARACTERS = 80  # of an invalid value in a message


@dataclasses.dataclass(frozen=True)
class Check:
    """Defines which values are accepted.

    Attributes:
        words: description of the accepted values, which follows "must be" in messages.
        allows: function that returns whether a value is accepted.
    """

    words: str
    allows: Callable[[object], bool]


def check_fields(settings: object, **accepted: Check) -> None:
    """Validates fields of a frozen dataclass in its `__post_init__` and converts them as `check`.

    Raises:
        ValueError: a field is not accepted; the message names class and field, the accepted values
            and the value found.
    """
    for field, kind in accepted.items():
        given = getattr(settings, field)
        value = check(f"{type(settings).__name__}.{field}", given, kind)
        if value is not given:
            object.__setattr__(settings, field, value)


def check(name: str, value: object, accepted: Check) -> object:
    """Validates one value and returns it with scalars and arrays as Python objects.

    Args:
        name: name of the value in the message.
        value: the value.
        accepted: the accepted values.

    Raises:
        ValueError: the value is not accepted.
    """
    plain = _plain(value)
    if not accepted.allows(plain):
        raise ValueError(_sentence(name, accepted, value))
    return plain


def check_distinct(name: str, values: Sequence[object]) -> None:
    """Raises ValueError if a value occurs twice, since it would then count twice."""
    repeated = [value for i, value in enumerate(values) if value in values[:i]]
    if repeated:
        raise ValueError(f"{name} must be different values; found {_format(repeated[0])} twice.")


def check_traced(settings: object, **accepted: Check) -> None:
    """Validates fields of a pytree, and every element of a leaf that is an array.

    Values traced by `jax.jit` are unknown and are skipped. Call this outside of jit, and not in the
    `__post_init__` of a pytree, which JAX also calls with leaves of any type.

    Raises:
        ValueError: a field is not accepted; see `check_fields`.
    """
    static = {
        x.name for x in dataclasses.fields(settings) if not x.metadata.get("pytree_node", True)
    }
    for field, kind in accepted.items():
        value = getattr(settings, field)
        value = _plain(value) if field in static else value
        if not isinstance(value, jax.core.Tracer) and not kind.allows(value):
            raise ValueError(_sentence(f"{type(settings).__name__}.{field}", kind, value))


def integer(least: int | None = None, most: int | None = None) -> Check:
    """Accepts integers within inclusive bounds."""
    return Check(
        f"an integer{_bounds(least, None, most, None)}",
        lambda value: _is_number(value, jnp.integer) and _is_within(value, least, None, most, None),
    )


def below_limit(least: int, limit: int, name: str = "max_length") -> Check:
    """Accepts integers from `least` to limit - 1; the message calls the limit `name`."""
    return Check(
        f"an integer in [{least}, {limit}), below {name}", integer(least, limit - 1).allows
    )


def number(
    least: float | None = None,
    most: float | None = None,
    above: float | None = None,
    below: float | None = None,
) -> Check:
    """Accepts finite numbers, including integers, within the bounds.

    Args:
        least, most: inclusive bounds.
        above, below: exclusive bounds.
    """
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
    """Accepts None and the values that `accepted` accepts."""
    return Check(
        f"{accepted.words}, or None", lambda value: value is None or accepted.allows(value)
    )


def sequence(accepted: Check, example: str, least: int = 1) -> Check:
    """Accepts tuples of at least `least` accepted values; the message shows `example`."""
    size = ("tuple or list", "non-empty tuple or list", f"tuple or list of at least {least}")
    return Check(
        f"a {size[min(least, 2)]} such as {example}, each entry {accepted.words}",
        lambda value: (
            isinstance(value, tuple) and len(value) >= least and all(map(accepted.allows, value))
        ),
    )


def either(*accepted: Check) -> Check:
    """Accepts values that at least one of the checks accepts."""
    words = ", or ".join(kind.words for kind in accepted)
    return Check(words, lambda value: any(kind.allows(value) for kind in accepted))


def instance(*kinds: type, words: str = "") -> Check:
    """Accepts instances of these classes, described by `words` or by the classes' names."""
    with_article = lambda name: f"a{'n' if name[0] in 'AEIOU' else ''} {name}"
    names = " or ".join(with_article(kind.__name__) for kind in kinds)
    return Check(words or names, lambda value: isinstance(value, kinds))


def with_attribute(method: str) -> Check:
    """Accepts objects with a method of this name, for arguments whose type is a Protocol."""
    words = f"an object with the method `{method}`"
    return Check(words, lambda value: callable(getattr(value, method, None)))


def check_array(
    name: str, value: object, words: str, dtype: object, **axes: int | None
) -> tuple[int, ...]:
    """Validates element type and shape of an array, traced or not, and returns the shape.

    Args:
        name: name of the argument in the message.
        value: the argument.
        words: description of the elements in the message.
        dtype: type of the elements, in the sense of `jnp.issubdtype`.
        axes: size of each axis, in order of the axes; None accepts any size.

    Raises:
        ValueError: the value is not an array, or an array of another type or shape.
    """
    sizes = tuple(axes.values())
    is_array = isinstance(value, (np.ndarray, jax.Array))
    fits = is_array and len(sizes) == value.ndim and jnp.issubdtype(value.dtype, dtype)
    if not fits or any(size not in (None, n) for size, n in zip(sizes, value.shape, strict=True)):
        known = ", ".join(f"{axis} = {size}" for axis, size in axes.items() if size is not None)
        kind = f"an array [{', '.join(axes)}] of {words}{known and f' with {known}'}"
        found = f"{value.dtype} of shape {value.shape}" if is_array else _format(value)
        raise ValueError(f"{name} must be {kind}; found {found}.")
    return value.shape


def is_known(array: jax.Array | np.ndarray) -> bool:
    """Returns whether an array's values can be read: it is untraced and fully addressable."""
    traced = isinstance(array, jax.core.Tracer)
    return not traced and getattr(array, "is_fully_addressable", True)


def check_token_ids(
    name: str, ids: jax.Array | np.ndarray, size: int, unused: Sequence[int] = ()
) -> None:
    """Validates that ids are in [0, size) and none of `unused`, if they can be read (`is_known`).

    Raises:
        ValueError: an id is not valid; the message names the first such id and its index.
    """
    if not is_known(ids):
        return
    ids = np.asarray(ids)
    invalid = np.argwhere((ids < 0) | (ids >= size) | np.isin(ids, unused))
    if len(invalid):
        index = tuple(map(int, invalid[0]))
        raise ValueError(
            f"{name} must be in [0, {size}), ids that the model has and tokenizers assign; found "
            f"{ids[index]} at {list(index)}."
        )


def is_size(value: object, least: int = 1) -> bool:
    """Returns whether a value is an int, and no bool, from `least` to 2**31 - 1."""
    return type(value) is int and least <= value <= LARGEST


def _plain(value: object) -> object:
    """Converts scalars to Python scalars, and lists and arrays to tuples."""
    if isinstance(value, jax.core.Tracer):
        return value
    if isinstance(value, (np.generic, np.ndarray, jax.Array)):
        value = value.tolist()
    return tuple(map(_plain, value)) if isinstance(value, (list, tuple)) else value


def _is_number(value: object, dtype: object) -> bool:
    """Returns whether a number or an array has this type, to which booleans never belong."""
    is_numeric = isinstance(value, (int, float, np.generic, np.ndarray, jax.Array))
    return is_numeric and jnp.issubdtype(np.asarray(value).dtype, dtype)


def _is_within(value: object, least, above, most, below) -> bool:
    x = np.asarray(value)
    return bool(
        (least is None or np.all(x >= least))
        and (above is None or np.all(x > above))
        and (most is None or np.all(x <= most))
        and (below is None or np.all(x < below))
    )


def _bounds(least, above, most, below) -> str:
    """Describes the bounds, with a space before the description."""
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
    return f"{name} must be {accepted.words}; found {_format(value)}."


def _format(value: object) -> str:
    """Formats a value on one line of limited length."""
    is_array = isinstance(value, (np.ndarray, jax.Array)) and value.ndim
    text = " ".join(repr(np.asarray(value).tolist() if is_array else value).split())
    return text if len(text) <= _MOST_CHARACTERS else f"{text[:_MOST_CHARACTERS]}…"


FLAG = Check("True or False", lambda value: isinstance(value, (bool, np.bool_)))
STRING = Check("a string", lambda value: isinstance(value, str))
TEXT = Check("a non-empty string", lambda value: isinstance(value, str) and bool(value))
PATH = Check(
    "a path, as a non-empty string",
    lambda value: isinstance(value, (str, os.PathLike)) and bool(os.fspath(value)),
)
PATHS = sequence(PATH, "['a/folder']")
FUNCTION = Check("a function", callable)
SEED = integer(0, 2**32 - 1)  # JAX's PRNG keys hold 32 bits; larger seeds would repeat smaller ones

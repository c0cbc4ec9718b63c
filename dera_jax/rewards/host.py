"""Wraps a Python function of texts as a reward.

The function is called between compiled rounds, once per round with all outputs of this process, and
never from inside a compiled program.
"""

import dataclasses
import functools
import hashlib
import inspect
import types
from collections.abc import Callable, Sequence

import numpy as np

from dera_jax import checks
from dera_jax.rewards.protocol import Reward

_PLAIN = (bool, int, float, str, bytes, type(None))


@dataclasses.dataclass(frozen=True, repr=False)
class HostReward(Reward):
    """Scores outputs with `fn(documents, texts)`, which returns one float for each output text.

    `documents` and `texts` are lists of equal length, where a document is repeated for each of its
    outputs. A document has no prompt template and is never truncated. An
    output text may be empty.

    Attributes:
        fn: the function (documents, texts) -> rewards, which runs in Python.
        source_sha256: hash of its source and of the numbers and strings that it holds (variables of a
            closure, arguments of a partial function, attributes of an object), so that records of an earlier
            version are not taken for its own; what it calls is not part of it.

    Raises:
        ValueError: `fn` is no function of two arguments.
    """

    fn: Callable[[Sequence[str], Sequence[str]], Sequence[float]]
    source_sha256: str = dataclasses.field(init=False, compare=False)

    def __post_init__(self):
        checks.check_fields(self, fn=checks.FUNCTION)
        if not _takes_two(self.fn):
            raise ValueError(
                f"the host reward {self._name} must take two arguments, the lists `documents` and "
                f"`texts`; it takes {inspect.signature(self.fn)}"
            )
        digest = hashlib.sha256(f"{_source(self.fn)}{_values(self.fn)}".encode()).hexdigest()
        object.__setattr__(self, "source_sha256", digest)

    @property
    def on_host(self) -> bool:
        return True

    def __call__(self, params, source, tokens, lengths, finished):
        raise TypeError(
            f"the host reward {self._name} cannot be called inside a compiled program; score "
            "outputs between compiled rounds, with rewards.scoring.RewardScorer"
        )

    def score(self, documents: Sequence[str] | None, texts: Sequence[Sequence[str]]) -> np.ndarray:
        """Returns the rewards, float32 [B, K], of K output texts for each of B documents.

        The function is called once; it is not called for B = 0, as on a process that holds only
        batch padding. Exceptions of the function are passed on.

        Raises:
            ValueError: `documents` is None, or the function did not return one finite number for
                each text.
        """
        if documents is None:
            raise ValueError(
                f"the host reward {self._name} needs the texts of the documents; found None"
            )
        repeated = [doc for doc, outputs in zip(documents, texts, strict=True) for _ in outputs]
        flat = [text for outputs in texts for text in outputs]
        values = self._floats(self.fn(repeated, flat) if flat else [])
        if values.shape != (len(flat),):
            raise ValueError(
                f"the host reward {self._name} returned values of shape {values.shape} for "
                f"{len(flat)} texts; it must return one float for each text"
            )
        invalid = np.flatnonzero(~np.isfinite(values))
        if len(invalid):
            raise ValueError(
                f"the host reward {self._name} returned {values[invalid[0]]} for the text "
                f"{flat[invalid[0]]!r}; rewards must be finite"
            )
        return values.reshape(len(texts), len(texts[0]) if flat else 0)

    def _floats(self, values: object) -> np.ndarray:
        try:
            return np.asarray(list(values), np.float32)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"the host reward {self._name} must return one float for each text; "
                f"found {values!r}"
            ) from error

    def __repr__(self) -> str:
        return f"HostReward({self._name})"

    @property
    def _name(self) -> str:
        return getattr(self.fn, "__qualname__", repr(self.fn))


def sources_of(value: object) -> dict[str, str]:
    """Returns the source hash of every host reward in a dataclass and its fields, by the function's name."""
    if isinstance(value, HostReward):
        return {f"{getattr(value.fn, '__module__', None)}.{value._name}": value.source_sha256}
    if isinstance(value, list | tuple):
        parts = value
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        parts = [getattr(value, field.name) for field in dataclasses.fields(value)]
    else:
        return {}
    return {name: x for part in parts for name, x in sources_of(part).items()}


def _takes_two(fn: Callable) -> bool:
    """Returns whether a function can be called with two arguments; True where Python cannot tell."""
    try:
        signature = inspect.signature(fn)
    except (TypeError, ValueError):  # of a function in C
        return True
    try:
        signature.bind(None, None)
    except TypeError:
        return False
    return True


def _values(fn: Callable) -> dict[str, object]:
    """Returns the numbers and strings that a function holds, by name; other objects, such as caches, may change."""
    if isinstance(fn, functools.partial):
        held = dict(enumerate(fn.args)) | fn.keywords | _values(fn.func)
    elif inspect.isfunction(fn):
        held = inspect.getclosurevars(fn).nonlocals
    else:
        held = getattr(getattr(fn, "__self__", fn), "__dict__", {})
    return {str(x): y for x, y in sorted(held.items(), key=str) if isinstance(y, _PLAIN)}


def _source(fn: Callable) -> str:
    """Returns the source of a function, or its code where there is no source, as in an interactive session."""
    while isinstance(fn, functools.partial):
        fn = fn.func
    fn = fn if hasattr(fn, "__code__") or hasattr(fn, "__func__") else type(fn)
    try:
        return inspect.getsource(fn)
    except (OSError, TypeError):
        return repr(_code(getattr(fn, "__code__", None)))


def _code(code: object) -> object:
    """Returns what a function's code does, with that of the functions inside of it; other constants as they are."""
    if not isinstance(code, types.CodeType):
        return code
    return code.co_code, code.co_names, code.co_varnames, [_code(x) for x in code.co_consts]

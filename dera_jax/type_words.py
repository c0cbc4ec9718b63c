"""Describes type annotations in words, as gin files write values of these types."""

import collections.abc
import types
import typing
from pathlib import Path


def words(hint: object) -> str:
    """Describe a type in words: 'int or None', 'a tuple of float', 'a Reward (@function())'."""
    kind, arguments = typing.get_origin(hint), typing.get_args(hint)
    if kind in (typing.Union, types.UnionType):  # of str and Path, gin files have a str
        written = [x for x in arguments if x is not Path or str not in arguments]
        return " or ".join(dict.fromkeys(map(words, written)))
    if kind is typing.Literal:
        return " or ".join(map(repr, arguments))
    if kind in (tuple, list, collections.abc.Sequence):
        items = [words(x) for x in arguments if x is not ...]
        items = [f"({x})" if " or " in x else x for x in items]
        return f"a tuple of {items[0]}" if len(items) == 1 else f"a tuple ({', '.join(items)})"
    if kind in (dict, collections.abc.Mapping):
        return f"a dict of {' to '.join(map(words, arguments))}"
    if kind is collections.abc.Callable:
        return "a function (@function, or @function() that returns one)"
    if hint in (None, type(None)):
        return "None"
    name = getattr(hint, "__name__", str(hint)).rpartition(".")[2]
    if hint in (int, float, str, bool):
        return name
    value = f"a{'n' * (name[0] in 'AEIOUaeiou')} {name}"
    return value if hint in (dict, list, tuple, object) else f"{value} (@function())"

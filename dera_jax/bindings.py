"""What a parsed gin config says of its bindings: where each comes from, and what is wrong with it.

gin takes a misspelt scope, a parameter that nothing reads and a value of the wrong type without a
word; what is raised later names none of them. All that is known here comes from the references of
the config, followed from `configure.run` on.
"""

import collections.abc
import dataclasses
import difflib
import inspect
import re
import tokenize
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import gin
from gin import config_parser

MACRO = "gin.macro"
_COMMAND_LINE = "on the command line"
Key = tuple[str, str, str]  # scope (of a macro: its name), complete selector, parameter


@dataclasses.dataclass(frozen=True)
class Sources:
    """Where the bindings of a config stand.

    Attributes:
        places: by binding, "in FILE, line N" or "on the command line"; the last one counts.
        scopes: every scope that a reference of any statement opens.
    """

    places: Mapping[Key, str]
    scopes: frozenset[str]

    def from_command_line(self) -> list[Key]:
        return [key for key, place in self.places.items() if place == _COMMAND_LINE]


class _Written(config_parser.ParserDelegate):
    """Collects the scopes of references; gives values of no use."""

    def __init__(self):
        self.scopes: set[str] = set()

    def configurable_reference(self, scoped_configurable_name: str, evaluate: bool) -> None:
        self.scopes.update(scoped_configurable_name.split("/")[:-1])

    def macro(self, macro_name: str) -> None:
        pass


Statement = config_parser.BindingStatement


def statements(files: Sequence[str]) -> tuple[list[Statement], frozenset[str]]:
    """The bindings of gin files and of those they include, in order, and the scopes they open.

    gin reads the same files once more: it does not keep where a binding was made. Files that are
    missing are left to it.

    Raises:
        ValueError: a file that is no gin, naming the line.
    """
    written = _Written()
    return [x for file in files for x in _statements(file, written)], frozenset(written.scopes)


def _statements(file: str, written: _Written) -> Iterator[Statement]:
    places = (Path(prefix) / file for prefix in gin.config._LOCATION_PREFIXES)
    path = next((path for path in places if path.is_file()), None)
    if path is None:
        return
    with path.open(encoding="utf-8") as lines:
        try:
            for statement in config_parser.ConfigParser(lines, written):
                if isinstance(statement, config_parser.IncludeStatement):
                    yield from _statements(statement.filename, written)
                elif isinstance(statement, Statement):
                    location = statement.location._replace(filename=file)
                    yield statement._replace(location=location)
        except tokenize.TokenError as error:
            raise ValueError(f"{file}, line {error.args[1][0]}: {error.args[0]}") from error
        except SyntaxError as error:
            raise ValueError(f"{file}, line {error.lineno}: {error.msg}") from error


def sources(found: Sequence[Statement], scopes: frozenset[str], bindings: Sequence[str]) -> Sources:
    """Where the bindings stand: those of `statements`, once gin knows the names, and `bindings`."""
    places = {_key(x): f"in {x.location.filename}, line {x.location.line_num}" for x in found}
    written = _Written()
    for binding in bindings:
        for statement in config_parser.ConfigParser(binding, written):
            places[_key(statement)] = _COMMAND_LINE
    return Sources(places, scopes | written.scopes)


def _key(statement: Statement) -> Key:
    scope, selector, parameter, *_ = statement
    if not parameter:
        return "/".join(filter(None, (scope, selector))), MACRO, "value"
    found = gin.config._REGISTRY.matching_selectors(selector)
    return scope, found[0] if len(found) == 1 else selector, parameter


def check_macros(known: Sources) -> None:
    """Raises ValueError for a %MACRO that no statement defines, with near matches and its place."""
    defined = [scope for scope, selector in gin.config._CONFIG if selector == MACRO]
    for key, value in _all_bindings():
        for reference in gin.config.iterate_references({"value": value}):
            scope, selector = reference.config_key
            if selector == MACRO and scope not in defined:
                raise ValueError(
                    f"%{scope} {known.places.get(key, '')}: no gin file defines this macro, which "
                    f"{name_of(key)} refers to{near(scope, defined)}"
                )


def check_scopes(known: Sources) -> None:
    """Raises ValueError for a binding in a scope that no reference opens: nothing would read it."""
    for key, _ in _all_bindings():
        scopes = key[0].split("/") if key[0] and key[1] != MACRO else []
        for scope in scopes:
            if scope not in known.scopes:
                raise ValueError(
                    f"{name_of(key)} {known.places.get(key, '')}: no reference @{scope}/... opens "
                    f"the scope {scope!r}, so that nothing reads this binding"
                    f"{near(scope, sorted(known.scopes))}"
                )


def _all_bindings() -> Iterator[tuple[Key, object]]:
    for (scope, selector), parameters in gin.config._CONFIG.items():
        for parameter, value in parameters.items():
            yield (scope, selector, parameter), value


def name_of(key: Key) -> str:
    """A binding as it is written in a gin file."""
    scope, selector, parameter = key
    if selector == MACRO:
        return scope
    short = ".".join([*selector.split(".")[-2:], parameter])
    return f"{scope}/{short}" if scope else short


def near(name: str, known: Sequence[str]) -> str:
    """The end of a sentence: what may have been meant."""
    found = difflib.get_close_matches(name, known) or sorted(known)
    return f"; did you mean {' or '.join(found)}?" if found else ""


def reached(start: str) -> dict[Key, object]:
    """The bindings that count when the configurable `start` is called, macros among them.

    Args:
        start: its complete selector.
    """
    found, seen, ahead = {}, set(), [((), start)]
    while ahead:
        scopes, selector = ahead.pop()
        if (scopes, selector) in seen:
            continue
        seen.add((scopes, selector))
        here = _bindings_at(scopes, selector)
        found |= here
        for reference in gin.config.iterate_references(here):
            scope, callee = reference.config_key
            inner = tuple(scope.split("/")) if scope else ()
            ahead.append((inner or scopes, callee))
            if not reference.evaluate:  # called later, maybe outside of this scope
                ahead.append((inner, callee))
    return found


def _bindings_at(scopes: Sequence[str], selector: str) -> dict[Key, object]:
    """Those of a configurable called in scopes; inner scopes override outer ones."""
    innermost = {}
    for depth in range(len(scopes) + 1):
        scope = "/".join(scopes[:depth])
        for parameter, value in gin.config._CONFIG.get((scope, selector), {}).items():
            innermost[parameter] = (scope, value)
    return {(scope, selector, name): value for name, (scope, value) in innermost.items()}


def value_of(value: object) -> object:
    """The value of a binding, where it is a macro the macro's."""
    while isinstance(value, gin.config.ConfigurableReference) and value.config_key[1] == MACRO:
        value = gin.config._CONFIG[value.config_key]["value"]
    return value


def check_types(bindings: Mapping[Key, object], known: Sources) -> None:
    """Compares literal values with the annotations of a user's own functions and classes.

    Those of this package validate their values themselves, when they are called.

    Raises:
        TypeError: a value of another type, naming the binding and its place.
    """
    for key, value in bindings.items():
        _, selector, parameter = key
        if selector.startswith("dera_jax."):
            continue
        hint = _hints(selector).get(parameter, object)
        if not _fits(value_of(value), hint):
            raise TypeError(
                f"{name_of(key)} must be {_words(hint)}; found "
                f"{value_of(value)!r} ({place(key, bindings, known)})"
            )


def _hints(selector: str) -> Mapping[str, object]:
    function = gin.config._REGISTRY[selector].wrapped
    try:
        return typing.get_type_hints(function.__init__ if inspect.isclass(function) else function)
    except (NameError, TypeError, AttributeError):  # of a user's function: they need not resolve
        return {}


def _fits(value: object, hint: object) -> bool:
    """Whether a literal has the type of a hint; references and unusual hints fit."""
    value, kind, arguments = value_of(value), typing.get_origin(hint), typing.get_args(hint)
    if isinstance(value, gin.config.ConfigurableReference) or hint in (object, typing.Any):
        return True
    if kind in (typing.Union, types.UnionType):
        return any(_fits(value, x) for x in arguments)
    if hint in (int, float):
        numbers = int if hint is int else (int, float)
        return isinstance(value, numbers) and not isinstance(value, bool)
    if hint is None:
        return value is None
    if kind in (tuple, list, collections.abc.Sequence):
        return isinstance(value, (tuple, list)) and _items_fit(value, arguments)
    if kind is collections.abc.Callable or getattr(hint, "_is_protocol", False):
        return not isinstance(value, (bool, int, float, str, tuple, list, dict, type(None)))
    return not inspect.isclass(hint) or isinstance(value, hint)


def _items_fit(values: Sequence, hints: tuple) -> bool:
    if len(hints) == 1 or hints[1:] == (...,):
        return all(_fits(value, hints[0]) for value in values)
    return len(values) == len(hints) and all(map(_fits, values, hints))


def _words(hint: object) -> str:
    """A type for people: 'int or None', 'a tuple of float', 'a Reward'."""
    kind, arguments = typing.get_origin(hint), typing.get_args(hint)
    if kind in (typing.Union, types.UnionType):
        return " or ".join(map(_words, arguments))
    if kind in (tuple, list, collections.abc.Sequence):
        items = [_words(x) for x in arguments if x is not ...]
        return f"a tuple of {items[0]}" if len(items) == 1 else f"a tuple ({', '.join(items)})"
    if hint in (None, type(None)):
        return "None"
    name = getattr(hint, "__name__", str(hint)).rpartition(".")[2]
    return name if hint in (int, float, str, bool) else f"a {name} (@function())"


def place(key: Key, bindings: Mapping[Key, object], known: Sources) -> str:
    """A binding, or the macro that it is set by, with its value and where that stands."""
    value = bindings[key]
    while isinstance(value, gin.config.ConfigurableReference) and value.config_key[1] == MACRO:
        key, value = (*value.config_key, "value"), gin.config._CONFIG[value.config_key]["value"]
    return f"{name_of(key)} = {value!r} {known.places.get(key, '')}".strip()


def unused(bindings: Mapping[Key, object], known: Sources) -> list[str]:
    """Bindings of the command line that nothing reads, as far as references tell."""
    return [name_of(key) for key in known.from_command_line() if key not in bindings]


def blamed(
    message: str, function: str | None, bindings: Mapping[Key, object], known: Sources
) -> str:
    """Which bindings a message is about: parameters of `function` that it names, strings it quotes.

    Args:
        message: of an error.
        function: the last part of its name; None if the error was raised in none.
        bindings: those that count.
        known: their places.

    Returns:
        '' if none is found, otherwise their values and places, in parentheses.
    """
    named = [
        key
        for key, value in bindings.items()
        if (key[1].rpartition(".")[2] == function and re.search(rf"\b{key[2]}\b", message))
        or (key[1] == MACRO and isinstance(value, str) and repr(value) in message)
    ]
    found = dict.fromkeys(place(key, bindings, known) for key in named)
    found = [text for text in found if text not in message]
    return f" ({', '.join(found)})" if found else ""

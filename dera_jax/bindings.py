"""Locates and validates the bindings of a parsed gin configuration.

gin silently accepts a misspelt scope, a parameter that nothing reads and a value of the wrong type,
and errors that follow from them do not name the binding. The functions below follow the references
of the configuration, starting from `configure.run`, to find such bindings.
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
from absl import logging
from gin import config_parser

from dera_jax.type_words import words

MACRO = "gin.macro"
CONFIGS = Path(__file__).resolve().parent / "gin_configs"
_COMMAND_LINE = "on the command line"
Key = tuple[str, str, str]  # scope (of a macro: its name), complete selector, parameter


class References(config_parser.ParserDelegate):
    """Collects references while files are parsed; the parsed values are not used.

    Attributes:
        scopes: every scope that a reference opens.
        macros: every macro that is referred to.
    """

    def __init__(self):
        self.scopes: set[str] = set()
        self.macros: set[str] = set()

    def configurable_reference(self, scoped_configurable_name: str, evaluate: bool) -> None:
        self.scopes.update(scoped_configurable_name.split("/")[:-1])

    def macro(self, macro_name: str) -> None:
        self.macros.add(macro_name)


@dataclasses.dataclass(frozen=True)
class Sources:
    """Places of the bindings of a configuration.

    Attributes:
        places: "in FILE, line N" or "on the command line" for each binding; the last place counts.
        references: those of all statements, overridden ones included.
        own: bindings of the user's own files and of the command line, and not of this package's files.
    """

    places: Mapping[Key, str]
    references: References
    own: frozenset[Key]


Statement = config_parser.BindingStatement


@dataclasses.dataclass(frozen=True)
class Call:
    """A function or class that a run calls or passes on.

    Attributes:
        scopes: gin scopes in which it is called.
        selector: its complete selector.
        evaluated: whether gin calls it, with bindings alone; otherwise the function that it is
            passed to calls it, and may give further arguments.
    """

    scopes: tuple[str, ...]
    selector: str
    evaluated: bool = True


def statements(files: Sequence[str]) -> tuple[list[Statement], References]:
    """Parse the bindings of gin files and of the files they include, in order, and their references.

    gin itself parses the same files again, since it does not keep the places of bindings. Missing
    files are skipped here, and gin reports them.

    Raises:
        ValueError: a file is not valid gin; the message names the line.
    """
    references = References()
    parsed = [x for file in files for x in _statements(file, references)]
    return parsed, references


def path_of(file: str) -> Path | None:
    """Return where gin finds a file; None if it is in no search path."""
    places = (Path(prefix) / file for prefix in gin.config._LOCATION_PREFIXES)
    return next((path for path in places if path.is_file()), None)


def _statements(file: str, references: References) -> Iterator[Statement]:
    path = path_of(file)
    if path is None:
        return
    with path.open(encoding="utf-8") as lines:
        try:
            for statement in config_parser.ConfigParser(lines, references):
                if isinstance(statement, config_parser.IncludeStatement):
                    yield from _statements(statement.filename, references)
                elif isinstance(statement, Statement):
                    location = statement.location._replace(filename=file)
                    yield statement._replace(location=location)
        except tokenize.TokenError as error:
            raise ValueError(f"{file}, line {error.args[1][0]}: {error.args[0]}") from error
        except SyntaxError as error:
            raise ValueError(f"{file}, line {error.lineno}: {error.msg}") from error


def sources(found: Sequence[Statement], references: References, bindings: Sequence[str]) -> Sources:
    """Return the places of bindings.

    Args:
        found, references: as `statements` returns them. gin must have parsed the files already, so
            that it knows the names.
        bindings: those of the command line.
    """
    places = {_key(x): f"in {x.location.filename}, line {x.location.line_num}" for x in found}
    own = {_key(x): not _is_ours(x.location.filename) for x in found}
    for binding in bindings:
        for statement in config_parser.ConfigParser(binding, references):
            places[_key(statement)], own[_key(statement)] = _COMMAND_LINE, True
    return Sources(places, references, frozenset(key for key, is_own in own.items() if is_own))


def _is_ours(file: str) -> bool:
    """Return whether a gin file is one of this package."""
    path = path_of(file)
    return path is not None and path.resolve().is_relative_to(CONFIGS.resolve())


def _key(statement: Statement) -> Key:
    scope, selector, parameter, *_ = statement
    if not parameter:
        return "/".join(filter(None, (scope, selector))), MACRO, "value"
    matching = gin.config._REGISTRY.matching_selectors(selector)
    return scope, matching[0] if len(matching) == 1 else selector, parameter


def check_macros(known: Sources) -> None:
    """Raise ValueError for an undefined %MACRO, naming its place and similar names."""
    defined = [scope for scope, selector in gin.config._CONFIG if selector == MACRO]
    for key, value in all_bindings():
        for name in macros_in(value):
            if name not in defined:
                raise ValueError(
                    f"%{name} {known.places.get(key, '')}: no gin file defines this macro, which "
                    f"{name_of(key)} refers to{suggestion(name, defined)}"
                )


def macros_in(value: object) -> list[str]:
    """Return the names of the macros that a value refers to."""
    keys = [x.config_key for x in gin.config.iterate_references({"value": value})]
    return [scope for scope, selector in keys if selector == MACRO]


def check_scopes(known: Sources) -> None:
    """Raise ValueError for a binding in a scope that no reference opens, since nothing reads it."""
    for key, _ in all_bindings():
        scopes = key[0].split("/") if key[0] and key[1] != MACRO else []
        for scope in scopes:
            if scope not in known.references.scopes:
                raise ValueError(
                    f"{name_of(key)} {known.places.get(key, '')}: no reference @{scope}/... opens "
                    f"the scope {scope!r}, so that nothing reads this binding"
                    f"{suggestion(scope, sorted(known.references.scopes))}"
                )


def all_bindings() -> Iterator[tuple[Key, object]]:
    """Yield every binding of the configuration, whether a run reads it or not."""
    for (scope, selector), parameters in gin.config._CONFIG.items():
        for parameter, value in parameters.items():
            yield (scope, selector, parameter), value


def name_of(key: Key) -> str:
    """Return the name of a binding as written in a gin file."""
    scope, selector, parameter = key
    if selector == MACRO:
        return scope
    short = ".".join([*selector.split(".")[-2:], parameter])
    return f"{scope}/{short}" if scope else short


def suggestion(name: str, known: Sequence[str]) -> str:
    """Return a suggestion of similar names, to be appended to a message."""
    similar = difflib.get_close_matches(name, known) or sorted(known)
    return f"; did you mean {' or '.join(similar)}?" if similar else ""


def reachable_bindings(start: str) -> dict[Key, object]:
    """Return the bindings, including macros, that a call of the configurable `start` reads.

    Args:
        start: complete selector of the configurable.
    """
    result = {}
    for call in reachable([Call((), start)]):
        result |= bindings_of(call)
    return result


def reachable(starts: Sequence[Call]) -> list[Call]:
    """Return the calls that follow from these by the references of their bindings, macros included."""
    seen, pending = {}, [*starts]
    while pending:
        call = pending.pop()
        if call in seen:
            continue
        seen[call] = None
        for reference in gin.config.iterate_references(bindings_of(call)):
            scope, callee = reference.config_key
            inner = tuple(scope.split("/")) if scope else ()
            pending.append(Call(inner or call.scopes, callee, reference.evaluate))
            if not reference.evaluate:  # may be called later, outside of this scope
                pending.append(Call(inner, callee, evaluated=False))
    return list(seen)


def bindings_of(call: Call) -> dict[Key, object]:
    """Return the bindings that a call reads; of nested scopes, inner ones override."""
    innermost = {}
    for depth in range(len(call.scopes) + 1):
        scope = "/".join(call.scopes[:depth])
        for parameter, value in gin.config._CONFIG.get((scope, call.selector), {}).items():
            innermost[parameter] = (scope, value)
    return {(scope, call.selector, name): value for name, (scope, value) in innermost.items()}


def value_of(value: object) -> object:
    """Return the value of a binding, with references to macros replaced by their values."""
    while isinstance(value, gin.config.ConfigurableReference) and value.config_key[1] == MACRO:
        value = gin.config._CONFIG[value.config_key]["value"]
    return value


def check_types(bindings: Mapping[Key, object], known: Sources) -> None:
    """Compare literal values with the type annotations of a user's own functions and classes.

    Functions and classes of this package validate their values themselves, when they are called.

    Raises:
        TypeError: a value has another type; the message names the binding and its place.
    """
    for key, value in bindings.items():
        _, selector, parameter = key
        if selector.startswith("dera_jax."):
            continue
        hint = hints(gin.config._REGISTRY[selector].wrapped).get(parameter, object)
        if not _fits(value_of(value), hint):
            raise TypeError(
                f"{name_of(key)} must be {words(hint)}; found "
                f"{value_of(value)!r} ({place(key, bindings, known)})"
            )


def hints(function: collections.abc.Callable) -> Mapping[str, object]:
    """Return the types of the parameters of a function or class, as far as they are annotated."""
    try:
        return typing.get_type_hints(function.__init__ if inspect.isclass(function) else function)
    # Annotations of a user's function need not resolve.
    except (NameError, TypeError, AttributeError):
        return {}


def _fits(value: object, hint: object) -> bool:
    """Return whether a literal has the type of a hint; references and unusual hints always fit."""
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


def place(key: Key, bindings: Mapping[Key, object], known: Sources) -> str:
    """Describe a binding, or the macro that sets it, with its value and place."""
    value = bindings[key]
    while isinstance(value, gin.config.ConfigurableReference) and value.config_key[1] == MACRO:
        key, value = (*value.config_key, "value"), gin.config._CONFIG[value.config_key]["value"]
    return f"{name_of(key)} = {value!r} {known.places.get(key, '')}".strip()


def check_read(bindings: Mapping[Key, object], known: Sources) -> None:
    """Raise ValueError for a binding that this run does not read, and warn of others in the user's files.

    A gin file may bind what another file overrides, or what only some rewards read. Of its bindings
    only macros count that no binding refers to, unless they are None; a user's file gets a warning for others.

    Args:
        bindings: those that the run reads.
        known: the places of all bindings.
    """
    unread = {key: where for key, where in known.places.items() if key not in bindings}
    for key, where in unread.items():
        given = where == _COMMAND_LINE
        is_misspelt = (
            key[1] == MACRO
            and key[0] not in known.references.macros
            and gin.config._CONFIG[key[:2]]["value"] is not None
        )
        if not (given or is_misspelt):
            continue
        name = f"--gin.{name_of(key)}" if given else f"{name_of(key)} {where}"
        near = _near(key, bindings)
        hint = f"; did you mean {' or '.join(near)}?" if near else "; remove it"
        raise ValueError(f"{name}: this run does not read this binding{hint}")
    own = [f"{name_of(x)} {y}" for x, y in unread.items() if x in known.own and x[1] != MACRO]
    if own:
        logging.warning("this run does not read %s", ", ".join(own))


def _near(key: Key, bindings: Mapping[Key, object]) -> list[str]:
    """Return the names of the same parameter's bindings in other scopes, or of similar macros."""
    if key[1] != MACRO and (scoped := sorted(name_of(x) for x in bindings if x[1:] == key[1:])):
        return scoped
    return difflib.get_close_matches(name_of(key), [x[0] for x in bindings if x[1] == MACRO])


def related_bindings(
    message: str, function: str | None, bindings: Mapping[Key, object], known: Sources
) -> str:
    """Describe the bindings that an error message is about.

    These are parameters that the message names with their function or class (Sweep.lams), those of
    `function` and those with an underscore whose names occur in it, and macros whose string values
    it quotes.

    Args:
        message: of an error.
        function: last part of the name of the configurable that raised it; None if there is none.
        bindings: those that the run reads.
        known: their places.

    Returns:
        The values and places of these bindings in parentheses; '' if there are none.
    """
    named = [
        key
        for key, value in bindings.items()
        if _is_named(message, function, key)
        or (key[1] == MACRO and isinstance(value, str) and repr(value) in message)
    ]
    places = dict.fromkeys(place(key, bindings, known) for key in named)
    places = [text for text in places if text not in message]
    return f" ({', '.join(places)})" if places else ""


def _is_named(message: str, function: str | None, key: Key) -> bool:
    """Return whether an error message of `function` names this parameter."""
    callee, parameter = key[1].rpartition(".")[2], key[2]
    before = [rf"\b{callee}\."]
    before += [r"\b"] if callee == function else [r"(?<![.\w])"] if "_" in parameter else []
    return any(re.search(rf"{x}{parameter}\b", message) for x in before)

"""Lists what `--gin.NAME=VALUE` sets in a run: macros, and parameters of functions and classes.

    python -m dera_jax.params gin_configs/runs/ppo.gin

The meaning of a macro is the comment behind its last definition or, without one, that of the
parameter that it sets; the meaning of a parameter is its entry in the docstring.
"""

import argparse
import dataclasses
import importlib
import inspect
import re
import textwrap
import tokenize
from collections.abc import Callable, Iterator, Mapping, Sequence

import gin
from absl import logging

from dera_jax import command_line, configure
from dera_jax.bindings import (
    CONFIGS,
    MACRO,
    Call,
    Key,
    Statement,
    all_bindings,
    bindings_of,
    hints,
    macros_in,
    name_of,
    path_of,
    reachable,
)
from dera_jax.type_words import words

_RUN = "dera_jax.configure.run"
_BY_CALLER = {(_RUN, "dry_run")}  # parameters that a command sets by an option of its own
_FOLDERS = ("rewards", "mutators", "runs", "experiments")  # of gin_configs, those to be added first
_KINDS = {True: "Macros", False: "Parameters of functions and classes"}
_WIDTH = 100  # columns of a terminal


@dataclasses.dataclass(frozen=True)
class Param:
    """One row of the list.

    Attributes:
        name: NAME of --gin.NAME=VALUE.
        is_macro: whether it is a macro, and not a parameter of a function or class.
        meaning: what it sets.
        default: its value as gin writes it; '' if it has none.
        kind: its type in words; '' if it is not annotated.
        required: whether the run needs a value.
    """

    name: str
    is_macro: bool
    meaning: str
    default: str
    kind: str
    required: bool


def params(files: Sequence[str], search_paths: Sequence[str] = (".",)) -> list[Param]:
    """Return the macros and parameters that a run reads, macros first, in the order of the files.

    Of files that are not a run by themselves, these are all that the files bind or refer to. A
    macro that no binding refers to is listed too: a file to be added may read it.

    Args:
        files: gin files, as for `configure.parse`.
        search_paths: folders in which they are looked for.

    Raises:
        ValueError, ImportError, OSError: as in `configure.parse`.
    """
    statements, references = configure.read(files, search_paths)
    calls = reachable(_starts())
    rows = _parameters([x for x in calls if x.selector not in (MACRO, "gin.constant")])
    read = {x.scopes[0] for x in calls if x.selector == MACRO}
    comments = _comments(statements)
    names = dict.fromkeys(key[0] for key, _ in all_bindings() if key[1] == MACRO)
    macros = [
        _macro(name, rows, comments)
        for name in names
        if name in read or name not in references.macros
    ]
    return macros + [_parameter(key, value) for key, value in rows.items()]


def _starts() -> list[Call]:
    """Return the call of the run or, where the files bind none, calls of all that they bind."""
    if "job" in gin.config._CONFIG.get(("", _RUN), {}):
        return [Call((), _RUN)]
    keys = dict.fromkeys(key[:2] for key, _ in all_bindings())
    return [Call(tuple(filter(None, scope.split("/"))), selector) for scope, selector in keys]


def _parameters(calls: Sequence[Call]) -> dict[Key, object]:
    """Return every parameter of the calls with its bound or default value.

    A parameter that a call does not bind is listed without scope, since a binding without scope
    sets it. `inspect.Parameter.empty` stands for a missing default.
    """
    rows = {}
    for call in calls:
        bound = {key[2]: (key, value) for key, value in bindings_of(call).items()}
        for name, default in _defaults(call.selector).items():
            key, value = bound.get(name, (("", call.selector, name), default))
            given_later = not call.evaluated and value is inspect.Parameter.empty
            if not given_later and (call.selector, name) not in _BY_CALLER:
                rows.setdefault(key, value)
    return rows


def _defaults(selector: str) -> dict[str, object]:
    """Return the parameters of a function or class that gin can bind, with their defaults."""
    signature = inspect.signature(gin.config._REGISTRY[selector].wrapped)
    variable = inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD
    return {x.name: x.default for x in signature.parameters.values() if x.kind not in variable}


def _parameter(key: Key, value: object) -> Param:
    is_missing = value is inspect.Parameter.empty
    return Param(
        name=name_of(key),
        is_macro=False,
        meaning=_documented(key[1]).get(key[2], ""),
        default="" if is_missing else repr(value),
        kind=_kind(key[1], key[2]),
        required=is_missing,
    )


def _macro(name: str, rows: Mapping[Key, object], comments: Mapping[str, list[str]]) -> Param:
    value = gin.config._CONFIG[name, MACRO]["value"]
    whole = [key for key, bound in rows.items() if repr(bound) == f"%{name}"]
    parts = [key for key, bound in rows.items() if key not in whole and name in macros_in(bound)]
    kinds = [_kind(*key[1:]) for key in whole]
    own = comments.get(name, [""])
    documented = [_documented(key[1]).get(key[2], "") for key in (*whole, *parts)]
    meanings = [own[-1], *documented, *reversed(own)]
    is_missing = repr(value) == "%gin.REQUIRED"
    return Param(
        name=name,
        is_macro=True,
        meaning=next(filter(None, meanings), ""),
        default="" if is_missing else repr(value),
        kind=next(filter(None, kinds), "") or _kind_elsewhere(name),
        required=is_missing,
    )


def _kind(selector: str, parameter: str) -> str:
    return _annotated(gin.config._REGISTRY[selector].wrapped, parameter)


def _annotated(function: Callable, parameter: str) -> str:
    hint = hints(function).get(parameter)
    return "" if hint is None else words(hint)


def _kind_elsewhere(macro: str) -> str:
    """Return the type of a macro that no parameter of the run is bound to, '' if no other gin file binds one.

    LOW of a search run, for example, is bound by the files of rewards that may be added to the run.
    """
    for file in [x for folder in _FOLDERS for x in sorted((CONFIGS / folder).rglob("*.gin"))]:
        text = file.read_text(encoding="utf-8")
        packages = {x: package for package, x in re.findall(r"(?m)^from (\S+) import (\w+)$", text)}
        binding = rf"(?m)^(?:\S+/)?(\w+)\.(\w+)\.(\w+) = %{re.escape(macro)}(?![\w./])"
        for module, function, parameter in re.findall(binding, text):
            owner = importlib.import_module(f"{packages[module]}.{module}")
            if kind := _annotated(getattr(owner, function), parameter):
                return kind
    return ""


def _comments(statements: Sequence[Statement]) -> dict[str, list[str]]:
    """Return the comments behind all definitions of each macro, '' for none, in their order."""
    lines, found = {}, {}
    for statement in statements:
        file, line = statement.location.filename, statement.location.line_num
        if file not in lines:
            lines[file] = dict(_line_comments(file))
        if not statement.arg_name:
            name = "/".join(filter(None, (statement.scope, statement.selector)))
            found.setdefault(name, []).append(lines[file].get(line, ""))
    return found


def _line_comments(file: str) -> Iterator[tuple[int, str]]:
    """Yield number and comment of every line of a gin file that has one."""
    with path_of(file).open("rb") as content:
        for token in tokenize.tokenize(content.readline):
            if token.type == tokenize.COMMENT:
                yield token.start[0], token.string.lstrip("# ")


def _documented(selector: str) -> dict[str, str]:
    """Return the docstring's entry of each parameter of a function or class, and of its bases."""
    function = gin.config._REGISTRY[selector].wrapped
    found = {}
    for kind in reversed(inspect.getmro(function)) if inspect.isclass(function) else [function]:
        found |= _entries(inspect.cleandoc(kind.__doc__ or ""))
    return found


def _entries(doc: str) -> dict[str, str]:
    """Return the entries of the sections Args and Attributes of a docstring."""
    found = {}
    for section in re.findall(r"^(?:Args|Attributes):\n((?:[ ]{4}.*\n?|\n)*)", doc, re.MULTILINE):
        for entry in re.split(r"^[ ]{4}(?=\S)", section, flags=re.MULTILINE)[1:]:
            names, _, meaning = entry.partition(":")
            found |= dict.fromkeys(re.split(r",\s*", names), " ".join(meaning.split()))
    return found


def format_params(rows: Sequence[Param]) -> str:
    """Format the list for a terminal: a line of name, default and type, and the meaning below."""
    lines = []
    for is_macro, title in _KINDS.items():
        lines += [f"{title}:", ""]
        for row in rows:
            if row.is_macro == is_macro:
                lines += [_head(row), *_wrapped(row.meaning)]
        lines.append("")
    return "\n".join(lines).rstrip()


def _head(row: Param) -> str:
    value = "  REQUIRED" if row.required else f" = {row.default}"
    return f"  {row.name}{value}{row.kind and f'  ({row.kind})'}"


def _wrapped(meaning: str) -> list[str]:
    return textwrap.wrap(meaning, _WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6)


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the list for the gin files on the command line."""
    logging.set_verbosity(logging.WARNING)
    parser = argparse.ArgumentParser(
        prog="python -m dera_jax.params",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("files", nargs="+", help="a run file, and files to be added to it")
    parser.add_argument("--gin_file", action="append", default=[], help="a file to be added")
    options = parser.parse_args(argv)
    files = [*options.files, *options.gin_file]
    command_line.run(lambda: print(format_params(params(files))))


if __name__ == "__main__":
    main()

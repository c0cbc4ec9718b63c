"""Runs `dera-jax train RUN` and `params RUN`: finds the gin file, and turns flags into gin bindings.

`dera_jax.main` and `dera_jax.params` do the work.
"""

import argparse
import ast
import difflib
import re
from collections.abc import Iterator, Sequence

from dera_jax import main
from dera_jax.command.listing import CONFIGS, RUNNABLE, names
from dera_jax.flag_values import with_line_breaks

_COMMANDS = {"search": "beam-search", "evolve": "evolution"}  # whose runs have other names
_NAMED_REWARD = "gin_configs/rewards/named.gin"
_OF_MAIN = ("--gin_file", "--gin_search_paths")
_ADDED = ("runs/lora.gin", "rewards/*.gin", "mutators/*.gin", "models/*.gin")
_SWITCHES = ("--dry_run", "--verbose")  # also of main, without a value


def run(options: argparse.Namespace) -> None:
    """Runs the gin files of a command; errors are those of `dera_jax.main` and `dera_jax.params`."""
    try:
        file = gin_file(options.run)
        arguments = options.rest if options.command == "params" else [*main_arguments(options.rest)]
    except ValueError as error:
        options.parser.error(str(error))
    if options.command == "params":
        from dera_jax import params  # imports the libraries of all runs

        params.main([file, *arguments])
    else:
        main.main([f"--gin_file={file}", *arguments], reworded=as_flags)


def gin_file(run: str) -> str:
    """Returns the path of a run's gin file, relative to the folder that holds gin_configs.

    Raises:
        ValueError: no run has this name.
    """
    if run.endswith(".gin"):
        return run
    known = {name: folder for folder in RUNNABLE for name in names(folder)}
    stem = run.replace("-", "_")
    for name, folder in known.items():
        if name.replace("-", "_") == stem:
            return f"{CONFIGS.name}/{folder}/{stem}.gin"
    raise ValueError(
        f"no run is called {run!r}; {_run_hint(run, known)}`dera-jax list runs` lists them"
    )


def _run_hint(run: str, known: Sequence[str]) -> str:
    """Returns what may be meant by a run that does not exist, to be put into a message."""
    if run in _COMMANDS:
        return f"did you mean `dera-jax {run}`, or the run {_COMMANDS[run]!r}? "
    added = [x for pattern in _ADDED for x in sorted(CONFIGS.glob(pattern)) if x.stem == run]
    if added:
        file = added[0].relative_to(CONFIGS.parent)
        return f"add {file} to a run: `dera-jax train RUN --gin_file {file}`; "
    close = [x for x in known if x.rpartition("/")[2] == run]
    close = close or difflib.get_close_matches(run, known, 1)
    return f"did you mean {' or '.join(map(repr, close))}? " if close else ""


def main_arguments(arguments: Sequence[str]) -> Iterator[str]:
    """Yields the arguments of `dera_jax.main` for flags such as --learning-rate 1e-4.

    Raises:
        ValueError: an argument is no flag, or a flag has no value.
    """
    rest = iter(arguments)
    for argument in rest:
        flag, equals, value = argument.partition("=")
        if not flag.startswith("--"):
            raise ValueError(f"unexpected {argument!r}; flags follow RUN, such as --steps 100")
        if flag.startswith("--gin."):
            yield argument
            continue
        of_main = flag.replace("-", "_").replace("__", "--", 1)  # --dry-run is --dry_run
        if of_main in _SWITCHES and not equals:
            yield of_main
            continue
        flag = of_main if of_main in _OF_MAIN else flag
        if not equals:
            value = next(rest, None)
        if value is None or (not equals and value.startswith("--")):
            raise ValueError(f"{flag} needs a value")
        if flag == "--reward" and not value.startswith(("@", "%")):
            yield from (f"--gin_file={_NAMED_REWARD}", f"--gin.REWARD_NAME={value!r}")
        elif flag in _OF_MAIN:
            yield f"{flag}={value}"
        else:
            value = with_line_breaks(value) if flag == "--template" else value
            yield f"--gin.{_macro(flag)}={_gin_value(value)}"


def as_flags(message: str) -> str:
    """Returns a message with the flags of `dera-jax train` in place of --gin.MACRO."""
    message = re.sub(
        rf"(REWARD in {_NAMED_REWARD}, line \d+|--gin.REWARD_NAME): this run does not read .*",
        "--reward: this run reads no reward",
        message,
    )
    flag = lambda match: f"--{match[1].lower().replace('_', '-')}{' VALUE' if match[2] else ''}"
    return re.sub(r"--gin\.([A-Z][A-Z0-9_]*)\b(=\.\.\.)?", flag, message)


def _macro(flag: str) -> str:
    return flag.removeprefix("--").replace("-", "_").upper()


def _gin_value(text: str) -> str:
    """Returns a number, tuple, reference or other literal as it is, and any other text as a string."""
    if text.startswith(("@", "%")):
        return text
    try:
        return repr(ast.literal_eval(text))
    except (ValueError, SyntaxError):
        return repr(text)

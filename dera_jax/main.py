"""Parses gin files and runs the job that they configure.

    python -m dera_jax.main --gin_file=gin_configs/runs/pretrain.gin --gin.MODEL_DIR='"/tmp/pre"'

The gin files of `gin_configs/runs` and `gin_configs/experiments` configure the jobs.
"""

import argparse
from collections.abc import Callable, Sequence

from dera_jax import command_line, log


def main(
    argv: Sequence[str] | None = None, reworded: Callable[[str], str] = lambda text: text
) -> None:
    """Parses the command line and runs the job; exit statuses are those of `command_line`.

    Args:
        argv: the arguments; None for those of the process.
        reworded: puts the message of an error in the words of the command line that called this one.
    """
    parser = _parser()
    options, rest = parser.parse_known_args(argv)
    log.show(options.verbose)
    bindings = [_binding(parser, argument) for argument in rest]
    run = _Run(options, bindings)
    command_line.run(run.launch, run.folder, lambda error: reworded(run.explain(error)))


class _Run:
    """Parses and launches a run. Imports happen inside the methods, where Ctrl-C is handled."""

    def __init__(self, options: argparse.Namespace, bindings: Sequence[str]):
        self._options = options
        self._bindings = bindings
        self._sources = None

    def launch(self) -> None:
        from dera_jax import configure

        options = self._options
        folders = options.gin_search_paths.split(",")
        self._sources = configure.parse(options.gin_file, self._bindings, folders)
        configure.launch(self._sources, options.dry_run)

    def folder(self) -> str | None:
        from dera_jax import configure

        return configure.folder() if self._sources else None

    def explain(self, error: Exception) -> str:
        from dera_jax import configure
        from dera_jax.data.own_files import NoFileError

        if not self._sources:
            return str(error)
        message = configure.error_message(error, self._sources)
        if isinstance(command_line.unwrapped(error), NoFileError):
            return f"{', '.join(self._options.gin_file)}: {message}"
        return message


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m dera_jax.main",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        epilog="--gin.NAME=VALUE binds a macro or a parameter of a function; put strings in two "
        "pairs of quotes, as above.",
    )
    parser.add_argument(
        "--gin_file",
        action="append",
        required=True,
        help="may be repeated; later files override earlier ones",
    )
    parser.add_argument(
        "--gin_search_paths", default=".", help="folders with gin files, separated by commas"
    )
    parser.add_argument(
        "--dry_run",
        action="store_true",
        help="check all shapes and print parameters, memory and tokens per step, without running",
    )
    parser.add_argument(
        "--verbose", action="store_true", help="also print the warnings of other packages"
    )
    return parser


def _binding(parser: argparse.ArgumentParser, argument: str) -> str:
    name, equals, value = argument.partition("=")
    if not (name.startswith("--gin.") and equals):
        parser.error(f"unknown argument {argument!r}; expected --gin.NAME=VALUE")
    return f"{name.removeprefix('--gin.')} = {value}"


if __name__ == "__main__":
    main()

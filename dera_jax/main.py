"""The one entry point: reads gin, runs one job.

    python -m dera_jax.main --gin_file=gin_configs/runs/pretrain.gin --gin.MODEL_DIR='"/tmp/pre"'

Which job is up to the gin file: those of `gin_configs/runs` and `gin_configs/experiments`.
"""

import argparse
import sys
import sysconfig
import traceback
from collections.abc import Sequence
from pathlib import Path

from absl import logging

from dera_jax import configure


def main(argv: Sequence[str] | None = None) -> None:
    """Parses the command line and runs the job."""
    logging.use_absl_handler()
    logging.set_verbosity(logging.WARNING)
    options, rest = _parser().parse_known_args(argv)
    bindings = [_binding(argument) for argument in rest]
    try:
        configure.parse(options.gin_file, bindings, options.gin_search_paths.split(","))
        configure.launch(options.dry_run)
    except (ValueError, TypeError, OSError, ImportError, RuntimeError, ArithmeticError) as error:
        if not _is_ours(error):
            raise
        sys.exit(f"error: {error}")


def _is_ours(error: Exception) -> bool:
    """True for errors raised on purpose, whose sentence says it all; others need the traceback.

    So do those that passed through a user's own code, such as a reward, wherever they were raised.
    """
    files = [Path(frame.filename) for frame in traceback.extract_tb(error.__traceback__)]
    ours = [configure.REPOSITORY / name for name in ("dera_jax", "tasks")]
    libraries = [Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platlib")]
    frozen = lambda file: file.name.startswith("<")  # Python's own import machinery
    known = [frozen(x) or any(map(x.is_relative_to, [*ours, *libraries])) for x in files]
    on_purpose = any(map(files[-1].is_relative_to, ours)) or "gin" in files[-1].parts
    return on_purpose and all(known)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m dera_jax.main",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="--gin.NAME=VALUE sets a macro or a parameter of a function; quote texts twice.",
    )
    parser.add_argument(
        "--gin_file", action="append", required=True, help="may be repeated; later ones win"
    )
    parser.add_argument(
        "--gin_search_paths", default=".", help="folders of gin files, separated by commas"
    )
    parser.add_argument(
        "--dry_run",
        action="store_true",
        help="check every shape and tell parameters, memory and tokens per step; runs nothing",
    )
    return parser


def _binding(argument: str) -> str:
    name, equals, value = argument.partition("=")
    if not (name.startswith("--gin.") and equals):
        sys.exit(f"error: unknown argument {argument!r}; expected --gin.NAME=VALUE")
    return f"{name.removeprefix('--gin.')} = {value}"


if __name__ == "__main__":
    main()

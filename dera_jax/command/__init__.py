"""Runs `dera-jax`, also as `python -m dera_jax`: decoding, training, reports and checkpoints on the command line.

Arguments are parsed before anything large is imported. Errors and exit statuses are those of
`dera_jax.command_line`.
"""

import importlib
import sys
from collections.abc import Sequence

from dera_jax.command import arguments
from dera_jax.command_line import close_stdout


def main(argv: Sequence[str] | None = None) -> None:
    """Parses a command line and runs its command."""
    try:
        options = arguments.parse(argv)
        importlib.import_module(f"dera_jax.command.{options.module}").run(options)
    finally:
        try:
            sys.stdout.flush()
        except BrokenPipeError:
            close_stdout()

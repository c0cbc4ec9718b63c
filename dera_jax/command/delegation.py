"""Runs the commands whose modules parse their own arguments: `dera-jax demo` and `dera-jax convert`."""

import argparse


def run(options: argparse.Namespace) -> None:
    """Passes the arguments on; errors are those of the command."""
    if options.command == "demo":
        from dera_jax import demo

        demo.main(options.rest)
    else:
        from dera_jax.checkpoints import convert

        convert.main(options.rest)

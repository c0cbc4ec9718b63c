"""Runs the commands that read and print: `dera-jax list`, `info` and `report`."""

import argparse

from dera_jax import command_line


def run(options: argparse.Namespace) -> None:
    """Runs the command; errors are those of `command_line.run`."""
    command_line.run(lambda: _COMMANDS[options.command](options))


def _list(options: argparse.Namespace) -> None:
    from dera_jax.command import listing

    print(listing.text(vars(options).get("name")))


def _info(options: argparse.Namespace) -> None:
    from dera_jax.command import checkpoint_info

    print(checkpoint_info.text(options.name))


def _report(options: argparse.Namespace) -> None:
    from dera_jax import report

    print(f"wrote {report.write(options.name)}")


_COMMANDS = {"list": _list, "info": _info, "report": _report}

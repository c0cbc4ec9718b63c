"""Writes the report of a folder from the command line, as `dera-jax report FOLDER` does."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from dera_jax import command_line
from dera_jax.report import write


def main(argv: Sequence[str] | None = None) -> None:
    """Writes the page and prints its path; errors end the program with a message."""
    parser = argparse.ArgumentParser(prog="python -m dera_jax.report", description=__doc__)
    parser.add_argument("folder", type=Path, help="folder of a finished run that decoded")
    options = parser.parse_args(argv)
    command_line.run(lambda: print(f"wrote {write(options.folder)}"))


if __name__ == "__main__":
    main()

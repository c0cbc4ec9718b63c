"""Runs the commands that decode documents by calling the method of `dera_jax.api` with the same name."""

import argparse
import sys
from pathlib import Path

from dera_jax import command_line, log
from dera_jax.command import output_rows

_OWN = (
    "command",
    "module",
    "parser",
    "reference",
    "aligned",
    "input",
    "output",
    "verbose",
    "reward",
)


def run(options: argparse.Namespace) -> None:
    """Decodes the documents and writes the rows; errors are those of `command_line.run`."""
    _check(options)
    log.show("verbose" in options)
    command_line.run(lambda: _decode(options), lambda: vars(options).get("folder"))


def _check(options: argparse.Namespace) -> None:
    given = vars(options)
    if "aligned" in given and "reference" not in given:
        options.parser.error("--aligned needs --reference, the model that it was aligned from")
    if "reference" in given and "aligned" not in given and "lam" in given:
        options.parser.error("--lam needs --aligned: λ mixes a reference and an aligned model")
    if "input" not in given and sys.stdin.isatty():
        options.parser.error("no documents: give --input FILE, or pipe them in")


def _decode(options: argparse.Namespace) -> None:
    from dera_jax.data.document_files import read_documents

    given = vars(options)
    documents = read_documents(given.get("input"))
    output = given.get("output")
    if output is not None:
        Path(output).open("a").close()  # raises OSError now, before anything is decoded
    from dera_jax import api, report
    from dera_jax.checkpoints.default_model import located
    from dera_jax.command.named_rewards import reward_of
    from dera_jax.data.aclsum import INSTRUCTIONS

    settings = {name: x for name, x in given.items() if name not in _OWN}
    settings["reward"] = reward_of(given.get("reward"))
    paths = [located(given[x]) for x in ("reference", "aligned") if x in given]
    if not paths:
        settings = {"template": INSTRUCTIONS["outcome"]} | settings
    method = getattr(api.load(*paths), options.command.replace("-", "_"))
    output_rows.write(method(documents, **settings), output, options.command)
    if "folder" in given:
        print(f"report: {Path(given['folder']) / report.PAGE}", file=sys.stderr)

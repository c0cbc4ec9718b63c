"""Runs the commands that decode documents by calling the method of `dera_jax.api` with the same name."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

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
    models = api.load(*paths)
    method = getattr(models, options.command.replace("-", "_"))
    lams = given.get("lam", 1.0) if len(models.names) > 1 else ()
    print(_about(len(documents), models.names, lams, given.get("reward")), file=sys.stderr)
    output_rows.write(method(documents, **settings), output, options.command)
    if "folder" in given:
        print(f"report: {Path(given['folder']) / report.PAGE}", file=sys.stderr)


def _about(
    documents: int, models: Sequence[str], lams: float | Sequence[float], reward: str | None
) -> str:
    """Returns what is decoded, in a line: documents, models, λ, reward and device."""
    from dera_jax import report

    lams = ", ".join(f"{x:g}" for x in np.atleast_1d(lams))
    parts = [f"{documents} document{'' if documents == 1 else 's'}", ", ".join(models)]
    parts += [f"λ {lams}"] if lams else []
    parts += [f"reward {reward}"] if reward else []
    return "; ".join([*parts, f"device {report.device()}"])

"""Runs the commands that decode documents by calling the method of `dera_jax.api` with the same name."""

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from dera_jax import command_line, log
from dera_jax.command import output_rows
from dera_jax.command.commands import GUIDED

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
    "gin",
    "gin_file",
    "dtype",
    "template_from",
    "vocabulary",
    "extra_ids",
)
_SETTINGS = "TextSettings|Sampling|Search|Evolution|Sweep|SamplingMethod"
_OTHER_NAMES = {  # in messages of the library
    r"Sweep\.lams": "--lam",
    r"load\.dtype": "--dtype",
    "max_prompt": "--max-prompt",
    "template_from": "--template-from",
    "VOCABULARY": "--vocabulary",
    "EXTRA_IDS": "--extra-ids",
}


def run(options: argparse.Namespace) -> None:
    """Decodes the documents and writes the rows; errors are those of `command_line.run`."""
    _check(options)
    log.show("verbose" in options)
    command_line.run(
        lambda: _decode(options),
        lambda: vars(options).get("folder"),
        lambda error: _as_flags(str(command_line.unwrapped(error))),
    )


def _as_flags(message: str) -> str:
    """Returns a message with flags in place of the library's names."""
    for name, flag in _OTHER_NAMES.items():
        message = re.sub(rf"\b{name}\b", flag, message)
    flag = lambda match: f"--{match[1].replace('_', '-')}"
    return re.sub(rf"\b(?:{_SETTINGS})\.(\w+)", flag, message)


def _check(options: argparse.Namespace) -> None:
    given = vars(options)
    if "aligned" in given and "reference" not in given:
        options.parser.error("--aligned needs --reference, the model that it was aligned from")
    if "reference" in given and "aligned" not in given and "lam" in given:
        options.parser.error("--lam needs --aligned: λ mixes a reference and an aligned model")
    if "input" not in given and sys.stdin.isatty():
        options.parser.error("no documents: give --input FILE, or pipe them in")
    if given["gin"] and "gin_file" not in given:
        options.parser.error("--gin.NAME=VALUE needs --gin_file, a file with the macro or function")
    if options.command in GUIDED and not {"reward", "gin_file"} & given.keys():
        options.parser.error(
            "the following arguments are required: --reward, or a --gin_file that sets REWARD"
        )
    output = Path(given.get("output", "."))
    if not output.parent.is_dir():
        options.parser.error(f"--output {output}: there is no folder {output.parent}")
    if "folder" in given and Path(given["folder"]).is_file():
        options.parser.error(
            f"--folder {given['folder']} is a file; expected a folder, which need not exist"
        )


def _decode(options: argparse.Namespace) -> None:
    from dera_jax.data.document_files import read_documents
    from dera_jax.files.destinations import check_one_process

    check_one_process()
    given = vars(options)
    documents = read_documents(given.get("input"))
    output = given.get("output")
    if output is not None:
        Path(output).open("a").close()  # raises OSError now, before anything is decoded
    from dera_jax import api, report
    from dera_jax.checkpoints.default_model import located

    settings = {name: x for name, x in given.items() if name not in _OWN} | _parts(given)
    paths = [located(given[x]) for x in ("reference", "aligned") if x in given]
    models = api.load(*paths, **_loading(given))
    method = getattr(models, options.command.replace("-", "_"))
    print(_about(given, documents, models.names, settings["reward"]), file=sys.stderr)
    output_rows.write(method(documents, **settings), output, options.command)
    if "folder" in given:
        print(f"report: {Path(given['folder']) / report.PAGE}", file=sys.stderr)


def _loading(given: Mapping) -> dict[str, object]:
    """Returns the keyword arguments of `api.load` that flags set."""
    from dera_jax.checkpoints.named_vocabulary import named_vocabulary

    found = {name: given[name] for name in ("dtype", "template_from") if name in given}
    if "extra_ids" in given and "vocabulary" not in given:
        raise ValueError("--extra-ids needs --vocabulary, to whose ids they are added")
    if "vocabulary" in given:
        found["vocabulary"] = named_vocabulary(given["vocabulary"], given.get("extra_ids", 0))
    return found


def _parts(given: Mapping) -> dict[str, object]:
    """Returns the reward, and the mutator if there is one, of flags and gin files."""
    from dera_jax.texts import as_reward

    reward = as_reward(given.get("reward"))
    if "gin_file" not in given:
        return {"reward": reward}
    from dera_jax.checkpoints.default_model import default_model
    from dera_jax.command import gin_parts

    bindings = [x.replace("=", " = ", 1) for x in given["gin"]]
    reference = given.get("reference") or default_model()
    parts = gin_parts.read(given["gin_file"], bindings, reference)
    if parts.mutator and given["command"] != "evolve":
        raise ValueError("--gin_file sets MUTATOR, which only `dera-jax evolve` reads")
    if parts.reward and reward:
        raise ValueError("--reward and --gin_file both set a reward; give one of them")
    if given["command"] in GUIDED and not (parts.reward or reward):
        raise ValueError("no reward: give --reward, or a --gin_file that sets REWARD")
    mutator = {"mutator": parts.mutator} if parts.mutator else {}
    return {"reward": parts.reward or reward} | mutator


def _about(given: Mapping, documents: Sequence, models: Sequence[str], reward: object) -> str:
    """Returns what is decoded, in a line: documents, models, λ, reward, device and folder."""
    from dera_jax import report

    lams = given.get("lam", 1.0) if len(models) > 1 else ()
    lams = ", ".join(f"{x:g}" for x in np.atleast_1d(lams))
    parts = [f"documents {given.get('input', 'stdin')} ({len(documents)})", *models]
    parts += [f"λ {lams}"] if lams else []
    parts += [f"reward {given.get('reward', reward)}"] if reward else []
    parts += [f"device {report.device()}"]
    return "; ".join([*parts, *([f"folder {given['folder']}"] if "folder" in given else [])])

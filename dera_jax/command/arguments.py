"""Defines the arguments of `dera-jax` and the help, with examples, that describes them.

Flags that are not given are absent from the options, so that the library's own defaults hold.
"""

import argparse
import difflib
import sys
import textwrap
from collections.abc import Sequence

from dera_jax import __version__
from dera_jax.command.commands import COMMON, DECODING, LOADING, REWARD, Command, Flag
from dera_jax.flag_values import (
    above_zero,
    at_least_zero,
    joined_lams,
    natural,
    number,
    numbers,
    positive,
    probability,
)

KINDS = ("runs", "experiments", "tasks", "models", "rewards", "mutators")


_TOP = """Decoding-time alignment of language models: decode with a reference model and an aligned model at any
strength λ, search and evolve with rewards, and train such models. `dera-jax COMMAND --help` has the flags and
examples of a command."""
_TOP_EXAMPLES = (
    "dera-jax demo",
    "dera-jax sample --input abstracts.txt --lam 0,0.5,1",
    "dera-jax list runs",
)
_INPUT = """
The input has one document in each line, or JSON Lines: objects with the string `document` and optionally
`summary` (a human text, for ROUGE) and `keywords` (a list, for the reward of this name). Files in CSV (.csv) and
Parquet (.parquet) have such columns. The output is a table on a terminal, and JSON Lines in a pipe or with --output.

Without --reference the models are SmolLM2-135M-Instruct with the shipped adapters, which summarize the outcome of a
scientific paper, and the template is the one that they were trained with."""
_GIN = "--gin.NAME=VALUE binds a macro, or a parameter of a function, of these files."
_GIN_FILE = "gin file that sets REWARD, such as gin_configs/rewards/faithful_words.gin, or for evolve MUTATOR; may be repeated"
_TRAIN = """Trains a model, or does another run of a gin file: RUN is a name that `dera-jax list runs` or
`dera-jax list experiments` prints, or the path of a gin file. Flags set the file's macros: --learning-rate 1e-4 sets
LEARNING_RATE, --train my_pairs.jsonl your own data. `dera-jax params RUN` lists them. A run that was stopped resumes."""
_TRAIN_FLAGS = """
other flags:
  --gin.NAME=VALUE          bind a macro or a parameter of a function, as in gin
  --gin_file FILE           add a gin file, such as gin_configs/runs/lora.gin; may be repeated
  --gin_search_paths PATHS  folders with gin files, separated by commas
  --dry_run                 print parameters, memory and tokens per step, without running
  --verbose                 also print the warnings of other packages
"""
_TRAIN_EXAMPLES = (
    (
        "dera-jax train sft --initial-model my_reference --train papers.jsonl --validation papers.jsonl"
        " --steps 100 --model-dir out/sft"
    ),
    (
        "dera-jax train dpo --reference my_reference --train pairs.jsonl --validation pairs.jsonl"
        " --test pairs.jsonl --beta 0.1 --model-dir out/dpo --dry_run"
    ),
)
_PARAMS_EXAMPLES = (
    "dera-jax params sft",
    "dera-jax params dpo gin_configs/runs/lora.gin",
)
_INSPECTION = (
    ("report", "FOLDER", "write the HTML report of a folder of results", "dera-jax report sweep"),
    ("info", "CHECKPOINT", "print architecture, vocabulary and training of a checkpoint", "dera-jax info my_aligned"),
    ("list", "KIND", "list runs, experiments, tasks, models, rewards or mutators", "dera-jax list rewards"),
)  # fmt: skip
_PARAMS = """Prints every macro and binding of a run: meaning, default, type, and which are required. RUN is as for
`dera-jax train`; more gin files may follow, with or without --gin_file."""
_OTHER_FLAGS = {
    "--n": "--num-samples",
    "--samples": "--num-samples",
    "--lambda": "--lam",
}  # of other commands
_PASSES_ON = ("delegation", "training")
_METAVARS = {
    **dict.fromkeys((natural, positive), "N"),
    **dict.fromkeys((number, at_least_zero, above_zero, probability), "X"),
    numbers: "X,X",
}


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Returns the options of a command line.

    Returns:
        Options with `command`, `module` (the module of this package that runs it), `parser` (the command's), for
        the commands that decode `gin`, the bindings NAME=VALUE, and for those that pass arguments on, `rest`.
    """
    options, rest = parser().parse_known_args(joined_lams(sys.argv[1:] if argv is None else argv))
    if options.module in _PASSES_ON:
        options.rest = rest
        return options
    if options.module == "decoding":
        options.gin = [x.removeprefix("--gin.") for x in rest if x.startswith("--gin.")]
        rest = [x for x in rest if not x.startswith("--gin.")]
        without = [x for x in options.gin if "=" not in x]
        if without:
            options.parser.error(
                f"--gin.{without[0]} needs an equals sign: --gin.{without[0]}=VALUE"
            )
    if rest:
        options.parser.error(
            f"unrecognized arguments: {' '.join(rest)}{_close_flags(options, rest)}"
        )
    return options


def _close_flags(options: argparse.Namespace, rest: Sequence[str]) -> str:
    """Returns a question with the flags that are similar to unknown ones, or nothing."""
    known = [name for action in options.parser._actions for name in action.option_strings]
    given = [x.partition("=")[0] for x in rest if x.startswith("--")]
    close = [
        y
        for x in given
        for y in difflib.get_close_matches(_OTHER_FLAGS.get(x, x), known, 1, cutoff=0.7)
    ]
    return f"; did you mean {' and '.join(close)}?" if close else ""


def parser() -> argparse.ArgumentParser:
    """Returns the parser of all commands."""
    top = _Parser("dera-jax", description=_TOP, epilog=_examples(_TOP_EXAMPLES))
    top.add_argument("--version", action="version", version=f"dera_jax {__version__}")
    commands = top.add_subparsers(metavar="COMMAND", dest="command", required=True)
    _add(commands, "demo", "delegation", "summarize sixteen abstracts at several λ", add_help=False)
    for command in DECODING:
        _add_decoding(commands, command)
    _add_training(commands)
    _add_inspection(commands)
    _add(
        commands, "convert", "delegation", "convert a checkpoint to another format", add_help=False
    )
    return top


class _Parser(argparse.ArgumentParser):
    """Keeps the line breaks of the help, and leaves out of the options what is not given."""

    def __init__(self, prog: str, **settings):
        super().__init__(
            prog=prog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            argument_default=argparse.SUPPRESS,
            allow_abbrev=False,
            **settings,
        )


def _add(commands, name: str, module: str, summary: str, **settings) -> argparse.ArgumentParser:
    own = commands.add_parser(name, help=summary, **settings)
    own.set_defaults(module=module, parser=own)
    return own


def _add_decoding(commands, command: Command) -> None:
    own = _add(
        commands,
        command.name,
        "decoding",
        command.summary,
        description=f"{_filled(command.description)}\n{_INPUT}",
        epilog=_examples(command.examples),
    )
    group = own.add_argument_group("models and documents")
    model = "folder, GGUF file, adapter or hub name"
    group.add_argument("--reference", help=f"reference model, or the only model: {model}")
    group.add_argument(
        "--aligned", help=f"aligned model: {model}; without it, --reference is decoded alone"
    )
    for flag in LOADING:
        _add_flag(group, flag)
    group.add_argument(
        "--input", metavar="FILE", help="documents; without it, they are read from stdin"
    )
    group.add_argument("--output", metavar="FILE", help="write JSON Lines to this file")
    group.add_argument(
        "--verbose", action="store_true", help="also print the warnings of other packages"
    )
    group = own.add_argument_group("decoding")
    for flag in (REWARD, *command.flags, *COMMON):
        _add_flag(group, flag)
    group = own.add_argument_group("gin files", _GIN)
    group.add_argument(
        "--gin_file", "--gin-file", dest="gin_file", action="append", metavar="FILE", help=_GIN_FILE
    )


def _add_flag(group, flag: Flag) -> None:
    if flag.kind is None:
        group.add_argument(flag.name, action="store_true", help=flag.text)
        return
    note = "; required" if flag.required else ""
    default = "" if flag.default is None else f" (default {flag.default})"
    group.add_argument(
        flag.name,
        type=flag.kind,
        help=f"{flag.text}{note}{default}",
        required=flag.required,
        metavar=_METAVARS.get(flag.kind),
    )


def _add_training(commands) -> None:
    own = _add(
        commands,
        "train",
        "training",
        "train a model: sft, dpo, ppo, offline, reward-model, warm-start, ...",
        description=_TRAIN,
        epilog=_TRAIN_FLAGS + _examples(_TRAIN_EXAMPLES),
        usage="dera-jax train RUN [--MACRO VALUE ...] [--gin.NAME=VALUE ...] [--gin_file FILE] [--dry_run]",
    )
    own.add_argument("run", metavar="RUN")
    own = _add(
        commands,
        "params",
        "training",
        "print every macro and binding of a run",
        description=_PARAMS,
        epilog=_examples(_PARAMS_EXAMPLES),
        usage="dera-jax params RUN [[--gin_file] GIN_FILE ...]",
    )
    own.add_argument("run", metavar="RUN")


def _add_inspection(commands) -> None:
    """Adds the commands that read and print."""
    for name, argument, summary, example in _INSPECTION:
        own = _add(commands, name, "inspection", summary, description=f"{summary[0].upper()}{summary[1:]}.",
                   epilog=_examples([example]))  # fmt: skip
        if name == "list":
            own.add_argument("name", metavar=argument, choices=KINDS, nargs="?", default=None,
                             help=f"one of {', '.join(KINDS)}; without it, all but tasks")  # fmt: skip
        else:
            own.add_argument("name", metavar=argument)


def _examples(lines: Sequence[str]) -> str:
    return "\nexamples:\n" + "\n".join(f"  {line}" for line in lines)


def _filled(text: str) -> str:
    return textwrap.fill(text, 110)

"""Defines the arguments of `dera-jax` and the help, with examples, that describes them.

Flags that are not given are absent from the options, so that the library's own defaults hold.
"""

import argparse
import difflib
import sys
import textwrap
from collections.abc import Callable, Sequence
from typing import NamedTuple

from dera_jax import __version__
from dera_jax.lam_option import finite, joined_lams, numbers

KINDS = ("runs", "experiments", "tasks", "models", "rewards", "mutators")


class Flag(NamedTuple):
    """A flag that is passed on to a method of `dera_jax.api` under its own name.

    Attributes:
        name: name of the flag.
        kind: function that converts its value; None for a flag without a value.
        default: the method's own default, for the help; None for none that the help shows.
        text: the help.
        required: whether the command needs it.
    """

    name: str
    kind: Callable[[str], object] | None
    default: object
    text: str
    required: bool = False


class Command(NamedTuple):
    """A command that decodes documents.

    Attributes:
        name: name of the command, and of the method of `dera_jax.api` with _ for -.
        summary: the help in the list of commands.
        description: the help of the command itself.
        examples: command lines.
        flags: the flags that only some commands have.
    """

    name: str
    summary: str
    description: str
    examples: Sequence[str]
    flags: Sequence[Flag]


def _positive(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"must be an integer of at least 1; found {text!r}")
    return int(text)


def _number(text: str) -> float:
    try:
        return finite(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a finite number; found {text!r}") from None


_LAM = Flag("--lam", _number, 1.0, "mixing coefficient λ")
_LAMS = Flag("--lam", numbers, 1.0, "mixing coefficients λ, such as 0,0.5,1; 0: reference, 1: aligned model")  # fmt: skip
_SAMPLES = "samples of each document at each λ"
_TEMPERATURE = Flag("--temperature", _number, 1.0, "divides the logits of the realigned model")
_TOP_K = Flag("--top-k", _positive, None, "sample from this many tokens only")
_SAMPLING = (
    _TEMPERATURE,
    _TOP_K,
    Flag("--top-p", _number, None, "sample from the smallest set of tokens of this probability"),
)
_GREEDY = Flag("--greedy", None, None, "take the most likely token instead of sampling")
_COMMON = (
    Flag("--max-length", _positive, 128, "maximum tokens of an output, with its end token"),
    Flag("--max-prompt", _positive, None, "truncate documents so that prompts have this many tokens"),
    Flag(
        "--template",
        str,
        None,
        "text of the user's message, with the slot {document}; without it, the one that the models were "
        "trained with on files, else the bare document",
    ),
    Flag("--system", str, None, "text of the system message, for models with a chat template"),
    Flag("--batch-size", _positive, 8, "documents decoded at once"),
    Flag("--seed", int, 0, "seed of all PRNG keys"),
    Flag("--folder", str, None, "folder that keeps the records; the same command again resumes"),
)  # fmt: skip

DECODING = (
    Command(
        "sample",
        "sample outputs of documents at several λ",
        "Samples outputs of every document at every λ. λ = 0 is the reference, λ = 1 the aligned model.",
        (
            "dera-jax sample --input abstracts.txt --lam 0,0.5,1",
            "dera-jax sample --reference my_reference --aligned my_aligned --input papers.jsonl --output samples.jsonl",
            "dera-jax sample --reference my_reference --template 'summarize: {document}' --greedy < abstracts.txt",
            "dera-jax sample --reward words:10-22 --input abstracts.txt > samples.jsonl",
        ),
        (_LAMS, Flag("--num-samples", _positive, 1, _SAMPLES), *_SAMPLING, _GREEDY),
    ),
    Command(
        "sweep",
        "print means of reward, KL and length for each λ",
        "Samples as `sample` does, and returns one row of means for each λ: reward, KL divergence to the "
        "reference, length, and ROUGE where documents have a summary.",
        (
            "dera-jax sweep --input abstracts.txt --lam 0,0.5,1 --reward faithfulness",
            "dera-jax sweep --input papers.jsonl --lam 0,1 --num-samples 2 --reward my_rewards:short --folder sweep",
        ),
        (
            _LAMS._replace(default=None, required=True),
            Flag("--num-samples", _positive, 4, _SAMPLES),
            *_SAMPLING,
            _GREEDY,
        ),
    ),
    Command(
        "best-of-n",
        "return the sample with the highest reward",
        "Samples N outputs of every document and returns the one with the highest reward.",
        ("dera-jax best-of-n --n 4 --reward words:10-22 --input abstracts.txt",),
        (
            Flag("--n", _positive, None, "samples of each document", required=True),
            _LAM,
            _TEMPERATURE,
            _TOP_K,
        ),
    ),
    Command(
        "search",
        "run reward-guided beam search (DeAL)",
        "Runs beam search that is guided by a reward (DeAL), and returns the best output of every document.",
        (
            "dera-jax search --reward keywords --reward-weight 5 --lookahead 4 --input papers.jsonl",
            "dera-jax search --reward my_rewards:short --lam 0.5 --beams 2 --input abstracts.txt",
        ),
        (
            _LAM,
            Flag("--beams", _positive, 4, "beams"),
            Flag("--top-k", _positive, 4, "next tokens considered for each beam"),
            Flag("--lookahead", int, 0, "tokens that are generated ahead for scoring"),
            Flag("--period", _positive, 1, "tokens between two scorings"),
            Flag("--reward-weight", _number, 1.0, "weight of the reward beside the log-probability"),
            Flag("--length-penalty", _number, 0.0, "T5X's length penalty; 0.6 is its default"),
        ),
    ),
    Command(
        "evolve",
        "run evolutionary decoding (DARWIN)",
        "Runs evolutionary decoding (DARWIN), whose populations decode from edited documents, and returns the "
        "best output of every document.",
        ("dera-jax evolve --reward words:10-22 --population 3 --survivors 1 --period 8 --input abstracts.txt",),
        (
            _LAM,
            Flag("--population", _positive, 5, "individuals of a population"),
            Flag("--survivors", _positive, 3, "best individuals, which the others adopt their text from"),
            Flag("--period", _positive, 40, "tokens between two replacements"),
            Flag("--lookahead", int, 0, "tokens that are generated ahead for scoring"),
            Flag("--generations", _positive, 1, "generations"),
            *_SAMPLING,
        ),
    ),
)  # fmt: skip

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
_REWARD = (
    "length:LOW-HIGH (0 for an output of so many tokens, else -1), words:LOW-HIGH (minus the words that are too "
    "few or too many), faithfulness, keywords, or MODULE:FUNCTION, a Python function of two lists, documents and "
    "texts, that returns a number for each text"
)
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
_GUIDED = ("best-of-n", "search", "evolve")  # by a reward, which they need
_PASSES_ON = ("delegation", "training")
_METAVARS = {_positive: "N", int: "N", _number: "X", numbers: "X,X", str: None}


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Returns the options of a command line.

    Returns:
        Options with `command`, `module` (the module of this package that runs it), `parser` (the command's),
        and for the commands that pass arguments on, `rest`.
    """
    options, rest = parser().parse_known_args(joined_lams(sys.argv[1:] if argv is None else argv))
    if options.module in _PASSES_ON:
        options.rest = rest
    elif rest:
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
    group.add_argument(
        "--input", metavar="FILE", help="documents; without it, they are read from stdin"
    )
    group.add_argument("--output", metavar="FILE", help="write JSON Lines to this file")
    group.add_argument(
        "--verbose", action="store_true", help="also print the warnings of other packages"
    )
    group = own.add_argument_group("decoding")
    reward = Flag("--reward", str, None, _REWARD, required=command.name in _GUIDED)
    for flag in (reward, *command.flags, *_COMMON):
        _add_flag(group, flag)


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

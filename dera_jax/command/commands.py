"""Defines the commands of `dera-jax` that decode: their flags, and the examples of their help."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from dera_jax.flag_values import (
    above_zero,
    at_least_zero,
    natural,
    number,
    number_or_path,
    numbers,
    positive,
    probability,
    with_line_breaks,
)


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


LOADING = (
    Flag("--dtype", str, None, "float32 or bfloat16, of parameters and activations"),
    Flag("--template-from", number_or_path, None, "model whose tokenizer and chat template are used: reference, a number or a path"),
    Flag("--vocabulary", str, None, "for checkpoints of T5X, which hold none: a SentencePiece file, a tokenizer.json, bytes, or a model"),
    Flag("--extra-ids", natural, None, "sentinel ids above those of --vocabulary; 100 in T5's public vocabulary"),
)  # fmt: skip
REWARD = Flag(
    "--reward",
    str,
    None,
    "length:LOW-HIGH (0 for an output of so many tokens, else -1), words:LOW-HIGH (minus the words that are too "
    "few or too many), faithfulness, keywords, or MODULE:FUNCTION, a Python function of two lists, documents and "
    "texts, that returns a number for each text; best-of-n, search and evolve need one, or a --gin_file that sets it",
)
GUIDED = ("best-of-n", "search", "evolve")  # by a reward, which they need
_LAM = Flag("--lam", number, 1.0, "mixing coefficient λ")
_LAMS = Flag("--lam", numbers, 1.0, "mixing coefficients λ, such as 0,0.5,1; 0: reference, 1: aligned model")  # fmt: skip
_SAMPLES = "samples of each document at each λ"
_TEMPERATURE = Flag("--temperature", above_zero, 1.0, "divides the logits of the realigned model")
_TOP_K = Flag("--top-k", positive, None, "sample from this many tokens only")
_TOP_P = Flag("--top-p", probability, None, "sample from the smallest set of tokens of this probability")  # fmt: skip
_SAMPLING = (_TEMPERATURE, _TOP_K, _TOP_P)
_GREEDY = Flag("--greedy", None, None, "take the most likely token instead of sampling")
COMMON = (
    Flag("--max-length", positive, 128, "maximum tokens of an output, with its end token"),
    Flag("--max-prompt", positive, None, "truncate documents so that prompts have this many tokens"),
    Flag(
        "--template",
        with_line_breaks,
        None,
        "text of the user's message, with the slot {document} and \\n for a line break; without it, the one "
        "that the models were trained with on files, else the bare document",
    ),
    Flag("--system", with_line_breaks, None, "text of the system message, for models with a chat template"),
    Flag("--batch-size", positive, 8, "documents decoded at once"),
    Flag("--seed", natural, 0, "seed of all PRNG keys"),
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
        (_LAMS, Flag("--num-samples", positive, 1, _SAMPLES), *_SAMPLING, _GREEDY),
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
            Flag("--num-samples", positive, 4, _SAMPLES),
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
            Flag("--n", positive, None, "samples of each document", required=True),
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
            "dera-jax search --gin_file gin_configs/rewards/faithful_words.gin --gin.AT_MOST=12 --input abstracts.txt",
        ),
        (
            _LAM,
            Flag("--beams", positive, 4, "beams"),
            Flag("--top-k", positive, 4, "next tokens considered for each beam"),
            Flag("--lookahead", natural, 0, "tokens that are generated ahead for scoring"),
            Flag("--period", positive, 1, "tokens between two scorings"),
            Flag("--reward-weight", at_least_zero, 1.0, "weight of the reward beside the log-probability"),
            Flag("--length-penalty", at_least_zero, 0.0, "T5X's length penalty; 0.6 is its default"),
        ),
    ),
    Command(
        "evolve",
        "run evolutionary decoding (DARWIN)",
        "Runs evolutionary decoding (DARWIN), whose populations decode from edited documents, and returns the "
        "best output of every document.",
        (
            "dera-jax evolve --reward words:10-22 --population 3 --survivors 1 --period 8 --input abstracts.txt",
            "dera-jax evolve --reward words:10-22 --gin_file gin_configs/mutators/bank.gin --input abstracts.txt",
        ),
        (
            _LAM,
            Flag("--population", positive, 5, "individuals of a population"),
            Flag("--survivors", positive, 3, "best individuals, which the others adopt their text from"),
            Flag("--period", positive, 40, "tokens between two replacements"),
            Flag("--lookahead", natural, 0, "tokens that are generated ahead for scoring"),
            Flag("--generations", positive, 1, "generations"),
            _TEMPERATURE._replace(default=0.7),
            _TOP_K._replace(default=40),
            _TOP_P,
        ),
    ),
)  # fmt: skip

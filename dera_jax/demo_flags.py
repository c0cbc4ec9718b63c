"""Defines the flags that both demos have."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from dera_jax.flag_values import natural, numbers, positive


def parser(
    prog: str,
    description: str,
    folder: Path,
    output: str,
    lam: Sequence[float],
    samples: int,
    shown: int,
) -> argparse.ArgumentParser:
    """Returns the parser of a demo.

    Args:
        prog: how the demo is called.
        description: the help above the flags.
        folder: holds the folders of the models, reference and aligned.
        output, lam, samples, shown: defaults of the flags.
    """
    own = argparse.ArgumentParser(
        prog=prog,
        description=description,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    own.add_argument("--output", default=output, help="folder for the results")
    own.add_argument("--lam", type=numbers, default=lam, metavar="X,X",
                     help="mixing coefficients; 0: reference, 1: aligned model")  # fmt: skip
    own.add_argument("--num-samples", "--samples", dest="samples", type=positive, default=samples,
                     metavar="N", help="samples per document and λ")  # fmt: skip
    own.add_argument("--shown", type=natural, default=shown, metavar="N", help="documents to print")
    own.add_argument("--seed", type=natural, default=0, metavar="N", help="seed of all PRNG keys")
    for name in ("reference", "aligned"):
        own.add_argument(f"--{name}", default=str(folder / name), help="folder of the model")
    return own


def configuration(options: argparse.Namespace) -> str:
    """Returns the flags that change the results, for `run_folder.claim`."""
    names = ("lam", "samples", "seed", "reference", "aligned")
    return "".join(f"{name} = {getattr(options, name)!r}\n" for name in sorted(names))

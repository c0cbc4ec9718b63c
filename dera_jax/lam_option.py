"""Parses the values of --lam, which commands and demos write as 0,0.5,1 or as 0 0.5 1."""

import argparse
import math
import re
from collections.abc import Sequence


def finite(text: str) -> float:
    """Returns the number of a text; raises ValueError if it has none, or one that is not finite."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(text)
    return value


def numbers(text: str) -> tuple[float, ...]:
    """Returns the numbers of a text such as 0,0.5,1; raises ArgumentTypeError if it has others."""
    try:
        return tuple(map(finite, text.split(",")))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"must be finite numbers separated by commas, such as 0,0.5,1; found {text!r}"
        ) from None


def joined_lams(argv: Sequence[str]) -> list[str]:
    """Returns the arguments with "--lam=-1,0,2" for "--lam", "-1,0", "2".

    Numbers below 0 look like flags to argparse, and λ are written with commas or with blanks.
    """
    joined = []
    for argument in argv:
        before = joined[-1] if joined else ""
        if before == "--lam" and re.match(r"-?[\d.]", argument):
            joined[-1] = f"--lam={argument}"
        elif before.startswith("--lam=") and re.fullmatch(r"-?[\d.][\d.,e-]*", argument):
            joined[-1] = f"{before},{argument}"
        else:
            joined.append(argument)
    return joined

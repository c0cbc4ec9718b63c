"""Parses the values of the flags of commands and demos; what a flag cannot take is an error before anything is loaded.

λ are written as 0,0.5,1 or as 0 0.5 1.
"""

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
            joined[-1] = f"{before.removesuffix(',')},{argument}"
        else:
            joined.append(argument)
    return joined


def natural(text: str) -> int:
    """Returns an integer of at least 0."""
    return _integer(text, 0)


def positive(text: str) -> int:
    """Returns an integer of at least 1."""
    return _integer(text, 1)


def number(text: str) -> float:
    """Returns a finite number."""
    try:
        return finite(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a finite number; found {text!r}") from None


def at_least_zero(text: str) -> float:
    """Returns a finite number of at least 0."""
    if (value := number(text)) < 0:
        raise argparse.ArgumentTypeError(f"must be at least 0; found {text!r}")
    return value


def above_zero(text: str) -> float:
    """Returns a finite number above 0."""
    if (value := number(text)) <= 0:
        raise argparse.ArgumentTypeError(f"must be above 0; found {text!r}")
    return value


def probability(text: str) -> float:
    """Returns a number above 0 and of at most 1."""
    if (value := above_zero(text)) > 1:
        raise argparse.ArgumentTypeError(f"must be in (0, 1]; found {text!r}")
    return value


def number_or_path(text: str) -> int | str:
    """Returns the integer that a text is, or the text."""
    return int(text) if text.isascii() and text.isdigit() else text


def with_line_breaks(text: str) -> str:
    """Returns a text with line breaks for `\\n`, which shells pass on as two characters."""
    return text.replace("\\n", "\n")


def _integer(text: str, least: int) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < least:
        raise argparse.ArgumentTypeError(f"must be an integer of at least {least}; found {text!r}")
    return int(text)

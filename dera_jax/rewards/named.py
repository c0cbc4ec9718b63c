"""Turns a text into a reward: one by name, or a Python function of a module.

`--reward`, the gin macro REWARD_NAME and `reward=` of the methods on strings take the same texts.
"""

import difflib
import importlib
import re
import sys
from collections.abc import Callable
from pathlib import Path

from dera_jax.rewards.host import HostReward
from dera_jax.rewards.length import LengthInRange
from dera_jax.rewards.protocol import Reward
from dera_jax.rewards.words import Faithfulness, KeywordCoverage, WordsInRange

_RANGES = {"length": LengthInRange, "words": WordsInRange}
_PLAIN = {"faithfulness": Faithfulness, "keywords": KeywordCoverage}


def named_reward(name: str) -> Reward:
    """Returns the reward of a name.

    Args:
        name: length:LOW-HIGH, words:LOW-HIGH, faithfulness, keywords, or MODULE:FUNCTION, a Python function of
            a module that is installed or in the working folder.

    Raises:
        ValueError: there is no such reward, range, module or function.
    """
    kind, _, argument = name.partition(":")
    if kind in _RANGES:
        bounds = re.fullmatch(r"(\d+)-(\d+)", argument)
        if not bounds:
            raise ValueError(f"reward {name!r}: expected a range, such as {kind}:10-22")
        return _RANGES[kind](*map(int, bounds.groups()))
    if name in _PLAIN:
        return _PLAIN[name]()
    if kind.endswith(".py"):
        raise ValueError(
            f"reward {name!r}: give the module without .py, {kind[:-3]}:{argument or 'FUNCTION'}"
        )
    if not argument or not all(part.isidentifier() for part in kind.split(".")):
        known = [*(f"{x}:LOW-HIGH" for x in _RANGES), *_PLAIN, "MODULE:FUNCTION"]
        raise ValueError(
            f"reward {name!r} is unknown{_close(kind)}; it must be one of {', '.join(known)}"
        )
    return HostReward(_function(name, kind, argument))


def _close(kind: str) -> str:
    close = difflib.get_close_matches(kind, [*_RANGES, *_PLAIN], 1)
    return f", did you mean {close[0]}?" if close else ""


def _function(name: str, module: str, function: str) -> Callable:
    """Returns a function of a module, which may be in the working folder."""
    if str(Path.cwd()) not in sys.path:  # a console script has the folder of the script there
        sys.path.insert(0, str(Path.cwd()))
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if not module.startswith(error.name or " "):  # the module's own import
            raise
        raise ValueError(
            f"reward {name!r}: no module {module!r} is installed or in the working folder{_close(module)}"
        ) from error
    if not hasattr(found, function):
        raise ValueError(f"reward {name!r}: the module {module} has no function {function!r}")
    return getattr(found, function)

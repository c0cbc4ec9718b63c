"""Turns the value of --reward into a reward: one by name, or a Python function of a module."""

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


def reward_of(text: str | None) -> Reward | Callable | None:
    """Returns the reward that --reward names; None for None.

    Raises:
        ValueError: there is no such reward, range, module or function.
    """
    if text is None:
        return None
    name, _, argument = text.partition(":")
    if name in _RANGES:
        bounds = re.fullmatch(r"(\d+)-(\d+)", argument)
        if not bounds:
            raise ValueError(f"--reward {text}: expected a range, such as {name}:10-22")
        return _RANGES[name](*map(int, bounds.groups()))
    if text in _PLAIN:
        return _PLAIN[text]()
    if name.endswith(".py"):
        raise ValueError(f"--reward {text}: give the module without .py, {name[:-3]}:{argument}")
    if not argument or not all(part.isidentifier() for part in name.split(".")):
        known = [*(f"{x}:LOW-HIGH" for x in _RANGES), *_PLAIN, "MODULE:FUNCTION"]
        raise ValueError(f"--reward {text}: unknown; it must be one of {', '.join(known)}")
    return _function(text, name, argument)


def named_reward(name: str) -> Reward:
    """Returns the reward of this name, for gin; raises ValueError as `reward_of`."""
    reward = reward_of(name)
    return reward if isinstance(reward, Reward) else HostReward(reward)


def _function(text: str, module: str, name: str) -> Callable:
    """Returns a function of a module, which may be in the working folder."""
    if str(Path.cwd()) not in sys.path:  # a console script has the folder of the script there
        sys.path.insert(0, str(Path.cwd()))
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module:  # the module's own import
            raise
        raise ValueError(
            f"--reward {text}: no module {module!r} is installed or in the working folder"
        ) from error
    if not hasattr(found, name):
        raise ValueError(f"--reward {text}: {found.__file__} has no function {name!r}")
    return getattr(found, name)

"""Describes a run in two lines: its data, models, λ and rewards; its devices and folder."""

import inspect
from collections.abc import Iterator, Mapping
from pathlib import Path

import gin

from dera_jax import report
from dera_jax.bindings import MACRO, Key, value_of
from dera_jax.data.own_files import SPLITS

_MODELS = ("reference", "aligned", "model", "folder")  # parameters that name a model's folder
_LAMS = ("lam", "lams", "grid")
_REWARDS = ("reward", "given")
_RUN = "dera_jax.configure.run"
_SUM, _PART = "dera_jax.rewards.combined.Combined", "dera_jax.rewards.combined.Part"
_BY_NAME = "dera_jax.rewards.named.named_reward"
_OWN_FILES = "dera_jax.data.own_files.own_files"


def describe_run(bindings: Mapping[Key, object], folder: Path) -> str:
    """Return the two lines.

    Args:
        bindings: those that the run reads, see `bindings.reachable_bindings`.
        folder: the folder of the run.
    """
    parts = run_facts(bindings)
    about = [f"{name} {', '.join(found)}" for name, found in parts.items() if found]
    where = f"device {report.device()}; folder {folder}"
    return "\n".join(["; ".join(about) or "no data, models, λ or rewards are bound", where])


def run_facts(bindings: Mapping[Key, object]) -> dict[str, list[str]]:
    """Return data, models, λ and rewards of a run, each named once.

    Args:
        bindings: as of `describe_run`.
    """
    bindings = {key: x for key, x in bindings.items() if key[1] not in (MACRO, _RUN)}
    parts = {"data": _data, "models": _models, "λ": _lams, "rewards": _rewards}
    return {name: [*dict.fromkeys(found(bindings))] for name, found in parts.items()}


def _data(bindings: Mapping[Key, object]) -> Iterator[str]:
    """Yield the user's own files or, without any, every task with its split."""
    own = [(key[2], value_of(x)) for key, x in bindings.items() if key[1] == _OWN_FILES]
    if files := [path for split, path in own if split in SPLITS and path is not None]:
        yield from files
        return
    for (scope, selector, parameter), value in bindings.items():
        if parameter == "task" and isinstance(task := value_of(value), str):
            split = value_of(bindings.get((scope, selector, "split"), _default(selector, "split")))
            yield f"{task} ({split})"


def _default(selector: str, parameter: str) -> object:
    function = gin.config._REGISTRY[selector].wrapped
    return inspect.signature(function).parameters[parameter].default


def _models(bindings: Mapping[Key, object]) -> Iterator[str]:
    """Yield the models' folders, named by the macros that set them, in the macros' order."""
    order = [f"%{scope}" for scope, selector in gin.config._CONFIG if selector == MACRO]
    place = lambda x: order.index(repr(x[1])) if repr(x[1]) in order else len(order)
    for (_, _, parameter), value in sorted(bindings.items(), key=place):
        if parameter not in _MODELS:
            continue
        is_macro = repr(value).startswith("%")
        name, model = repr(value)[1:] if is_macro else parameter, value_of(value)
        if isinstance(model, str) or (is_macro and model is not None):
            yield f"{name}={model}"


def _lams(bindings: Mapping[Key, object]) -> Iterator[str]:
    for (_, _, parameter), value in bindings.items():
        if parameter in _LAMS:
            lams = _evaluated(value_of(value))
            for lam in lams if isinstance(lams, (tuple, list)) else [lams]:
                yield _number(lam)


def _number(value: object) -> str:
    return f"{value:g}" if isinstance(value, (int, float)) else str(value)


def _evaluated(value: object) -> object:
    is_call = isinstance(value, gin.config.ConfigurableReference) and value.evaluate
    return value.scoped_configurable_fn() if is_call else value


def _rewards(bindings: Mapping[Key, object]) -> Iterator[str]:
    """Yield every reward; of a sum, the names and weights of its parts alone."""
    for (scope, selector, parameter), value in bindings.items():
        reward = value_of(value)
        if selector == _PART:
            if parameter == "name":
                weight = value_of(bindings.get((scope, selector, "weight"), 1.0))
                yield f"{reward} (weight {_number(weight)})"
        elif parameter in _REWARDS and _is_single(reward):
            yield _call(reward, bindings)


def _is_single(reward: object) -> bool:
    return isinstance(reward, gin.config.ConfigurableReference) and reward.config_key[1] != _SUM


def _call(reference: gin.config.ConfigurableReference, bindings: Mapping[Key, object]) -> str:
    """Return a reward as LengthInRange(low=12, high=17), with its literal arguments alone."""
    scope, selector = reference.config_key
    own = {
        key[2]: value_of(x)
        for key, x in bindings.items()
        if key[:2] in ((scope, selector), ("", selector))
    }
    if selector == _BY_NAME:
        return str(own["name"])
    literal = [f"{name}={x!r}" for name, x in own.items() if isinstance(x, (bool, int, float, str))]
    return f"{selector.rpartition('.')[2]}({', '.join(literal)})"

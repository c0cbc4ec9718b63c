"""Says what a run was about: its data and models as the run recorded them, λ, rewards and sizes from its plans.

folder/about.json    data, models and device, recorded by whatever launched the run
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import jax

from dera_jax import __version__
from dera_jax.evaluation.sweep_tables import lam_text
from dera_jax.files import json_files

FILE = "about.json"
_MOST = 8  # entries of a line
_ELSEWHERE = ("lam", "max_length", "room", "min_length")  # in lines of their own, or set by no flag


def record_about(folder: Path, data: Sequence[str], models: Sequence[str]) -> None:
    """Writes what the records of a run do not say: its data, models, device and version."""
    about = {"data": list(data), "models": list(models)}
    about |= {"device": [device()], "version": [f"dera_jax {__version__}"]}
    json_files.write(folder / FILE, about)


def device() -> str:
    """Returns the kind of the devices and their number."""
    devices = jax.devices()
    return f"{devices[0].device_kind} × {len(devices)}"


def about(folder: Path, plans: Sequence[Mapping]) -> dict[str, str]:
    """Returns the lines about a run by their name.

    Args:
        folder: the run's folder, which need not have an about.json.
        plans: the plans of its records, see `record_store.Plan.content`.

    Raises:
        ValueError: a file is damaged.
    """
    path = folder / FILE
    found = json_files.loads(path.read_bytes(), str(path)) if path.exists() else {}
    recorded = {name: found.get(name, []) for name in ("data", "models")}
    read = {name: [x for plan in plans for x in of(plan)] for name, of in _OF_PLAN.items()}
    launched = {name: found.get(name, []) for name in ("device", "version")}
    return {name: _listed(x) for name, x in (recorded | read | launched).items() if x}


def _listed(entries: Sequence[str]) -> str:
    entries = list(dict.fromkeys(entries))
    more = [f"and {len(entries) - _MOST} more"] if len(entries) > _MOST else []
    return ", ".join([*entries[:_MOST], *more])


def _lams(plan: Mapping) -> Iterator[str]:
    settings = plan["settings"]
    if "sweep" in settings:
        yield from map(lam_text, settings["sweep"]["lams"])
    elif len(settings["models"]) > 1:  # a single model has no λ
        yield lam_text(settings["method"].get("lam"))


def _rewards(plan: Mapping) -> Iterator[str]:
    settings = plan["settings"]
    reward = settings["sweep"]["reward"] if "sweep" in settings else settings["rewards"][0]
    for part in (reward or {}).get("terms", []):
        weight = f"{part['weight']:g} × " if part["weight"] != 1 else ""
        yield f"{weight}{part['name']}: {_call(part['reward'])}"
    if reward and "terms" not in reward:
        yield _call(reward)


def _call(described: Mapping) -> str:
    """Returns an object as `fingerprints.describe` gives it, with its literal arguments alone."""
    literal = [
        f"{name}={value!r}"
        for name, value in described.items()
        if name not in ("type", "source_sha256") and isinstance(value, (bool, int, float, str))
    ]
    return f"{described['type']}({', '.join(literal)})"


def _sizes(plan: Mapping) -> Iterator[str]:
    settings, samples = plan["settings"], plan["samples"]
    number = plan["documents"].partition(",")[0]
    yield f"{number} {'document' if number == '1' else 'documents'}"
    if samples:
        lam = samples[0][0]
        per_lam = sum(x == lam for x, _ in samples)
        at_each = "" if lam is None else " at each λ"
        yield f"{per_lam} {'sample' if per_lam == 1 else 'samples'} of each{at_each}"
    sampling = settings["sweep"]["sampling"] if "sweep" in settings else settings
    yield f"at most {sampling['max_length']} tokens"


def _sampling(plan: Mapping) -> Iterator[str]:
    """Yields the sampling settings of a sweep."""
    if "sweep" not in plan["settings"]:
        return
    sampling = plan["settings"]["sweep"]["sampling"]
    if sampling["greedy"]:
        yield "greedy"
        return
    for name in ("temperature", "top_k", "top_p"):
        if isinstance(sampling[name], int | float):
            yield f"{name.replace('_', '-')} {sampling[name]:g}"


def _method(plan: Mapping) -> Iterator[str]:
    """Yields the settings of a decoding method, named as the flags of the command are."""
    if "method" in plan["settings"]:
        method = plan["settings"]["method"]
        yield f"{method['name']} ({', '.join(_numbers(method))})"


def _numbers(described: Mapping) -> Iterator[str]:
    """Yields the numbers of an object as `fingerprints.describe` gives it, and of its parts."""
    for name, value in described.items():
        if isinstance(value, Mapping):
            yield from _numbers(value)
        elif (
            isinstance(value, int | float)
            and not isinstance(value, bool)
            and name not in _ELSEWHERE
        ):
            yield f"{name.replace('_', '-')} {value:g}"


_OF_PLAN = {
    "λ": _lams,
    "rewards": _rewards,
    "outputs": _sizes,
    "sampling": _sampling,
    "method": _method,
}

"""From gin files and command-line bindings to a run.

Gin files use dynamic registration (`from __gin__ import dynamic_registration`), so any function or
class they import can be bound, and the library itself does not know gin. A run file names its job
and its folder:

    configure.run.job = @supervised.Training()
    configure.run.folder = %MODEL_DIR
"""

import inspect
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import gin
from absl import logging

from dera_jax import checks, partitioning, run_folder
from dera_jax.bindings import (
    Sources,
    blamed,
    check_macros,
    check_scopes,
    check_types,
    near,
    reached,
    sources,
    statements,
    unused,
    value_of,
)
from dera_jax.command_line import unwrapped
from dera_jax.destinations import check_one_process, output_folder
from dera_jax.training.dry_run import format_needs

_RUN = "dera_jax.configure.run"
_MESH = checks.Check(
    "the devices along 'data' and along 'model', such as (4, 2), or None",
    lambda x: isinstance(x, tuple) and len(x) == 2 and all(map(checks.whole(1).allows, x)),
)
REPOSITORY = Path(__file__).resolve().parent.parent
_ONE_LINE = 10**6  # so that settings can be compared line by line


class Job(Protocol):
    """What a run file describes."""

    def run(self, folder: Path) -> Mapping[str, object]:
        """Does the job, or goes on with it, in `folder`; the result must fit into JSON."""


def parse(files: Sequence[str], bindings: Sequence[str], search_paths: Sequence[str]) -> Sources:
    """Reads gin files in order, then bindings, later ones overriding earlier ones.

    Args:
        files: gin files, looked for in the search paths and then beside this package.
        bindings: 'NAME = value' with NAME a macro or a parameter.
        search_paths: folders.

    Returns:
        Where each binding stands.

    Raises:
        ValueError: an unknown macro, scope, function or parameter, with near matches; a macro
            without value; a file that is no gin.
        ImportError: a module that a file imports is not there.
        OSError: no such file.
    """
    gin.clear_config()
    _look_in([*search_paths, str(REPOSITORY)])
    found = statements(files)
    try:
        gin.parse_config_files_and_bindings(files, None, finalize_config=False)
        _check_macros(bindings)
        for binding in bindings:
            _bind(binding)
        known = sources(*found, bindings)
        check_macros(known)
        check_scopes(known)
        gin.finalize()
    except ImportError as error:
        raise ImportError(_in_one_line(str(error))) from error
    except ValueError as error:
        raise ValueError(_in_one_line(str(error)) + _hint(str(error))) from error
    return known


def launch(known: Sources, dry_run: bool = False) -> None:
    """Does what the parsed config says, or tells what it would need.

    Raises:
        ValueError: the config holds no run, several processes, a folder that cannot be written to.
        TypeError: a binding of another type than its parameter has.
        Exception: what the run raises; of `reached`'s bindings those it is about are named.
    """
    check_one_process()
    bindings = reached(_RUN)
    if not {("", _RUN, "job"), ("", _RUN, "folder")} <= set(bindings):
        raise ValueError(
            "the gin files set no configure.run.job and configure.run.folder; expected one of "
            "gin_configs/runs or gin_configs/experiments among them"
        )
    check_types(bindings, known)
    for name in unused(bindings, known):
        logging.warning("--gin.%s: nothing in this run reads it", name)
    if where := folder():  # before models are loaded
        output_folder(where)
    gin.get_configurable(run)(dry_run=dry_run)


def folder() -> str | None:
    """MODEL_DIR of the parsed config, None if there is none."""
    found = value_of(gin.config._CONFIG.get(("", _RUN), {}).get("folder"))
    return found if isinstance(found, str) else None


def explained(error: Exception, known: Sources) -> str:
    """What an error says, without gin's additions, and which bindings it is about."""
    cause = unwrapped(error)
    match = re.search(r"In call to configurable '(\w+)'", str(error)[len(str(cause)) :])
    # In the run itself a word of a message, such as folder, need not mean a parameter of `run`.
    function = match[1] if match and match[1] != run.__name__ else None
    return str(cause) + blamed(str(cause), function, reached(_RUN), known)


def run(
    job: Job,
    folder: str,
    mesh: Sequence[int] | None = None,
    rules: Sequence[Sequence[str | None]] = (),
    dry_run: bool = False,
) -> None:
    """Does `job` in `folder` unless that was done already.

    Args:
        job: what to do.
        folder: where.
        mesh: devices along 'data' and along 'model'; None for all along 'data'.
        rules: see `partitioning.use`.
        dry_run: only print what the job needs, from shapes; touches no folder.

    Raises:
        FileExistsError, RuntimeError: the folder belongs to a run with other settings, or is in use.
        ValueError: a dry run of a job that does not know its needs, or a mesh or rules that are none.
    """
    mesh = checks.check("MESH", mesh, checks.optional(_MESH))
    with partitioning.use(partitioning.make_mesh(*mesh or ()), rules):
        _run(job, folder, dry_run)


def _run(job: Job, folder: str, dry_run: bool) -> None:
    if dry_run:
        if not hasattr(job, "needs"):
            raise ValueError(f"--dry_run: {type(job).__name__} has no step whose shapes to check")
        print(format_needs(job.needs()))
        return
    where = output_folder(folder)
    with run_folder.claim(where, _settings()):
        if run_folder.result(where) is None:
            run_folder.finish(where, job.run(where))
        else:
            logging.warning("%s: this run has ended before; nothing to do", where)
    print(f"{where}: {run_folder.result(where)}")


def _settings() -> str:
    """Gin's operative config, and what is bound besides: an experiment builds its stages' jobs later,
    whose settings are settings of the run all the same."""
    operative = _without_rules(gin.operative_config_str(max_line_length=_ONE_LINE))
    bound = _without_rules(gin.config_str(max_line_length=_ONE_LINE))
    known = set(operative)
    more = [line for line in bound if "=" in line and line not in known]
    return "\n".join([*operative, "# Bound, and not used yet:", *more]) + "\n"


def _without_rules(config: str) -> list[str]:
    """The lines but for those of "=", which are as long as a line may be."""
    return [line for line in config.split("\n") if line.strip("# =") or not line]


def _look_in(search_paths: Sequence[str]) -> None:
    """Gin files are looked for here, relative to the working directory first."""
    gin.config._LOCATION_PREFIXES[:] = ["", *search_paths]
    # Gin's second reader looks in Python packages, and fails with a TypeError where a folder on
    # sys.path has the name of the config's.
    del gin.config._FILE_READERS[1:]


def _check_macros(bindings: Sequence[str]) -> None:
    """Gin would take any NAME = value for a new macro, and ignore it."""
    known = [scope for scope, selector in gin.config._CONFIG if selector == "gin.macro"]
    for binding in bindings:
        name = binding.partition("=")[0].strip()
        if "." not in name and name not in known:
            raise ValueError(
                f"--gin.{name}: no gin file defines the macro {name!r}{near(name, known)}"
            )


def _bind(binding: str) -> None:
    try:
        gin.parse_config(binding)
    except SyntaxError as error:
        raise ValueError(
            f"--gin: cannot read {binding!r}; a text needs quotes of its own: --gin.NAME='\"text\"'"
        ) from error


def _in_one_line(message: str) -> str:
    """What gin says, with the innermost of the places that it adds in the same line."""
    said, _, place = message.strip().partition("\n  In ")
    if match := re.match(r'file "(.+)", line (\d+)', place):
        return f"{match[1]}, line {match[2]}: {said}"
    match = re.match(r"bindings string line \d+\n *(\S+)", place)
    return f"--gin.{match[1]}: {said}" if match else said


def _hint(message: str) -> str:
    """What may have been meant where gin knows only what was not."""
    if match := re.search(r"Configurable '(\S+)' doesn't have a parameter named '(\w+)'", message):
        function = gin.config._REGISTRY.get_match(match[1]).wrapped
        return near(match[2], list(inspect.signature(function).parameters))
    if match := re.search(r"No configurable matching '(\S+)'", message):
        parts = match[1].count(".") + 1  # compare what the user wrote with names cut alike
        known = {".".join(name.split(".")[-parts:]) for name, _ in gin.config._REGISTRY.items()}
        return near(match[1], sorted(known))
    if match := re.match(r"(\w+)/macro.value set to `%gin.REQUIRED`", message):
        return f" The macro {match[1]} has no value: add --gin.{match[1]}=..."
    return ""

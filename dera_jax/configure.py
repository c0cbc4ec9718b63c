"""Parses gin files and command-line bindings, and launches the run that they configure.

Gin files use dynamic registration (`from __gin__ import dynamic_registration`). Any function or
class that they import can therefore be bound, and the other modules of the library do not import
gin. A run file binds its job and its folder:

    configure.run.job = @supervised.Training()
    configure.run.folder = %MODEL_DIR
"""

import contextlib
import difflib
import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import gin
from absl import logging

from dera_jax import checks, partitioning, report
from dera_jax.bindings import (
    References,
    Sources,
    Statement,
    check_macros,
    check_read,
    check_scopes,
    check_types,
    path_of,
    reachable_bindings,
    related_bindings,
    sources,
    statements,
    suggestion,
    value_of,
)
from dera_jax.command_line import unwrapped
from dera_jax.files import run_folder
from dera_jax.files.destinations import check_one_process, output_folder
from dera_jax.rewards.host import sources_of
from dera_jax.run_summary import describe_run, run_facts
from dera_jax.training import metric_log
from dera_jax.training.dry_run import format_costs

_RUN = "dera_jax.configure.run"
_MESH = checks.Check(
    "the devices along 'data' and along 'model', such as (4, 2), or None",
    lambda x: isinstance(x, tuple) and len(x) == 2 and all(map(checks.integer(1).allows, x)),
)
PACKAGE = Path(__file__).resolve().parent  # holds gin_configs; in a clone as a link
_ADDED = ("runs/lora.gin", "rewards/*.gin", "mutators/*.gin")  # files that are added to others
_OTHER_NAMES = {
    "INITIAL_MODEL": "REFERENCE",
    "REFERENCE": "INITIAL_MODEL",
    "MODEL": "INITIAL_MODEL",
}
_PYTHON = {"true": "True", "false": "False", "none": "None", "null": "None"}
_ONE_LINE = 10**6  # one line per binding, so that configurations can be compared line by line


class Job(Protocol):
    """Runs what a run file configures, for example training or decoding."""

    def run(self, folder: Path) -> Mapping[str, object]:
        """Runs or resumes the job in `folder`; the returned values must be JSON values."""


def parse(files: Sequence[str], bindings: Sequence[str], search_paths: Sequence[str]) -> Sources:
    """Parses gin files in order, then bindings; later bindings override earlier ones.

    Args:
        files: paths of gin files, relative to a search path or to this package.
        bindings: 'NAME = value', where NAME is a macro or a parameter.
        search_paths: folders.

    Returns:
        The place of each binding.

    Raises:
        ValueError: a macro, scope, function or parameter is unknown (the message lists similar
            names), a macro has no value, or a file is not valid gin.
        ImportError: a module that a file imports is not installed.
        OSError: a file does not exist.
    """
    found, references = read(files, search_paths)
    with _in_one_line():
        _check_macros(bindings)
        for binding in bindings:
            _bind(binding)
        known = sources(found, references, bindings)
        check_macros(known)
        check_scopes(known)
        gin.finalize()
    return known


def read(files: Sequence[str], search_paths: Sequence[str]) -> tuple[list[Statement], References]:
    """Parses gin files in order, whose macros need no values yet; see `bindings.statements`.

    Raises:
        ValueError, ImportError, OSError: as in `parse`.
    """
    gin.clear_config()
    _look_in([*search_paths, str(PACKAGE)])
    for file in files:
        _check_exists(file, search_paths)
    found, references = statements(files)
    with _in_one_line():
        gin.parse_config_files_and_bindings(files, None, finalize_config=False)
    return found, references


def _check_exists(file: str, search_paths: Sequence[str]) -> None:
    """Raises FileNotFoundError, with the paths of files of this name, if gin finds no file at this path."""
    if path_of(file):
        return
    same = [
        x for x in sorted((PACKAGE / "gin_configs").rglob("*.gin")) if x.name == Path(file).name
    ]
    hint = " or ".join(
        str(x.relative_to(PACKAGE)) for x in [y for y in same if y.match(file)] or same
    )
    folders = ", ".join(str(Path(x).resolve()) for x in search_paths)
    raise FileNotFoundError(
        f"--gin_file {file}: no such file in {folders}, nor in the package"
        + (f"; did you mean {hint}?" if hint else "")
    )


@contextlib.contextmanager
def _in_one_line() -> Iterator[None]:
    """Puts the messages of gin's errors in one line, with similar names."""
    try:
        yield
    except ImportError as error:
        raise ImportError(_one_line(str(error))) from error
    except ValueError as error:
        raise ValueError(_one_line(str(error)) + _hint(str(error))) from error


def launch(known: Sources, dry_run: bool = False) -> None:
    """Launches the run of the parsed configuration; with `dry_run` only prints its costs.

    Raises:
        ValueError: the configuration binds no run, or something that the run does not read; JAX
            runs in several processes, or MODEL_DIR is a URL.
        OSError: MODEL_DIR cannot be written to.
        TypeError: a bound value has another type than its parameter.
        Exception: whatever the run raises; `error_message` adds the bindings that it is about.
    """
    check_one_process()
    bindings = reachable_bindings(_RUN)
    if not {("", _RUN, "job"), ("", _RUN, "folder")} <= set(bindings):
        raise ValueError(
            "the gin files set no configure.run.job and configure.run.folder; add a --gin_file of "
            "gin_configs/runs or gin_configs/experiments"
        )
    check_types(bindings, known)
    check_read(bindings, known)
    if where := folder():  # before models are loaded
        output_folder(where)
    gin.get_configurable(run)(dry_run=dry_run)


def has_job() -> bool:
    """Return whether the files that were parsed bind a run."""
    return "job" in gin.config._CONFIG.get(("", _RUN), {})


def folder() -> str | None:
    """Return MODEL_DIR of the parsed configuration; None if it is not bound."""
    value = value_of(gin.config._CONFIG.get(("", _RUN), {}).get("folder"))
    return value if isinstance(value, str) else None


def error_message(error: Exception, known: Sources) -> str:
    """Return the message of an error without gin's additions, and with the bindings it is about."""
    cause = unwrapped(error)
    match = re.search(r"In call to configurable '(\w+)'", str(error)[len(str(cause)) :])
    # For `run` itself, a word such as "folder" in a message need not mean a parameter of `run`.
    function = match[1] if match and match[1] != run.__name__ else None
    return str(cause) + related_bindings(str(cause), function, reachable_bindings(_RUN), known)


def run(
    job: Job,
    folder: str,
    mesh: Sequence[int] | None = None,
    rules: Sequence[Sequence[str | None]] = (),
    dry_run: bool = False,
) -> None:
    """Runs `job` in `folder`, or resumes it; does nothing if the run has ended already.

    Args:
        job: the job to run.
        folder: output folder.
        mesh: numbers of devices along 'data' and along 'model'; None puts all along 'data'.
        rules: pairs of a logical axis and a mesh axis, or None for no mesh axis, which precede T5X's
            rules; see `partitioning.use_mesh`.
        dry_run: only print the costs of the job, computed from shapes; no folder is created.

    Raises:
        FileExistsError: the folder belongs to a run with another configuration.
        RuntimeError: another process uses the folder.
        ValueError: `mesh` or `rules` are invalid, or the job does not support a dry run.
    """
    mesh = checks.check("MESH", mesh, checks.optional(_MESH))
    with partitioning.use_mesh(partitioning.make_mesh(*mesh or ()), rules):
        _run(job, folder, dry_run)


def _run(job: Job, folder: str, dry_run: bool) -> None:
    if dry_run:
        if not hasattr(job, "program_costs"):
            raise ValueError(
                f"--dry_run: {type(job).__name__} does not support a dry run; omit --dry_run"
            )
        print(format_costs(job.program_costs()))
        return
    where, bindings = output_folder(folder), reachable_bindings(_RUN)
    print(describe_run(bindings, where), flush=True)
    sources = "".join(f"# SHA-256 of the source of {x}: {y}\n" for x, y in sources_of(job).items())
    with run_folder.claim(where, _settings() + sources):
        if run_folder.result(where) is None:
            run_folder.finish(where, job.run(where))
            _plot_training(where)
        else:
            logging.warning("%s: this run has already ended; nothing to do", where)
        if report.has_report(where) and not (where / report.PAGE).exists():
            facts = run_facts(bindings)
            report.record_about(where, facts["data"], facts["models"])
            report.write(where)
    print(closing_line(where))


def _plot_training(folder: Path) -> None:
    """Writes curves.png of a training run."""
    if (folder / metric_log.FILE).exists():
        from dera_jax.training import curves  # imports matplotlib

        curves.plot([folder], folder / "curves.png")


def closing_line(folder: Path) -> str:
    """Return the numbers of a run's result, without tables, and where its results are."""
    result = run_folder.result(folder)
    numbers = [
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in result.items()
        if isinstance(value, int | float | str)
    ]
    page = [f"report: {folder / report.PAGE}"] if (folder / report.PAGE).exists() else []
    return "; ".join([*numbers, f"results: {folder / run_folder.RESULT}", *page])


def _settings() -> str:
    """Return gin's operative configuration and all other bindings.

    An experiment constructs the jobs of its stages later, whose bindings belong to the run too.
    """
    operative = _without_rules(gin.operative_config_str(max_line_length=_ONE_LINE))
    bound = _without_rules(gin.config_str(max_line_length=_ONE_LINE))
    known = set(operative)
    unused_yet = [line for line in bound if "=" in line and line not in known]
    return "\n".join([*operative, "# Bound, and not used yet:", *unused_yet]) + "\n"


def _without_rules(config: str) -> list[str]:
    """Return the lines without gin's rulers of "=", which are as long as the line length."""
    return [line for line in config.split("\n") if line.strip("# =") or not line]


def _look_in(search_paths: Sequence[str]) -> None:
    """Sets the folders in which gin looks for files; the working directory comes first."""
    gin.config._LOCATION_PREFIXES[:] = ["", *search_paths]
    # Gin's second reader looks in Python packages. It fails with a TypeError if a folder on
    # sys.path has the same name as the folder of a gin file.
    del gin.config._FILE_READERS[1:]


def _check_macros(bindings: Sequence[str]) -> None:
    """Raise ValueError for unknown macros, which gin would define silently."""
    known = [scope for scope, selector in gin.config._CONFIG if selector == "gin.macro"]
    for binding in bindings:
        name = binding.partition("=")[0].strip()
        if "." not in name and name not in known:
            raise ValueError(
                f"--gin.{name}: no gin file defines the macro {name!r}{_macro_hint(name, known)}"
            )


def _macro_hint(name: str, known: Sequence[str]) -> str:
    """Return similar macros, or the file to be added that has this one, to be appended to a message."""
    initials = lambda macro: "".join(word[:1] for word in macro.split("_"))
    longer = sorted((x for x in known if x.endswith(f"_{name}")), key=len)
    same = [_OTHER_NAMES.get(name), *longer[:2], *(x for x in known if initials(x) == name)]
    similar = [x for x in same if x in known]
    files = [] if similar else _files_with(name)
    if files:
        return f"; {files[0]} has it, add it by --gin_file"
    if similar := similar or difflib.get_close_matches(name, known):
        return f"; did you mean {' or '.join(f'--gin.{x}' for x in similar)}?"
    return f"; `dera-jax params RUN` lists the {len(known)} that there are"


def _files_with(macro: str) -> list[str]:
    """Return the gin files that are added to runs, and define a macro."""
    paths = [x for pattern in _ADDED for x in sorted((PACKAGE / "gin_configs").glob(pattern))]
    defines = re.compile(rf"^{re.escape(macro)} = ", re.MULTILINE)
    found = [x for x in paths if defines.search(x.read_text(encoding="utf-8"))]
    return [str(x.relative_to(PACKAGE)) for x in found]


def _bind(binding: str) -> None:
    try:
        gin.parse_config(binding)
    except SyntaxError as error:
        name, _, value = (x.strip() for x in binding.partition("="))
        if value.lower() in _PYTHON:
            raise ValueError(
                f"--gin.{name}: cannot read {value}; write {_PYTHON[value.lower()]}, as in Python"
            ) from error
        raise ValueError(
            f"--gin: cannot read {binding!r}; put strings in two pairs of quotes: "
            "--gin.NAME='\"string\"'"
        ) from error


def _one_line(message: str) -> str:
    """Put gin's message, and the innermost of the places that gin adds to it, in one line."""
    text, _, place = message.strip().partition("\n  In ")
    if match := re.match(r'file "(.+)", line (\d+)', place):
        return f"{match[1]}, line {match[2]}: {text}"
    match = re.match(r"bindings string line \d+\n *(\S+)", place)
    return f"--gin.{match[1]}: {text}" if match else text


def _hint(message: str) -> str:
    """Return a suggestion of similar names for an error of gin, or an empty string."""
    if match := re.search(r"Configurable '(\S+)' doesn't have a parameter named '(\w+)'", message):
        function = gin.config._REGISTRY.get_match(match[1]).wrapped
        return suggestion(match[2], list(inspect.signature(function).parameters))
    if match := re.search(r"No configurable matching '(\S+)'", message):
        parts = match[1].count(".") + 1  # compare with names of as many parts
        known = {".".join(name.split(".")[-parts:]) for name, _ in gin.config._REGISTRY.items()}
        return suggestion(match[1], sorted(known))
    if match := re.match(r"(\w+)/macro.value set to `%gin.REQUIRED`", message):
        return f" The macro {match[1]} has no value: add --gin.{match[1]}=..."
    return ""

"""From gin files and command-line bindings to a run.

Gin files use dynamic registration (`from __gin__ import dynamic_registration`), so any function or
class they import can be bound, and the library itself does not know gin. A run file names its job
and its folder:

    configure.run.job = @supervised.Training()
    configure.run.folder = %MODEL_DIR
"""

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import gin
from absl import logging

from dera_jax import run_folder

REPOSITORY = Path(__file__).resolve().parent.parent


class Job(Protocol):
    """What a run file describes."""

    def run(self, folder: Path) -> Mapping[str, object]:
        """Does the job, or goes on with it, in `folder`; the result must fit into JSON."""


def parse(files: Sequence[str], bindings: Sequence[str], search_paths: Sequence[str]) -> None:
    """Reads gin files in order, then bindings, later ones overriding earlier ones.

    Args:
        files: gin files, looked for in the search paths and then beside this package.
        bindings: 'NAME = value' with NAME a macro or a parameter.
        search_paths: folders.

    Raises:
        ValueError: an unknown macro, function or parameter, with near matches; a macro without
            value.
        OSError: no such file.
    """
    gin.clear_config()
    for path in (*search_paths, str(REPOSITORY)):
        gin.add_config_file_search_path(path)
    gin.parse_config_files_and_bindings(files, None, finalize_config=False)
    _check_macros(bindings)
    gin.parse_config(list(bindings))
    gin.finalize()


def launch() -> None:
    """Does what the parsed config says."""
    gin.get_configurable(run)()


def run(job: Job, folder: str) -> None:
    """Does `job` in `folder` unless that was done already.

    Raises:
        FileExistsError: the folder belongs to a run with other settings.
    """
    where = Path(folder)
    run_folder.claim(where, gin.operative_config_str())
    if run_folder.result(where) is None:
        run_folder.finish(where, job.run(where))
    else:
        logging.warning("%s: this run has ended before; nothing to do", where)
    print(f"{where}: {run_folder.result(where)}")


def _check_macros(bindings: Sequence[str]) -> None:
    """Gin would take any NAME = value for a new macro, and ignore it."""
    known = [scope for scope, selector in gin.config._CONFIG if selector == "gin.macro"]
    for binding in bindings:
        name = binding.partition("=")[0].strip()
        if "." in name or name in known:
            continue
        near = difflib.get_close_matches(name, known) or sorted(known)
        raise ValueError(
            f"--gin.{name}: no gin file defines the macro {name!r}; did you mean "
            f"{' or '.join(near)}?"
        )

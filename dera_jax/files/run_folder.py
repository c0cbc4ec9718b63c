"""Manages run folders, each of which holds exactly one run.

    config.gin      the version that made the folder, the gin configuration of the run, and the
                    hashes of the models and files that it names
    result.json     the result of the run; it exists if and only if the run has ended
    lock.json       the process that works in the folder, see `lock`

A run with the same configuration resumes in its folder, and is not repeated once it has ended. A
run with another configuration raises FileExistsError, and a second process raises RuntimeError.
Which documents a resumed run decodes is decided in `evaluation.record_store`, and which step a
resumed training starts from in `training.loop`.
"""

import contextlib
import difflib
import hashlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from dera_jax import __version__
from dera_jax.files import json_files, lock
from dera_jax.files.store import LEFTOVER, Store, open_store

CONFIG, RESULT = "config.gin", "result.json"
# Version of the files in run folders. 1 is that of dera_jax 0.1.0, whose config.gin did not record
# it; since 3 all training methods use one train state.
FORMAT = 4
# A folder with one of these files (parameters, or an index of them) is a model folder.
MODEL_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "checkpoint",
    "state/manifest.ocdbt",
)
_VERSION = re.compile(r"# dera_jax (\S+), run folder format (\d+)$")
_FINGERPRINT = "# SHA-256 of"
_MAX_SHOWN_LINES = 6  # of a difference between configurations
_MAX_NAMED_FILES = 3  # of a folder that holds no run


@contextlib.contextmanager
def claim(folder: Path, config: str) -> Iterator[None]:
    """Claims a folder for the run with this configuration, and holds its lock in the `with` block.

    A new folder gets a config.gin; in an existing one config.gin is compared with `config`. For a
    run that has ended no lock is taken, since nothing is written to its folder.

    Raises:
        FileExistsError: the folder holds another run, a run of another format version, or files
            that do not belong to a run.
        RuntimeError: another process works in the folder.
        ValueError: config.gin is damaged.
        OSError: the folder cannot be written to; the error names the file.
    """
    store = open_store(folder)
    _check_holds_run(folder)
    config = (
        f"# dera_jax {__version__}, run folder format {FORMAT}\n{config}{_fingerprints(config)}"
    )
    with contextlib.nullcontext() if result(folder) is not None else lock.held(store):
        _check_config(store, folder, config)
        yield


def result(folder: Path) -> dict | None:
    """Return the result of the run in this folder; None if it has not ended.

    Raises:
        ValueError, TypeError, OSError: result.json is damaged or cannot be read.
    """
    store = open_store(folder)
    content, path = store.read(RESULT), store.path(RESULT)
    if content is None:
        return None
    try:
        values = json_files.loads(content, path)
    except ValueError as error:
        raise ValueError(
            f"{error}; remove it and start the run again, which writes a new one"
        ) from error
    if not isinstance(values, dict):
        raise TypeError(
            f"{path}: not the result of a run, which is a JSON object; remove it and start the run "
            "again, which writes a new one"
        )
    return values


def finish(folder: Path, values: Mapping[str, object]) -> None:
    """Writes the result of the run, which marks it as ended."""
    json_files.write(folder / RESULT, values)


def _check_holds_run(folder: Path) -> None:
    names = _names(folder)
    if names and CONFIG not in names:
        more = ", ..." if len(names) > _MAX_NAMED_FILES else ""
        listed = ", ".join(names[:_MAX_NAMED_FILES]) + more
        raise FileExistsError(
            f"{folder} is not empty and holds no run (no {CONFIG}, but {listed}); choose another "
            "folder"
        )


def _names(folder: Path) -> list[str]:
    """Return the names in a folder, without the lock and the temporary files of killed writes."""
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file; choose a folder for the run")
    names = sorted(x.name for x in folder.iterdir()) if folder.exists() else []
    return [x for x in names if x != lock.KEY and not x.endswith(LEFTOVER)]


def _check_config(store: Store, folder: Path, config: str) -> None:
    """Writes config.gin, or compares `config` with the existing file."""
    stored = store.read(CONFIG)
    # A folder with nothing but config.gin is of a run that failed before it wrote any other file.
    if stored is not None and _names(folder) != [CONFIG]:
        text = _decoded(stored, store.path(CONFIG))
        _check_version(folder, text)
        if differences := _differences(text, config):
            raise FileExistsError(
                f"{folder} holds a run with another configuration ('-' in the folder, '+' now):\n"
                f"{differences}\n"
                "Choose another folder, or use the configuration of that run to resume it"
            )
    elif stored != config.encode():
        store.write(CONFIG, config.encode())


def _decoded(content: bytes, path: str) -> str:
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}: damaged, it is not UTF-8 ({error}); choose another folder"
        ) from error
    if not text.strip():
        raise ValueError(f"{path}: damaged, it is empty; choose another folder")
    return text


def _check_version(folder: Path, config: str) -> None:
    found = _VERSION.match(config.partition("\n")[0])
    version, number = (found[1], int(found[2])) if found else ("0.1.0", 1)
    if number != FORMAT:
        raise FileExistsError(
            f"{folder} was made by dera_jax {version} and cannot be resumed by {__version__}, whose "
            "run folders have another format; finish it with that version, or choose another folder"
        )


def _fingerprints(config: str) -> str:
    """Return a line with the SHA-256 of every file, and of every file of a model folder
    (parameters, config, tokenizer), that the configuration names, since their content is part of
    the run."""
    quoted = sorted(set(re.findall(r"['\"]([^'\"\n]+)['\"]", config)))
    files = (file for name in quoted for file in _files(Path(name)))
    return "".join(f"{_FINGERPRINT} {file}: {_sha256(file)}\n" for file in files)


def _files(path: Path) -> list[Path]:
    if _is_file(path):
        return [path]
    if any(_is_file(path / name) for name in MODEL_FILES):
        return sorted(x for x in path.rglob("*") if x.is_file())
    return []


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a quoted string that is longer than a file name may be
        return False


def _sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _differences(stored: str, current: str) -> str:
    lines = difflib.ndiff(_settings(stored), _settings(current))
    return "\n".join([line for line in lines if line[0] in "-+"][:_MAX_SHOWN_LINES])


def _settings(config: str) -> list[str]:
    """Return the lines to compare: no comments, nor the folder and the mesh, which may change."""
    lines = [line for line in config.split("\n") if line.strip()]
    lines = [line for line in lines if line[0] != "#" or line.startswith(_FINGERPRINT)]
    return [line for line in lines if not line.startswith(("MODEL_DIR = ", "MESH = ", "RULES = "))]

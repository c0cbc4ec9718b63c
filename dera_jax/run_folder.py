"""The rules of output folders: one folder holds one run.

    config.gin      the version that made the folder, every setting of the run (gin's config), and
                    the hashes of the models and files it names
    result.json     what the run returned; its presence says that the run has ended
    lock.json       the process that is at work in it, see `lock`

The same run resumes in its folder and is not run again once ended. Another run is refused, and so
is a second process.
"""

import contextlib
import difflib
import hashlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from dera_jax import __version__, json_files, lock
from dera_jax.store import LEFTOVER, Store, open_store

CONFIG, RESULT = "config.gin", "result.json"
# Of what runs leave in their folders. 1 is that of version 0.1.0, whose config.gin did not say so; 3 has
# the one train state.
FORMAT = 3
# What makes a folder that of a model: its parameters, or where its arrays are listed.
MODEL_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "checkpoint",
    "state/manifest.ocdbt",
)
_VERSION = re.compile(r"# dera_jax (\S+), run folder format (\d+)$")
_FINGERPRINT = "# SHA-256 of"
_SHOWN = 6  # lines of a difference
_NAMED = 3  # files of a folder that is not a run's


@contextlib.contextmanager
def claim(folder: Path, config: str) -> Iterator[None]:
    """Makes `folder` that of the run with this config, or checks that it is; holds its lock meanwhile.

    A run that has ended needs no lock: nothing is written to its folder.

    Raises:
        FileExistsError: the folder holds another run, one of another version, or files that are no
            run.
        RuntimeError: another process is at work in the folder.
        ValueError: config.gin is damaged.
        OSError: the folder cannot be written to, naming the file.
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
    """What the run of this folder returned, None if it has not ended.

    Raises:
        ValueError, TypeError, OSError: result.json is damaged or cannot be read, naming it.
    """
    store = open_store(folder)
    content, path = store.read(RESULT), store.path(RESULT)
    if content is None:
        return None
    try:
        found = json_files.loads(content, path)
    except ValueError as error:
        raise ValueError(f"{error}; remove it and start the run again to make it anew") from error
    if not isinstance(found, dict):
        raise TypeError(f"{path}: not the result of a run; remove it to make it anew")
    return found


def finish(folder: Path, values: Mapping[str, object]) -> None:
    """Records that the run has ended."""
    json_files.write(folder / RESULT, values)


def _check_holds_run(folder: Path) -> None:
    names = _names(folder)
    if names and CONFIG not in names:
        listed = ", ".join(names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")
        raise FileExistsError(
            f"{folder} is not empty and holds no run (no {CONFIG}, but {listed}); choose another "
            "folder"
        )


def _names(folder: Path) -> list[str]:
    """What is in a folder but for the lock, and drafts of killed writes, which are written anew."""
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file; a run needs a folder of its own")
    found = sorted(x.name for x in folder.iterdir()) if folder.exists() else []
    return [x for x in found if x != lock.KEY and not x.endswith(LEFTOVER)]


def _check_config(store: Store, folder: Path, config: str) -> None:
    """Writes the config, or compares it with the one that is there."""
    there = store.read(CONFIG)
    if there is not None and _names(folder) != [
        CONFIG
    ]:  # else a run failed before its first result
        text = _decoded(there, store.path(CONFIG))
        _check_version(folder, text)
        if differences := _differences(text, config):
            raise FileExistsError(
                f"{folder} holds a run with other settings ('-' there, '+' now):\n{differences}\n"
                "Choose another MODEL_DIR, or the settings of that run to resume it"
            )
    elif there != config.encode():
        store.write(CONFIG, config.encode())


def _decoded(content: bytes, path: str) -> str:
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: damaged, not text in UTF-8 ({error})") from error
    if not text.strip():
        raise ValueError(f"{path}: damaged, it is empty; choose another folder")
    return text


def _check_version(folder: Path, config: str) -> None:
    found = _VERSION.match(config.partition("\n")[0])
    version, number = (found[1], int(found[2])) if found else ("0.1.0", 1)
    if number != FORMAT:
        raise FileExistsError(
            f"{folder} was made by dera_jax {version} and cannot be resumed by {__version__}, which "
            "keeps its runs in another format; finish it with that version, or choose another folder"
        )


def _fingerprints(config: str) -> str:
    """A line for every file that the config names, and for every file of a model folder that it
    names (parameters, config, tokenizer): what they hold is a setting too."""
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
    except OSError:  # a text, longer than a name may be
        return False


def _sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _differences(there: str, here: str) -> str:
    lines = difflib.ndiff(_settings(there), _settings(here))
    return "\n".join([line for line in lines if line[0] in "-+"][:_SHOWN])


def _settings(config: str) -> list[str]:
    """The lines that matter: not comments, nor the folder itself, which may be moved, and the devices."""
    lines = [line for line in config.split("\n") if line.strip()]
    lines = [line for line in lines if line[0] != "#" or line.startswith(_FINGERPRINT)]
    return [line for line in lines if not line.startswith(("MODEL_DIR = ", "MESH = ", "RULES = "))]

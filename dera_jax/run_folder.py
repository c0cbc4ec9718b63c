"""The rules of output folders: one folder holds one run.

    config.gin      every setting of the run (gin's config), and the hashes of the models and files it
                    names
    result.json     what the run returned; its presence says that the run has ended

The same run resumes in its folder and is not run again once ended. Another run is refused.
"""

import difflib
import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path

CONFIG, RESULT = "config.gin", "result.json"
# What makes a folder that of a model: its parameters, or where its arrays are listed.
MODEL_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "checkpoint",
    "state/manifest.ocdbt",
)
_FINGERPRINT = "# SHA-256 of"
_SHOWN = 6  # lines of a difference


def claim(folder: Path, config: str) -> None:
    """Makes `folder` that of the run with this config, or checks that it is.

    Raises:
        FileExistsError: the folder holds another run, or files that are no run.
    """
    path = folder / CONFIG
    config += _fingerprints(config)
    if path.exists():
        differences = _differences(path.read_text(encoding="utf-8"), config)
        if differences and _holds_nothing_else(folder):  # the run failed before its first result
            _write_atomically(path, config)
        elif differences:
            raise FileExistsError(
                f"{folder} holds a run with other settings ('-' there, '+' now):\n{differences}\n"
                "Choose another MODEL_DIR, or the settings of that run to resume it"
            )
        return
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(
            f"{folder} is not empty and holds no run (no {CONFIG}); choose another MODEL_DIR"
        )
    folder.mkdir(parents=True, exist_ok=True)
    _write_atomically(path, config)


def result(folder: Path) -> dict | None:
    """What the run of this folder returned, None if it has not ended."""
    path = folder / RESULT
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def finish(folder: Path, values: Mapping[str, object]) -> None:
    """Records that the run has ended."""
    _write_atomically(folder / RESULT, json.dumps(values, indent=1) + "\n")


def _fingerprints(config: str) -> str:
    """A line for every model folder and file that the config names: what they hold is a setting too."""
    quoted = sorted(set(re.findall(r"['\"]([^'\"\n]+)['\"]", config)))
    files = (
        file for name in quoted for file in (*map(Path(name).joinpath, MODEL_FILES), Path(name))
    )
    hashes = {f: hashlib.sha256(f.read_bytes()).hexdigest() for f in files if f.is_file()}
    return "".join(f"{_FINGERPRINT} {file}: {digest}\n" for file, digest in hashes.items())


def _holds_nothing_else(folder: Path) -> bool:
    return [path.name for path in folder.iterdir()] == [CONFIG]


def _differences(there: str, here: str) -> str:
    lines = difflib.ndiff(_settings(there), _settings(here))
    return "\n".join([line for line in lines if line[0] in "-+"][:_SHOWN])


def _settings(config: str) -> list[str]:
    """The lines that matter: not comments, and not the folder itself, which may be moved."""
    lines = [line for line in config.splitlines() if line.strip()]
    lines = [line for line in lines if line[0] != "#" or line.startswith(_FINGERPRINT)]
    return [line for line in lines if not line.startswith("MODEL_DIR = ")]


def _write_atomically(path: Path, text: str) -> None:
    draft = path.with_name(f".{path.name}.draft")
    draft.write_text(text, encoding="utf-8")
    os.replace(draft, path)

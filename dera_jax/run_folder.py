"""The rules of output folders: one folder holds one run.

    config.gin      every setting of the run (gin's operative config)
    result.json     what the run returned; its presence says that the run has ended

The same run resumes in its folder and is not run again once ended. Another run is refused.
"""

import difflib
import json
import os
from collections.abc import Mapping
from pathlib import Path

CONFIG, RESULT = "config.gin", "result.json"
_SHOWN = 6  # lines of a difference


def claim(folder: Path, config: str) -> None:
    """Makes `folder` that of the run with this config, or checks that it is.

    Raises:
        FileExistsError: the folder holds another run, or files that are no run.
    """
    path = folder / CONFIG
    if path.exists():
        differences = _differences(path.read_text(encoding="utf-8"), config)
        if differences:
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


def _differences(there: str, here: str) -> str:
    lines = difflib.ndiff(_settings(there), _settings(here))
    return "\n".join([line for line in lines if line[0] in "-+"][:_SHOWN])


def _settings(config: str) -> list[str]:
    """The lines that matter: not comments, and not the folder itself, which may be moved."""
    lines = (line for line in config.splitlines() if line.strip() and not line.startswith("#"))
    return [line for line in lines if not line.startswith("MODEL_DIR = ")]


def _write_atomically(path: Path, text: str) -> None:
    draft = path.with_name(f".{path.name}.draft")
    draft.write_text(text, encoding="utf-8")
    os.replace(draft, path)

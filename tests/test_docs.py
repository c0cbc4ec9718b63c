"""Every block of code in README and docs is true: it runs, or its flags, files and names are those of the code."""

import importlib.util
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from dera_jax import configure
from dera_jax.command import arguments

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
NOT_RUN = "# not run: "
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_TARGET = re.compile(r"^([a-z0-9][a-z0-9 -]*):", re.MULTILINE)


def blocks(*languages: str) -> list[tuple[str, str]]:
    """Where each block of these languages stands, and its text."""
    found = []
    for page in PAGES:
        text = page.read_text("utf-8")
        for match in _BLOCK.finditer(text):
            if match[1] in languages:
                line = text[: match.start()].count("\n") + 1
                found.append((f"{page.relative_to(ROOT)}:{line}", match[2]))
    return found


def commands() -> list[tuple[str, list[str]]]:
    """The commands of all shell blocks, split into words."""
    found = []
    for where, text in blocks("bash", "sh", "shell"):
        for line in text.replace("\\\n", " ").splitlines():
            words = shlex.split(line.removeprefix("$ "), comments=True)
            found += [(where, part) for part in _split(words) if part]
    return found


def _split(words: list[str]) -> list[list[str]]:
    parts = [[]]
    for word in words:
        if word in ("&&", "|", ";"):
            parts.append([])
        else:
            parts[-1].append(word)
    return parts


COMMANDS = commands()
PYTHON = blocks("python")
RUN = [(where, text) for where, text in PYTHON if NOT_RUN not in text]


def test_pages_have_blocks():
    assert len(COMMANDS) > 5 and RUN
    assert all(text.split(NOT_RUN)[1].strip() for _, text in PYTHON if NOT_RUN in text)


@pytest.mark.parametrize(("where", "text"), PYTHON, ids=[x for x, _ in PYTHON])
def test_python_is_python(where, text):
    compile(text, where, "exec")
    for module in re.findall(r"^(?:from|import) (dera_jax[\w.]*|tasks[\w.]*)", text, re.MULTILINE):
        assert importlib.util.find_spec(module), f"{where}: no module {module}"


@pytest.mark.slow
@pytest.mark.parametrize(("where", "text"), RUN, ids=[x for x, _ in RUN])
def test_python_runs(where, text, tmp_path):
    (tmp_path / "block.py").write_text(text, "utf-8")
    command = [sys.executable, str(tmp_path / "block.py")]
    ended = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, check=False)
    assert ended.returncode == 0, f"{where}\n{ended.stderr[-2000:]}"


@pytest.mark.parametrize(("where", "words"), COMMANDS, ids=[x for x, _ in COMMANDS])
def test_commands_exist(where, words):
    words = [word for word in words if word != "…"]
    program = Path(words[0]).name
    if program == "make":
        targets = set(" ".join(_TARGET.findall((ROOT / "Makefile").read_text())).split())
        assert {word for word in words[1:] if "=" not in word} <= targets
    if program == "dera-jax":
        arguments.parse(words[1:])
    of_t5x = words[1:3] == ["-m", "t5x.infer"] or words[1:3] == ["-m", "t5x.eval"]  # not installed
    if program == "python" and words[1:2] == ["-m"] and words[2] != "pytest" and not of_t5x:
        assert importlib.util.find_spec(words[2]), f"{where}: no module {words[2]}"
    if program == "python" and words[1:2] and words[1].endswith(".py"):
        assert (ROOT / words[1]).exists(), f"{where}: no file {words[1]}"
    files = [word.partition("=")[2] for word in words if word.startswith("--gin_file=")]
    if of_t5x:
        assert all((ROOT / file).exists() for file in files if file.startswith("gin_configs"))
    elif program == "python" and files:
        bindings = [word.removeprefix("--gin.").replace("=", " = ", 1) for word in words if word.startswith("--gin.")]  # fmt: skip
        configure.parse(files, bindings, [str(ROOT)])

"""Every block of code in README and docs is true: it runs, or its flags, files and names are those of the code."""

import importlib.util
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from dera_jax import configure
from dera_jax.command import arguments

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
_BLOCK = re.compile(
    r"(?:^<!-- not run: (\S[^\n]*) -->\n)?^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL
)
_TARGET = re.compile(r"^([a-z0-9][a-z0-9 -]*):", re.MULTILINE)


class Block(NamedTuple):
    """A block of a page: where it stands, why it is not run (None if it is), its language and text."""

    where: str
    not_run: str | None
    language: str
    text: str


def blocks(*languages: str) -> list[Block]:
    """The blocks of these languages."""
    found = []
    for page in PAGES:
        text = page.read_text("utf-8")
        for match in _BLOCK.finditer(text):
            if match[2] in languages:
                line = text[: match.start()].count("\n") + 1
                found.append(Block(f"{page.relative_to(ROOT)}:{line}", *match.groups()))
    return found


SHELL = blocks("bash", "sh", "shell")
PYTHON = blocks("python")


def commands() -> list[tuple[str, list[str]]]:
    """The commands of all shell blocks, split into words."""
    found = []
    for where, _, _, text in SHELL:
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
RUN = [block for block in (*SHELL, *PYTHON) if block.not_run is None]


def test_pages_have_blocks():
    assert len(COMMANDS) > 5
    assert {block.language for block in RUN} == {"bash", "python"}


@pytest.mark.parametrize("block", PYTHON, ids=[x.where for x in PYTHON])
def test_python_is_python(block):
    compile(block.text, block.where, "exec")
    modules = r"^(?:from|import) (dera_jax[\w.]*|tasks[\w.]*)"
    for module in re.findall(modules, block.text, re.MULTILINE):
        assert importlib.util.find_spec(module), f"{block.where}: no module {module}"


@pytest.mark.slow
@pytest.mark.parametrize("block", RUN, ids=[x.where for x in RUN])
def test_a_block_runs(block, tmp_path):
    """Also in a folder that holds nothing but a file of the user."""
    (tmp_path / "mine.jsonl").write_text('{"document": "the parser reads a sentence once."}\n')
    program = [sys.executable, "-c"] if block.language == "python" else ["bash", "-ec"]
    paths = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    ended = subprocess.run(
        [*program, block.text],
        cwd=tmp_path, text=True, capture_output=True, check=False, env=os.environ | {"PATH": paths},
    )  # fmt: skip
    assert ended.returncode == 0, f"{block.where}\n{ended.stderr[-2000:]}"
    assert ended.stdout


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

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

from dera_jax import configure, demo, main, params
from dera_jax.bindings import check_read, reachable_bindings
from dera_jax.checkpoints import convert
from dera_jax.command import arguments, listing, training

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
_BLOCK = re.compile(
    r"(?:^<!-- not run: (\S[^\n]*) -->\n)?^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL
)
_ASSIGNMENTS = re.compile(r"^(\$ )?(\w+=\S* )*")  # of environment variables, before a command
_SPAN = re.compile(r"`((?:dera-jax|python|make) [^`]+)`")
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
            words = shlex.split(_ASSIGNMENTS.sub("", line), comments=True)
            found += [(where, part) for part in _split(words) if part]
    return found


def without_blocks(page: Path) -> str:
    """The text of a page with as many lines, those of blocks empty."""
    blank = lambda match: "\n" * match[0].count("\n")
    return re.sub(r"(?ms)^```.*?^```", blank, page.read_text("utf-8"))


def spans() -> list[tuple[str, list[str]]]:
    """The commands between backticks, outside of blocks; brackets enclose what may be left out."""
    found = []
    for page in PAGES:
        text = without_blocks(page)
        for match in _SPAN.finditer(text):
            line = text[: match.start()].count("\n") + 1
            words = shlex.split(re.sub(r"[\[\]]", "", match[1]))
            found.append((f"{page.relative_to(ROOT)}:{line}", words))
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
SPANS = spans()
OWN_PARSERS = {"demo": demo._parser, "convert": convert._parser}
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
    words = [word for word in words if "…" not in word]
    program = Path(words[0]).name
    if program == "make":
        targets = set(" ".join(_TARGET.findall((ROOT / "Makefile").read_text())).split())
        assert {word for word in words[1:] if "=" not in word} <= targets
    if program == "dera-jax":
        check_command(words[1:])
    of_t5x = words[1:3] == ["-m", "t5x.infer"] or words[1:3] == ["-m", "t5x.eval"]  # not installed
    if of_t5x:
        files = [word.partition("=")[2] for word in words if word.startswith("--gin_file=")]
        assert all((ROOT / file).exists() for file in files if file.startswith("gin_configs"))
    elif program == "python" and words[1:2] == ["-m"] and words[2] != "pytest":
        check_module(where, words[2], words[3:])
    elif program == "python" and words[1:2] and words[1].endswith(".py"):
        assert (ROOT / words[1]).exists(), f"{where}: no file {words[1]}"
        check_source(where, ROOT / words[1], words[2:])


@pytest.mark.parametrize(("where", "words"), SPANS, ids=[x for x, _ in SPANS])
def test_commands_between_backticks_exist(where, words):
    """Those of `dera-jax` may leave out flags that are required, or the name of a command or run."""
    words = [word for word in words if "…" not in word]
    if words[0] != "dera-jax":
        test_commands_exist(where, words)
    elif words[1:] and not {"COMMAND", "RUN"} & set(words):
        command, *rest = words[1:]
        parsers = arguments.parser()._subparsers._group_actions[0].choices
        parser = OWN_PARSERS.get(command, lambda: parsers[command])()
        if command == "train":
            file = f"--gin_file={training.gin_file(rest[0])}"
            check_run([file, *training.main_arguments(rest[1:])], complete=False)
        else:
            flags = {word.partition("=")[0] for word in rest if word.startswith("-")}
            assert flags <= {*parser._option_string_actions, "--help"}


def check_command(words: list[str]) -> None:
    """Parses the arguments of `dera-jax`, those that it passes on included."""
    options = arguments.parse(words)
    if options.command == "train":
        file = f"--gin_file={training.gin_file(options.run)}"
        check_run([file, *training.main_arguments(options.rest)])
    elif options.command in OWN_PARSERS:
        OWN_PARSERS[options.command]().parse_args(options.rest)


def check_run(words: list[str], complete: bool = True) -> None:
    """Parses the arguments of `dera_jax.main`, and the gin files and bindings that they name.

    Args:
        words: the arguments.
        complete: whether they have all macros that the run requires.
    """
    parser = main._parser()
    options, rest = parser.parse_known_args(words)
    bindings = [main._binding(parser, word) for word in rest]
    files = [file for file in options.gin_file if file.startswith("gin_configs")]  # not the user's
    if not complete:
        missing = [row.name for row in params.params(files) if row.required and row.is_macro]
        bindings = [*(f"{name} = 'x'" for name in missing), *bindings]
    known = configure.parse(files, bindings, [str(ROOT)])
    check_read(reachable_bindings("dera_jax.configure.run"), known)


def check_module(where: str, module: str, words: list[str]) -> None:
    """Checks the flags of `python -m MODULE`."""
    found = importlib.util.find_spec(module)
    assert found, f"{where}: no module {module}"
    if not module.startswith("dera_jax."):
        return
    if found.submodule_search_locations:
        found = importlib.util.find_spec(f"{module}.__main__")
    file = Path(found.origin)
    if module == "dera_jax.main":
        check_run(words)
    elif "def _parser()" in file.read_text("utf-8"):
        importlib.import_module(found.name)._parser().parse_args(words)
    else:
        check_source(where, file, words)


def check_source(where: str, file: Path, words: list[str]) -> None:
    """Checks that a program's source has the flags, without importing it."""
    source = file.read_text("utf-8")
    flags = [word.partition("=")[0] for word in words if word.startswith("--")]
    unknown = [flag for flag in flags if f'"{flag}"' not in source]
    assert not unknown, f"{where}: {file.name} has no {unknown}"


_MACRO = r"([A-Z][A-Z0-9_]{2,})"
_ENVIRONMENT = ("HF_", "JAX_", "WANDB_", "XLA_")  # beginnings of names of environment variables
_CONSTANTS = ("FAMILIES", "IMPORTERS", "METHODS", "SINGLE")  # of Python modules


@pytest.mark.parametrize("page", PAGES, ids=lambda x: x.name)
def test_macros_exist(page):
    files = (ROOT / "gin_configs").rglob("*.gin")
    defined = {
        x for file in files for x in re.findall(rf"(?m)^{_MACRO} = ", file.read_text("utf-8"))
    }
    named = re.findall(rf"`(?:--gin\.)?{_MACRO}(?:=[^`]*)?`", without_blocks(page))
    assert {x for x in named if not x.startswith(_ENVIRONMENT)} - {*defined, *_CONSTANTS} == set()


@pytest.mark.parametrize("kind", [x for x in arguments.KINDS if x != "tasks"])
def test_lists_have_the_whole_first_sentence_of_every_file(kind):
    """Of `dera-jax list`; a colon does not end a sentence, unless a command in lines of its own follows."""
    for name, sentence in listing.descriptions(kind).items():
        path = listing.CONFIGS / kind / f"{name if kind != 'runs' else name.replace('-', '_')}.gin"
        comment = re.match(r"(#.*\n)+", path.read_text("utf-8"))[0]
        text = " ".join(line.lstrip("# ") for line in comment.splitlines())
        assert text.startswith(sentence) and len(sentence.split()) > 5, name
        assert re.match(r"\.? |\.?$|: (python|dera-jax|--gin)", text[len(sentence) :]), name

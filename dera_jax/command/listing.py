"""Lists what gin files configure, without reading them by gin: the name and the first sentence of each file.

`names` and `descriptions` read the comment with which every file begins.
"""

import itertools
import re
import shutil
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

from dera_jax.command.arguments import KINDS

CONFIGS = Path(__file__).resolve().parents[1] / "gin_configs"
# In the comment of a file that is a run, and not a part of one: the command that runs it.
_COMMAND = "-m dera_jax.main --gin_file=gin_configs/"
RUNNABLE = ("runs", "experiments")  # by `dera-jax train`
_USES = {
    "runs": "dera-jax train NAME; on documents of your own, the commands sample, sweep, best-of-n, search (DeAL), evolve (DARWIN)",
    "experiments": "dera-jax train NAME",
    "tasks": "dera-jax train RUN --task NAME",
    "models": "architectures to train from scratch: --gin_file gin_configs/models/NAME.gin",
    "rewards": "of runs: --gin_file gin_configs/rewards/NAME.gin; `dera-jax sample --help` has those of --reward",
    "mutators": "of evolution: --gin_file gin_configs/mutators/NAME.gin",
}


def names(kind: str) -> list[str]:
    """Returns the names of one of the kinds of gin files, as `dera-jax train` takes them."""
    return sorted(descriptions(kind))


def descriptions(kind: str) -> dict[str, str]:
    """Returns the first sentence of every gin file of a kind by name, without the parts of runs."""
    folder, found = CONFIGS / kind, {}
    for path in sorted(folder.rglob("*.gin")):
        comment, file = _comment(path), path.relative_to(CONFIGS)
        if kind not in RUNNABLE or any(f"{_COMMAND}{file}" in line for line in comment):
            name = str(path.relative_to(folder).with_suffix(""))
            found[name.replace("_", "-") if kind == "runs" else name] = _first_sentence(comment)
    return found


def tasks() -> list[str]:
    """Returns the names of all registered tasks; raises ImportError without the extra `seqio`."""
    import dera_jax.tasks  # noqa: F401 (registers them)
    from dera_jax.data.seqio_extra import seqio

    return sorted(seqio.TaskRegistry.names())


def text(kind: str | None) -> str:
    """Returns what `dera-jax list KIND` prints; None for the names of all kinds but tasks, which import TensorFlow."""
    if kind is not None:
        return f"{_heading(kind)}\n{_table(dict.fromkeys(tasks(), '') if kind == 'tasks' else descriptions(kind))}"
    parts = [f"{_heading(x)}\n{_wrapped(', '.join(names(x)), '  ')}" for x in KINDS if x != "tasks"]
    return "\n\n".join(
        [*parts, "`dera-jax list KIND` describes them; `dera-jax list tasks` imports TensorFlow"]
    )


def _heading(kind: str) -> str:
    return f"{kind} ({_USES[kind]})"


def _table(rows: dict[str, str]) -> str:
    width = max(map(len, rows)) + 4
    lines = (
        _wrapped(f"  {name}".ljust(width) + about, " " * width) for name, about in rows.items()
    )
    return "\n".join(line.rstrip() for line in lines)


def _wrapped(text: str, indent: str) -> str:
    """Returns a text in lines of the terminal's width, and in one line in a pipe."""
    text = text if text.startswith(" ") else indent + text
    if not sys.stdout.isatty():
        return text
    width = shutil.get_terminal_size().columns
    return textwrap.fill(text, width, subsequent_indent=indent, break_on_hyphens=False)


def _comment(path: Path) -> list[str]:
    """Returns the lines of the comment with which a gin file begins, without their "#"."""
    lines = path.read_text(encoding="utf-8").splitlines()
    comment = itertools.takewhile(lambda line: line.startswith("#"), lines)
    return [line.removeprefix("#") for line in comment]


def _first_sentence(comment: Sequence[str]) -> str:
    """Returns the text up to the first full stop that a space follows, or up to an indented command."""
    prose = itertools.takewhile(lambda line: not line.startswith("  "), comment)
    text = " ".join(line.strip() for line in prose)
    return re.split(r"(?<=\.)\s", text, maxsplit=1)[0].rstrip(".:")

"""The list of a run file's macros and parameters is what the files and the functions have."""

import importlib
import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest

from dera_jax import params, type_words
from dera_jax.command import listing

CONFIGS = Path("gin_configs")
RUNS = [path.as_posix() for path in sorted(CONFIGS.glob("runs/*.gin"))]
EXPERIMENTS = [f"{CONFIGS}/experiments/{name}.gin" for name in listing.names("experiments")]
_NAME = r"(?:\w+/)*\w+\.\w+(?:\.\w+)*"


def with_rewards() -> list[list[str]]:
    """Every file of a reward, added to `sample.gin` or, if it needs the range of lengths, to `sweep.gin`."""
    return [
        [f"{CONFIGS}/runs/{'sweep' if '%LOW' in path.read_text() else 'sample'}.gin", f"{path}"]
        for path in sorted(CONFIGS.glob("rewards/*.gin"))
    ]


def with_mutators() -> list[list[str]]:
    """Every file of a mutator, added to `evolution.gin`."""
    run = f"{CONFIGS}/runs/evolution.gin"
    return [[run, f"{path}"] for path in sorted(CONFIGS.glob("mutators/*.gin"))]


FILES = [[file] for file in (*RUNS, *EXPERIMENTS)] + with_rewards() + with_mutators()


def bound_macros() -> set[str]:
    """The macros that set a parameter in any file but those of T5X."""
    texts = [x.read_text() for x in CONFIGS.rglob("*.gin") if "t5x" not in x.parts]
    return set(re.findall(r"^\S+\.\w+ = %(\w+)\b(?!\.)", "\n".join(texts), re.MULTILINE))


def statements(*files: str) -> tuple[dict[str, str], dict[str, str]]:
    """Names and values of the bindings of files, read as text, and their imports by short names."""
    bound, modules = {}, {}
    for file in files:
        inner = _statements(file)
        bound, modules = bound | inner[0], modules | inner[1]
    return bound, modules


def _statements(file: str) -> tuple[dict[str, str], dict[str, str]]:
    bound, modules = {}, {}
    text = re.sub(r"^#.*\n|  #.*$", "", Path(file).read_text(), flags=re.MULTILINE)
    text = re.sub(r",\s+|\(\s+", lambda x: x[0].strip(), text)
    for line in text.splitlines():
        if found := re.match(r"include '(.+)'", line):
            inner = _statements(found[1])
            bound, modules = bound | inner[0], modules | inner[1]
        elif found := re.match(r"from (\S+) import (\w+)", line):
            modules[found[2]] = f"{found[1]}.{found[2]}"
        elif found := re.match(r"(\S+) = (.+)", line):
            bound[found[1]] = found[2]
    return bound, modules


def function_of(name: str, modules: dict[str, str]):
    module, function = name.rsplit("/", 1)[-1].split(".")
    return getattr(importlib.import_module(modules[module]), function)


def expected_names(*files: str) -> set[str]:
    """Follows %MACRO and @function through the text of files, in the scopes that references open."""
    bound, modules = statements(*files)
    owners = dict.fromkeys(x.rpartition(".")[0] for x in bound if "." in x)
    everything = [*(f"@{x}()" for x in owners), *(f"%{x}" for x in bound if "." not in x)]
    pending = [
        (x, "") for x in (["@configure.run()"] if "configure.run.job" in bound else everything)
    ]
    names, calls = set(), set()
    while pending:
        value, scope = pending.pop()
        for macro in {*re.findall(r"%(\w+)\b(?!\.)", value)} & {*bound} - names:
            names.add(macro)
            pending.append((bound[macro], macro))  # gin opens a scope of this name
        for reference, evaluated in re.findall(rf"@({_NAME})(\(\))?", value):
            own, _, function = reference.rpartition("/")
            for inner in {own or scope, own if not evaluated else own or scope}:
                if (call := (inner, function, bool(evaluated))) not in calls:
                    calls.add(call)
                    pending += [(bound[x], inner) for x in read_by(bound, inner, function).values()]
    referenced = {*re.findall(r"%(\w+)", " ".join(bound.values()))}
    names |= {x for x in bound if "." not in x} - referenced
    for scope, function, evaluated in calls:
        read = read_by(bound, scope, function)
        names |= {*read.values()}
        for name, parameter in inspect.signature(function_of(function, modules)).parameters.items():
            given_later = not evaluated and parameter.default is parameter.empty
            is_named = parameter.kind is not parameter.VAR_POSITIONAL and name != "dry_run"
            if is_named and name not in read and not given_later:
                names.add(f"{function}.{name}")
    return names


def read_by(bound: dict[str, str], scope: str, function: str) -> dict[str, str]:
    """The bindings that a call in a scope reads by their parameters; those of inner scopes override."""
    parts = [x for x in scope.split("/") if x]
    owners = ["/".join([*parts[:i], function]) for i in range(len(parts) + 1)]
    return {x[len(y) + 1 :]: x for y in owners for x in bound if x.rpartition(".")[0] == y}


@pytest.mark.parametrize("files", FILES, ids="+".join)
def test_the_list_has_what_files_and_functions_have(files):
    rows = params.params(files)
    assert sorted(row.name for row in rows) == sorted(expected_names(*files))
    typed = bound_macros()
    assert [x.name for x in rows if not x.kind and (not x.is_macro or x.name in typed)] == []


@pytest.mark.parametrize("files", FILES, ids="+".join)
def test_every_row_has_a_meaning(files):
    """A reference to another docstring alone is none."""
    no_meaning = re.compile(r"((see|as in) `[^`]+`)?\.?")
    rows = params.params(files)
    assert [row.name for row in rows if no_meaning.fullmatch(row.meaning)] == []


@pytest.mark.parametrize("run", ["beam_search", "evolution", "lengths", "offline", "ppo"])
def test_the_reference_is_a_model_and_not_one_of_the_readers_of_files(run):
    rows = {row.name: row for row in params.params([f"{CONFIGS}/runs/{run}.gin"])}
    meaning = rows["REFERENCE"].meaning
    assert re.search("(path|folder)", meaning) and not re.search("read the files|to train", meaning)


def test_types_are_written_as_gin_files_write_values():
    rows = {row.name: row for row in params.params(["gin_configs/runs/beam_search.gin"])}
    names = ("COLUMNS", "REFERENCE", "LOW", "HIGH", "REWARD", "RULES")
    assert [rows[name].kind for name in names] == [
        "a dict of str to str or None", "str or None", "int", "int", "a Reward (@function())",
        "a tuple of (a tuple of (str or None))",
    ]  # fmt: skip
    assert type_words.words(Path) == "a Path (@function())"  # of a user's function, not a str
    assert [type_words.words(x) for x in (dict, tuple, object, Literal["a", 1], Callable[[int], int])] == [
        "a dict", "a tuple", "an object", "'a' or 1", "a function (@function, or @function() that returns one)"
    ]  # fmt: skip


def test_rows_of_ppo():
    rows = {row.name: row for row in params.params(["gin_configs/runs/ppo.gin"])}
    required = {name for name, row in rows.items() if row.required}
    assert required == {"MODEL_DIR", "REFERENCE"}
    steps = rows["PPO_STEPS"]
    assert steps.meaning == "number of rollouts, each on one batch of documents."
    assert (steps.default, steps.kind, steps.is_macro) == ("160", "int", True)
    assert rows["POLICY_WARMUP"].meaning.startswith("fraction of UPDATES, until")
    assert rows["POLICY_WARMUP_STEPS"].kind == "int"
    clip = rows["ppo.Updates.clip"]
    assert float(clip.default) == 0.2 and clip.kind == "float" and not clip.is_macro
    assert rows["policy/optimizers.adamw.clip_norm"].default == "1.0"
    assert rows["optimizers.adamw.b1"].default == "0.9"
    assert "value/optimizers.adamw.b1" not in rows


def test_a_file_that_is_added_is_listed_too():
    files = ["gin_configs/runs/beam_search.gin", "gin_configs/rewards/keywords.gin"]
    rows = {row.name: row for row in params.params(files)}
    assert not rows["REWARD"].required and rows["HARD"].default == "False"
    assert {row.name for row in params.params(files[:1]) if row.required} >= {"REWARD"}


def test_added_files_may_have_the_flag_of_runs(capsys):
    printed = []
    for words in (["gin_configs/runs/lora.gin"], ["--gin_file", "gin_configs/runs/lora.gin"]):
        params.main(["gin_configs/runs/sft.gin", *words])
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1] and "LORA_RANK" in printed[0]


def test_the_command_prints_names_defaults_types_and_meanings(capsys):
    params.main(["gin_configs/runs/lengths.gin"])
    out = capsys.readouterr().out
    assert "  REFERENCE  REQUIRED  (" in out and "  MAX_LENGTH = 24  (int)\n      " in out
    assert out.index("Macros:") < out.index("MAX_LENGTH") < out.index("Parameters of functions")


def test_flags_cannot_be_abbreviated(capsys):
    with pytest.raises(SystemExit, match="2"):
        params.main(["gin_configs/runs/sft.gin", "--gin_fi", "gin_configs/runs/lora.gin"])
    assert "unrecognized arguments: --gin_fi" in capsys.readouterr().err


def test_a_missing_file_is_named():
    with pytest.raises(SystemExit, match="no_such.gin"):
        params.main(["no_such.gin"])

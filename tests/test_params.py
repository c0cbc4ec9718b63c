"""The list of a run file's macros and parameters is what the files and the functions have."""

import importlib
import inspect
import re
from pathlib import Path

import pytest

from dera_jax import params

RUNS = sorted(path.as_posix() for path in Path("gin_configs/runs").glob("*.gin"))
_NAME = r"(?:\w+/)*\w+\.\w+(?:\.\w+)*"


def statements(file: str) -> tuple[dict[str, str], dict[str, str]]:
    """Names and values of a file's bindings, read as text, and its imports by their short names."""
    bound, modules = {}, {}
    text = re.sub(r"^#.*\n|  #.*$", "", Path(file).read_text(), flags=re.MULTILINE)
    text = re.sub(r",\s+|\(\s+", lambda x: x[0].strip(), text)
    for line in text.splitlines():
        if found := re.match(r"include '(.+)'", line):
            inner = statements(found[1])
            bound, modules = bound | inner[0], modules | inner[1]
        elif found := re.match(r"from (\S+) import (\w+)", line):
            modules[found[2]] = f"{found[1]}.{found[2]}"
        elif found := re.match(r"(\S+) = (.+)", line):
            bound[found[1]] = found[2]
    return bound, modules


def function_of(name: str, modules: dict[str, str]):
    module, function = name.rsplit("/", 1)[-1].split(".")
    return getattr(importlib.import_module(modules[module]), function)


def expected_names(file: str) -> set[str]:
    """Follows %MACRO and @function through the text of a file."""
    bound, modules = statements(file)
    owner = lambda name: name.rpartition(".")[0].rpartition("/")[2]
    all_of_them = [f"@{x.rpartition('.')[0]}()" if "." in x else f"%{x}" for x in bound]
    pending = ["@configure.run()"] if "configure.run.job" in bound else all_of_them
    names, functions = set(), {}
    while pending:
        value = pending.pop()
        new = set(re.findall(r"%(\w+)\b(?!\.)", value)) & set(bound) - names
        names |= new
        pending += [bound[name] for name in new]
        for call, evaluated in re.findall(rf"@({_NAME})(\(\))?", value):
            scope, _, function = call.rpartition("/")
            scopes = functions.setdefault(function, set())
            if (scope, bool(evaluated)) not in scopes:
                scopes.add((scope, bool(evaluated)))
                own = {x for x in bound if owner(x) == function}
                names |= own
                pending += [bound[name] for name in own]
    referenced = set(re.findall(r"%(\w+)", " ".join(bound.values())))
    names |= {x for x in bound if "." not in x and x not in referenced}
    for function, calls in functions.items():
        for name, parameter in inspect.signature(function_of(function, modules)).parameters.items():
            if parameter.kind is parameter.VAR_POSITIONAL or name == "dry_run":
                continue
            unbound = [x for x in calls if not is_bound(bound, x[0], f"{function}.{name}")]
            missing = parameter.default is parameter.empty
            if any(evaluated or not missing for _, evaluated in unbound):
                names.add(f"{function}.{name}")
    return names


def is_bound(bound: dict[str, str], scope: str, parameter: str) -> bool:
    return parameter in bound or (scope and f"{scope}/{parameter}" in bound)


@pytest.mark.parametrize("file", RUNS)
def test_the_list_has_what_files_and_functions_have(file):
    rows = params.params([file])
    assert sorted(row.name for row in rows) == sorted(expected_names(file))
    assert [row.name for row in rows if not row.meaning] == []
    assert [row.name for row in rows if not row.kind and not row.is_macro] == []


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


def test_a_missing_file_is_named():
    with pytest.raises(SystemExit, match="no_such.gin"):
        params.main(["no_such.gin"])

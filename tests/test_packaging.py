"""What setup.py asks for, constraints.txt pins, and every module of ours is packaged."""

import ast
import os
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version
from setuptools import find_packages

from dera_jax import __version__
from dera_jax.checkpoints import default_model
from dera_jax.data import aclsum

ROOT = Path(__file__).resolve().parents[1]


def setup_constant(name: str):
    """The literal that setup.py assigns to `name`, read without running setup.py."""
    for node in ast.parse((ROOT / "setup.py").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and node.targets[0].id == name:
            return ast.literal_eval(node.value)
    raise AssertionError(f"setup.py has no {name}")


def asked(*extras: str) -> list[Requirement]:
    """The requirements that setup.py states, with those of `extras`."""
    lines = setup_constant("REQUIRES") + [r for e in extras for r in setup_constant("EXTRAS")[e]]
    return [Requirement(line) for line in lines]


def pinned() -> dict[str, Version]:
    """Canonical package name -> the one version in constraints.txt."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    names = [canonicalize_name(name) for name, _ in pairs]
    assert len(names) == len(set(names)), "constraints.txt names a package twice"
    return {name: Version(version) for name, (_, version) in zip(names, pairs, strict=True)}


def closure(roots: list[Requirement]) -> set[str]:
    """Names of all packages that `roots` need here, from the installed packages' metadata."""
    seen: set[tuple[str, str]] = set()
    todo = [(root, extra) for root in roots for extra in ("", *root.extras)]
    while todo:
        requirement, extra = todo.pop()
        name = canonicalize_name(requirement.name)
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        for child in map(Requirement, metadata.requires(name) or []):
            if child.marker is None or child.marker.evaluate({"extra": extra}):
                todo += [(child, e) for e in ("", *child.extras)]
    return {name for name, _ in seen}


@pytest.mark.parametrize("extra", ["seqio", "test", "bench"])
def test_each_requirement_is_pinned_within_its_bound(extra):
    pins = pinned()
    for requirement in asked(extra):
        name = canonicalize_name(requirement.name)
        assert name in pins, f"constraints.txt does not pin {name}"
        assert requirement.specifier.contains(pins[name]), f"{name} {pins[name]}: {requirement}"


def test_everything_installed_with_the_package_is_pinned():
    missing = closure(asked("seqio", "test", "bench")) - pinned().keys()
    assert not missing, f"constraints.txt does not pin {sorted(missing)}"


def test_the_package_imports_nothing_that_only_an_extra_installs():
    """Of other packages, `dera_jax` imports what it requires without an extra, or what that requires."""
    available, owners = closure(asked()), metadata.packages_distributions()
    found = {}
    for path in (ROOT / "dera_jax").rglob("*.py"):
        if path.name != "seqio_extra.py" and "t5x" not in path.relative_to(ROOT).parts:
            for root in third_party(ast.parse(path.read_text(encoding="utf-8"))):
                owned = {canonicalize_name(x) for x in owners.get(root, [root])}
                if not owned & available:
                    found.setdefault(root, []).append(path.name)
    found.pop("seqio")  # for type checkers
    for name in ("pyarrow", "wandb"):  # where a user asks for them; errors say how to install them
        found.pop(name)
    assert found == {}


def third_party(tree: ast.AST) -> set[str]:
    """The top-level modules that a file imports, but those of Python and of this repository."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    roots = {name.partition(".")[0] for name in names}
    return roots - sys.stdlib_module_names - {"dera_jax"}


@pytest.mark.parametrize("command", [default_model.COMMAND, aclsum.INSTALL])
def test_messages_name_the_pinned_version(command):
    requirement = Requirement(command.split()[-1])
    assert requirement.specifier == f"=={pinned()[requirement.name]}"


def test_only_one_tensorflow():
    # tensorflow-text, which seqio needs, brings `tensorflow`; the other would overwrite its files.
    assert "tensorflow-cpu" not in pinned()


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_knows_how_to_make_each_target():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    phony = re.search(r"^\.PHONY: (.+)$", makefile, re.MULTILINE)
    environment = {name: x for name, x in os.environ.items() if not name.startswith("MAKE")}
    done = subprocess.run(
        ["make", "--dry-run", *phony[1].split()],
        check=False, cwd=ROOT, capture_output=True, text=True, env=environment,
    )  # fmt: skip
    assert done.returncode == 0 and done.stderr == ""
    assert "-m dera_jax.demo" in done.stdout


def test_every_module_is_packaged():
    packages = set(find_packages(str(ROOT), include=["dera_jax*"]))
    for top in (ROOT / "dera_jax", ROOT / "dera_jax" / "tasks"):  # the second is a link
        for path in top.rglob("*.py"):
            package = ".".join(path.relative_to(ROOT).parent.parts)
            assert package in packages, f"{path.parent} has modules but no __init__.py"


def test_the_citation_has_the_version_and_the_papers_of_the_documentation():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == __version__
    page = (ROOT / "docs" / "citation.md").read_text(encoding="utf-8")
    cited = [x["identifiers"][0]["value"].removeprefix("arXiv:") for x in citation["references"]]
    assert re.findall(r"eprint = {(.+)}", page) == cited
    for paper in citation["references"]:
        assert paper["title"] in page.replace("{DeAL}", "DeAL")
        assert all(x["family-names"] + ", " + x["given-names"] in page for x in paper["authors"])

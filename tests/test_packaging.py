"""What setup.py asks for, constraints.txt pins, and every module of ours is packaged."""

import ast
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version
from setuptools import find_packages

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


@pytest.mark.parametrize("extra", ["test", "bench"])
def test_each_requirement_is_pinned_within_its_bound(extra):
    pins = pinned()
    for requirement in asked(extra):
        name = canonicalize_name(requirement.name)
        assert name in pins, f"constraints.txt does not pin {name}"
        assert requirement.specifier.contains(pins[name]), f"{name} {pins[name]}: {requirement}"


def test_everything_installed_with_the_package_is_pinned():
    missing = closure(asked("test")) - pinned().keys()
    assert not missing, f"constraints.txt does not pin {sorted(missing)}"


def test_only_one_tensorflow():
    # tensorflow-text, which seqio needs, brings `tensorflow`; the other would overwrite its files.
    assert "tensorflow-cpu" not in pinned()


def test_every_module_is_packaged():
    packages = set(find_packages(str(ROOT), include=["dera_jax*", "tasks*"]))
    for top in ("dera_jax", "tasks"):
        for path in (ROOT / top).rglob("*.py"):
            package = ".".join(path.relative_to(ROOT).parent.parts)
            assert package in packages, f"{path.parent} has modules but no __init__.py"

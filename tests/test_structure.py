"""The package as a reader finds it: imports point downwards, names are unique, files and signatures short."""

import ast
import collections
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# From the bottom upwards: a folder or module imports from what is listed before it. docs/design.md
# draws the same.
LAYERS = (
    "shipped", "log", "progress_bar", "checks", "files", "compilation_cache", "command_line", "flag_values", "prompts", "partitioning",
    "models", "rewards", "decoding", "checkpoints", "metrics", "data", "tasks", "training",
    "evaluation", "report", "texts", "api", "experiments", "t5x", "type_words", "bindings", "run_summary", "configure", "params", "main", "demo_flags", "demo_t5",
    "demo_smollm2", "demo", "model_card", "adapter_card", "command", "__main__",
)  # fmt: skip
MOST_LINES = 400
MOST_PARAMETERS = 8


def files() -> list[Path]:
    return sorted([*ROOT.glob("dera_jax/**/*.py"), *ROOT.glob("tasks/*.py")])


def layer(module: str) -> str | None:
    """The layer of a dotted name; None for other packages and for `dera_jax` itself."""
    package, _, rest = module.partition(".")
    if package == "tasks":
        return "tasks"
    return rest.partition(".")[0] or None if package == "dera_jax" else None


def imported(tree: ast.AST) -> set[str]:
    """Dotted names of what a file imports, whether they are modules or names of modules."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


def upward(path: Path) -> list[str]:
    own = layer(".".join(path.relative_to(ROOT).with_suffix("").parts))
    if own == "__init__":
        return []
    others = {layer(name) for name in imported(ast.parse(path.read_text("utf-8")))} - {None, own}
    others -= {"__version__"}
    unknown = [f"{x} is not in LAYERS" for x in (others | {own}) - set(LAYERS)]
    return unknown or [f"{own} → {x}" for x in others if LAYERS.index(x) > LAYERS.index(own)]


def test_imports_point_downwards():
    found = {str(path.relative_to(ROOT)): upward(path) for path in files()}
    assert {path: arrows for path, arrows in found.items() if arrows} == {}
    assert len(found) > 150


def test_class_names_are_unique():
    where = collections.defaultdict(list)
    for path in files():
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ClassDef):
                where[node.name].append(str(path.relative_to(ROOT)))
    assert {name: paths for name, paths in where.items() if len(paths) > 1} == {}


def test_files_are_short():
    lines = {str(p.relative_to(ROOT)): len(p.read_text("utf-8").splitlines()) for p in files()}
    assert {path: n for path, n in lines.items() if n > MOST_LINES} == {}


def test_functions_take_few_parameters():
    found = {}
    for path in files():
        name = str(path.relative_to(ROOT))
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.FunctionDef):
                arguments = [a.arg for a in node.args.posonlyargs + node.args.args]
                arguments += [a.arg for a in node.args.kwonlyargs]
                if len(set(arguments) - {"self", "cls"}) > MOST_PARAMETERS:
                    found[f"{name}, {node.name}"] = len(arguments)
    assert found == {}

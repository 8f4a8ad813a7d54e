"""Dependencies go down, verbs start fast, what is imported is declared, and what silences a check says why."""

import ast
import re
import sys
import tokenize
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

SOURCE = Path(__file__).parents[2] / "src" / "tunewright"

# The arrows of the design from the bottom up: a room imports rooms of its own row and of the rows before it.
ROWS = [
    {"errors", "files", "recipes", "units", ""},  # "" is the package itself: __version__
    {"config"},
    {"data", "models", "forest", "objectives"},
    {"runs", "engine", "evaluate", "chat", "export"},
    {"cli", "api"},
    {"__main__"},
]
ROW = {name: number for number, row in enumerate(ROWS) for name in row}

HEAVY = {"torch", "transformers", "peft", "accelerate", "matplotlib", "pyarrow", "openpyxl", "tensorboard", "gguf"}

MODULES = sorted(SOURCE.rglob("*.py"))


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """Each imported module of a file, and whether it is imported at once when the file is (not inside a function)."""
    pending: list[tuple[ast.AST, bool]] = [(ast.parse(path.read_text(encoding="utf-8")), True)]
    while pending:
        node, at_once = pending.pop()
        if isinstance(node, ast.Import):
            yield from ((alias.name, at_once) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are written in full"
            yield from ((f"{node.module}.{alias.name}", at_once) for alias in node.names)
        for child in ast.iter_child_nodes(node):
            inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) or _type_checking(node)
            pending.append((child, at_once and not inside))


def _type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def room(module: str) -> str:
    """`config` for tunewright.config.load, "" for tunewright itself."""
    name = [*module.split("."), ""][1]
    return name if (SOURCE / name).is_dir() or (SOURCE / f"{name}.py").is_file() else ""


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(SOURCE).as_posix())
def test_nothing_imports_upwards(path: Path) -> None:
    own = room("tunewright." + path.relative_to(SOURCE).with_suffix("").parts[0])
    for module, _ in imports(path):
        if module.split(".")[0] == "tunewright":
            assert ROW[room(module)] <= ROW[own], f"{own or 'tunewright'} must not import {module}"


def test_no_module_needs_itself() -> None:
    names = {path: ".".join(("tunewright", *path.relative_to(SOURCE).with_suffix("").parts)) for path in MODULES}
    known = set(names.values())
    needs = {
        name: {found for module, _ in imports(path) for found in (module, module.rpartition(".")[0]) if found in known}
        for path, name in names.items()
    }
    while free := {name for name, needed in needs.items() if not needed & set(needs)}:
        for name in free:
            del needs[name]
    assert not needs, f"these import each other in a circle: {sorted(needs)}"


@pytest.mark.parametrize("path", sorted(SOURCE.glob("cli/*.py")), ids=lambda path: path.stem)
def test_verbs_import_heavy_packages_only_when_they_work(path: Path) -> None:
    at_once = {module.split(".")[0] for module, now in imports(path) if now}
    assert not at_once & HEAVY


def test_every_imported_package_is_declared_and_every_declared_one_pinned() -> None:
    root = SOURCE.parents[1]
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = {canonicalize_name(Requirement(line).name) for line in project["dependencies"]}
    extras = {canonicalize_name(Requirement(line).name) for line in project["optional-dependencies"]["modelscope"]}
    distributions = packages_distributions()
    for path in MODULES:
        for module, at_once in imports(path):
            top = module.split(".")[0]
            if top == "tunewright" or top in sys.stdlib_module_names:
                continue
            owners = {canonicalize_name(owner) for owner in distributions[top]}
            allowed = declared if at_once else declared | extras
            assert owners & allowed, f"{path.name} imports {top}, which pyproject.toml does not declare"
    lines = (root / "requirements.txt").read_text(encoding="utf-8").splitlines()
    pinned = {canonicalize_name(line.split("==")[0]) for line in lines if "==" in line}
    development = {canonicalize_name(Requirement(line).name) for line in project["optional-dependencies"]["dev"]}
    assert declared | development <= pinned


def test_what_silences_a_check_says_why() -> None:
    root = SOURCE.parents[1]
    silent = re.compile(r"#\s*(?:noqa|type: ignore)(?::\s*[A-Z]+\d+|\[[a-z-]+\])?\W*$")
    found = []
    for path in sorted(path for folder in ("src", "tests", "benchmarks") for path in (root / folder).rglob("*.py")):
        with tokenize.open(path) as file:
            comments = [token for token in tokenize.generate_tokens(file.readline) if token.type == tokenize.COMMENT]
        found += [f"{path.relative_to(root)}:{one.start[0]}" for one in comments if silent.search(one.string)]
    assert not found

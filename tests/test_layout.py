"""Checks that modules import only from lower layers. The layers are computed from the imports."""

import ast
import graphlib
from pathlib import Path

import pytest

from core.files import REPOSITORY

ENTRIES = {
    *("main", "run_lib", "losses", "datasets", "evaluation", "likelihood"),
    *("configs", "models", "sampling", "core", "images", "metrics", "training", "symmetry"),
}
MOST_LAYERS = 9


def code_files() -> dict[str, Path]:
    """Returns every module of the program by its dotted name. A package is the module of its __init__.py."""
    paths = [*REPOSITORY.glob("*.py"), *(path for entry in ENTRIES for path in (REPOSITORY / entry).rglob("*.py"))]
    names = {path: ".".join(path.relative_to(REPOSITORY).with_suffix("").parts) for path in paths}
    return {name.removesuffix(".__init__"): path for path, name in names.items()}


def imported(path: Path, known: set[str]) -> set[str]:
    """Returns the modules of the program that a file imports, at any place in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            members = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= (members & known) or {node.module}
            found |= {node.module} if members - known else set()
    return found & known


def graph(top: bool) -> dict[str, set[str]]:
    """Returns the imports of each module. With `top`, a package and all its modules count as one module."""
    files = code_files()
    edges = {}
    for name, path in files.items():
        node = name.split(".")[0] if top else name
        others = {other.split(".")[0] if top else other for other in imported(path, set(files))}
        edges.setdefault(node, set()).update(others - {node})
    return edges


def test_root_holds_exactly_the_entries_of_the_layout():
    """Catches a module or package at the root that the layout does not name."""
    packages = {path.parent.name for path in REPOSITORY.glob("*/__init__.py")}
    assert {path.stem for path in REPOSITORY.glob("*.py")} | packages == ENTRIES


@pytest.mark.parametrize("top", [True, False], ids=["entries", "modules"])
def test_imports_have_no_circle(top):
    """Catches two modules that import each other, directly or through others."""
    try:
        graphlib.TopologicalSorter(graph(top)).prepare()
    except graphlib.CycleError as error:
        pytest.fail(f"circle: {' -> '.join(error.args[1])}")


def test_entries_lie_on_few_layers():
    """Catches a chain of imports that is too long."""
    edges = graph(top=True)
    layer = {}
    for entry in graphlib.TopologicalSorter(edges).static_order():
        layer[entry] = 1 + max((layer[other] for other in edges[entry]), default=0)
    assert max(layer.values()) <= MOST_LAYERS, layer

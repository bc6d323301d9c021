"""The arrows of the house run one way, and everything that is shipped is listed."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = sorted([*(ROOT / "hf_optim").rglob("*.py"), *(ROOT / "tasks").rglob("*.py")])

#: floor of each part; a module may import its own floor and those below
FLOORS = [
    {"errors", "definitions", "randomness", "scratch"}, {"rule", "reduce", "validate"}, {"importing"},
    {"groups", "execute", "checkpoint", "transforms"}, {"cell"}, {"pack"}, {"units"}, {"capture"},
    {"optimizer"},
    {"optimizers", "wrappers", "wrapper", "linesearch", "windows", "hypergradient"}, {"registry"},
    {"hub", "task", "metrics"}, {"study", "check"}, {"claims"}, {"cli"},
]
FLOOR = {part: i for i, floor in enumerate(FLOORS) for part in floor}
#: parts that belong to a floor under another name
ALIAS = {"training": "task", "task_cli": "task", "task_trainer": "task", "records": "task", "schedules": "task",
         "run_spec": "task", "evaluation": "task", "inspection": "task",
         "listing": "cli"}


def part(path: Path) -> str:
    relative = path.relative_to(ROOT)
    name = relative.parts[1].removesuffix(".py") if relative.parts[0] == "hf_optim" else "tasks"
    return ALIAS.get(name, name)


def imports(path: Path) -> list[str]:
    """hf_optim parts and top-level packages that a file imports, type-checking blocks left out."""
    found = []

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        if isinstance(node, ast.Import):
            found.extend(a.name for a in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.extend(f"{node.module}.{a.name}" for a in node.names)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text(encoding="utf-8")))
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_arrows_run_one_way(path):
    here = part(path)
    for name in imports(path):
        pieces = name.split(".")
        assert pieces[0] not in ("scripts", "tests"), f"{path} imports {name}"
        if pieces[0] == "tasks":
            assert here == "tasks", f"{path.name} imports {name}: tasks are found by name at run time"
        if pieces[0] != "hf_optim" or len(pieces) < 2:
            continue
        there = ALIAS.get(pieces[1], pieces[1])
        if here == "tasks":
            allowed = ("task", "metrics", "hub", "errors", "registry", "definitions")
            assert there in allowed, f"{path.name} imports {name}"
        elif there in FLOOR and here in FLOOR:
            assert FLOOR[there] <= FLOOR[here], f"{path.name} ({here}) imports {name} ({there})"


def test_every_module_has_a_floor():
    parts = {part(p) for p in SOURCES} - {"tasks", "__init__"}
    assert parts <= set(FLOOR), f"give {parts - set(FLOOR)} a floor in this test"


def test_every_package_is_shipped():
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    there = {".".join(p.parent.relative_to(ROOT).parts) for p in SOURCES}
    assert there <= listed, f"add {there - listed} to packages in pyproject.toml"


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_stay_readable(path):
    assert path.name != "utils.py"
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 420, f"{path.name} is more than one thing"


def test_importing_the_package_imports_nothing_heavy():
    heavy = ("torch", "numpy", "transformers", "accelerate", "datasets", "yaml", "rich", "scipy", "matplotlib")
    code = f"import sys, hf_optim, hf_optim.registry as r; r.list_optimizers(); r.info('smaran'); " \
           f"print([m for m in {heavy!r} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"

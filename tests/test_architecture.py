"""The arrows of the house run one way, no file reaches itself, and everything that is shipped is listed."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
#: a package imports only what stands on a floor below its own
FLOORS = [
    {"errors"},
    {"core"},
    {"engine"},
    {"transforms"},
    {"bases"},
    {"optimizers", "wrappers"},
    {"registry"},
    {"hub", "metrics", "curvature", "toys"},
    {"experiment", "check"},
    {"study", "tasks"},
    {"claims"},
    {"commands"},
]
#: the same inside study; a file of its own stands for itself
STUDY = [{"plan"}, {"statistics"}, {"folder"}, {"launch"}, {"findings"}, {"report"}, {"conduct"}, {"api"}]
#: one-line modules at old paths that hand names on, and the face of the package
FACES = {
    "hf_optim",
    "hf_optim.optimizer",
    "hf_optim.rule",
    "hf_optim.task",
    "hf_optim.wrapper",
    "hf_optim.linesearch",
    "hf_optim.__main__",
}


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = ("hf_optim", *parts) if parts[0] == "tasks" else parts
    return ".".join(parts).removesuffix(".__init__")


SOURCES = {module_of(p): p for folder in ("hf_optim", "tasks") for p in sorted((ROOT / folder).rglob("*.py"))}


@cache
def imports(module: str) -> list[tuple[str, int]]:
    """(module of ours, line) of every import of a file: in functions and for types only, too."""
    imported = []
    for node in ast.walk(ast.parse(SOURCES[module].read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{SOURCES[module]}:{node.lineno} imports relatively"
            names = [f"{node.module}.{a.name}" for a in node.names]
        for name in names:
            assert name.split(".")[0] not in ("scripts", "tests", "tasks"), f"{SOURCES[module]}:{node.lineno}: {name}"
            there = name if name in SOURCES else name.rpartition(".")[0]
            if there in SOURCES and there != module:
                imported.append((there, node.lineno))
    return imported


def floor(module: str, floors: list[set[str]], level: int) -> int | None:
    """The floor of a module's package, where it has one."""
    pieces = module.split(".")
    return next((i for i, names in enumerate(floors) if len(pieces) > level and pieces[level] in names), None)


def test_everything_has_one_floor():
    for level, floors, inside in ((1, FLOORS, "hf_optim"), (2, STUDY, "hf_optim.study")):
        rooms = {m.split(".")[level] for m in SOURCES if m.startswith(inside + ".") and m not in FACES}
        listed = [name for names in floors for name in names]
        assert len(listed) == len(set(listed))
        assert rooms <= set(listed), f"give {sorted(rooms - set(listed))} a floor in this test"


@pytest.mark.parametrize("module", sorted(SOURCES.keys() - FACES))
def test_arrows_run_one_way(module):
    for there, line in imports(module):
        where = f"{SOURCES[module].relative_to(ROOT)}:{line} imports {there}"
        assert there not in FACES or there == "hf_optim", f"{where}, a face for users: import what it hands on"
        for level, floors in ((1, FLOORS), (2, STUDY)):
            same_package = module.split(".")[:level] == there.split(".")[:level]
            if not same_package or module.split(".")[level : level + 1] == there.split(".")[level : level + 1]:
                continue
            mine, theirs = floor(module, floors, level), floor(there, floors, level)
            if mine is not None and theirs is not None:
                assert theirs < mine, f"{where}, which does not stand below it"


def circles(graph: dict[str, list[str]]) -> list[list[str]]:
    """A way from a node back to itself for each set of nodes that reach each other."""
    loops, done = [], set()
    for start in graph:
        if start in done:
            continue
        stack, came = [start], {start: ""}
        while stack:
            here = stack.pop()
            for there in graph.get(here, []):
                if there == start:
                    way = [start]
                    while here != start:
                        way.insert(1, here)
                        here = came[here]
                    loops.append([*way, start])
                    done |= set(way)
                    stack = []
                    break
                if there not in came:
                    came[there] = here
                    stack.append(there)
    return loops


def test_no_file_reaches_itself():
    """Imports in functions and for types only count: what needs a trick to be imported is one file in two."""
    ways = circles({m: [there for there, _ in imports(m)] for m in SOURCES})
    told = []
    for way in ways:
        lines = [dict(imports(a))[b] for a, b in zip(way, way[1:], strict=False)]
        told.append(" -> ".join(f"{SOURCES[m].relative_to(ROOT)}:{n}" for m, n in zip(way, lines, strict=False)))
    assert not told, "\n".join(told)


def test_a_circle_is_found():
    assert circles({"a": ["b"], "b": ["c"], "c": ["b"], "d": []}) == [["b", "c", "b"]]
    assert circles({"a": ["b", "c"], "b": ["c"], "c": []}) == []


def test_every_package_is_shipped():
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    there = {m if p.name == "__init__.py" else m.rpartition(".")[0] for m, p in SOURCES.items()}
    assert there <= listed, f"add {there - listed} to packages in pyproject.toml"


def test_few_files_stand_beside_the_packages():
    beside = {p.stem for p in (ROOT / "hf_optim").glob("*.py")} - {m.rpartition(".")[2] for m in FACES}
    assert len(beside) <= 8, beside
    assert len({p.stem for p in (ROOT / "hf_optim/study").glob("*.py")} - {"__init__"}) <= 3


TEXTS = sorted([*SOURCES.values(), *(ROOT / "tests").rglob("*.py"), *(ROOT / "scripts").glob("*.py")])


@pytest.mark.parametrize("path", TEXTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_stay_readable(path):
    assert path.name != "utils.py"
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= 400, f"{path.name} has {lines} lines: it is more than one thing"


def test_importing_the_package_imports_nothing_heavy():
    heavy = ("torch", "numpy", "transformers", "accelerate", "datasets", "yaml", "rich", "scipy", "matplotlib")
    code = (
        "import sys, hf_optim, hf_optim.registry as r; r.list_optimizers(); r.info('smaran'); "
        f"print([m for m in {heavy!r} if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"


#: where a shared file may: Trainer hands the arguments of its AdamW to ours, an instance that is wrapped is checked
#: with sgd in its place, three commands show some unless told others, SMARAN's theorems are tried on its regret; the
#: others are other things of the same name
NAMED = {
    ("hub/arguments.py", "adamw"),
    ("hub/arguments.py", "sgd"),
    ("commands/convergence.py", "smaran"),
    ("commands/convergence.py", "amvt"),
    ("commands/convergence.py", "sgd"),
    ("commands/doctor.py", "adamw"),
    ("commands/landscape.py", "smaran"),
    ("commands/landscape.py", "adam"),
    ("commands/landscape.py", "sgd"),
    ("toys/regret.py", "hf_optim.SMARAN"),
    ("core/moments.py", "decay"),
    ("core/validate.py", "decay"),
    ("core/validate.py", "beta"),
    ("hub/schedules.py", "decay"),
    ("engine/step_ahead.py", "rule"),
    ("engine/launch_triton.py", "partial"),
}
SHARED = [p for p in SOURCES.values() if p.parent.name in ("core", "engine", "hub", "check") or p.stem == "registry"]
SHARED += [
    ROOT / "hf_optim" / "bases" / f"{name}.py"
    for name in ("optimizer", "state", "saved_form", "checkpoint", "parameter_names")
]


def keys(tree: ast.AST):
    """Texts that a file looks up or compares with, and the names that it reads of hyper-parameters."""
    for node in ast.walk(tree):
        parts: list[ast.AST | None] = []
        if isinstance(node, ast.Subscript):
            parts = [node.slice]
        elif isinstance(node, ast.Compare):
            parts = [node.left, *node.comparators]
        elif isinstance(node, ast.Dict):
            parts = list(node.keys)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            parts = list(node.args[:1]) if node.func.attr in ("get", "pop", "setdefault") else []
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "h":
            yield node.attr
        yield from (part.value for part in parts if isinstance(part, ast.Constant) and isinstance(part.value, str))


def mentions(tree: ast.AST):
    """Texts of a file and what it reads of `hf_optim`; not the names of specifications, which may be any."""
    spared: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Dict):
            named = (isinstance(key, ast.Constant) and key.value == "name" for key in node.keys)
            spared |= {value for value, name in zip(node.values, named, strict=True) if name}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in spared:
            yield node.value
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "hf_optim":
            yield f"hf_optim.{node.attr}"


def test_what_one_rule_needs_is_declared_there():
    """No shared file knows a rule or a transform by name, and those that all rules share no hyper-parameter of few."""
    from hf_optim import registry

    rules = registry.list_optimizers()
    transforms = {m.rpartition(".")[2] for m in SOURCES if m.startswith("hf_optim.transforms.")}
    owners = Counter(name for rule in rules for name in registry.info(rule).defaults)
    own = {*rules, *transforms, *(name for name, count in owners.items() if count <= 3)}
    catalogue = (
        "hf_optim.optimizers.",
        "hf_optim.wrappers.",
        "hf_optim.transforms.",
        "hf_optim.tasks",
        "hf_optim.claims",
    )
    known = {
        (f"{path.parent.name}/{path.name}", name)
        for read, paths, names in (
            (keys, SHARED, own),
            (
                mentions,
                [path for module, path in SOURCES.items() if not module.startswith(catalogue)],
                {*rules, *transforms, *(f"hf_optim.{name}" for name in registry.classes())},
            ),
        )
        for path in paths
        for name in set(read(ast.parse(path.read_text(encoding="utf-8")))) & names
    }
    assert known <= NAMED, sorted(known - NAMED)

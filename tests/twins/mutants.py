"""Rules made wrong on purpose, one small change at a time, without knowing what a rule says.

A mutant is a rule's own file with one change in one function: an operator turned round, a sign lost, a constant moved,
a statement dropped, a branch taken always or never, a method exchanged for its opposite. A reference test that such a
change passes does not watch the line it is in.
"""

from __future__ import annotations

import ast
import copy
import inspect
import itertools
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

OPPOSITE = {
    "add": "sub",
    "sub": "add",
    "mul": "div",
    "div": "mul",
    "maximum": "minimum",
    "minimum": "maximum",
    "sqrt": "abs",
    "square": "abs",
    "addcmul": "addcdiv",
    "addcdiv": "addcmul",
    "sign": "abs",
    "abs": "sign",
    "max": "min",
    "min": "max",
    "clamp_min": "clamp_max",
    "clamp_max": "clamp_min",
    "neg": "abs",
    "rsqrt": "sqrt",
}
OPERATORS: dict[type, type] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.Pow: ast.Mult,
    ast.Mod: ast.Mult,
}
COMPARISONS: dict[type, type] = {
    ast.Lt: ast.GtE,
    ast.LtE: ast.Gt,
    ast.Gt: ast.LtE,
    ast.GtE: ast.Lt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
}
# What says nothing about the update: checks of arguments, texts, printing, checkpoints.
OUTSIDE = {
    "__init__",
    "figures",
    "rate",
    "spec",
    "effective_lr",
    "state_dict",
    "load_state_dict",
    "__setstate__",
    "__getstate__",
    "loss_floor",
    "add_param_group",
    "_make_transform",
    "_start_group",
    "needs",
    "set_steps_per_epoch",
}


@dataclass(frozen=True)
class Mutant:
    """``owner``: the class, or "" for the module; ``line``: the statement as it was; ``change``: what was done."""

    owner: str
    function: str
    line: str
    change: str
    tree: ast.Module

    def __str__(self) -> str:
        return f"{self.function}: {self.line}: {self.change}"


def _changes(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """What may be put in a node's place, with a word for it."""
    new = copy.deepcopy(node)
    if isinstance(new, ast.BinOp) and type(new.op) in OPERATORS:
        new.op = OPERATORS[type(new.op)]()
        yield f"{ast.unparse(node)} -> {ast.unparse(new)}", new
    elif isinstance(new, ast.UnaryOp) and isinstance(new.op, (ast.USub, ast.Not)):
        yield f"{ast.unparse(node)} -> {ast.unparse(new.operand)}", new.operand
    elif isinstance(new, ast.Compare) and len(new.ops) == 1 and type(new.ops[0]) in COMPARISONS:
        new.ops[0] = COMPARISONS[type(new.ops[0])]()
        yield f"{ast.unparse(node)} -> {ast.unparse(new)}", new
    elif isinstance(new, ast.BoolOp):
        new.op = ast.Or() if isinstance(new.op, ast.And) else ast.And()
        yield f"{ast.unparse(node)} -> {ast.unparse(new)}", new
    elif isinstance(new, ast.IfExp):
        yield f"always {ast.unparse(new.body)}", new.body
        yield f"always {ast.unparse(new.orelse)}", new.orelse
    elif isinstance(new, ast.Constant) and type(new.value) in (int, float):
        new.value = new.value * 1.5 if new.value else 1.0 if isinstance(new.value, float) else 1
        yield f"{ast.unparse(node)} -> {ast.unparse(new)}", new
    elif isinstance(new, ast.Call):
        f = new.func
        name = f.attr if isinstance(f, ast.Attribute) else f.id if isinstance(f, ast.Name) else ""
        plain = name.rstrip("_")
        if plain in OPPOSITE:
            other = OPPOSITE[plain] + name[len(plain) :]
            if isinstance(f, ast.Attribute):
                f.attr = other
            else:
                f.id = other  # type: ignore[union-attr]
            yield f"{name} -> {other}", new
    elif isinstance(new, (ast.AugAssign,)) or (isinstance(new, ast.Expr) and isinstance(new.value, ast.Call)):
        yield "dropped", ast.copy_location(ast.Pass(), node)
    elif isinstance(new, ast.If) and not any(isinstance(n, ast.Raise) for n in ast.walk(new)):
        for value in (True, False):
            forced = copy.deepcopy(new)
            forced.test = ast.copy_location(ast.Constant(value), new.test)
            yield f"always {value}", forced


def _functions(tree: ast.Module) -> Iterator[tuple[str, ast.FunctionDef]]:
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            yield "", node
        elif isinstance(node, ast.ClassDef):
            yield from ((node.name, n) for n in node.body if isinstance(n, ast.FunctionDef) and n.name not in OUTSIDE)


def mutants(module: ModuleType, stride: int = 1) -> list[Mutant]:
    """Every mutant of a module's functions, or every stride-th: what is left out costs no copy of the module."""
    tree, out, numbers = ast.parse(inspect.getsource(module)), [], itertools.count()

    def visit(node: ast.AST, owner: str, function: str, statement: str) -> None:
        for key, value in ast.iter_fields(node):
            signature = key in ("annotation", "returns", "decorator_list", "args")
            if signature and isinstance(node, (ast.FunctionDef, ast.AnnAssign)):
                continue
            for i, child in enumerate(value if isinstance(value, list) else [value]):
                if not isinstance(child, ast.AST) or isinstance(child, (ast.Raise, ast.JoinedStr, ast.Assert)):
                    continue
                if isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant):
                    continue
                line = ast.unparse(child).splitlines()[0] if isinstance(child, ast.stmt) else statement
                for change, new in _changes(child):
                    if next(numbers) % stride:
                        continue
                    if isinstance(value, list):
                        value[i] = new
                    else:
                        setattr(node, key, new)
                    out.append(Mutant(owner, function, line, change, copy.deepcopy(tree)))
                    if isinstance(value, list):
                        value[i] = child
                    else:
                        setattr(node, key, child)
                visit(child, owner, function, line)

    for owner, function in _functions(tree):
        visit(function, owner, function.name, "")
    return out


@contextmanager
def in_force(mutant: Mutant, module: ModuleType) -> Iterator[None]:
    """Put the mutant's one changed function in the place of the right one, for every class that inherits it."""
    names: dict[str, Any] = {key: getattr(module, key) for key in ("__name__", "__package__", "__file__")}
    ast.fix_missing_locations(mutant.tree)
    exec(compile(mutant.tree, f"<mutant of {module.__name__}>", "exec"), names)  # noqa: S102
    owner = getattr(module, mutant.owner) if mutant.owner else module
    changed = vars(names[mutant.owner])[mutant.function] if mutant.owner else names[mutant.function]
    plain = getattr(changed, "__func__", changed)
    for name, cell in zip(plain.__code__.co_freevars, plain.__closure__ or (), strict=True):
        if name == "__class__":  # for super()
            cell.cell_contents = owner
    right = vars(owner)[mutant.function]
    setattr(owner, mutant.function, changed)
    try:
        yield
    finally:
        setattr(owner, mutant.function, right)


def modules_of(opt: Any) -> list[ModuleType]:
    """The files whose functions an optimizer runs: its class's and those it inherits from, and its transform's."""
    classes = [cls for owner in (opt, getattr(opt, "transform", None)) for cls in type(owner).__mro__]
    folders = ("hf_optim.optimizers.", "hf_optim.wrappers.", "hf_optim.transforms.")
    names = dict.fromkeys(cls.__module__ for cls in classes if cls.__module__.startswith(folders))
    return [sys.modules[name] for name in names]

"""Whether a hook can write what it is given in place, seen in its text: `m = m * b + g` only gives the name away."""

from __future__ import annotations

import ast
import builtins
import inspect
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any

import torch

from hf_optim.core import elementwise, reduce, vocabulary

#: modules whose functions of tensors write none of them
_READERS = {vocabulary.__name__, reduce.__name__, elementwise.__name__}


def may_write(hook: Callable[..., Any], name: str, seen: frozenset[Any] = frozenset()) -> bool:
    """Whether some line of a function may write its argument `name`, in whatever branch; True where its text is not
    to be had or does more than this understands."""
    body = _body(hook)
    if body is None or (hook, name) in seen:
        return body is None
    return any(_may(node, parents, hook, seen | {(hook, name)}) for node, parents in _uses(body, name))


def rebound(hook: Callable[..., Any], name: str) -> str:
    """`, line 12 of mine.py (m = m * c.b + g)`: where a function gives the name of an argument to something else;
    empty where it does not."""
    for statement in _body(hook) or ():
        for node in ast.walk(statement):
            if isinstance(node, (ast.Assign, ast.AnnAssign)) and name in _targets(node):
                code = hook.__code__
                line = code.co_firstlineno + node.lineno - 1
                return f", line {line} of {Path(code.co_filename).name} ({ast.unparse(node)})"
    return ""


def _body(hook: Callable[..., Any]) -> list[ast.stmt] | None:
    try:
        first = ast.parse(textwrap.dedent(inspect.getsource(hook))).body[0]
    except (OSError, TypeError, SyntaxError, IndexError):  # written at a prompt, or made by something
        return None
    return first.body if isinstance(first, ast.FunctionDef) else None


def _targets(node: ast.Assign | ast.AnnAssign) -> set[str]:
    """The plain names that an assignment gives to something."""
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    parts = [part for t in targets for part in (t.elts if isinstance(t, (ast.Tuple, ast.List)) else [t])]
    return {part.id for part in parts if isinstance(part, ast.Name)}


def _uses(body: list[ast.stmt], name: str) -> Iterator[tuple[ast.Name, list[ast.AST]]]:
    """Where the argument's name stands, and what it stands in, from near to far; not what follows a statement that
    gives the name to something else for good."""
    for statement in body:
        stack: list[tuple[ast.AST, list[ast.AST]]] = [(statement, [])]
        while stack:
            node, parents = stack.pop()
            if isinstance(node, ast.Name) and node.id == name:
                yield node, parents
            stack += [(child, [node, *parents]) for child in ast.iter_child_nodes(node)]
        if isinstance(statement, (ast.Assign, ast.AnnAssign)) and name in _targets(statement):
            return


def _may(name: ast.Name, parents: list[ast.AST], hook: Callable[..., Any], seen: frozenset[Any]) -> bool:
    """Whether one use of a name may be a write."""
    node: ast.AST = name
    while isinstance(parents[0], ast.IfExp) and node is not parents[0].test:  # a value that may be it
        node, parents = parents[0], parents[1:]
    parent = parents[0]
    if isinstance(parent, ast.AugAssign):
        return node is parent.target
    reading = (ast.BinOp, ast.UnaryOp, ast.Compare, ast.Expr, ast.IfExp)
    if not isinstance(name.ctx, ast.Load) or isinstance(parent, reading):
        return False
    if isinstance(parent, ast.Attribute):
        return not _reads(parent.attr, isinstance(parents[1], ast.Call) and parents[1].func is parent)
    if isinstance(parent, ast.keyword):
        call, argument = parents[1], parent.arg
    else:
        call, argument = parent, None
    if not isinstance(call, ast.Call):
        return True  # another name for it, part of something, returned, ...
    return _called_may(call, node, argument, hook, seen)


def _reads(method: str, called: bool) -> bool:
    """Whether a tensor's method gives a new tensor: those that have a twin which writes."""
    new = method in vocabulary.METHODS or hasattr(torch.Tensor, f"{method}_")
    return called and new and method[-1] != "_"


def _called_may(
    call: ast.Call, node: ast.AST, argument: str | None, hook: Callable[..., Any], seen: frozenset[Any]
) -> bool:
    """Whether a function or a method that gets the name as an argument may write it."""
    known, f = _resolved(call.func, hook)
    if any(keyword.arg in ("out", "inplace") for keyword in call.keywords):
        return True
    if not known:  # a method of x, of a slot, of what was computed: it writes that at most
        return not isinstance(call.func, ast.Attribute)
    module = getattr(f, "__module__", None) or "torch"  # which its own functions do not say
    if module in _READERS:
        return False
    if isinstance(f, (BuiltinFunctionType, FunctionType)) and module.partition(".")[0] == "torch":
        return f.__name__[-1] == "_" or f.__name__.startswith("_foreach")
    if not isinstance(f, FunctionType):
        return True
    if argument is None:
        place = next((i for i, given in enumerate(call.args) if given is node), None)
        names = list(inspect.signature(f).parameters)
        if place is None or place >= len(names) or any(isinstance(a, ast.Starred) for a in call.args):
            return True
        argument = names[place]
    return may_write(f, argument, seen)


def _resolved(func: ast.expr, hook: Callable[..., Any]) -> tuple[bool, Any]:
    """Whether what is called is known outside the function, and what it is: a name, or a name of a module or class."""
    if isinstance(func, ast.Attribute):
        known, owner = _resolved(func.value, hook)
        known = known and isinstance(owner, (ModuleType, type))
        return known, getattr(owner, func.attr, None) if known else None
    if not isinstance(func, ast.Name):
        return False, None
    code = hook.__code__
    closed = dict(zip(code.co_freevars, hook.__closure__ or (), strict=False))
    if func.id in closed:
        return True, closed[func.id].cell_contents
    there = {**vars(builtins), **hook.__globals__}
    return func.id in there and func.id not in code.co_varnames, there.get(func.id)

"""Which definitions of our own a configuration uses: pieces that a paper names without a formula.

A rule or transform lists them in a class attribute `ours`: argument that switches the piece on ("" for always) ->
what we took it to be. Reports print them wherever a result used them, so that nobody takes them for the paper's.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

#: letters of a name of ours; longer ones, as a stranger's file may hold them, no file system takes
LONGEST = 100
_HERE = Path(__file__).parent.parent


def own_definitions(optimizer: Any) -> list[str]:
    """The definitions of our own in use, a line each; [] for a rule that follows its paper.

    Args:
        optimizer: a specification as `hf_optim.create` takes it (a name, or a mapping with `name`), read without
            importing torch; or an optimizer. Bases of wrappers and gradient transforms count too.
    """
    if isinstance(optimizer, str):
        optimizer = {"name": optimizer}
    if not isinstance(optimizer, Mapping):
        return _of_optimizer(optimizer)
    texts = _in_use(declared(optimizer.get("name")), optimizer)
    transform = optimizer.get("grad_transform")
    if transform is not None:
        given = {"name": transform} if isinstance(transform, str) else transform
        mapped = isinstance(given, Mapping)
        texts += _in_use(declared(given.get("name"), "transforms"), given) if mapped else _of(given)
    base = optimizer.get("base")
    return texts + (own_definitions(base) if base is not None else [])


def _of_optimizer(opt: Any) -> list[str]:
    transform, base = getattr(opt, "transform", None), getattr(opt, "base", None)
    return (
        _of(opt, opt.defaults)
        + (_of(transform) if transform is not None else [])
        + (own_definitions(base) if base is not None else [])
    )


def _of(owner: Any, values: Mapping[str, Any] | None = None) -> list[str]:
    return _in_use(getattr(type(owner), "ours", {}), vars(owner) if values is None else values)


def _in_use(ours: Mapping[str, str], values: Mapping[str, Any]) -> list[str]:
    return [text for key, text in ours.items() if not key or values.get(key) not in (None, False)]


@cache
def declared(name: Any, folder: str = "optimizers") -> Mapping[str, str]:
    """`ours` of the rule (or with folder "transforms", transform) `name`, from its source; {} if it declares none."""
    if not isinstance(name, str) or not name.isidentifier() or len(name) > LONGEST:
        return {}
    path = _HERE / folder / f"{name}.py"
    if not path.is_file():
        return {}
    for cls in ast.parse(path.read_text(encoding="utf-8")).body:
        for node in cls.body if isinstance(cls, ast.ClassDef) else []:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "ours":
                texts: dict[str, str] = ast.literal_eval(node.value)
                return texts
    return {}

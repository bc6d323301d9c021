"""What a rule's file declares, looked at once, before anything is made of it: a mistake is one line for its author."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import Any

from hf_optim.bases.written import may_write, rebound
from hf_optim.core import validate
from hf_optim.core.hooks import RuleError
from hf_optim.core.rule import Rule
from hf_optim.core.validate import closest

#: tensors that `update` and `measure` may ask for beside the slots
TENSORS = ("x", "g", "raw", "given")
#: hooks that are called with what they ask for by name
_NAMED = ("update", "measure")
#: hooks that write the `memory` they are given
_REMEMBERING = ("control", "begin", "finish")
#: what others call x and g
_SAME = {"p": "x", "param": "x", "params": "x", "w": "x", "grad": "g", "gradient": "g", "d_p": "g"}
#: declarations whose keys or entries are arguments of the constructor
_OF_ARGUMENTS = ("search_space", "bounds", "choices", "structural", "shared")


@cache
def check_rule(rule: type[Rule]) -> None:
    """Raise RuleError on the first mistake in the declarations and hooks of a rule's class."""
    name = rule.__name__
    if _ours(_owner(rule, "__init__")):
        raise RuleError(
            f"{name} has no constructor: write def __init__(self, params, lr=0.1): super().__init__(params, locals()), "
            "whose arguments are the hyper-parameters"
        )
    code = getattr(inspect.unwrap(rule.__init__), "__code__", None)
    if code is not None and not {"super", "__init__"} & set(code.co_names):
        raise RuleError(f"{name}.__init__ hands nothing over: let it call super().__init__(params, locals())")
    arguments = validate.defaults(rule)
    if "lr" not in arguments and rule.rate is Rule.rate:
        raise RuleError(f"{name}.__init__ has no lr, which schedules and logs read: add it, or say fixed_lr = True")
    _check_declarations(rule, name, arguments)
    for hook, called_with in _hooks(rule).items():
        written = inspect.getattr_static(rule, hook)
        if _ours(_owner(rule, hook)):
            continue
        if not isinstance(written, staticmethod):
            raise RuleError(f"{name}.{hook} is no static method: write @staticmethod above its def, and no self in it")
        if hook in _NAMED:
            _check_named(name, hook, written.__func__, rule.slots)
        else:
            _check_positional(name, hook, written.__func__, called_with)
    if rule.measures is not Rule.measures and rule.measure is Rule.measure:
        raise RuleError(f"{name}.measures names sums, and there is no `measure` that gives them: write it")
    _check_remembered(rule, name)
    _check_used(rule, name)


def _owner(rule: type, name: str) -> type:
    return next(base for base in rule.__mro__ if name in vars(base))


def _ours(owner: type) -> bool:
    """Whether a class is what rules derive from, and no rule."""
    return owner.__module__.startswith(("hf_optim.core.", "hf_optim.bases.", "torch."))


def _hooks(rule: type) -> dict[str, tuple[str, ...]]:
    """The hooks that the rule's bases offer, and how each is called."""
    offered: dict[str, tuple[str, ...]] = {}
    for base in filter(_ours, rule.__mro__):
        for name, hook in vars(base).items():
            if isinstance(hook, staticmethod) and name[0] != "_":
                offered[name] = tuple(inspect.signature(hook.__func__).parameters)  # the first base's counts
    return offered


def _check_positional(name: str, hook: str, written: Callable[..., Any], called_with: tuple[str, ...]) -> None:
    signature = inspect.signature(written)
    try:
        signature.bind(*called_with)
    except TypeError:
        raise RuleError(
            f"{name}.{hook}{signature} is called with {len(called_with)} arguments: "
            f"write def {hook}({', '.join(called_with)})"
        ) from None


def _check_named(name: str, hook: str, written: Callable[..., Any], slots: Iterable[str]) -> None:
    """`update` and `measure` are given what they name."""
    parameters = inspect.signature(written).parameters
    there = (*TENSORS, *slots, "c")
    for asked, parameter in parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise RuleError(
                f"{name}.{hook} takes {parameter}: write the names that it wants instead, as {hook}(x, g, c)"
            )
        if asked == "self":
            raise RuleError(f"{name}.{hook} is a static method and has a `self`: leave it out")
        if asked not in there and parameter.default is parameter.empty:  # else a slot that a subclass may have
            near = f" (did you mean {_SAME[asked]}?)" if asked in _SAME else closest(asked, there)
            raise RuleError(
                f"{name}.{hook} asks for {asked!r}, which is not there{near}: there are {', '.join(there)}; a state of "
                f"the rule's own is declared: slots = {{{asked!r}: 0.0}}"
            )
    if "c" not in parameters:
        raise RuleError(
            f"{name}.{hook} has to take c, the step's numbers, too: write def {hook}({', '.join((*parameters, 'c'))})"
        )


def _check_declarations(rule: type[Rule], name: str, arguments: Mapping[str, Any]) -> None:
    if not isinstance(rule.slots, Mapping):
        raise RuleError(f"{name}.slots must be a mapping of names to first values, as {{'m': 0.0}}, got {rule.slots!r}")
    for slot, first in rule.slots.items():
        if slot in (*TENSORS, "c"):
            raise RuleError(f"{name}.slots: {slot} is a name of what every rule has: call the slot otherwise")
        if isinstance(first, str) and first not in ("param", *arguments):
            raise RuleError(
                f"{name}.slots: {slot} begins with {first!r}{closest(first, ('param', *arguments))}: give a number, "
                f"'param' for a copy, or the name of a hyper-parameter"
            )
    wrong = set(rule.needs) - {"loss", "evaluate"} if not isinstance(rule.needs, str) else {rule.needs}
    if wrong:
        raise RuleError(f"{name}.needs must be a set of 'loss' and 'evaluate', got {rule.needs!r}")
    for kind in ("int8_slots", "optional_slots"):
        for slot in getattr(rule, kind):
            if slot not in rule.slots:
                raise RuleError(f"{name}.{kind}: there is no slot {slot!r}{closest(slot, rule.slots)}")
    for kind in _OF_ARGUMENTS:
        for key in getattr(rule, kind):
            if key not in arguments and not _ours(_owner(rule, kind)):
                raise RuleError(f"{name}.{kind}: there is no hyper-parameter {key!r}{closest(key, arguments)}")


def _check_used(rule: type[Rule], name: str) -> None:
    """A slot that nothing reads is memory for nothing, or a misspelt name."""
    if rule.update is Rule.update:
        if "evaluate" not in rule.needs:  # a line search moves the parameters itself
            raise RuleError(f"{name} has no update: write @staticmethod, def update(x, g, c), which moves x in place")
        return
    asked = {k for hook in _NAMED for k in inspect.signature(getattr(rule, hook)).parameters}
    for slot in rule.slots:
        if slot not in asked and not hasattr(rule, "matrices"):  # which is given all of them
            raise RuleError(
                f"{name}.slots has {slot!r}, which neither update nor measure asks for: write it among the arguments "
                "of one, or leave the slot out"
            )
    _check_written(rule, name)


def _check_written(rule: type[Rule], name: str) -> None:
    """What is written nowhere keeps its first value for ever: x = x - d and m = m + g only give the names away."""
    hooks = [getattr(rule, hook) for hook in _NAMED if getattr(rule, hook) is not getattr(Rule, hook)]
    for asked in ("x", *rule.slots):
        mine = [hook for hook in hooks if asked in inspect.signature(hook).parameters]
        if any(may_write(hook, asked) for hook in mine) or (asked != "x" and hasattr(rule, "matrices")):
            continue
        place = next((f"{hook.__qualname__}{where}" for hook in mine if (where := rebound(hook, asked))), "")
        gives = f"{place}: that gives the name {asked} to another tensor, and " if place else f"{name}: "
        if asked == "x":
            raise RuleError(
                f"{gives}no parameter ever moves: `update` has to write x in place, as x.add_(m, alpha=-c.lr)"
            )
        if place or rule.slots[asked] != "param":  # a copy of the first weights may stay what it is
            raise RuleError(
                f"{gives}no hook writes the slot {asked!r}, which keeps its first value for ever: write it in place, "
                f"as {asked}.lerp_(g, c.w), {asked}.mul_(c.beta).add_(g) or {asked}.copy_(...)"
            )


def _check_remembered(rule: type[Rule], name: str) -> None:
    """`memory` is written entry by entry."""
    for hook in _REMEMBERING:
        where = rebound(getattr(rule, hook), "memory") if hasattr(rule, hook) else ""
        if where:
            raise RuleError(
                f"{name}.{hook}{where}: that gives the name memory to another mapping, and what the run "
                "remembers stays as it was: write its entries, as memory['k'] = value"
            )

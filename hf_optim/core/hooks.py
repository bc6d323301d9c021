"""What the author of a rule does wrong inside a hook, in the author's words: which hook, which name, what to do."""

from __future__ import annotations

import functools
import threading
import traceback
from collections.abc import Callable, Iterable, Mapping
from numbers import Integral, Real
from pathlib import Path
from types import SimpleNamespace, TracebackType
from typing import Any, ClassVar, TypeVar, cast

from hf_optim.core.notes import once
from hf_optim.core.validate import closest
from hf_optim.core.wording import counted
from hf_optim.errors import UserError, one_line

#: where an optimizer keeps its lock, which no copy of it shares
LOCK = "_one_step_at_a_time"
#: so many values of one name that it does not choose among a few forms of a rule, but counts
MANY = 5
_PLAIN = {float, int, bool, str, type(None)}
Method = TypeVar("Method", bound=Callable[..., Any])


class RuleError(UserError):
    """A mistake in the text of a rule."""


class MissingName(RuleError, AttributeError):
    """A hook asks for a name that is not there; `hasattr` sees it as that."""


# --- what hooks are given --------------------------------------------------------------------------------------------


class _Given(SimpleNamespace):
    _letter: ClassVar[str]
    _holds: ClassVar[str]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        there = vars(self)
        listed = ", ".join(there) or "nothing"
        near = closest(name, there)
        raise MissingName(f"there is no {self._letter}.{name}{near}: {self._letter} holds {self._holds}: {listed}")


class Hyper(_Given):
    """`h`: a group's hyper-parameters."""

    _letter, _holds = "h", "the arguments of the constructor"


class Shared(_Given):
    """`s`: what `control` returned."""

    _letter, _holds = "s", "what `control` returns"


class Numbers(_Given):
    """`c`: the numbers of a step, which tensors share, so that nobody may write them."""

    _letter, _holds = "c", "what `scalars` returns, and sums"

    def __setattr__(self, name: str, value: Any) -> None:
        raise RuleError(
            f"c.{name} is written, but tensors share c: compute it in `scalars`, or under a name of its own"
        )


# --- what hooks return -----------------------------------------------------------------------------------------------


def called(hook: Callable[..., Any], *arguments: Any) -> dict[str, Any]:
    """What a hook that computes numbers returns.

    Raises:
        RuleError: that is no mapping.
    """
    numbers = hook(*arguments)
    if not isinstance(numbers, Mapping):
        raise RuleError(
            f"{hook.__qualname__} returned {_kind(numbers)}: let it return its numbers by name, as {{'lr': h.lr}}"
        )
    return dict(numbers)


def scalars(hook: Callable[..., Any], *arguments: Any) -> dict[str, Any]:
    """What `scalars` returns: floats are numbers of a kernel, everything else chooses its code.

    Raises:
        RuleError: a value is a list, an array or a tensor.
    """
    numbers = called(hook, *arguments)
    for name, value in numbers.items():
        if type(value) in _PLAIN:
            continue
        if isinstance(value, Real):  # NumPy's
            numbers[name] = int(value) if isinstance(value, Integral) else float(value)
        elif hasattr(value, "__array__") or not _hashable(value):
            raise RuleError(
                f"{hook.__qualname__} returned {name} = a {type(value).__name__}: let it return numbers, each under a "
                "name of its own"
            )
    return numbers


def warn_of_choices(hook: Callable[..., Any], choices: Iterable[Mapping[str, Any]]) -> None:
    """Say that a hook gets another kernel for each of many values of a name in `c`.

    Args:
        choices: what chose the code of each of its kernels.
    """
    values: dict[str, dict[Any, None]] = {}
    for chosen in choices:
        for name, value in chosen.items():
            values.setdefault(name, {})[value] = None
    for name, seen in values.items():
        if len(seen) == MANY:
            few = ", ".join(map(repr, seen))
            once(
                f"{hook.__qualname__} gets another kernel for each value of c.{name} ({few} so far), which takes time: "
                f"let `scalars` return a float, as float({name}), for what is computed with"
            )


def check_sums(measure: Callable[..., Any], number: int | None, names: int) -> None:
    """Raise RuleError unless `measure` has added up as many sums as `measures` names; None: it returned nothing."""
    if number != names:
        raise RuleError(
            f"{measure.__qualname__} returned {number or 'nothing'}, but `measures` names "
            f"{counted(names, 'sum')}: let it return a tuple with one for each name, as (dot(g, g),)"
        )


def gradient_written(hook: str) -> RuleError:
    """The error of a hook that writes what everybody reads."""
    return RuleError(
        f"{hook} writes its gradient (g, raw or given), which others read after it: use methods without _ at their end "
        "(g.abs(), not g.abs_()), or g.clone() first"
    )


def _hashable(value: Any) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True


def _kind(value: Any) -> str:
    return "nothing (None)" if value is None else f"{type(value).__name__}, no mapping"


# --- what hooks raise ------------------------------------------------------------------------------------------------


def alone(method: Method) -> Method:
    """`method` of an optimizer, by one thread at a time: two that step the same one would write each other's tables."""

    @functools.wraps(method)
    def locked(self: Any, *args: Any, **kwargs: Any) -> Any:
        with self.__dict__.setdefault(LOCK, threading.RLock()):
            return method(self, *args, **kwargs)

    return cast(Method, locked)


def explains(method: Method) -> Method:
    """`method` of an optimizer; what a hook of its rule or transform raises there becomes a `RuleError` with its place.

    An author's own `UserError`s stay as they are."""

    @functools.wraps(method)
    def explained(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return method(self, *args, **kwargs)
        except Exception as error:
            mine = not isinstance(error, UserError) or (isinstance(error, RuleError) and error.__cause__ is None)
            place = _place(error.__traceback__, (type(self), type(self.transform))) if mine else None
            if place is None:
                raise
            text = str(error) if isinstance(error, RuleError) else one_line(error)
            raise RuleError(f"{place}: {text}") from error

    return cast(Method, explained)


def _place(raised: TracebackType | None, owners: tuple[type, ...]) -> str | None:
    """`Mine.update, line 12 of mine.py (m.lerp_(g, c.w))`: where in its text a hook was when it raised; None if none
    was under way."""
    code = {
        hook.__func__.__code__: f"{owner.__name__}.{name}"
        for owner in owners
        for base in owner.__mro__
        for name, hook in vars(base).items()
        if isinstance(hook, staticmethod) and hasattr(hook.__func__, "__code__")
    }
    frames = list(traceback.walk_tb(raised))
    first = next((frame for frame, _ in frames if frame.f_code in code), None)
    if first is None:
        return None
    file = first.f_code.co_filename
    own = [(frame, line) for frame, line in frames if frame.f_code.co_filename == file]
    number = own[-1][1]
    text = traceback.FrameSummary(file, number, "").line or ""
    return f"{code[first.f_code]}, line {number} of {Path(file).name}{f' ({text})' if text else ''}"

"""The vocabulary in which rules are written: the methods of x, g and slots, and functions of numbers and sums.

`update`, `measure` and a transform's `apply` call the methods below on x, g and slots. `derive`, `control`, `scalars`
and `prepare` use arithmetic and the functions `where`, `sqrt`, `minimum`, `maximum`, `isfinite`, which take Python
floats (a CPU), tensors with an entry a tensor of the model, and symbols of a trace (`hf_optim.engine.trace`) alike, so
that one text serves all of them. A symbol has no truth, no `float()` and no `==`: where its value decides, say `where`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch.overrides import TorchFunctionMode

from hf_optim.core.hooks import MissingName, RuleError
from hf_optim.core.validate import closest

BINARY = ("add", "sub", "mul", "div", "pow", "maximum", "minimum")
UNARY = ("sqrt", "abs", "neg", "sign", "reciprocal")
#: methods of x, g and slots; each but maximum and minimum also in place, with `_`
METHODS = (*BINARY, *UNARY, "lerp", "addcmul", "addcdiv", "clamp", "copy_", "zero_", "clone")
#: the same, those in place among them
WORDS = (*METHODS, *(f"{name}_" for name in METHODS if name[-1] != "_" and name not in ("maximum", "minimum", "clone")))
#: functions of this module
FUNCTIONS = ("where", "sqrt", "minimum", "maximum", "isfinite")
#: of torch's methods and functions, those that look at all of a tensor, and those that tell its shape
REDUCTIONS = (
    *("sum", "mean", "norm", "linalg_norm", "linalg_vector_norm", "max", "min", "amax", "amin", "aminmax", "std"),
    *("var", "prod", "dot", "vdot", "inner", "median", "quantile", "mode", "all", "any", "nansum"),
    *("argmax", "argmin", "sort", "argsort", "topk", "kthvalue", "cumsum", "cumprod", "logsumexp", "softmax", "einsum"),
    *("nanmean", "count_nonzero", "std_mean", "var_mean", "dist"),
    torch.nn.functional.normalize.__name__,  # torch's function, not the transform that is called so
)
SHAPES = ("shape", "size", "numel", "nelement", "dim", "ndim", "__len__")
#: what to take for a divisor that may be 0: `a / maximum(b, TINY)`
TINY = 1e-300


class Block(Protocol):
    """x, g, raw or a slot as a type checker sees it; numbers beside it come from `c`. A method with `_` writes it."""

    def add(self, o: Block | float, /, *, alpha: float = 1) -> Block: ...
    def add_(self, o: Block | float, /, *, alpha: float = 1) -> Block: ...
    def sub(self, o: Block | float, /, *, alpha: float = 1) -> Block: ...
    def sub_(self, o: Block | float, /, *, alpha: float = 1) -> Block: ...
    def mul(self, o: Block | float, /) -> Block: ...
    def mul_(self, o: Block | float, /) -> Block: ...
    def div(self, o: Block | float, /) -> Block: ...
    def div_(self, o: Block | float, /) -> Block: ...
    def pow(self, o: Block | float, /) -> Block: ...
    def pow_(self, o: Block | float, /) -> Block: ...
    def maximum(self, o: Block, /) -> Block: ...
    def minimum(self, o: Block, /) -> Block: ...
    def sqrt(self) -> Block: ...
    def sqrt_(self) -> Block: ...
    def abs(self) -> Block: ...
    def abs_(self) -> Block: ...
    def neg(self) -> Block: ...
    def neg_(self) -> Block: ...
    def sign(self) -> Block: ...
    def sign_(self) -> Block: ...
    def reciprocal(self) -> Block: ...
    def reciprocal_(self) -> Block: ...
    def lerp(self, o: Block, w: Block | float, /) -> Block: ...
    def lerp_(self, o: Block, w: Block | float, /) -> Block: ...
    def addcmul(self, a: Block, b: Block, /, *, value: float = 1) -> Block: ...
    def addcmul_(self, a: Block, b: Block, /, *, value: float = 1) -> Block: ...
    def addcdiv(self, a: Block, b: Block, /, *, value: float = 1) -> Block: ...
    def addcdiv_(self, a: Block, b: Block, /, *, value: float = 1) -> Block: ...
    def clamp(self, min: float, max: float) -> Block: ...
    def clamp_(self, min: float, max: float) -> Block: ...
    def copy_(self, o: Block, /) -> Block: ...
    def zero_(self) -> Block: ...
    def clone(self) -> Block: ...
    def __add__(self, o: Block | float, /) -> Block: ...
    def __radd__(self, o: float, /) -> Block: ...
    def __sub__(self, o: Block | float, /) -> Block: ...
    def __rsub__(self, o: float, /) -> Block: ...
    def __mul__(self, o: Block | float, /) -> Block: ...
    def __rmul__(self, o: float, /) -> Block: ...
    def __truediv__(self, o: Block | float, /) -> Block: ...
    def __neg__(self) -> Block: ...


class Operand:
    """What is no tensor and no number, but behaves as one: it has `function(name, *arguments)` for FUNCTIONS, and the
    arithmetic operators in terms of its methods."""

    __hash__ = None  # type: ignore[assignment]  # it has no equality either

    add: Callable[..., Any]
    sub: Callable[..., Any]
    mul: Callable[..., Any]
    div: Callable[..., Any]
    neg: Callable[..., Any]

    @classmethod
    def function(cls, name: str, *arguments: Any) -> Any:
        raise NotImplementedError

    @classmethod
    def foreign(cls, word: str) -> Exception:
        """The error of a word of torch's that is none of the vocabulary."""
        raise NotImplementedError

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", str(func))
        refuse_sum(name)
        raise cls.foreign(f"torch.{name}()")

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        refuse_sum(name)
        if not hasattr(torch.Tensor, name):
            raise MissingName(f"tensors have no {name}{closest(name, WORDS)}")
        raise self.foreign(f"{name}()")

    def __add__(self, o: Any) -> Any:
        return self.add(o)

    def __sub__(self, o: Any) -> Any:
        return self.sub(o)

    def __mul__(self, o: Any) -> Any:
        return self.mul(o)

    def __truediv__(self, o: Any) -> Any:
        return self.div(o)

    def __neg__(self) -> Any:
        return self.neg()

    def __rsub__(self, o: Any) -> Any:
        return self.neg().add(o)

    __radd__, __rmul__ = __add__, __mul__

    def __eq__(self, o: object) -> bool:
        raise TypeError("values of a rule have no ==: compare with < or >, and choose with where()")

    def __bool__(self) -> bool:
        raise TypeError("a value of a rule cannot decide what code runs: choose with where()")

    def __float__(self) -> float:
        raise TypeError("a value of a rule is no Python number: use the functions of hf_optim.core.vocabulary")

    __int__ = __index__ = __float__


def refuse_sum(name: str) -> None:
    """A rule may be called with a piece of a tensor, whose sum and shape are not the tensor's: it would be wrong in
    silence."""
    if name in REDUCTIONS:
        raise RuleError(
            f"a rule calls {name}(), but what it is called with may be a piece of a tensor: let `measure` give the sum "
            "and `derive` what follows from it (hf_optim/optimizers/lamb.py: of each tensor; smaran.py: of all)"
        )
    if name in SHAPES:
        raise RuleError(
            f"a rule asks for {name}, but what it is called with may be a flat piece of a tensor: `count` in `measure` "
            "gives the number of elements (hf_optim/optimizers/lamb.py sums in the same way); a rule of whole matrices "
            "derives from hf_optim.bases.matrix.MatrixOptimizer"
        )


class _Pieces(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        refuse_sum(getattr(func.__self__, "__name__", "") if name == "__get__" else name)
        return func(*args, **(kwargs or {}))


def on_pieces(call: Callable[..., Any]) -> Callable[..., Any]:
    """`call`, a rule in torch's own words, which refuses what would be wrong of a piece of a tensor."""

    @functools.wraps(call)
    def refusing(**given: Any) -> Any:
        with _Pieces():
            return call(**given)

    return refusing


def _operand(*values: Any) -> type[Operand] | None:
    return next((type(v) for v in values if isinstance(v, Operand)), None)


def where(condition: Any, a: Any, b: Any) -> Any:
    """a where the condition holds, else b. Both are computed: mind divisions by zero."""
    if isinstance(condition, bool):
        return a if condition else b
    kind = _operand(condition, a, b)
    return kind.function("where", condition, a, b) if kind else torch.where(condition, a, b)


def sqrt(a: Any) -> Any:
    """The square root; NaN of a negative number."""
    if isinstance(a, (float, int)):
        return math.sqrt(a) if a >= 0 else math.nan
    return a.sqrt()


def minimum(a: Any, b: Any) -> Any:
    """The smaller one; NaN if one is NaN."""
    return _extreme("minimum", a, b)


def maximum(a: Any, b: Any) -> Any:
    """The larger one; NaN if one is NaN."""
    return _extreme("maximum", a, b)


def _extreme(name: str, a: Any, b: Any) -> Any:
    kind = _operand(a, b)
    if kind:
        return kind.function(name, a, b)
    if isinstance(a, torch.Tensor) or isinstance(b, torch.Tensor):
        like = a if isinstance(a, torch.Tensor) else b
        a, b = (torch.as_tensor(v, dtype=like.dtype, device=like.device) for v in (a, b))
        return torch.minimum(a, b) if name == "minimum" else torch.maximum(a, b)
    if math.isnan(a) or math.isnan(b):
        return math.nan
    return min(a, b) if name == "minimum" else max(a, b)


def isfinite(a: Any) -> Any:
    """Whether it is neither infinite nor NaN."""
    kind = _operand(a)
    if kind:
        return kind.function("isfinite", a)
    return torch.isfinite(a) if isinstance(a, torch.Tensor) else math.isfinite(a)

"""What an optimizer file writes: a few declarations and the math, once.

A rule is a subclass of `hf_optim.bases.optimizer.Optimizer` that fills in the attributes and hooks below. The shell
does everything else. The hooks are static, so that one text is traced into kernels (`hf_optim.engine`) and, where there
is no compiler, runs as it is on blocks or lists of tensors.

`update(x, g, ..., c)` names what it wants and is called with exactly that:

    x           the parameter, written in place
    g           the gradient after the transform (never written)
    raw         what second moments see: the gradient as it came, or g when the transform is for all moments
    given       the gradient as it came, whatever the transform (for clipping)
    m, v, ...   the slots, by their declared names, written in place
    c           the scalars of this step: `c.lr`, `c.beta1`, ...

All are flat and of equal length, in the compute dtype (at least float32), and offer the methods of
`hf_optim.core.vocabulary`: torch's own, with numbers from `c` wherever torch takes a number. Floats in `c` are
numbers of the step; bools, strings and whole numbers choose code while it is traced. A sum from `measure` is a 0-d
tensor there, unless the rule has a `control`: an operand then, not an `alpha`.

`prepare`, `derive`, `control` and `scalars` compute with numbers by arithmetic and that module's functions (`where`,
`sqrt`, `minimum`, `maximum`, `isfinite`): on an accelerator they are traced, too, and nothing waits for them.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, ClassVar

import torch

from hf_optim.errors import UserError


class Rule:
    """Defaults of everything an optimizer file may declare."""

    #: one of plain, transform, matrix, loss-aware, line search, wrapper; shown in lists
    family: ClassVar[str] = "plain"
    #: where the rule comes from, for people
    paper: ClassVar[str] = ""
    #: the same for a bibliography: authors ("Last, First and ..."), title, where it appeared, year; "" and 0: not known
    cited: ClassVar[tuple[str, str, str, int]] = ("", "", "", 0)
    #: what step() must be given: any of "loss", "evaluate"
    needs: frozenset[str] | set[str] = frozenset()
    #: state of one number an element: name -> first value (a number, "param" for a copy, or a hyper-parameter's name)
    slots: ClassVar[dict[str, float | str]] = {}
    #: slots that a configuration leaves out: name -> (hyper-parameter, the value with which the slot is needed; True
    #: is all but False and 0)
    optional_slots: ClassVar[dict[str, tuple[str, Any]]] = {}
    #: slots that may be kept in 8 bits: name -> "signed" (an average of gradients) or "unsigned" (of their squares).
    #: Never a copy of the parameter or of a gradient, a maximum, or an average so slow that the rounding adds up
    int8_slots: ClassVar[dict[str, str]] = {}
    #: numbers that each parameter keeps, 0-d in float32 beside its step count: name -> first value. `scalars` reads
    #: them in `h` and returns what they become under the same names; parameters that share a call share them
    scalar_slots: ClassVar[dict[str, float]] = {}
    #: numbers the whole run remembers, stored in every parameter group: name -> first value (a number, or a
    #: hyper-parameter's name)
    memory: ClassVar[dict[str, float | str]] = {}
    #: numbers each group keeps from its beginning, read in `h`: name -> hyper-parameter
    kept: ClassVar[dict[str, str]] = {}
    #: numbers that each group counts by itself: name -> (first and least value, most)
    counted: ClassVar[dict[str, tuple[float, float]]] = {}
    #: the rule has no rate of its own: groups carry lr = 1.0, a multiplier through which schedulers act
    fixed_lr: ClassVar[bool] = False
    #: where to look for good hyper-parameters: name -> ("log" | "linear", low, high) or ("choice", values)
    search_space: ClassVar[dict[str, tuple[Any, ...]]] = {}
    #: options and their values; like `structural`, the constructor's alone
    choices: ClassVar[dict[str, tuple[Any, ...]]] = {}
    #: further hyper-parameters that no parameter group may change
    structural: ClassVar[tuple[str, ...]] = ()
    #: hyper-parameters that must be equal in all groups
    shared: ClassVar[tuple[str, ...]] = ()
    #: allowed values beyond the common ones: name -> (low, high, low is allowed, high is allowed)
    bounds: ClassVar[dict[str, tuple[float, float, bool, bool]]] = {}
    #: of a rule with a transform of its own: the key of parameter groups with which they opt out, and the arguments
    #: with which vectors are transformed, too; see `Transform`
    opt_out: ClassVar[str] = ""
    everywhere: ClassVar[dict[str, Any]] = {}
    #: the rules that this one contains: name -> the values of hyper-parameters with which it is that rule
    special_cases: ClassVar[dict[str, dict[str, float]]] = {}
    #: what the paper names without a formula, off by default: argument -> our definition, for reports
    ours: ClassVar[dict[str, str]] = {}
    #: bytes of fp32 state of one parameter, where they are not 4 a slot; for lists
    state_bytes: ClassVar[int | None] = None
    #: why a gradient transform would break the theory, where it would
    no_transform: ClassVar[str] = ""

    @staticmethod
    def scalars(h: SimpleNamespace, t: int, s: SimpleNamespace) -> dict[str, Any]:
        """Numbers of this step for one group: h hyper-parameters, t = 1, 2, ... the parameter's own step count,
        s what `control` returned. Floats are free to change every step; bools and strings select code."""
        return {}

    @staticmethod
    def measures(h: SimpleNamespace) -> tuple[str, ...]:
        """Names of the sums that `measure` returns under these hyper-parameters; () for no measuring pass."""
        return ()

    @staticmethod
    def scope(h: SimpleNamespace) -> str:
        """ "global": sums run over every tensor of every group and shard; "tensor": one sum a tensor."""
        return "global"

    #: slots of which `stride` keeps a slice in the state, as `NAME_slice`
    sliced: ClassVar[tuple[str, ...]] = ()

    @staticmethod
    def stride(h: SimpleNamespace) -> int:
        """`measure` sees the elements 0, stride, 2 stride, ... of each flattened parameter."""
        return 1

    @staticmethod
    def lifetime(h: SimpleNamespace) -> int | None:
        """Steps after which a parameter's state begins anew; None for never."""
        return None

    @staticmethod
    def idle(h: SimpleNamespace) -> bool:
        """Whether a group takes no part in a step that only counts it."""
        return False

    @staticmethod
    def prepare(h: SimpleNamespace, t: int, memory: dict[str, float]) -> dict[str, Any]:
        """Scalars of the measuring pass, before anything of this step is known."""
        return {}

    @staticmethod
    def measure(*args: Any, **tensors: Any) -> tuple[Any, ...]:
        """Partial sums of one block, in the order of `measures`; may update slots in place. Arguments as `update`."""
        raise NotImplementedError

    @staticmethod
    def derive(h: SimpleNamespace, sums: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Sums -> what `update` reads in `c`: numbers of global sums, else an entry a tensor."""
        return sums

    @staticmethod
    def control(
        h: SimpleNamespace, t: int, sums: dict[str, float], loss: Any, memory: dict[str, float]
    ) -> dict[str, float]:
        """Once a step: global sums and the loss (None unless `needs` has it) -> numbers for all groups; updates
        `memory`."""
        raise NotImplementedError

    @staticmethod
    def update(*args: Any, **tensors: Any) -> None:
        """The step, in place."""
        raise NotImplementedError

    @staticmethod
    def loss_floor(h: SimpleNamespace) -> float:
        """The smallest loss the theory allows."""
        return 0.0

    @staticmethod
    def rate(h: SimpleNamespace, memory: dict[str, float]) -> float:
        """The rate in force for a group with hyper-parameters h."""
        rate: float = h.lr  # a symbol in a trace
        return rate


class Transform:
    """A gradient transform g -> g that any rule can take.

    `moments` says which moments see it: "first" (a rule's `raw` stays the raw gradient), "all" (`raw` is transformed
    too) or "m" (the momentum alone, where a rule keeps more first-order averages than one).
    """

    name: ClassVar[str] = ""
    moments: str = "all"
    #: False when apply() needs whole tensors in their own shape instead of blocks
    blockwise: ClassVar[bool] = True
    #: made for weight matrices: with this key set to False a parameter group opts out (embeddings do, when groups are
    #: made from a model); "" for a transform of whatever there is
    opt_out: ClassVar[str] = ""
    #: arguments with which it takes vectors, too
    everywhere: ClassVar[dict[str, Any]] = {}
    #: names of the sums over a tensor that measure() returns
    measures: ClassVar[tuple[str, ...]] = ()
    #: names of what derive() makes of them for apply(); () for no measuring pass
    sums: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "weights_only" in vars(cls):  # how `opt_out` was said before: ignored, it would reach embeddings too
            instead = 'write opt_out = "agr"' if vars(cls)["weights_only"] else "leave it out, which says the same"
            raise UserError(f"{cls.__qualname__}: a transform has no weights_only any more: {instead}")

    def covers(self, p: torch.Tensor) -> bool:
        """Whether p is a tensor this transform is made for."""
        return True

    def active(self, t: int) -> bool:
        """Whether a tensor that it covers is transformed in its t-th update."""
        return True

    @staticmethod
    def measure(g: Any, c: SimpleNamespace) -> tuple[Any, ...]:
        """Partial sums of one block, in the order of `measures`."""
        return ()

    @staticmethod
    def derive(own: dict[str, Any], total: dict[str, Any]) -> dict[str, Any]:
        """The tensor's own sums, and those over all transformed tensors -> what `apply` reads in `c`, in the order of
        `sums`. Arithmetic and the functions of `hf_optim.core.vocabulary`."""
        return own

    @staticmethod
    def apply(g: Any, c: SimpleNamespace) -> Any:
        """The transformed gradient, a new tensor."""
        raise NotImplementedError

    def spec(self) -> dict[str, Any]:
        """What makes two transforms the same in a checkpoint."""
        return {"name": self.name, **{k: v for k, v in vars(self).items() if not k.startswith("_")}}

"""What the line searches share: trial points, and evaluations at them that leave no trace.

A search asks for the loss of the step's own batch at x0 - eta g. It is only a search if that loss is the same function
of x each time, so every evaluation starts from the random state (dropout) and the buffers (normalisation, spectral
norms) with which the step's own loss was computed, and gradients, buffers and random state are put back afterwards.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from hf_optim.bases import parameters
from hf_optim.bases.optimizer import Optimizer
from hf_optim.core.interrupts import interruptible
from hf_optim.core.reduce import dot
from hf_optim.core.rewind import RandomState, reshard
from hf_optim.core.vocabulary import Block
from hf_optim.engine import passes
from hf_optim.errors import MissingLoss

#: trial points of one step
TRIALS = 100
#: what is taken when none of them is accepted
LAST_RESORT = 1e-6
#: below this norm a gradient counts as zero: there is no direction to search
VANISHED = 1e-8


class _World:
    """What a forward pass reads and changes besides parameters and gradients, at one moment."""

    def __init__(self, models: Iterable[nn.Module], devices: Iterable[torch.device]) -> None:
        self._random = RandomState(*devices)
        self._models = list(models)
        modules = [module for model in self._models for module in model.modules()]
        owned = [(module, name, b) for module in modules for name, b in module._buffers.items() if b is not None]
        self._buffers = [(module, name, b, b.detach().clone()) for module, name, b in owned]

    def restore(self) -> None:
        self._random.restore()
        reshard(self._models)
        for module, name, buffer, before in self._buffers:
            module._buffers[name] = buffer
            buffer.copy_(before)


class _Evaluation:
    """f at the parameters as they are, from the world of the step's own loss."""

    def __init__(self, f: Callable[[], Any], world: _World, backward: bool) -> None:
        self._f, self._world, self._backward = interruptible(f), world, backward

    def __call__(self) -> float:
        self._world.restore()
        with torch.set_grad_enabled(self._backward):
            value = self._f()
        return float(value.detach()) if isinstance(value, torch.Tensor) else float(value)


class LineSearch(Optimizer):
    """Gradient descent whose step is found by backtracking; a subclass says where to begin and what to remember.

        x = x0 - lr eta g with the first eta of eta_0, eta_0 s, eta_0 s^2, ... for which
        f(x0 - eta g) <= reference - c eta ||g||^2

    The search is over all groups and shards together. `group["lr"]`, 1.0, multiplies the step that is taken and not
    the trial steps, so a schedule shortens steps instead of being searched away; at lr = 0 nothing is searched. When
    100 trials fail, eta is 1e-6. A gradient with a norm below 1e-8 moves nothing and is not remembered.
    """

    fixed_lr = True
    no_transform = "its theory uses ||g||^2"

    _models: tuple[nn.Module, ...] = ()

    # --- what a line search writes ---------------------------------------------------------------------------------

    @staticmethod
    def begin(h: SimpleNamespace, square: float, loss: float, memory: dict[str, float]) -> tuple[float, float]:
        """The first trial step and the reference, from ||g||^2 and f at x0; may update `memory`."""
        raise NotImplementedError

    @staticmethod
    def shrink(h: SimpleNamespace) -> float:
        """s, the factor from one trial step to the next."""
        raise NotImplementedError

    @staticmethod
    def finish(h: SimpleNamespace, eta: float, backtracks: int, accepted: bool, memory: dict[str, float]) -> None:
        """Remember what the next search begins with."""
        raise NotImplementedError

    # --- evaluations -----------------------------------------------------------------------------------------------

    def watch(self, *models: nn.Module) -> None:
        """Keep these models' buffers unchanged by trial evaluations, and under FSDP2 their weights fresh
        (`hf_optim.create("sls", model)` does it)."""
        self._models = models

    def _world(self) -> _World:
        return _World(self._models, {p.device for group in self.param_groups for p in group["params"]})

    def _run_closure(self, closure: Callable[[], Any], evaluate: Callable[[], Any] | None) -> tuple[Any, Any]:
        world = self._world()
        with torch.enable_grad():
            loss = parameters.called(self.rule, closure)
        return loss, _Evaluation(evaluate or closure, world, evaluate is None)

    # --- a step ----------------------------------------------------------------------------------------------------

    @staticmethod
    def measure(g: Block, c: SimpleNamespace) -> tuple[Any, ...]:
        return (dot(g, g),)

    def _advance(self, f: float | None, evaluate: Callable[[], Any] | None) -> None:
        assert f is not None
        if evaluate is None:
            raise MissingLoss(
                f"{self.rule} evaluates the loss at trial points: call step(closure), or "
                "step(loss=loss, evaluate=evaluate) with a forward pass on the same batch"
            )
        if all(float(group["lr"]) == 0 for group in self.param_groups):
            return
        h, memory = self._hyper(self.param_groups[0]), self._memory
        square = sum(float(s.sum()) for s in self._steps.totals(self.measure, 1))
        if not math.isfinite(square):
            self._bad("the gradient is not finite")
            return
        memory["eta"], trials = 0.0, 0
        if math.sqrt(square) >= VANISHED:
            eta, reference = self.begin(h, square, f, memory)
            trial = evaluate if isinstance(evaluate, _Evaluation) else _Evaluation(evaluate, self._world(), False)
            eta, trials, accepted = self._search(trial, eta, self.shrink(h), reference, h.c * square)
            self.finish(h, eta, trials - accepted, accepted, memory)
            memory["eta"] = eta if accepted else LAST_RESORT
        self._remember(memory)
        self._shared = SimpleNamespace(loss=f, trials=trials)

    def _search(
        self, trial: _Evaluation, eta: float, shrink: float, reference: float, slope: float
    ) -> tuple[float, int, bool]:
        """Move to the accepted point; returns its eta (the next one to try if there is none), the number of
        evaluations, and whether a point was accepted."""
        moving = self._steps.now()
        columns = {"x": [x for _, _, x, _ in moving], "g": [g for *_, g in moving]}
        columns["start"] = [x.detach().clone() for x in columns["x"]]
        world, params = self._world(), [p for group in self.param_groups for p in group["params"]]
        params += [p for model in self._models for p in model.parameters()]
        grads = [(p, p.grad) for p in params]
        trials, accepted, kept = 0, False, False
        try:
            while trials < TRIALS and not accepted:
                if trials:
                    eta *= shrink
                self._place(columns, [eta] * len(moving))
                for p in params:
                    p.grad = None
                value = trial()
                trials += 1
                accepted = -math.inf < value <= reference - eta * slope
            rates = [float(group["lr"]) for _, group, _, _ in moving]
            if not accepted or any(rate != 1 for rate in rates):
                step = eta if accepted else LAST_RESORT
                self._place(columns, [step * rate for rate in rates])
            kept = True
        finally:
            for p, grad in grads:
                p.grad = grad
            world.restore()
            if not kept:  # an evaluation raised
                self._place(columns, [0.0] * len(moving))
        return (eta if accepted else eta * shrink), trials, accepted

    def _place(self, columns: dict[str, list[torch.Tensor]], etas: list[float]) -> None:
        """x = x0 - eta g, from the copy of x0."""
        numbers = {eta: {"back": eta == 0, "eta": eta} for eta in set(etas)}
        passes.once(_placed, columns, [numbers[eta] for eta in etas], self.without_kernels)

    @staticmethod
    def rate(h: SimpleNamespace, memory: dict[str, float]) -> float:
        rate: float = h.lr * memory["eta"]  # a symbol in a trace
        return rate


def _placed(x: Block, g: Block, start: Block, c: SimpleNamespace) -> None:
    x.copy_(start if c.back else start.sub(g, alpha=c.eta))

"""What a run has spent on training so far: forward and backward passes, seconds and operations, evaluations not
counted.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from hf_optim.experiment.flops import PassCost, samples_in

#: the columns of a history row that say it; operations are left out where they were not counted, and tokens where the
#: model reads none
SPENT = ("forward_passes", "backward_passes", "seconds", "flops", "tokens")


class Spending:
    """Counts the passes of a model, whoever asks for them: a training step, a line search, a second derivative.

    A pass is one call of the model on one batch of one process: with gradient accumulation a step has several. The
    operations and the tokens are those of all processes. Tokens are the places of `input_ids`, padding too, that a
    backward pass went over: another look at a batch without one trains on none.

    Args:
        passes, seconds: how much there is to spend, of both kinds of passes together; None: no end.
        cost: the operations of a sample's passes; None: they are not known.
        processes: which make the same passes.
    """

    def __init__(
        self,
        passes: int | None = None,
        seconds: float | None = None,
        cost: PassCost | None = None,
        processes: int = 1,
    ) -> None:
        self.passes, self.seconds, self.cost, self.processes = passes, seconds, cost, processes
        self.forward = self.backward = self.flops = self.tokens = 0
        self._before = self._begun = 0.0
        self.evaluation_seconds = 0.0
        self._counting = False

    def watch(self, model: nn.Module, *, compiled: bool = False) -> None:
        """Count every pass of `model` from now on; one that is to be compiled is compiled around the counting."""
        hook = torch.compiler.disable(self._passed) if compiled else self._passed
        model.register_forward_hook(hook, with_kwargs=True)

    def begin(self, log: Sequence[Mapping[str, Any]]) -> None:
        """Training begins; a resumed run goes on from the last row of its log."""
        last: Mapping[str, Any] = next((row for row in reversed(log) if "forward_passes" in row), {})
        self.forward, self.backward = int(last.get("forward_passes", 0)), int(last.get("backward_passes", 0))
        self.flops, self.tokens = int(last.get("flops", 0)), int(last.get("tokens", 0))
        self._before, self._begun, self.evaluation_seconds = float(last.get("seconds", 0.0)), time.perf_counter(), 0.0
        self._counting = True

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """What happens inside is no training."""
        counting, started = self._counting, time.perf_counter()
        self._counting = False
        try:
            yield
        finally:
            self._counting = counting
            self.evaluation_seconds += time.perf_counter() - started

    def row(self) -> dict[str, float]:
        """The columns SPENT, as of now; empty before training."""
        if not self._begun:
            return {}
        seconds = self._before + time.perf_counter() - self._begun - self.evaluation_seconds
        # a day of one large GPU is beyond the whole numbers of 64 bits, which no reader of JSON takes
        flops = self.flops if self.flops < 2**53 else float(self.flops)
        values = (self.forward, self.backward, round(seconds, 4), flops, self.tokens)
        unknown = [key for key, known in (("flops", self.cost is not None), ("tokens", self.tokens)) if not known]
        return {key: value for key, value in zip(SPENT, values, strict=True) if key not in unknown}

    @property
    def bounded(self) -> bool:
        """Whether there is an end to what may be spent."""
        return bool(self.passes or self.seconds)

    def share(self) -> float:
        """How much of what there is to spend is spent; 1 and more: all of it."""
        passes = (self.forward + self.backward) / self.passes if self.passes else 0.0
        return max(passes, self.row().get("seconds", 0.0) / self.seconds if self.seconds else 0.0)

    def _passed(self, module: nn.Module, inputs: tuple[Any, ...], named: Mapping[str, Any], output: Any) -> None:
        if self._counting:
            samples = 0
            ids = named.get("input_ids")
            tokens = 0 if ids is None else self.processes * ids.numel()
            if self.cost is not None:
                samples = self.processes * samples_in(named or {str(i): each for i, each in enumerate(inputs)})
                self.flops += samples * self.cost.forward
            self.forward += 1
            tensor = _differentiable(output)
            if tensor is not None and tensor.grad_fn is not None:
                _uncast(tensor.grad_fn).register_prehook(functools.partial(self._returned, samples, tokens))

    def _returned(self, samples: int, tokens: int, gradients: Any) -> None:
        self.backward += 1
        self.tokens += tokens
        if self.cost is not None:
            self.flops += samples * self.cost.backward


def _uncast(node: Any) -> Any:
    """The node before a change of type: under autocast outputs are copies in float32, which the loss is not made of."""
    return node.next_functions[0][0] if node.name().startswith("ToCopyBackward") else node


def _differentiable(output: Any) -> torch.Tensor | None:
    """The tensor that every backward pass goes through: the logits where there are any, else what has a gradient."""
    if isinstance(output, torch.Tensor):
        return output if output.requires_grad else None
    named = output if isinstance(output, Mapping) else {}
    values = [named["logits"]] if "logits" in named else []
    values += named.values() if named else output if isinstance(output, (tuple, list)) else []
    return next((v for v in values if isinstance(v, torch.Tensor) and v.requires_grad), None)

"""How many floating-point operations a training pass takes, counted by torch's own formulas on a pass of a few samples.

The pass is made once, by a copy of the model on the CPU; of a large model by one whose tensors have shapes and no
numbers, so that nothing is computed, unless it looks at numbers. A multiplication and an addition count as two.
Elementwise work is not counted, as is usual.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeCopyMode, FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from hf_optim.core.rewind import RandomState

T = TypeVar("T")

#: samples of the pass that is counted: two, for batch norm; more of texts, which differ in length
IMAGES, TEXTS = 2, 16
#: parameters above which imagining a pass takes less than computing it
LARGE = 1_000_000


@dataclass(frozen=True)
class PassCost:
    """Of one sample: the operations of a forward and of a backward pass, and its tokens (None: it has none)."""

    forward: int
    backward: int
    tokens: float | None = None

    @property
    def both(self) -> int:
        """Forward and backward."""
        return self.forward + self.backward


class Counter(TorchDispatchMode):
    """Adds the operations of everything that is computed inside to `total`; torch's own counter, which also says in
    which module, takes ten times as long.
    """

    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.total += formula(*args, **(kwargs or {}), out_val=out)
        return out


def probe(dataset: Any, collate: Any) -> Mapping[str, Any]:
    """A batch of samples spread over a data set, without a trace in the random state."""
    state = RandomState()
    try:
        batch = _batch(dataset, collate, IMAGES)
        return _batch(dataset, collate, TEXTS) if "input_ids" in batch else batch
    finally:
        state.restore()


def _batch(dataset: Any, collate: Any, samples: int) -> Mapping[str, Any]:
    from transformers import default_data_collator

    count = min(samples, len(dataset))
    indices = [number * len(dataset) // count for number in range(count)]
    fetch = getattr(dataset, "__getitems__", None)
    rows = fetch(indices) if fetch is not None else [dataset[index] for index in indices]
    batch: Mapping[str, Any] = (collate or default_data_collator)(rows)
    return batch


def cost(model: nn.Module, dataset: Any, collate: Any) -> PassCost | None:
    """The cost of a training pass of `model` (left as it is) on samples of a data set; None where none can be made: a
    run that fails for the same reason says so itself.
    """
    try:
        return pass_cost(model, probe(dataset, collate))
    except Exception:
        return None


def pass_cost(model: nn.Module, batch: Mapping[str, Any]) -> PassCost:
    """The cost of a training pass of `model` (left as it is) on `batch`; raises what the model raises."""
    forward, backward = of_a_pass(counted, model, batch)
    samples = samples_in(batch)
    return PassCost(forward // samples, backward // samples, _tokens(batch))


def of_a_pass(measure: Callable[[nn.Module, Mapping[str, Any]], T], model: nn.Module, batch: Mapping[str, Any]) -> T:
    """`measure(model, batch)` of a copy of `model` in training mode, which is only imagined if it is large."""
    state = RandomState()
    try:
        if sum(p.numel() for p in model.parameters()) > LARGE:
            with suppress(Exception):  # whatever a model does with numbers that are not there
                mode = FakeTensorMode()
                with FakeCopyMode(mode):
                    shapes, empty = copy.deepcopy((model, dict(batch)))
                with mode:
                    return measure(shapes.train(), empty)
        return measure(copy.deepcopy(model).cpu().train(), batch)
    finally:
        state.restore()


def counted(model: nn.Module, batch: Mapping[str, Any]) -> tuple[int, int]:
    """Operations of a forward and of a backward pass of `model` on `batch`; the gradients stay in the model."""
    with Counter() as counter, _plainly():
        loss = loss_of(model(**batch))
        forward = counter.total
        loss.backward()
    return forward, counter.total - forward


@contextmanager
def _plainly() -> Iterator[None]:
    """Without the fused kernels (of attention and recurrent layers on a CPU) whose products torch does not count."""
    enabled = torch.backends.mkldnn.is_available() and torch._C._get_mkldnn_enabled()
    with sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch._C._set_mkldnn_enabled(False)
        try:
            yield
        finally:
            torch._C._set_mkldnn_enabled(enabled)


def samples_in(batch: Mapping[str, Any]) -> int:
    """Samples of a batch."""
    return len(next(value for value in batch.values() if isinstance(value, Tensor)))


def _tokens(batch: Mapping[str, Any]) -> float | None:
    """Input tokens of a sample, padding not counted; None where there are none."""
    for key in ("attention_mask", "input_ids"):
        if isinstance(value := batch.get(key), Tensor):
            return float(value.sum() if key == "attention_mask" else value.numel()) / len(value)
    return None


def loss_of(output: Any) -> Tensor:
    """The loss among a model's outputs, where Trainer looks for it."""
    loss: Tensor = output["loss"] if isinstance(output, Mapping) else output[0]
    return loss

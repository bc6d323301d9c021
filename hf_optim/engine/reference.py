"""What a Program means, said with torch, operation by operation: the reference that emitters are held against."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch

from hf_optim.engine.int8_codes import SCALE, decode, encode
from hf_optim.engine.stochastic_rounding import noise, round_stochastically
from hf_optim.engine.trace import Program, Ref


def _lerp(a: Any, b: Any, w: Any) -> Any:
    return torch.where(w.abs() < 0.5, a + w * (b - a), b - (b - a) * (1 - w))


def _sqrt(a: torch.Tensor) -> torch.Tensor:
    """Rounded correctly, as IEEE 754 has it: torch's own, MKL's, is off by a bit on processors without AVX-512."""
    roots = [math.sqrt(v) if v >= 0 else math.nan for v in a.flatten().tolist()]
    return torch.tensor(roots, dtype=a.dtype).reshape(a.shape)


_EVALUATED: dict[str, Callable[..., Any]] = {
    "add": torch.add, "sub": torch.sub, "mul": torch.mul, "div": torch.div, "pow": torch.pow, "maximum": torch.maximum,
    "minimum": torch.minimum, "neg": torch.neg, "abs": torch.abs, "sqrt": _sqrt, "sign": torch.sign,
    "reciprocal": torch.reciprocal, "lerp": _lerp, "gt": torch.gt, "ge": torch.ge, "lt": torch.lt, "le": torch.le,
    "and": torch.logical_and, "or": torch.logical_or, "not": torch.logical_not, "isfinite": torch.isfinite,
    "where": torch.where, "bf16": lambda a: a.to(torch.bfloat16).to(a.dtype), "f16": lambda a: a.half().to(a.dtype),
}  # fmt: skip


def evaluate(
    program: Program,
    tensors: Mapping[str, torch.Tensor],
    numbers: Mapping[str, float],
    sums: Mapping[str, Any],
    key: int = 0,
    first: int = 0,
) -> tuple[Any, ...]:
    """Run a program over flat tensors of one length, in place; its terms, added up in float64.

    Args:
        key, first: for noisy writes: `stochastic_rounding.noise_key`, and the number of the first element in the whole
            parameter.

    Returns:
        0-d float64 tensors; of a scalar program its outputs, in the order of `writes`.
    """
    dtype = program.dtype
    values: list[Any] = [
        decode(tensors[k], tensors[k + SCALE]).to(dtype) if k in program.coded else tensors[k].to(dtype, copy=True)
        for k in program.names
    ]
    values += [
        torch.tensor(float(v), dtype=dtype)
        for v in (*(numbers[k] for k in program.numbers), *(sums[k] for k in program.sums))
    ]

    def value(ref: Ref) -> Any:
        return values[ref] if isinstance(ref, int) else torch.tensor(ref, dtype=dtype)

    for op in program.ops:
        values.append(_EVALUATED[op.name](*map(value, op.arguments)))
    if not program.tensors:
        return tuple(value(w.value).to(torch.float64) for w in program.writes)
    length = len(values[0])
    out = tuple(value(term).to(torch.float64).expand(length).sum() for term in program.terms)
    for write in program.writes:
        target, new = tensors[write.tensor], value(write.value).expand(length)
        if write.noisy:
            bits = noise(torch.arange(first, first + length), key, program.names.index(write.tensor))
            if write.tensor in program.coded:
                new, scales = encode(new.float(), bits, target.dtype)
                tensors[write.tensor + SCALE].copy_(scales)
            else:
                new = round_stochastically(new, bits)
        target.copy_(new)
    return out

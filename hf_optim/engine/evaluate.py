"""What a Program means, said with torch: the noise of stochastic rounding, and every operation.

`evaluate` is the reference that emitters are held against; the fallback rounds with the same noise as kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from hf_optim.engine.codes import SCALE, decode, encode
from hf_optim.engine.trace import Program, Ref

# --- the noise of stochastic rounding --------------------------------------------------------------------------------


def noise(element: torch.Tensor, key: int, slot: int) -> torch.Tensor:
    """16 random bits for each element (its number in the whole, unsharded parameter), as int64 below 2^16.

    `key`, 32 bits, stands for the seed, the step and the parameter (`noise_key`), `slot` is the number of the tensor
    in its Program. All in unsigned 32-bit arithmetic, two multiplications an element:

        h = (element * 0x9E3779B1) ^ (key + slot * 0x7FEB352D);  h ^= h >> 15;  h *= 0x846CA68B;  bits = h >> 16
    """
    mask = 0xFFFFFFFF
    h = ((element & mask) * 0x9E3779B1 & mask) ^ ((key + slot * 0x7FEB352D) & mask)
    h = h ^ (h >> 15)
    h = _times(h, 0x846CA68B)
    return h >> 16


def _times(h: torch.Tensor, factor: int) -> torch.Tensor:
    """h * factor in 32 bits, without overflow of int64."""
    low = (h & 0xFFFF) * factor
    high = ((h >> 16) * (factor & 0xFFFF)) << 16
    return (low + high) & 0xFFFFFFFF


def noise_key(seed: int, t: int, index: int) -> int:
    """The key of the index-th parameter's t-th step."""
    h = (seed * 0x9E3779B97F4A7C15 + t * 0xBF58476D1CE4E5B9 + index * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
    h ^= h >> 30
    h = h * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
    h ^= h >> 27
    return (h * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF) >> 32


def round_stochastically(value: torch.Tensor, bits: torch.Tensor) -> torch.Tensor:
    """float32 values -> bfloat16, with 16 random bits added below the kept ones; infinities and NaN stay."""
    raised = value.float().view(torch.int32).add(bits.to(torch.int32)).bitwise_and(-65536).view(torch.float32)
    return torch.where(value.isfinite(), raised, value.float()).to(torch.bfloat16)


# --- the reference ---------------------------------------------------------------------------------------------------


def _lerp(a: Any, b: Any, w: Any) -> Any:
    return torch.where(w.abs() < 0.5, a + w * (b - a), b - (b - a) * (1 - w))


_EVALUATED: dict[str, Callable[..., Any]] = {
    "add": torch.add, "sub": torch.sub, "mul": torch.mul, "div": torch.div, "pow": torch.pow, "maximum": torch.maximum,
    "minimum": torch.minimum, "neg": torch.neg, "abs": torch.abs, "sqrt": torch.sqrt, "sign": torch.sign,
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
        key, first: for noisy writes: `noise_key`, and the number of the first element in the whole parameter.

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

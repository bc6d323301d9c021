"""bf16 by stochastic rounding: 16 random bits for each element, the same in kernels, the fallback and on shards."""

from __future__ import annotations

import torch


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

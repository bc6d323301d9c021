"""State of 8 bits an element: a code for each, and a scale for each block of 256.

The scale is the block's greatest magnitude; an infinity or a NaN in a block makes all of it NaN when it is read. Codes
stand closer the smaller the number, as the update divides one average by the root of another:

    int8    signed: scale q |q| / 127^2,    q in -127..127
    uint8   unsigned: scale (q / 255)^4,    q in 0..255, and 0 only for 0: nothing small becomes a zero to divide by

A number is rounded to one of the two codes around it with the odds that keep its mean, by the bits of
`hf_optim.engine.stochastic_rounding.noise`. The operations and their order are those of the emitters: the same codes
everywhere. The codes of a tensor lie in the order of its memory, so that a block is a piece of that.
"""

from __future__ import annotations

import torch

#: elements that share a scale; it divides every chunk
BLOCK = 256
#: tensors with fewer elements keep their state in full precision
SMALLEST = 4096
#: what a slot is declared to be -> how it is kept
KINDS = {"signed": torch.int8, "unsigned": torch.uint8}
CODED = frozenset(KINDS.values())
#: after a slot's name: where its scales are kept
SCALE = "_scale"


def blocks(elements: int) -> int:
    """How many scales so many elements have."""
    return -(-elements // BLOCK)


def filled(like: torch.Tensor, value: float, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """(codes, scales) of a number that every element is; unsigned ones have no sign."""
    most = 127 if dtype is torch.int8 else 255
    code = (value > 0) * most - (value < 0) * most
    scales = torch.full((blocks(like.numel()),), abs(value), dtype=torch.float32, device=like.device)
    return torch.full_like(like, code, dtype=dtype, requires_grad=False), scales


def decode(codes: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """float32 (n,), of codes (n,) and scales (blocks,)."""
    signed = codes.dtype is torch.int8
    share = codes.float() / (127.0 if signed else 255.0)
    share = share * share.abs() if signed else (share * share) * (share * share)
    return scales.repeat_interleave(BLOCK)[: len(codes)] * share


def encode(values: torch.Tensor, bits: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """(codes, scales) of float32 (n,).

    Args:
        bits: 16 random ones an element.
        dtype: torch.int8 for signed numbers, torch.uint8 for unsigned ones.
    """
    size = values.abs()
    size = torch.where(size.isnan(), torch.inf, size)
    padded = torch.nn.functional.pad(size, (0, blocks(len(size)) * BLOCK - len(size)))
    scales = padded.view(-1, BLOCK).amax(1) if len(size) else padded
    usable = torch.where((scales > 0) & scales.isfinite(), scales, torch.inf).repeat_interleave(BLOCK)[: len(size)]
    share = torch.where(usable.isfinite(), size / usable, 0.0)
    if dtype is torch.int8:
        low = (share.sqrt() * 127.0).floor()
        chance = (share * 16129.0 - low * low) / (2.0 * low + 1.0)
    else:
        low = (share.sqrt().sqrt() * 255.0).floor()
        square = low * low
        chance = (share * 4228250625.0 - square * square) / ((2.0 * low + 1.0) * (2.0 * square + 2.0 * low + 1.0))
    code = low + (bits.float() * 2.0**-16 < chance)
    if dtype is torch.int8:
        return torch.where(values < 0, -code, code).to(dtype), scales
    return torch.where((size > 0) & usable.isfinite(), code.clamp(min=1.0), code).to(dtype), scales

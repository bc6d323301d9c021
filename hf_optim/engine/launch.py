"""What a kernel is launched with, and what launches it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from hf_optim.engine.trace import Program


def on_host(numbers: Sequence[Any]) -> torch.Tensor:
    """Whole numbers on the host, whatever torch's default device is."""
    return torch.tensor(numbers, dtype=torch.int64, device="cpu")


@dataclass
class Launch:
    """The tables are those of `hf_optim.engine.passes`."""

    table: torch.Tensor
    which: torch.Tensor
    where: torch.Tensor
    first: torch.Tensor
    sizes: torch.Tensor
    row: torch.Tensor
    #: one list of numbers a cohort, or the numbers on the device
    numbers: list[list[float]] | torch.Tensor
    sums: torch.Tensor | None
    keys: torch.Tensor | None
    origin: torch.Tensor
    #: change with `table` (and its addresses), with chunks, and with `row`
    versions: tuple[int, int, int]
    device: torch.device
    #: of which `keys` are made: each cohort's step count, and int64 (rows), each parameter's number among all
    times: list[int]
    index: torch.Tensor
    recipe: Program | None = None
    #: on an accelerator: float64; while it is not 0, the pass leaves everything alone
    halt: torch.Tensor | None = None


class Launcher:
    """Runs one program on one kind of device."""

    #: elements of a chunk
    chunk: ClassVar[int]
    #: whether a launch returns before it is done
    ahead: ClassVar[bool] = False

    def __init__(self, program: Program) -> None:
        """Begin to build. Raises kernels.Unbuildable if that is known to be impossible."""
        raise NotImplementedError

    def forget(self) -> None:
        """Put every table where the kernel reads it again with the next launch."""

    def launch(self, request: Launch) -> torch.Tensor | None:
        """Run; the sums, float64 (rows, terms). Raises kernels.Unbuildable before anything moved."""
        raise NotImplementedError

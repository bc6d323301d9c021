"""Who runs kernels on a device: C++ on a CPU, Triton on an accelerator, or nobody, and why."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from itertools import chain

import torch

from hf_optim.core.wording import both
from hf_optim.engine import emit_cpp, fallback, kernels
from hf_optim.engine.launch import Launch, Launcher
from hf_optim.engine.trace import Program


class CppLauncher(Launcher):
    """C++ on a CPU."""

    chunk = emit_cpp.CHUNK

    def __init__(self, program: Program) -> None:
        self._terms = len(program.terms)
        try:
            self._building = kernels.build(emit_cpp.emit(program))
        except ValueError as e:
            raise kernels.Unbuildable(str(e)) from e
        self._arguments = kernels.Arguments(chunk=self.chunk)
        self._versions = (-1, -1, -1)
        self._numbers = array("d")
        self._partial = self._total = torch.empty(0)
        self._kept: Launch | None = None

    def launch(self, request: Launch) -> torch.Tensor | None:
        kernel, a = self._building.kernel(), self._arguments
        self._kept = request  # its tables must outlive the addresses
        if self._versions != request.versions:
            self._versions = request.versions
            a.table, a.which, a.where = request.table.data_ptr(), request.which.data_ptr(), request.where.data_ptr()
            a.sizes, a.row, a.origin = request.sizes.data_ptr(), request.row.data_ptr(), request.origin.data_ptr()
            a.tensors, a.chunks = len(request.sizes), len(request.which)
            if self._terms:
                self._partial = torch.empty(len(request.which), self._terms, dtype=torch.float64, device="cpu")
                a.partial = self._partial.data_ptr()
        self._numbers = array("d", chain.from_iterable(request.numbers))
        a.numbers = self._numbers.buffer_info()[0]
        a.sums = None if request.sums is None else request.sums.data_ptr()
        a.keys = None if request.keys is None else request.keys.data_ptr()
        kernel.launch(a, torch.get_num_threads())
        if not self._terms:
            return None
        total = torch.empty(len(request.sizes), self._terms, dtype=torch.float64, device="cpu")
        assert kernel.gather is not None
        kernel.gather(a.partial, request.first.data_ptr(), len(request.sizes), total.data_ptr())
        return total


def launcher(device: torch.device) -> type[Launcher]:
    """What runs kernels on a device. (HF_OPTIM_KERNELS=triton takes Triton's interpreter for a CPU.)

    Raises:
        kernels.Unbuildable: nothing does, or shall.
    """
    off = kernels.switched_off()
    if off:
        raise kernels.Unbuildable(off)
    if device.type == "cpu" and not kernels.triton_everywhere():
        kernels.compiler()
        return CppLauncher
    from hf_optim.engine import launch_triton  # Triton is imported where it is used

    why = launch_triton.why_not(device)
    if why:
        raise kernels.Unbuildable(why)
    return launch_triton.TritonLauncher


def ahead(device: torch.device) -> bool:
    """Whether kernels run on a device that need not be waited for."""
    try:
        return fallback.current().kernels and launcher(device).ahead
    except kernels.Unbuildable:
        return False


def execution(tensors: Sequence[torch.Tensor], why: Sequence[tuple[int, str]], unwanted: str | None) -> str:
    """How steps over these tensors run, in words: "C++ kernels", "blocks: compile=False", ...

    Args:
        why: (how many, why) of tensors that no kernel takes.
        unwanted: why no kernels are wanted.
    """
    devices = {t.device for t in tensors}
    slow = both(sorted({"blocks" if d.type in fallback.current().blocked else "lists" for d in devices}))
    reasons = [unwanted] if unwanted else []
    for device in sorted(devices, key=str):
        try:
            launcher(device)
        except kernels.Unbuildable as e:
            reasons.append(str(e))
    if len(reasons) == len(devices) or unwanted:
        return f"{slow}: {reasons[0]}"
    fast = "Triton kernels" if any(map(ahead, devices)) else "C++ kernels"
    if not why:
        return fast
    count = sum(n for n, _ in why)
    some = "" if count == len(tensors) else f"{fast}; {count} of {len(tensors)} tensors "
    return f"{some}{slow}: {'; '.join(dict.fromkeys(reason for _, reason in why))}"

"""Kernels of an accelerator: emitted Triton, loaded, given its tables on the device, and launched without waiting.

Whatever goes up (addresses, numbers, rows) goes up from a fresh pinned tensor each time: torch's allocator of pinned
memory keeps it until the copy is done, so no step overwrites what another has not read yet. Everything is launched on
its device's current stream, inside that device's context.

Triton keeps what it compiles on disk itself ($TRITON_CACHE_DIR, else ~/.triton), by the source and the kind of device;
the sources stay in memory. Under TRITON_INTERPRET=1 the same kernels run on a CPU, in NumPy, slowly.
"""

from __future__ import annotations

import hashlib
import linecache
import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from types import ModuleType
from typing import Any

import torch

from hf_optim.engine.emit_triton import Place, emit, emit_scalars
from hf_optim.engine.kernels import Unbuildable
from hf_optim.engine.launch import Launch, Launcher
from hf_optim.engine.mode import Another, Mode, mode
from hf_optim.engine.trace import Program
from hf_optim.errors import first_line

#: how many partial sums are added side by side, and how many instances of a scalar program run in one program
_LANES = 256
_WARPS = 4


def start(kernel: Any, grid: int, *arguments: Any, **more: Any) -> None:
    """Launch a kernel."""
    now = mode()
    if now.log is not None:
        now.log.append((kernel, grid))
    if now.launches:
        _launch(kernel, grid, arguments, more)


def _launch(kernel: Any, grid: int, arguments: tuple[Any, ...], more: dict[str, Any]) -> None:
    kernel[(grid,)](*arguments, **more)


def up(values: Any, dtype: torch.dtype, device: torch.device, there: torch.Tensor | None = None) -> torch.Tensor:
    """Numbers (nested lists, or a tensor on the CPU) as a tensor on the device, without waiting.

    Args:
        there: where they were put the last time.

    Raises:
        Another: nothing of this form was put there.
    """
    uploads = mode().uploads
    fresh = torch.as_tensor(values, dtype=dtype, device="cpu")
    if uploads != "new" and (there is None or there.shape != fresh.shape):
        raise Another
    if uploads == "keep":
        return there  # type: ignore[return-value]
    if device.type == "cuda":
        fresh = fresh.pin_memory()
    return fresh.to(device, non_blocking=True) if uploads == "new" else there.copy_(fresh, non_blocking=True)  # type: ignore[union-attr]


def interpreted() -> bool:
    """Whether Triton runs in its interpreter, on a CPU."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "yes", "on")


@cache
def why_not(device: torch.device) -> str | None:
    """Why Triton's kernels do not run on a device; None if they do. Tried once, with a small kernel."""
    if device.type == "cpu" and not interpreted():
        return "Triton has no CPU"
    if device.type not in ("cpu", "cuda") or torch.version.hip:
        return f"there are no kernels for {'ROCm' if torch.version.hip else device.type}"
    try:
        import triton  # noqa: F401
    except ImportError:
        return "Triton is not installed (pip install triton)"
    try:
        table = torch.zeros(1, 1, dtype=torch.float64, device=device)
        nothing = Program(torch.float64, (), ("a",), (), (), (), ())
        Scalars(nothing, {"a": Place("table", 0, 1)}, {}, {"table": torch.float64}, alone=False)(1, 1, table=table)
    except Exception as e:  # whatever a compiler may raise: no C compiler, no Python.h, an old driver
        return f"Triton fails here: {first_line(e)}"
    return None


@cache
def module(source: str) -> ModuleType:
    """An emitted module. Triton asks for the text of what it compiles, and finds it where Python keeps source lines."""
    name = f"<hf_optim {hashlib.sha256(source.encode()).hexdigest()[:16]}>"
    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
    namespace = ModuleType(name)
    namespace.__file__ = name
    exec(compile(source, name, "exec"), namespace.__dict__)
    return namespace


def on(device: torch.device) -> AbstractContextManager[Any]:
    """The context in which a device's kernels are launched."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


class TritonLauncher(Launcher):
    """Triton on CUDA, or in its interpreter."""

    #: without a loop in the kernel; part of the sums' definition, so never tuned
    chunk = 1024
    ahead = True

    def __init__(self, program: Program) -> None:
        self._program = program
        self._module = module(emit(program))
        self._recipe: Program | None = None
        self._there: dict[str, torch.Tensor] = {}
        self._versions = (-1, -1, -1)
        self._compiled: set[bool] = set()

    def launch(self, request: Launch) -> torch.Tensor | None:
        device, program, there = request.device, self._program, self._there
        if request.recipe is not self._recipe:
            self._module, self._recipe = module(emit(program, request.recipe)), request.recipe
            self._compiled.clear()
        with on(device):
            self._tables(request)
            numbers = self._numbers(request)
            arguments = [
                (
                    (*(there[k] for k in ("table", "which", "where", "sizes")), row, numbers,
                     numbers if request.sums is None else request.sums,
                     *(there[k] for k in ("partial", "index", "origin")),
                     there["never"] if request.halt is None else request.halt, len(request.sizes)),
                    {"CHUNK": self.chunk, "ALIGNED": aligned, "num_warps": _WARPS, "enable_fp_fusion": False},
                )
                for row, aligned in self._row
            ]  # fmt: skip
            for given, more in arguments:
                self._compile(given, more, (len(request.which),))
            for given, more in arguments:
                start(self._module.hf_optim_pass, len(request.which), *given, **more)
            if not program.terms:
                return None
            total = torch.empty(len(request.sizes), len(program.terms), dtype=torch.float64, device=device)
            start(
                self._module.hf_optim_gather, len(total), there["partial"], there["first"], there["row"], total,
                TERMS=len(program.terms), LANES=_LANES, num_warps=_WARPS,
            )  # fmt: skip
            return total

    def forget(self) -> None:
        """Put everything on the device again with the next launch."""
        self._versions = (-1, -1, -1)

    def _compile(self, given: tuple[Any, ...], more: dict[str, Any], grid: tuple[int]) -> None:
        """Before anything is launched, since what fails here shall not have moved anything."""
        if more["ALIGNED"] not in self._compiled:
            try:
                # Triton 3.2's interpreter has none: it compiles nothing.
                getattr(self._module.hf_optim_pass, "warmup", lambda *given, **more: None)(*given, grid=grid, **more)
            except Exception as e:  # whatever a compiler may raise
                raise Unbuildable(f"Triton: {first_line(e)}") from e
            self._compiled.add(more["ALIGNED"])

    def _up(self, name: str, values: Any, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        self._there[name] = up(values, dtype, device, self._there.get(name))
        return self._there[name]

    def _tables(self, request: Launch) -> None:
        """Put on the device what has changed."""
        device, versions = request.device, request.versions
        if versions == self._versions:
            return
        placed, chunks, rows = (new != old for new, old in zip(versions, self._versions, strict=True))
        if placed:
            self._up("table", request.table, torch.int64, device)
            self._aligned = (request.table % 16 == 0).all(0)
        if chunks:
            for name in ("where", "sizes", "index", "origin"):
                self._up(name, getattr(request, name), torch.int64, device)
            for name in ("which", "first"):
                self._up(name, getattr(request, name), torch.int32, device)
            if mode().uploads == "new":
                terms = max(1, len(self._program.terms))
                self._there["partial"] = torch.empty(len(request.which), terms, dtype=torch.float64, device=device)
                self._there["never"] = torch.zeros(1, dtype=torch.float64, device=device)
        if placed or rows:
            self._place_rows(request, torch.full_like(request.row, -1) if mode().idle else request.row)
        self._versions = versions

    def _place_rows(self, request: Launch, row: torch.Tensor) -> None:
        """Which row of numbers each tensor reads, and of those tensors alone that lie at multiples of 16, or do not:
        each alignment has a launch of its own."""
        everyone = self._up("row", row, torch.int32, request.device)
        kinds = set(self._aligned[request.row >= 0].tolist())
        if len(kinds) < 2 and mode() == Mode():
            self._row = [(everyone, True in kinds)]
            return
        own = {
            kind: self._up(f"row {kind}", torch.where(self._aligned == kind, row, -1), torch.int32, request.device)
            for kind in (True, False)
        }
        self._row = [(everyone, True in kinds)] if len(kinds) < 2 else [(own[kind], kind) for kind in own]

    def _numbers(self, request: Launch) -> torch.Tensor:
        """The numbers on the device; they may lie there already."""
        if isinstance(request.numbers, torch.Tensor):
            return request.numbers
        rows = [[*row, float(t)] for row, t in zip(request.numbers, request.times, strict=True)]
        return self._up("numbers", rows, torch.float64, request.device)


class Scalars:
    """A scalar program over many instances; see `hf_optim.engine.emit_triton`."""

    def __init__(
        self,
        program: Program,
        reads: Mapping[str, Place],
        stores: Mapping[str, Sequence[Place]],
        dtypes: Mapping[str, torch.dtype],
        alone: bool,
    ) -> None:
        self.program = program
        self._names, self._alone = tuple(dtypes), alone
        self._module = module(emit_scalars(program, reads, stores, dtypes, alone))

    def __call__(self, count: int, rows: int, **tables: torch.Tensor) -> None:
        """Run over `count` instances; sums run over `rows` rows."""
        grid = 1 if self._alone else (count + _LANES - 1) // _LANES
        with on(tables[self._names[0]].device):
            start(
                self._module.hf_optim_scalars, grid, *(tables[k] for k in self._names), count, rows, BLOCK=_LANES,
                num_warps=1 if self._alone else _WARPS, enable_fp_fusion=False,
            )  # fmt: skip

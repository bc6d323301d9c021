"""Every name on the device against itself in float64 on the CPU without kernels; what a step launches and waits for."""

from __future__ import annotations

from typing import Any

import torch
from gpu_common import Launches, arguments, distance, rows, waits, walk

from hf_optim.check.candidate import Candidate
from hf_optim.engine.fallback import limits


def of_a_step(run: Any, t: int, device: torch.device) -> dict[str, Any]:
    """What one call of the optimizer's step waits for and launches; forward and backward are left out."""
    figures: dict[str, Any] = {}
    plain = run.opt.step

    def step(*args: Any, **more: Any) -> Any:
        out: list[Any] = []
        with Launches() as launches:
            figures["waits"] = waits(lambda: out.append(plain(*args, **more)), device)
        figures["launches"] = launches.count
        return out[0]

    run.opt.step = step
    run.step(t)
    return figures


def main() -> None:
    device, names, output = arguments(__doc__ or "")
    steps = 12 if device.type == "cuda" else 3

    def row(name: str) -> dict[str, Any]:
        candidate = Candidate(name)
        if candidate.trouble:
            return {"error": candidate.trouble}
        with limits(kernels=False):
            exact = walk(candidate, torch.device("cpu"), torch.float64).go(0, steps).params()
        figures: dict[str, Any] = {}
        for label, dtype in (("float64", torch.float64), ("float32", torch.float32), ("bfloat16", torch.bfloat16)):
            run = walk(candidate, device, dtype)
            run.go(0, steps)
            figures[label] = distance(run.params(), exact)
            if dtype is torch.float32:
                figures["execution"] = getattr(run.opt, "execution", None)
                figures |= of_a_step(run, steps, device)
        return figures

    rows(output, names, row, steps=steps)


if __name__ == "__main__":
    main()

"""Every name on the device against itself in float64 on the CPU without kernels; what a step launches and waits for."""

from __future__ import annotations

from typing import Any

import torch
from gpu_common import Launches, arguments, distance, rows, waits, walk

from hf_optim.check.candidate import Candidate
from hf_optim.engine.fallback import limits


def of_a_step(run: Any, t: int, device: torch.device) -> dict[str, Any]:
    """What one call of the optimizer's step waits for and launches; forward and backward are left out."""
    found: dict[str, Any] = {}
    plain = run.opt.step

    def step(*args: Any, **more: Any) -> Any:
        out: list[Any] = []
        with Launches() as launches:
            found["waits"] = waits(lambda: out.append(plain(*args, **more)), device)
        found["launches"] = launches.count
        return out[0]

    run.opt.step = step
    run.step(t)
    return found


def main() -> None:
    device, names, output = arguments(__doc__ or "")
    steps = 12 if device.type == "cuda" else 3

    def row(name: str) -> dict[str, Any]:
        candidate = Candidate(name)
        if candidate.trouble:
            return {"error": candidate.trouble}
        with limits(kernels=False):
            exact = walk(candidate, torch.device("cpu"), torch.float64).go(0, steps).params()
        found: dict[str, Any] = {}
        for label, dtype in (("float64", torch.float64), ("float32", torch.float32), ("bfloat16", torch.bfloat16)):
            run = walk(candidate, device, dtype)
            run.go(0, steps)
            found[label] = distance(run.params(), exact)
            if dtype is torch.float32:
                found["execution"] = getattr(run.opt, "execution", None)
                found |= of_a_step(run, steps, device)
        return found

    rows(output, names, row, steps=steps)


if __name__ == "__main__":
    main()

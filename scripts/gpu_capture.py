"""A whole training step in a CUDA graph: replays against ordinary steps, with a rate that changes every step."""

from __future__ import annotations

import json
from typing import Any

import torch
from gpu_common import arguments, distance, rows

import hf_optim
from hf_optim.check.candidate import Candidate


def model(device: torch.device) -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(32, 64), torch.nn.Tanh(), torch.nn.Linear(64, 8)).to(device)


def main() -> None:
    device, names, output = arguments(__doc__ or "")
    if device.type != "cuda":
        output.write_text(json.dumps({"not_run": "CUDA graphs need CUDA; tests/triton_capture.py stands for them"}))
        return
    batches = [torch.randn(16, 32, generator=torch.Generator().manual_seed(t)).to(device) for t in range(10)]

    def row(name: str) -> dict[str, Any]:
        candidate = Candidate(name)
        if "evaluate" in candidate.needs or candidate.family == "wrapper":
            return {"not_run": "a host loop or a wrapper"}

        def run(captured: bool) -> list[torch.Tensor]:
            net = model(device)
            opt: Any = candidate.make(net.parameters())
            x, graph = batches[0].clone(), None

            def step() -> None:
                loss = net(x).square().mean() + 0.1
                loss.backward()
                opt.step(loss=loss.detach()) if opt.needs else opt.step()

            stream = torch.cuda.Stream()
            for t, batch in enumerate(batches):
                x.copy_(batch)
                for group in opt.param_groups:
                    group["lr"] = group["lr"] * 0.9
                if captured and t >= 3:
                    if graph is None:
                        opt.zero_grad(set_to_none=True)
                        graph = torch.cuda.CUDAGraph()
                        stream.wait_stream(torch.cuda.current_stream())
                        with torch.cuda.graph(graph, stream=stream):
                            step()
                    opt.before_replay()
                    graph.replay()
                else:
                    opt.zero_grad(set_to_none=True)
                    step()
            torch.cuda.synchronize()
            opt.hear()
            return list(net.parameters())

        return {"distance": distance(run(True), run(False))}

    rows(output, [n for n in names if hf_optim.info(n).family != "wrapper"], row)


if __name__ == "__main__":
    main()

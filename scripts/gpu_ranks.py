"""Two processes, a GPU each over NCCL (on a CPU gloo): DDP and FSDP2 against one process."""

from __future__ import annotations

import argparse
import json
import os
import socket
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing
from gpu_common import distance
from torch import distributed, nn

import hf_optim
from hf_optim.check.candidate import Candidate
from hf_optim.errors import one_line


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 4))


def train(net: nn.Module, opt: Any, device: torch.device, rank: int, ranks: int) -> None:
    """Four steps; each process sees its part of the batch, and the loss is the mean over all."""
    for t in range(4):
        batch = torch.randn(8, 16, generator=torch.Generator().manual_seed(t)).to(device)
        opt.zero_grad()
        loss = net(batch.chunk(ranks)[rank]).square().mean() + 0.1
        loss.backward()
        mean = loss.detach().clone()
        if ranks > 1:
            distributed.all_reduce(mean)
            mean /= ranks
        opt.step(loss=mean) if "loss" in getattr(opt, "needs", ()) else opt.step()


def worker(rank: int, kind: str, port: int, names: list[str], output: str) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "WORLD_SIZE": "2"}
    device = torch.device(kind, rank) if kind == "cuda" else torch.device("cpu")
    if kind == "cuda":
        torch.cuda.set_device(device)
    distributed.init_process_group("nccl" if kind == "cuda" else "gloo", rank=rank, world_size=2)
    mesh = distributed.device_mesh.init_device_mesh(kind, (2,))
    rows: dict[str, Any] = {}
    for name in names:
        row: dict[str, Any] = {}
        for way in ("ddp", "fsdp2"):
            try:
                candidate = Candidate(name)
                alone = model().to(device)
                train(alone, candidate.make(alone.parameters()), device, 0, 1)
                net: Any = model().to(device)
                if way == "ddp":
                    net = nn.parallel.DistributedDataParallel(net)
                else:
                    distributed.fsdp.fully_shard(net, mesh=mesh)
                train(net, candidate.make(net.parameters()), device, rank, 2)
                whole = [p.full_tensor() if hasattr(p, "full_tensor") else p for p in net.parameters()]
                row[way] = distance(whole, list(alone.parameters()))
            except Exception as e:
                row[way] = one_line(e)
        rows[name] = row
        if rank == 0:
            print(f"{name:24s} {row}", flush=True)
            Path(output).write_text(json.dumps({"rows": rows}))
    distributed.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=["cuda", "cpu"], required=True)
    parser.add_argument("--names", nargs="*", default=[])
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    if args.device == "cuda" and torch.cuda.device_count() < 2:
        args.output.write_text(json.dumps({"not_run": f"{torch.cuda.device_count()} GPU, and it needs 2"}))
        return
    names = args.names or hf_optim.list_optimizers()
    names = [n for n in names if "evaluate" not in Candidate(n).needs]
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    torch.multiprocessing.spawn(worker, (args.device, port, names, str(args.output)), nprocs=2)


if __name__ == "__main__":
    main()

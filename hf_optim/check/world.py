"""Checks in two processes, which share a step's samples and must do what one process does with all of them.

This module holds the checks, which run in each of the two, and the loop of one process; `hf_optim.check.launch` starts
the pair, once for all optimizers.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from hf_optim.check.candidate import Candidate, TrainingRun
from hf_optim.check.outcome import CHECKS, NOT, PASS, DoesNotApply, Fails, check, judge
from hf_optim.check.problem import STEPS, same
from hf_optim.check.rounding import alike
from hf_optim.core.safe_text import terminal
from hf_optim.errors import one_line

WORLD = 2
#: a collective that the other process never joins fails after this
PATIENCE = timedelta(seconds=30)


def _shared(walk: TrainingRun) -> TrainingRun:
    """A walk that takes this rank's samples and the mean loss of all ranks."""
    rank = dist.get_rank()

    def mean(loss: torch.Tensor) -> torch.Tensor:
        dist.all_reduce(loss)
        return loss / WORLD

    walk.share = lambda batch: batch.chunk(WORLD)[rank]
    walk.mean = mean
    return walk


def _single(s: Candidate, dtype: torch.dtype) -> TrainingRun:
    """The run of a single process, and where it ended in rank 0."""
    if dist.get_world_size() != WORLD:
        raise Fails(f"{dist.get_world_size()} processes instead of {WORLD}")
    walk = TrainingRun(s, dtype).go()
    with torch.no_grad():
        for p in walk.problem.params:
            dist.broadcast(p, 0)
    return walk


@check(
    "ddp",
    "two DDP processes equal one",
    world=True,
    slow=True,
    breaking="Replicas drift apart, or training on two devices is another algorithm than on one.",
)
def ddp(s: Candidate) -> str:
    from torch.nn.parallel import DistributedDataParallel

    if s.kind == "sparse":
        raise DoesNotApply("tried with dense gradients only")
    single = _single(s, s.wide)
    walk = _shared(TrainingRun(s, s.wide))
    walk.model = DistributedDataParallel(walk.problem)
    walk.go()
    mine = walk.params()
    for p in (other := [p.clone() for p in mine]):
        dist.broadcast(p, 0)
    same(mine, other, "the two replicas after the last step")
    return alike(single, walk, 1e-6, f"{STEPS} steps of two processes against one, {s.precision}")


@check(
    "fsdp",
    "FSDP2 over two processes equals one",
    world=True,
    slow=True,
    breaking="A sharded run crashes, or takes a norm or a sum over this process's part of a tensor, not the whole.",
)
def fsdp(s: Candidate) -> str:
    if s.kind == "sparse":
        raise DoesNotApply("FSDP2 shards no sparse gradients")
    if not hasattr(torch.cpu.Stream, "record_event"):
        raise DoesNotApply(f"the FSDP2 of torch {torch.__version__} runs on no CPU; that of 2.7 does")
    try:
        return _sharded(s, s.wide)
    except (Fails, DoesNotApply):
        raise
    except Exception:  # noqa: BLE001 - an operator that takes float64 whole may refuse it sharded: what of float32?
        if s.wide is torch.float32:
            raise
        return _sharded(s, torch.float32)


def _sharded(s: Candidate, dtype: torch.dtype) -> str:
    """Sharded over the processes against one of them, in `dtype`."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor

    single = _single(s, dtype)
    whole = TrainingRun(s, dtype).problem
    fully_shard(whole, mesh=init_device_mesh("cpu", (WORLD,)))
    sharded = [p for p in whole.params if isinstance(p, DTensor) and p.to_local().numel() < p.numel()]
    if not sharded:
        raise Fails("the test itself is broken: nothing was sharded")
    _shared(walk := TrainingRun(s, problem=whole)).go()
    gathered = TrainingRun(s, dtype)
    with torch.no_grad():
        for p, part in zip(gathered.problem.params, walk.problem.params, strict=True):
            p.copy_(part.full_tensor())  # type: ignore[attr-defined]
    precision = str(dtype).removeprefix("torch.")
    return alike(single, gathered, 1e-6, f"{STEPS} sharded steps against one process, {precision}")


# --- one of the two processes ----------------------------------------------------------------------------------------


def main(folder: Path, rank: int, first: int) -> int:
    """Run the jobs from number `first` on; exit code 3 when this pair of processes cannot go on after a failure."""
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    jobs = json.loads((folder / "jobs.json").read_text())
    meeting = dist.FileStore(str(folder / f"meeting-{first}"), WORLD)
    meeting.set_timeout(PATIENCE)
    candidates: dict[str, Candidate] = {}
    with open(folder / f"rank{rank}.jsonl", "a", encoding="utf-8") as out:
        fresh = True
        for number, job in enumerate(jobs[first:], first):
            if fresh:
                store = dist.FileStore(str(folder / f"group-{number}"), WORLD)
                dist.init_process_group("gloo", store=store, rank=rank, world_size=WORLD, timeout=PATIENCE)
            key = json.dumps(job["candidate"])
            if key not in candidates:
                candidates[key] = Candidate(**job["candidate"])
            status, why = judge(CHECKS[job["check"]], candidates[key])
            print(json.dumps({"job": number, "status": status, "why": why}), file=out, flush=True)
            meeting.set(f"{number}/{rank}", status)
            try:
                meeting.wait([f"{number}/{1 - rank}"])
            except Exception as error:  # noqa: BLE001 - the other one hangs or has gone
                print(terminal(f"rank {rank}: {one_line(error)}"), file=sys.stderr)
                os._exit(3)  # not through the process group, which may wait for the other one
            fresh = not {status, meeting.get(f"{number}/{1 - rank}").decode()} <= {PASS, NOT}
            if fresh:  # what the failed check left half done must not meet the next one's collectives
                dist.destroy_process_group()
    if not fresh:
        dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    from hf_optim.check import world

    raise SystemExit(world.main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))

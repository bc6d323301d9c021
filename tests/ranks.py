"""Scripts in processes of their own, alone or in a group as torchrun starts it, without their imports.

A new interpreter spends ten seconds on torch and Trainer. Here one has imported them and does nothing else: every
process is forked from it, and is as much a process of its own. Launchers themselves are started by
test_distributed_launch.py, test_hub_frameworks.py and test_study_members.py.
"""

from __future__ import annotations

import atexit
import ctypes
import gc
import json
import os
import runpy
import select
import signal
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
#: seconds after which a script that does not end is taken to hang
BOUND = 600
#: what no process of a group inherits
LAUNCHERS = ("ACCELERATE_", "MASTER_", "TORCHELASTIC_", "FSDP_")

_server: list[subprocess.Popen[str]] = []


def run(script: str | Path, *arguments: object, world: int | None = None) -> str:
    """Run a script to its end, `world` times side by side as one group (None: alone), from the repository's root; gives
    what was printed. Fails when one of them fails, with the last of what it said.
    """
    server = _started()
    environment = {k: v for k, v in os.environ.items() if not k.startswith(LAUNCHERS)}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    job = {"argv": [str(ROOT / script), *map(str, arguments)], "world": world, "environment": environment}
    assert server.stdin is not None and server.stdout is not None
    server.stdin.write(json.dumps(job) + "\n")
    server.stdin.flush()
    ready, _, _ = select.select([server.stdout], [], [], BOUND)
    if not ready:
        close()
        raise AssertionError(f"{script}: not at its end after {BOUND} s")
    answer = json.loads(server.stdout.readline())
    assert not any(answer["codes"]), f"{script} ended with {answer['codes']}: {answer['said'][-4000:]}"
    return str(answer["said"])


def _started() -> subprocess.Popen[str]:
    if not _server:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
        _server.append(
            subprocess.Popen(
                [sys.executable, __file__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                cwd=ROOT,
                env=environment,
            )
        )
        atexit.register(close)
    return _server[0]


def close() -> None:
    """End the process that others are forked from, and those with it."""
    while _server:
        process = _server.pop()
        process.kill()
        process.communicate()


# --- what the other process does --------------------------------------------------------------------------------------


def serve() -> None:
    """A line for every job, a line for every answer; ends with its input."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    _preload()
    for line in sys.stdin:
        job = json.loads(line)
        answers.write(json.dumps(_group(**job)) + "\n")
        answers.flush()


def _preload() -> None:
    """No more than imports: no thread is running when a process is forked."""
    import accelerate
    import datasets
    import evaluate
    import sklearn.metrics
    import torch.distributed.checkpoint.state_dict
    import torch.distributed.fsdp
    import transformers

    import hf_optim.bases.optimizer
    import hf_optim.experiment.training

    assert all((accelerate, datasets, evaluate, sklearn, transformers, hf_optim))  # they are for those that follow
    torch.set_num_threads(1)
    gc.freeze()  # Trainer collects garbage whenever it begins, and memory is shared until it is looked at


def _group(argv: list[str], world: int | None, environment: dict[str, str]) -> dict[str, Any]:
    from torch.distributed import TCPStore

    log, (waits, tells) = tempfile.TemporaryFile(), os.pipe()  # noqa: SIM115 - the members write to it, too
    pids = []
    for rank in range(world or 1):
        if (pid := os.fork()) == 0:
            os.close(tells)
            _member(argv, environment, log.fileno(), waits, rank, world)
        pids.append(pid)
    os.close(waits)
    store = None
    if world is not None:  # its thread begins when all have been forked
        store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        os.write(tells, b"".join(f"{store.port:<8}".encode() for _ in pids))
    os.close(tells)
    codes = {}
    for _ in pids:
        pid, status = os.wait()
        codes[pid] = os.waitstatus_to_exitcode(status)
        if codes[pid]:  # as torchrun does: nobody waits for one that is gone
            for other in set(pids) - set(codes):
                os.kill(other, signal.SIGKILL)
    del store
    with log:
        log.seek(0)
        return {"codes": [codes[pid] for pid in pids], "said": log.read().decode(errors="replace")}


def _member(argv: list[str], environment: dict[str, str], log: int, waits: int, rank: int, world: int | None) -> None:
    code = 1
    try:
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(log, 1), os.dup2(log, 2)
        os.environ.clear()
        os.environ.update(environment)
        if world is not None:
            port = os.read(waits, 8).decode().strip()
            ours = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "GROUP_RANK": 0}
            agent = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_USE_AGENT_STORE": "True"}
            agent |= {"TORCHELASTIC_RESTART_COUNT": "0", "TORCHELASTIC_RUN_ID": "none"}
            os.environ.update({**{k: str(v) for k, v in ours.items()}, **agent})
        sys.argv[:] = argv
        sys.path[0] = str(Path(argv[0]).parent)
        runpy.run_path(argv[0], run_name="__main__")
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    serve()

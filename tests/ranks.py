"""Scripts in processes of their own, alone or in a group as torchrun starts it, without their imports.

A new interpreter spends ten seconds on torch and Trainer. Here one has imported them and does nothing else, for all
processes that test: every process is forked from it, and is as much a process of its own. Launchers whose interpreters
are new are started by test_distributed_launch.py, test_hub_frameworks.py and test_study_members.py.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import fcntl
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).parent.parent
#: seconds after which a script that does not end is taken to hang
BOUND = 600
#: what no process of a group inherits
LAUNCHERS = ("ACCELERATE_", "MASTER_", "TORCHELASTIC_", "FSDP_")
#: what scripts spend their first seconds on, as far as the environment has it: hf_optim's extras have less each
IMPORTED = ("torch._dynamo", "torch.distributed.checkpoint.state_dict", "torch.distributed.fsdp", "transformers",
            "accelerate", "datasets", "evaluate", "sklearn.metrics", "hf_optim.bases.optimizer",
            "hf_optim.experiment.training")  # fmt: skip
#: as it was before a test changed it: the process that imports serves them all
_ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}

#: the folder in which the processes that test find the one that imports (conftest.py); None: it is this process's alone
meeting: Path | None = None
#: the connection to a process forked from that one, and its number
_ours: list[tuple[socket.socket, int]] = []


def run(script: str | Path, *arguments: object, world: int | None = None) -> str:
    """Run a script to its end, `world` times side by side as one group (None: alone), from the repository's root; gives
    what was printed. Fails when one of them fails, with the last of what it said.
    """
    codes, said = ask(argv=[str(ROOT / script), *map(str, arguments)], world=world, environment=environment())
    assert not any(codes), f"{script} ended with {codes}: {said[-4000:]}"
    return said


def program(text: str, *arguments: object, world: int | None = None) -> str:
    """The same for the text of a program, as `python -c` takes it."""
    codes, said = ask(argv=["-c", text, *map(str, arguments)], world=world, environment=environment())
    assert not any(codes), f"ended with {codes}: {said[-4000:]}"
    return said


def environment() -> dict[str, str]:
    """What a process finds that is started here and now."""
    ours = {k: v for k, v in os.environ.items() if not k.startswith(LAUNCHERS)}
    return ours | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}


def ask(**job: Any) -> tuple[list[int], str]:
    """How the processes of a job ended, and what they said."""
    connection = _connected()
    connection.sendall(json.dumps(job).encode() + b"\n")
    answer = json.loads(_line(connection, str(job["argv"])))
    return answer["codes"], answer["said"]


def _line(connection: socket.socket, what: str) -> bytes:
    if not select.select([connection], [], [], BOUND)[0]:
        close()
        raise AssertionError(f"{what}: not at its end after {BOUND} s")
    with connection.makefile("rb") as lines:
        line = lines.readline()
    assert line.endswith(b"\n"), f"{what}: the process that others are forked from is gone"
    return line


def _connected() -> socket.socket:
    if not _ours:
        place = meeting or Path(tempfile.mkdtemp())
        with (place / "ranks.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            connection = _reached(place / "ranks") or _begun(place)
            _ours.append((connection, int(_line(connection, "imports"))))
        atexit.register(close)
    return _ours[0][0]


def _reached(place: Path) -> socket.socket | None:
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(str(place))
    except OSError:
        connection.close()
        return None
    return connection


def _begun(place: Path) -> socket.socket:
    command = [sys.executable, __file__, str(place)]
    server = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, cwd=ROOT, env=_ENVIRONMENT)
    while (connection := _reached(place / "ranks")) is None:
        assert server.poll() is None, "the process that others are forked from did not begin"
        time.sleep(0.02)
    return connection


def close() -> None:
    """End what is forked for this process; the one that imports ends when it serves nobody."""
    while _ours:
        connection, process = _ours.pop()
        connection.close()
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


# --- what the other process does --------------------------------------------------------------------------------------


def serve(place: Path) -> None:
    """A process for every connection; ends when there is none, and nobody who is about to make one."""
    (place / "ranks").unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(place / "ranks"))
    listener.listen()
    _preload()
    listener.settimeout(0.5)
    served: set[int] = set()
    lock = (place / "ranks.lock").open("w")
    while True:
        try:
            connection, _ = listener.accept()
        except TimeoutError:
            served -= {pid for pid in served if os.waitpid(pid, os.WNOHANG)[0]}
            if not served and _taken(lock):
                (place / "ranks").unlink()
                return
            continue
        if (pid := os.fork()) == 0:
            listener.close()
            _answer(connection)
            os._exit(0)
        connection.close()
        served.add(pid)


def _taken(lock: Any) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _answer(connection: socket.socket) -> None:
    """A line for every job, a line for every answer; ends with its input."""
    connection.setblocking(True)
    connection.sendall(f"{os.getpid()}\n".encode())
    for line in connection.makefile("rb"):
        connection.sendall(json.dumps(_group(**json.loads(line))).encode() + b"\n")


def _preload() -> None:
    """No more than imports, of what is installed: no thread is running when a process is forked."""
    import torch

    for name in IMPORTED:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    torch.set_num_threads(1)
    gc.freeze()  # Trainer collects garbage whenever it begins, and memory is shared until it is looked at


def _group(argv: list[str], world: int | None, environment: dict[str, str], launcher: bool = False) -> dict[str, Any]:
    from torch.distributed import TCPStore

    log, (waits, tells) = tempfile.TemporaryFile(), os.pipe()  # noqa: SIM115 - the members write to it, too
    pids = []
    for rank in range(world or 1):
        if (pid := os.fork()) == 0:
            os.close(tells)
            to_the_end(lambda rank=rank: _member(argv, environment, log.fileno(), waits, rank, world, launcher))
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


def to_the_end(work: Callable[[], object]) -> NoReturn:
    """Do the work of a forked process, and end as an interpreter does."""
    code = 1
    try:
        work()
        code = 0
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)


def _member(
    argv: list[str], environment: dict[str, str], log: int, waits: int, rank: int, world: int | None, launcher: bool
) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(log, 1), os.dup2(log, 2)
    os.environ.clear()
    os.environ.update(environment)
    if launcher:
        import forked

        forked.begin(argv)
        return
    if world is not None:
        port = os.read(waits, 8).decode().strip()
        ours = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "GROUP_RANK": 0}
        agent = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_USE_AGENT_STORE": "True"}
        agent |= {"TORCHELASTIC_RESTART_COUNT": "0", "TORCHELASTIC_RUN_ID": "none"}
        os.environ.update({**{k: str(v) for k, v in ours.items()}, **agent})
    if argv[0] == "-c":
        sys.argv[:] = ["-c", *argv[2:]]
        exec(compile(argv[1], "<program>", "exec"), {"__name__": "__main__"})
        return
    sys.argv[:] = argv
    sys.path[0] = str(Path(argv[0]).parent)
    runpy.run_path(argv[0], run_name="__main__")


if __name__ == "__main__":
    serve(Path(sys.argv[1]))

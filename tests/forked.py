"""Launchers (torchrun, accelerate launch) without the imports: of theirs, and of the processes that they start.

A launcher is forked from the process that has imported (ranks.py), and what it starts is forked from one that has done
no more. It is the launcher's child all the same: waited for, killed and reported by its own code. On other systems than
Linux, and with HF_OPTIM_LAUNCHERS=new, every interpreter is a new one.
"""

from __future__ import annotations

import ctypes
import functools
import inspect
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import ranks

NEW = sys.platform != "linux" or os.environ.get("HF_OPTIM_LAUNCHERS") == "new"
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36


def launch(module: str, *arguments: object, new: bool = False, **environment: str) -> tuple[int, str]:
    """`python -m MODULE ARGUMENTS` from the repository's root: its exit code, and what was printed. `new`: in new
    interpreters."""
    given = ranks.environment() | environment
    words = [module, *map(str, arguments)]
    if new or NEW:
        done = subprocess.run(
            [sys.executable, "-m", *words], cwd=ranks.ROOT, env=given, timeout=ranks.BOUND,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        return done.returncode, done.stdout
    (code,), said = ranks.ask(argv=words, world=None, environment=given, launcher=True)
    return code, said


# --- what the launcher does ------------------------------------------------------------------------------------------


def begin(words: list[str]) -> None:
    """Be the launcher: this process has been forked, and has no thread yet."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)  # a child whose parent ends is this process's
    launcher, (ours, its) = os.getpid(), socket.socketpair()
    if os.fork() == 0:
        ours.close()
        ranks.to_the_end(lambda: _serve(its, launcher))
    its.close()
    started = ours.makefile("rb")
    execute = subprocess.Popen._execute_child  # type: ignore[attr-defined]
    signature = inspect.signature(execute)

    def forked(self: Any, args: Any, *rest: Any) -> None:
        given = signature.bind(self, args, *rest).arguments
        if isinstance(args, str) or args[0] != sys.executable:
            execute(self, args, *rest)
            return
        kept = ("p2cread", "c2pwrite", "errwrite", "cwd", "preexec_fn")
        assert all(given[k] in (-1, None) for k in kept) and given["start_new_session"], "not as torchrun starts them"
        ours.sendall(json.dumps({"words": list(args[1:]), "environment": given["env"]}).encode() + b"\n")
        self.pid = int(started.readline())
        self._child_created = True

    subprocess.Popen._execute_child = forked  # type: ignore[attr-defined]
    _as_python(["-m", *words])


def _serve(requests: socket.socket, launcher: int) -> None:
    """Forks what the launcher asks for, by way of a process that ends: then it is the launcher's child."""
    for line in requests.makefile("rb"):
        told, tells = os.pipe()
        if (between := os.fork()) == 0:
            if (pid := os.fork()) == 0:
                requests.close()
                ranks.to_the_end(functools.partial(_started, launcher, **json.loads(line)))
            os.write(tells, str(pid).encode())
            os._exit(0)
        os.waitpid(between, 0)
        requests.sendall(os.read(told, 20) + b"\n")
        os.close(told), os.close(tells)


def _started(launcher: int, words: list[str], environment: dict[str, str]) -> None:
    while os.getppid() != launcher:
        time.sleep(0.001)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    os.setsid()
    os.environ.clear()
    os.environ.update(environment)
    _as_python(words)


def _as_python(words: list[str]) -> None:
    """Do what `python WORDS` does, of `-u`, `-m MODULE` and a script."""
    words = words[words[0] == "-u" :]
    if words[0] == "-m":
        sys.argv[:], sys.path[0] = words[1:], os.getcwd()
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv[:], sys.path[0] = words, str(Path(words[0]).parent)
        runpy.run_path(words[0], run_name="__main__")

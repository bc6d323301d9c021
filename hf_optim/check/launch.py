"""Starts the two processes of the `world` checks, once for all optimizers, and outlives what they break."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hf_optim.check.outcome import FAIL, NOT, PASS

RANKS = (0, 1)
#: seconds without any result after which a pair of processes counts as hanging
PATIENCE = 90.0

Verdict = tuple[str, str]


def run(jobs: list[dict[str, Any]], done: Callable[[int, Verdict], None], stop: threading.Event) -> None:
    """Run jobs {"candidate": Candidate.spec(), "check": id} in two processes; `done(number, (status, why))` for each.
    Setting `stop` ends the processes and leaves the rest undone."""
    with tempfile.TemporaryDirectory(prefix="hf-optim-check-") as name:
        folder, first = Path(name), 0
        (folder / "jobs.json").write_text(json.dumps(jobs))
        while first < len(jobs) and not stop.is_set():
            first = _pair(folder, first, len(jobs), done, stop)


def _pair(folder: Path, first: int, total: int, done: Callable[[int, Verdict], None], stop: threading.Event) -> int:
    """One pair of processes, from job `first` on; returns the number of the first job that was not done."""
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *filter(None, sys.path)]),
    }
    errors = [open(folder / f"rank{r}.err", "w+", encoding="utf-8") for r in RANKS]  # noqa: SIM115
    processes = [
        subprocess.Popen(
            # -P: a file in the current folder must not shadow a package.
            [
                sys.executable,
                "-P",
                "-m",
                "hf_optim.core.importing",
                "hf_optim.check.world",
                str(folder),
                str(r),
                str(first),
            ],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=errors[r],
        )
        for r in RANKS
    ]
    last, number = time.monotonic(), first
    try:
        while number < total and not stop.is_set():
            verdicts = [_read(folder / f"rank{r}.jsonl").get(number) for r in RANKS]
            if all(verdicts):
                done(number, _merged([v for v in verdicts if v]))
                number, last = number + 1, time.monotonic()
                continue
            codes = [p.poll() for p in processes]
            hanging = time.monotonic() - last > PATIENCE
            if hanging or any(code is not None for code in codes):
                verdicts = [_read(folder / f"rank{r}.jsonl").get(number) for r in RANKS]
                if all(verdicts):
                    continue
                done(number, _broken([v for v in verdicts if v], codes, errors))
                return number + 1
            time.sleep(0.05)
        return number
    finally:
        for p in processes:
            if number < total and p.poll() is None:
                p.kill()
            p.wait(PATIENCE)
        for file in errors:
            file.close()


def _read(path: Path) -> dict[int, Verdict]:
    if not path.exists():
        return {}
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]  # the last one may be half written
    return {r["job"]: (r["status"], r["why"]) for r in map(json.loads, lines)}


def _merged(verdicts: list[Verdict]) -> Verdict:
    """The worse of the two ranks' verdicts."""
    return max(verdicts, key=lambda v: (PASS, NOT, FAIL).index(v[0]))


def _broken(known: list[Verdict], codes: list[int | None], errors: list[Any]) -> Verdict:
    """Why there is no pair of verdicts: one rank failed and the other waits for it, or a process died."""
    for code, file in zip(codes, errors, strict=True):
        if code not in (None, 0, 3):
            file.seek(0)
            lines = [line.strip() for line in file.read().splitlines() if line.strip()]
            return FAIL, f"a process ended with code {code}: {lines[-1][:500] if lines else 'it said nothing'}"
    if known and _merged(known)[0] == FAIL:
        return _merged(known)
    return FAIL, "the two processes wait for different collectives"

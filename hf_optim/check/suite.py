"""Running checks over optimizers."""

from __future__ import annotations

import logging
import platform
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch

from hf_optim import __version__
from hf_optim.check import launch
from hf_optim.check.candidate import Candidate, expand
from hf_optim.check.outcome import CHECKS, FAIL, UNMADE, Check, Report, Verdict, judge
from hf_optim.core.validate import closest
from hf_optim.errors import UserError, one_line

Progress = Callable[[int, int, str], None]
#: packages whose versions a report names, where they are installed
PACKAGES = (
    "torch",
    "accelerate",
    "transformers",
    "pytorch-optimizer",
    "schedulefree",
    "heavyball",
    "bitsandbytes",
    "torchao",
)
#: the order of the columns
ORDER = (
    "convex",
    "reference",
    "closure",
    "resume",
    "accelerate",
    "deepcopy",
    "pickle",
    "execution",
    "compile",
    "accumulation",
    "groups",
    "late_group",
    "missing",
    "bf16",
    "scaler",
    "schedulers",
    "hf_schedulers",
    "ddp",
    "fsdp",
    "zero_grad",
    "zero_loss",
    "nonfinite",
    "state_bytes",
    "host_sync",
)


def registered() -> dict[str, Check]:
    """Every check by its id, in the order of the columns."""
    from hf_optim.check import execution, loop, mathematics, state, world  # noqa: F401 - importing registers

    return {id: CHECKS[id] for id in (*ORDER, *(c for c in CHECKS if c not in ORDER))}


def run(
    names: Iterable[str] | str,
    *,
    checks: Iterable[str] | None = None,
    fast: bool = False,
    hyper: Mapping[str, Mapping[str, Any]] | None = None,
    references: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Report:
    """Check optimizers.

    Args:
        names: registered names, "package.module:Class", "file.py:Class"; wildcards as in "*agr*", "torch.optim:*".
        checks: ids of the checks to make; all by default.
        fast: leave out the slow ones (compiling, and two processes).
        hyper: name -> hyper-parameters other than the defaults.
        references: name -> specification of an optimizer that must compute the same ("torch.optim:SGD", or a mapping
            with `name`).
        progress: called with (cells done, cells in all, what comes next).

    Returns:
        The report; `.failed` lists what is red, `.unmade` what could not be checked at all.

    Raises:
        UserError: a name or a check that does not exist.
    """
    known = registered()
    chosen = list(known) if checks is None else list(checks)
    for id in chosen:
        if id not in known:
            raise UserError(f"there is no check {id!r}{closest(id, known)}; there are {', '.join(known)}")
    if fast:
        chosen = [id for id in chosen if not known[id].slow]
    expanded = expand([names] if isinstance(names, str) else names)
    started = time.perf_counter()
    threads = torch.get_num_threads()
    random = torch.get_rng_state()
    torch.set_num_threads(1)  # the tensors are tiny, and results must not depend on the machine
    log = logging.getLogger("hf_optim")
    level = log.level
    log.setLevel(logging.ERROR)  # other rates in a checkpoint, tensors without a model: that is what is tried here
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            report = _run(expanded, [known[id] for id in chosen], hyper or {}, references or {}, progress)
    finally:
        log.setLevel(level)
        torch.set_num_threads(threads)
        torch.set_rng_state(random)
    report.seconds = round(time.perf_counter() - started, 1)
    return report


def _run(
    names: list[str],
    checks: list[Check],
    hyper: Mapping[str, Any],
    references: Mapping[str, Any],
    progress: Progress | None,
) -> Report:
    report = Report(names, [c.id for c in checks], environment=_environment())
    candidates = [Candidate(n, hyper.get(n), references.get(n)) for n in names]
    report.hyper = {s.name: _written(s.hyper) for s in candidates if s.hyper}
    lock = threading.Lock()

    def add(candidate: Candidate, check: Check, verdict: tuple[str, str], seconds: float) -> None:
        with lock:
            report.cells[candidate.name, check.id] = Verdict(candidate.name, check.id, *verdict, round(seconds, 3))
            if progress is not None:
                progress(len(report.cells), len(names) * len(checks), f"{candidate.name}: {check.title}")

    able = []
    for candidate in candidates:
        if not candidate.trouble:
            able.append(candidate)
            continue
        for check in checks:
            add(candidate, check, (UNMADE, candidate.trouble), 0.0)
    pairs = [(s, c) for c in checks if c.world for s in able]
    stop = threading.Event()
    thread = threading.Thread(target=_world, args=(pairs, add, stop))
    thread.start()
    try:
        for candidate in able:
            for check in checks:
                if not check.world:
                    began = time.perf_counter()
                    verdict = judge(check, candidate)
                    add(candidate, check, verdict, time.perf_counter() - began)
    except BaseException:  # an interrupt: the two processes end with this one
        stop.set()
        raise
    finally:
        thread.join()
    return report


def _written(hyper: Mapping[str, Any]) -> str:
    """Hyper-parameters as a line."""
    return ", ".join(
        f"{k}={v.__name__ if isinstance(v, type) else f'({_written(v)})' if isinstance(v, dict) else v}"
        for k, v in hyper.items()
    )


def _world(pairs: list[tuple[Candidate, Check]], add: Callable[..., None], stop: threading.Event) -> None:
    """The checks in two processes, beside the others."""
    last, left = time.perf_counter(), set(range(len(pairs)))

    def done(number: int, verdict: tuple[str, str]) -> None:
        nonlocal last
        now = time.perf_counter()
        left.discard(number)
        add(*pairs[number], verdict, now - last)
        last = now

    if not pairs:
        return
    try:
        launch.run([{"candidate": s.spec(), "check": c.id} for s, c in pairs], done, stop)
    except Exception as error:  # noqa: BLE001 - no processes, no folder: a reason, not a crash
        for number in sorted(left):
            add(*pairs[number], (FAIL, f"two processes could not be run: {one_line(error)}"), 0.0)


def _environment() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    versions = {"hf_optim": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions

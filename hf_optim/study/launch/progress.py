"""What the launcher shows meanwhile: a bar with what is running on a terminal, a line a finished run elsewhere."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING, Any

from hf_optim.core.notes import PATIENCE
from hf_optim.core.safe_text import say
from hf_optim.core.wording import counted
from hf_optim.study.folder.results import describe
from hf_optim.study.launch.launcher import RunQueue
from hf_optim.study.plan.plan import Run

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress


def duration(seconds: float) -> str:
    """42 s, 3 min 05 s, 2 h 10 min."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    return (
        f"{whole // 60} min {whole % 60:02d} s" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    )


class _Line(str):
    """A text that a notebook shows without quotes."""

    def __repr__(self) -> str:
        return str(self)


class Display:
    """A context manager whose `finished` and `watch` are given to `run.execute`."""

    def __init__(self, console: Console, total: int, done_before: int, jobs: int) -> None:
        self.console, self.total, self.done, self.jobs = console, total, done_before, jobs
        self.failed, self._before = 0, done_before
        self._left: float | None = None
        self.live = console.is_terminal
        self.notebook = console.is_jupyter
        self._shown: Any = None
        self._bar: Progress | None = None

    def __enter__(self) -> Display:
        if self.notebook:
            from IPython.display import display

            self._shown = display(self._line(), display_id=True)
            return self
        if self.live:
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

            self._bar = Progress(
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("{task.fields[note]}", markup=False),
                console=self.console,
            )
            self._task = self._bar.add_task("", total=self.total, completed=self.done, note="starting")
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()

    def _line(self) -> _Line:
        left = f", about {duration(self._left)} left" if self._left is not None and self.done < self.total else ""
        lost = f", {self.failed} failed" if self.failed else ""
        return _Line(f"{self.done} of {counted(self.total, 'run')}{lost}{left}")

    def finished(self, run: Run, status: str, seconds: float, why: str = "") -> None:
        """A run has its record; `why` it failed is said with it."""
        self.done += 1
        self.failed += status == "failed"
        if self._shown is not None:
            self._shown.update(self._line())
        elif self._bar:
            self._bar.update(self._task, completed=self.done)
            if status == "failed":
                self._bar.console.print(f"failed: {describe(run)}: {why}", markup=False, highlight=False)
        else:
            line = f"[{self.done}/{self.total}] {status:6s} {describe(run)} ({seconds:.1f} s)" + (
                f": {why}" if status == "failed" else ""
            )
            say(self.console, line)

    def watch(self, board: RunQueue) -> None:
        """Refreshes the bar's note: time left, failures, what is running and for how long."""
        if self._shown is not None:
            self._left = board.remaining_seconds(self.jobs)
        if not self._bar:
            return
        left = board.remaining_seconds(self.jobs)
        now = time.monotonic()
        parts = [f"about {duration(left)} left"] if left is not None else []
        if self.done == self._before and any(now - start > PATIENCE for _, start in board.running.values()):
            parts.append("the first runs load PyTorch and build kernels")
        parts += [f"{self.failed} failed"] if self.failed else []
        parts += [
            f"{run.optimizer} s{run.seed} ({now - start:.0f} s)" for run, start in list(board.running.values())[:4]
        ]
        self._bar.update(self._task, note=" · ".join(parts))

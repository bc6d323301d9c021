"""The stages of a study, one after the other: trials until every optimizer has its setting, then everything else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from hf_optim.core.wording import counted
from hf_optim.errors import UserError
from hf_optim.study.folder.searches import check_measured, validation_metric
from hf_optim.study.folder.stages import State
from hf_optim.study.folder.standing import standing
from hf_optim.study.folder.store import RecordStore
from hf_optim.study.launch import journal as tuning_log
from hf_optim.study.plan.plan import Plan, Run


@dataclass(frozen=True)
class Stage:
    """`name` is "tuning" or "runs"; `runs` are all that are known to belong to it, `todo` those without a record; both
    up to the look after so many `units`.

    Trials may come in several rounds: which ones a pruned or step-bounded search makes depends on the ones before.
    """

    name: str
    runs: tuple[Run, ...]
    todo: tuple[Run, ...]
    units: int
    #: the figure by which trials are chosen, by their task's label; empty when all are
    asks: Mapping[str, str] = field(default_factory=dict)

    def sentence(self) -> str:
        """What it is about, in a line."""
        done = f"{len(self.runs) - len(self.todo)} finished"
        if self.name == "tuning":
            return f"tuning: {counted(len(self.runs), 'trial')}, {done}"
        return f"the settings are chosen: {counted(len(self.runs), 'run')} with them, {done}"


def follow(plan: Plan, folder: Path) -> Iterator[Stage]:
    """The stages still to do, look after look, until everything is decided or the last look is over; whoever takes one
    executes its `todo` before the next is asked for. The last is always given, with an empty `todo` if nothing is left.

    Raises:
        UserError: a run has a record that cannot be used, or trials that record nothing to choose by.
    """
    before: tuple[Run, ...] | None = None
    while True:
        store = RecordStore(folder)
        stands = standing(plan, store)
        now = stands.state
        check_measured(plan, now.searches, store)
        runs = now.after_tuning if now.settled else _trials(now)
        if plan.tuning is not None:
            tuning_log.update(plan, now.searches, folder)
        todo = tuple(run for run in runs if store.record(run.id) is None)
        if stands.finished:
            if before is None:
                yield Stage("runs", runs, (), stands.units)
            return
        if todo == before:
            raise UserError(f"{folder / 'runs' / todo[0].id / 'record.json'}: not a record of a run; remove it")
        before = todo
        asks = {} if now.settled else {task["label"]: validation_metric(task) for task in plan.tasks}
        yield Stage("runs" if now.settled else "tuning", runs, todo, stands.units, asks)


def _trials(now: State) -> tuple[Run, ...]:
    """Each run once, trial by trial, so that an interrupted tuning is balanced; a small space may repeat a setting."""
    every = [(trial.number, trial.run) for search in now.searches for trial in search.trials]
    return tuple({run.id: run for _, run in sorted(every, key=lambda pair: pair[0])}.values())

"""Where a study stands: which look it is at, what was found at the last complete one, and whether it goes on.

Units are added until everything is decided or the last planned look is over. Before the first look there are no
verdicts, and between looks those of the last one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from hf_optim.study.folder import questions
from hf_optim.study.folder.judgement import Judgement, judge
from hf_optim.study.folder.outcomes import Arm, Key, arms
from hf_optim.study.folder.stages import State, state
from hf_optim.study.folder.store import RecordStore
from hf_optim.study.plan.plan import Plan, Run


@dataclass(frozen=True)
class Standing:
    """`state` and `units` are of the look that is aimed at, but for the runs, which are those of the look before while
    its trials are still made; `judgement` of the last complete one, None before the first. `finished`: nothing is left
    to run.
    """

    state: State
    units: int
    judgement: Judgement | None
    arms: dict[Key, Arm]
    finished: bool
    register: questions.Register

    @property
    def known(self) -> list[Run]:
        """Every run that can be told now: the trials up to the next look, and what follows from their records."""
        trials = (trial.run for search in self.state.searches for trial in search.trials)
        return list({run.id: run for run in (*trials, *self.state.after_tuning)}.values())


def standing(plan: Plan, store: RecordStore, register: questions.Register | None = None) -> Standing:
    """Works it out from the records."""
    register = questions.read(store.folder, plan) if register is None else register
    store.belongs_to(plan)
    judgement: Judgement | None = None
    before: State | None = None
    outcomes: dict[Key, Arm] = {}
    for index, units in enumerate(plan.looks):
        now = state(plan, store, units, before)
        complete = now.settled and all(store.record(run.id) is not None for run in now.after_tuning)
        judged = now.settled and all(store.record(run.id) is not None for run in now.runs)
        # of a trial that cannot be read; none is still to come
        damaged = not now.settled and all(search.choice for search in now.searches)
        if not now.settled and not damaged and before is not None:
            if not before.settled:
                return Standing(before, before.units, judgement, outcomes, False, register)
            now = replace(before, searches=now.searches, settled=False)
        outcomes = arms(plan, now.runs, store)
        if judged:
            judgement = judge(plan, outcomes, plan.looks[: index + 1], register)
        last = units == plan.looks[-1]
        if last or not (complete or damaged) or (judgement is not None and judgement.decided):
            return Standing(now, units, judgement, outcomes, complete, register)
        before = now
    raise AssertionError("a plan has looks")


def known(plan: Plan, store: RecordStore) -> list[Run]:
    """Every run that can be told now."""
    return standing(plan, store).known


def pending(plan: Plan, store: RecordStore) -> list[Run]:
    """The runs that can be executed now: those without a record."""
    return [run for run in known(plan, store) if store.record(run.id) is None]

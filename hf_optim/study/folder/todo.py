"""How much a study has to run, and what of it can be told now (`follow` goes through it, stage after stage)."""

from __future__ import annotations

from hf_optim.study.folder import stages
from hf_optim.study.folder.reader import Reader
from hf_optim.study.folder.standing import standing
from hf_optim.study.plan.plan import Plan, Run


def planned(plan: Plan) -> int:
    """How many runs the study has in all, at most: a look may decide it, and a budget end its trials, earlier."""
    return sum(stages.planned(plan))


def known(plan: Plan, reader: Reader) -> list[Run]:
    """Every run that can be told now: the trials, and what follows from their records once all are in."""
    state = standing(plan, reader).state
    trials = [trial.run for search in state.searches for trial in search.trials]
    return list({run.id: run for run in (*trials, *state.after_tuning)}.values())


def pending(plan: Plan, reader: Reader) -> list[Run]:
    """The runs that can be executed now: those without a record."""
    return [run for run in known(plan, reader) if reader.record(run.id) is None]

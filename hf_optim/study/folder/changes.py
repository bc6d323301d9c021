"""What became of a study's plan since its folder was begun: which runs still count, which are new, which are gone."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_optim.core.wording import counted
from hf_optim.errors import UserError
from hf_optim.experiment import files
from hf_optim.study.folder import stages
from hf_optim.study.folder.store import RecordStore, read_status
from hf_optim.study.plan import units
from hf_optim.study.plan.plan import Plan, Run, flatten


@dataclass(frozen=True)
class Change:
    """`still`: in both plans, by id; `new`: in the new one alone; `gone`: in the old one alone. A gone run's record
    stays in the folder and out of the table. `recorded` holds the ids that have a record.
    """

    folder: str
    still: tuple[Run, ...]
    new: tuple[Run, ...]
    gone: tuple[Run, ...]
    recorded: frozenset[str]
    #: the first difference in words; empty if nothing is gone
    first: str

    def sentence(self) -> str:
        """One line with the counts and the first difference."""
        total = counted(len(self.still) + len(self.gone), "run")
        text = f"{self.folder}: the study has changed since it was begun: {len(self.still)} of {total} still count"
        text += f"{self._recorded(self.still)}, {len(self.new)} are new, {len(self.gone)} are no longer in the plan"
        if self.gone:
            text += f"{self._recorded(self.gone, 'kept there, out of the table')} (first: {self.first})"
        return text

    def lines(self) -> list[str]:
        """Which runs, a line for each optimizer on a task."""
        texts = []
        named = (("still counts", self.still), ("new", self.new), ("no longer in the plan", self.gone))
        for change, runs in named:
            cells: dict[tuple[str, str], list[Run]] = {}
            for run in runs:
                cells.setdefault((run.optimizer, run.task), []).append(run)
            for (optimizer, task), some in cells.items():
                seeds = shown(sorted({run.seed for run in some}))
                texts.append(f"  {change}: {optimizer} on {task}, seeds {seeds}{self._recorded(some)}")
        return texts

    def _recorded(self, runs: Sequence[Run], more: str = "") -> str:
        count = sum(run.id in self.recorded for run in runs)
        return f" ({count} finished{', ' + more if more else ''})" if count else ""


def shown(seeds: Sequence[int]) -> str:
    """Seeds in a line: "0, 1, 5" or "0 to 19 (20)"."""
    return ", ".join(map(str, seeds)) if len(seeds) <= 8 else f"{seeds[0]} to {seeds[-1]} ({len(seeds)})"


def between(old: Plan, new: Plan, folder: str = "", recorded: frozenset[str] = frozenset()) -> Change:
    """Compares two plans by the ids of their runs: the id is the hash of everything that decides a run's result."""
    before, after = {run.id for run in old.runs}, {run.id for run in new.runs}
    still = tuple(run for run in new.runs if run.id in before)
    gone = tuple(run for run in old.runs if run.id not in after)
    return Change(
        folder, still, tuple(r for r in new.runs if r.id not in before), gone, recorded, _first(gone, new.runs)
    )


def read_plan(folder: Path) -> Plan:
    """The plan in a study's folder. Raises FileNotFoundError where there is none, UserError if it is damaged."""
    file = folder / "plan.json"
    try:
        return Plan.from_dict(files.read_json(folder, file.name), str(file))
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(file) from None
    except (OSError, ValueError) as error:
        raise error if isinstance(error, UserError) else UserError(f"{file}: not readable: {_reason(error)}") from None


def _reason(error: OSError | ValueError) -> str:
    return str((error.strerror if isinstance(error, OSError) else None) or error)[:200]


def since(folder: Path, plan: Plan) -> Change | None:
    """What `plan` changes against the one in `folder`; None where there is none. Raises UserError if it is damaged."""
    try:
        old = read_plan(folder)
    except FileNotFoundError:
        return None
    if not plan.repetitions and len(plan.looks) > 1 and old.seeds == plan.looks:
        raise UserError(f"{folder}: begun when a list named its seeds, and now {units.explained(plan.looks)}")
    # Under tuning the judged runs follow from the trials' records, and what is on record must keep its meaning.
    before, after = _with_known_runs(old, folder), _with_known_runs(plan, folder)
    known = {run.id for run in (*before.runs, *after.runs)}
    recorded = frozenset(id for id in known if read_status(folder / "runs" / id) is not None)
    return between(before, after, str(folder), recorded)


def _with_known_runs(plan: Plan, folder: Path) -> Plan:
    """`plan` with all that may not change while a study grows: the trials (as they are before pruning) and, of as many
    repetitions as have theirs, the judged runs.
    """
    if plan.tuning is None:
        return plan
    store = RecordStore(folder)
    store.belongs_to(plan)
    waiting = {search.seed for search in stages.state(plan, store).searches if not search.choice}
    chosen = itertools.takewhile(lambda unit: plan.tuning_seed(unit) not in waiting, range(plan.looks[-1]))
    known = stages.state(plan, store, units=len(list(chosen))).runs
    return dataclasses.replace(plan, runs=(*stages.trial_runs(plan), *known))


def _first(gone: Sequence[Run], planned: Sequence[Run]) -> str:
    if not gone:
        return ""
    run = gone[0]
    here = {(r.task, r.optimizer, r.seed): r for r in planned}.get((run.task, run.optimizer, run.seed))
    place = f"{run.optimizer} on {run.task}, seed {run.seed}"
    return f"{place}: {difference(run.spec, here.spec)}" if here else f"{place} is left out"


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """The first two values that differ between two specifications: "optimizer.lr: 0.1 there, 0.2 here"."""
    a, b = flatten(old), flatten(new)
    changed = [key for key in sorted({*a, *b}) if a.get(key) != b.get(key)]
    parts = [f"{key}: {json.dumps(a.get(key))} there, {json.dumps(b.get(key))} here" for key in changed[:2]]
    more = f" and {len(changed) - 2} more" if len(changed) > 2 else ""
    return "; ".join(parts) + more if parts else "its content"

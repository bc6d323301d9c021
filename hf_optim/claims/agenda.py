"""What one machine can decide in a given time: the claims in the order in which they are worth it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from hf_optim.claims import claim as claims
from hf_optim.claims import cost, power, wishes
from hf_optim.claims.cost import Machine
from hf_optim.claims.wishes import Wish
from hf_optim.core.wording import counted
from hf_optim.study.plan.plan import Run, expand

#: what is judged without training takes a minute or two
WITHOUT_TRAINING = 1 / 30


@dataclass(frozen=True)
class Entry:
    """A claim on the agenda: its runs, how sure it is to be decided (2: the published effect is found, or a theorem; 1:
    nothing is known beforehand; 0: it cannot be), why, and the hours that it adds.
    """

    name: str
    rank: int
    why: str
    hours: float
    runs: tuple[Run, ...] = field(repr=False, default=())


def plan(
    hours: float, size: str, wish: Wish, seeds: int | None, machine: Machine, names: Sequence[str] | None = None
) -> tuple[list[Entry], list[Entry]]:
    """(what fits into the hours, what is left out with the reason). Runs that two claims share are paid for once."""
    entries = [
        entry for name in (names or claims.names()) if (entry := _entry(name, size, wish, seeds, machine)) is not None
    ]
    chosen: list[Entry] = []
    left = [entry for entry in entries if entry.rank == 0]
    waiting = [entry for entry in entries if entry.rank]
    paid: set[str] = set()
    remaining = hours
    while waiting:
        # Again after each choice: what shares runs with a chosen one has become cheaper.
        priced = [_priced(entry, paid, machine) for entry in waiting]
        first = min(priced, key=lambda entry: (-entry.rank, entry.hours, entry.name))
        waiting = [entry for entry in waiting if entry.name != first.name]
        if first.hours > remaining:
            left.append(Entry(first.name, first.rank, f"{first.why}; no time for it", first.hours, first.runs))
            continue
        chosen.append(first)
        remaining -= first.hours
        paid |= {run.id for run in first.runs}
    return chosen, left


def _priced(entry: Entry, paid: set[str], machine: Machine) -> Entry:
    if not entry.runs:
        return entry
    new = cost.of((run for run in entry.runs if run.id not in paid), machine)
    return Entry(entry.name, entry.rank, entry.why, new.hours / machine.at_a_time, entry.runs)


def _entry(name: str, size: str, wish: Wish, seeds: int | None, machine: Machine) -> Entry | None:
    chosen = claims.load(name)
    setting = chosen.settings.get(size)
    if setting is None:
        return None
    if setting.study is None:
        return Entry(name, 2, "judged without training", WITHOUT_TRAINING)
    study = expand(wishes.study(setting.study, wish, seeds), seeds=seeds)
    outlooks = power.outlooks(chosen, size, study)
    known = [outlook.decides for outlook in outlooks if outlook.decides is not None]
    price = cost.of(study.runs, machine).hours / machine.at_a_time
    if power.hopeless(outlooks):
        needed = min(outlook.needed for outlook in outlooks if outlook.needed is not None)
        return Entry(name, 0, f"its published effects need {counted(needed, 'seed')} or more", price, study.runs)
    rank, why = (2, "finds the published effect") if any(known) else (1, "nothing is known beforehand")
    return Entry(name, rank, why, price, study.runs)

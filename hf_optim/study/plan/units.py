"""What chance is drawn anew for, how often, and when it may be looked at.

    seeds: 10                   # units are seeds: 0 to 9, one look
    seeds: [5, 10, 20]          # at most 20 seeds, looked at after 5, 10 and 20: what is decided then ends the study
    seeds: {these: [1, 7, 42]}  # these seeds, one look
    tuning: {trials: 8, repetitions: [5, 10], seeds: 2}   # units are repetitions of the tuning, each with 2 judged
    seeds

Unit r of a study with S seeds a unit has the judged seeds r S to r S + S - 1, and repetition r the tuning seed of
`tuning: seed:` + r. No judged seed and no tuning seed belongs to two units: with a seed in common, the difference of
two unlike optimizers on it would be counted several times. For the same reason no seed belongs to two tasks where a
score adds them up: the second task runs with 100,000 more than each seed, the third with 200,000 more, and so on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hf_optim.errors import UserError
from hf_optim.study.plan.source import Source, Where, describe

#: what a verdict speaks of whose unit is a seed: the luck of finding them is in no interval
SETTINGS = "with these settings"
LARGEST = 2**32
FIRST_TUNING_SEED = 1000  # unless the YAML says otherwise
MOST = 10_000  # seeds of a study
APART = 100_000  # between the seeds of two tasks under a score


@dataclass(frozen=True)
class Units:
    """`seeds` are the judged seeds of all units, `per_unit` of each; `looks` are numbers of units, ascending."""

    seeds: tuple[int, ...]
    looks: tuple[int, ...]
    per_unit: int = 1


def read(source: Source, top: Mapping[str, Any], asked: int | None) -> Units:
    """The units of a study's YAML; `asked` is the command line's number of seeds, which replaces the file's."""
    block = top.get("tuning")
    if isinstance(block, Mapping) and block.get("repetitions") is not None:
        return _repetitions(source, top, block, asked)
    if isinstance(block, Mapping) and block.get("seeds") is not None:
        raise source.error(("tuning", "seeds"), "tuning: seeds: belongs to repetitions: give tuning: repetitions: too")
    if asked is not None:
        if not 1 <= asked <= MOST:
            raise UserError(f"--seeds must be at least 1 and at most {MOST}, got {asked}")
        return Units(tuple(range(asked)), (asked,))
    if "seeds" not in top:
        raise source.error((), "the key 'seeds' is missing (or tuning: repetitions:)")
    value, where = top["seeds"], ("seeds",)
    source.check_type(where, value, (int, list, dict), "a number, a list of looks or {these: [...]}")
    if isinstance(value, dict):
        source.check_keys(where, value, ("these",), ("these",))
        chosen = _these(source, ("seeds", "these"), value["these"])
        return Units(chosen, (len(chosen),))
    looks = (value,) if isinstance(value, int) else _looks(source, where, value, "seeds")
    if looks[0] < 1 or looks[-1] > MOST:
        raise source.error(where, f"seeds must be at least 1 and at most {MOST}, got {describe(value)}")
    return Units(tuple(range(looks[-1])), looks)


def explained(looks: Sequence[int]) -> str:
    """One line for a list under `seeds`, which once named the seeds; empty for a single look."""
    if len(looks) < 2:
        return ""
    listed = ", ".join(map(str, looks))
    return (
        f"seeds: [{listed}] are looks: at most {looks[-1]} seeds (0 to {looks[-1] - 1}), looked at after {listed}; to "
        f"run the seeds {listed} alone write seeds: {{these: [{listed}]}}"
    )


def set_apart(source: Source, tasks: Sequence[dict[str, Any]], chance: Units, tuned: Any) -> None:
    """Gives each task but the first its `seed_shift`, so that no seed of judging or tuning belongs to two tasks."""
    given = tuned.get("seed") if isinstance(tuned, Mapping) else None
    first = given if isinstance(given, int) else FIRST_TUNING_SEED
    trials = range(first, first + chance.looks[-1]) if tuned is not None else ()
    owner: dict[int, int] = {}
    for number, task in enumerate(tasks):
        if number:
            task["seed_shift"] = APART * number
        for seed in {shifted(task, seed) for seed in (*chance.seeds, *trials)}:
            if owner.setdefault(seed, number) != number:
                where: Where = ("seeds",) if "these" in str(source.value.get("seeds")) else ("tuning",)
                raise source.error(
                    where,
                    f"a score needs other seeds on each task, and those of tasks are {APART} apart: seed {seed} would "
                    f"belong to {tasks[owner[seed]]['label']!r} and {task['label']!r}; choose seeds that are nearer "
                    "to each other, or family: tasks",
                )


def apart(data: Mapping[str, Any]) -> bool:
    """Whether a stored plan, whose shape is checked, keeps its seeds apart as one that is read from YAML does."""
    judged, tuned = set(data["seeds"]), {cell["seed"] for cell in data.get("tuning", {}).get("cells", ())}
    tasks = {task["label"]: task for task in data["tasks"]}
    for task in data["tasks"]:  # each as its runs have it, and where its settings were chosen
        home = tasks[task.get("settings") or task["label"]]
        if {shifted(task, seed) for seed in judged} & {shifted(home, seed) for seed in tuned}:
            return False
    if data.get("family") != "score":
        return True
    owned = [{shifted(task, seed) for seed in judged | tuned} for task in data["tasks"]]
    return len(set().union(*owned)) == sum(map(len, owned))


def shifted(task: Mapping[str, Any], seed: int) -> int:
    """The seed of a task's runs for a seed of the study."""
    return int((seed + task.get("seed_shift", 0)) % LARGEST)


def _repetitions(source: Source, top: Mapping[str, Any], block: Mapping[str, Any], asked: int | None) -> Units:
    if asked is not None:
        raise UserError(
            "--seeds: this study's units are repetitions of its tuning: change tuning: repetitions: instead"
        )
    if "seeds" in top:
        raise source.error(
            ("seeds",), "seeds: and tuning: repetitions: exclude each other; give tuning: seeds: instead"
        )
    where: Where = ("tuning", "repetitions")
    value = block["repetitions"]
    source.check_type(where, value, (int, list), "a number of repetitions or a list of looks")
    looks = (value,) if isinstance(value, int) else _looks(source, where, value, "repetitions")
    if looks[0] < 2:
        raise source.error(where, f"repetitions must be at least 2, got {looks[0]}")
    each = source.check_type(("tuning", "seeds"), block.get("seeds", 1), int, "a number of seeds")
    if each < 1 or looks[-1] * each > MOST:
        raise source.error(("tuning", "seeds"), f"seeds must be at least 1, and {MOST} in all at most, got {each}")
    return Units(tuple(range(looks[-1] * each)), looks, each)


def _looks(source: Source, where: Where, value: Sequence[Any], units: str) -> tuple[int, ...]:
    hint = f"a list of {units} says when to look, such as [5, 10, 20]"
    hint += "; to name seeds write {these: [1, 7, 42]}" if units == "seeds" else ""
    if len(value) < 2:
        raise source.error(where, f"{units}: {hint}; got {describe(value)}")
    for i, number in enumerate(value):
        source.check_type((*where, i), number, int, "a whole number")
        if number < 2 or (i and number <= value[i - 1]):
            raise source.error((*where, i), f"{units}: looks ascend from 2; {hint}; got {describe(value)}")
    return tuple(value)


def _these(source: Source, where: Where, value: Any) -> tuple[int, ...]:
    source.check_type(where, value, list, "a list of seeds")
    if not value:
        raise source.error(where, "these is empty: give seeds such as [1, 7, 42]")
    for i, seed in enumerate(value):
        source.check_type((*where, i), seed, int, "a whole number")
        if not 0 <= seed < LARGEST:
            raise source.error((*where, i), f"a seed lies between 0 and {LARGEST - 1}, got {seed}")
        if seed in value[:i]:
            raise source.error((*where, i), f"seed {seed} is given twice")
    return tuple(value)

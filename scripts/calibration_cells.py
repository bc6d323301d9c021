"""Simulated studies in which the truth is known, judged by the shipped path: YAML, plan, records, looks, verdicts.

Only training is replaced: a run's record holds a number that is drawn here, or that a real run reached
(`calibration_tuned.py`). Everything before and after is what a study does.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from hf_optim.study.findings import speedups
from hf_optim.study.findings.verdicts import word
from hf_optim.study.folder import searches, stages
from hf_optim.study.folder.questions import Register
from hf_optim.study.folder.results import Results
from hf_optim.study.folder.standing import Standing, standing
from hf_optim.study.folder.store import RecordStore
from hf_optim.study.plan import plan as planning
from hf_optim.study.plan.plan import Plan, Run, make_run
from hf_optim.study.plan.source import parse
from hf_optim.study.statistics.looks import detectable_effect

Array = NDArray[np.float64]
Outcome = Callable[[Run], float]  # the test metric of a run, NaN for one that failed
Said = Callable[[Standing, Plan, RecordStore], bool]
#: how surely a table of rules that all keep their level stays within its bounds
SURE = 0.999
#: so many studies of a cell tell whether it is what was measured before
FEW = 20


def bound(studies: int, cells: int, level: float = 0.05) -> int:
    """How many false studies a rule of exactly this level stays below or at; corrected for the number of cells."""
    return int(stats.binom.ppf(1 - (1 - SURE) / cells, studies, level))


class Simulated(RecordStore):
    """The records of runs that were never made: `outcome` says what each would have reached."""

    def __init__(self, outcome: Outcome, samples: int = 0) -> None:
        super().__init__(Path())
        self.outcome, self.samples = outcome, samples
        self.runs: dict[str, Run] = {}

    def record(self, run_id: str) -> Mapping[str, Any] | None:
        """A record as a worker leaves it, as far as verdicts read it."""
        if run_id not in self._records:
            value = self.outcome(self.runs[run_id])
            metrics = (
                {} if math.isnan(value) else {"test_accuracy": value, "validation_accuracy": self.validation(run_id)}
            )
            record = {"id": run_id, "status": "ok" if metrics else "failed", "metrics": metrics}
            self._records[run_id] = {**record, "data": {"test_samples": self.samples}}
        return self._records[run_id]

    def validation(self, run_id: str) -> float:
        """On validation every run is better than untrained here, unless it failed."""
        return 1.0

    def untrained(self, run_id: str, metric: str) -> float:
        """Zero, so that the baseline gains 1 by training."""
        return 0.0


class Pieces:
    """`make_run`, which remembers what it made: a run's number and content, so that its record can be drawn."""

    def __init__(self) -> None:
        self.runs: dict[str, Run] = {}
        self._runs: dict[Any, Run] = {}

    def make(self, task: Any, optimizer: str, spec: Any, seed: int, overrides: Any = None, pruning: Any = ()) -> Run:
        """As the shipped one, once for each different call."""
        key = task["label"], optimizer, repr(spec), seed, repr(overrides)
        if key not in self._runs:
            self._runs[key] = run = make_run(task, optimizer, spec, seed, overrides, pruning)
            self.runs[run.id] = run
        return self._runs[key]


def judged(plan: Plan, store: Simulated) -> Standing:
    """The study from its first trial to its last look."""
    pieces = Pieces()
    pieces.runs.update({run.id: run for run in plan.runs})
    store.runs, kept = pieces.runs, stages.make_run
    stages.make_run = searches.make_run = pieces.make
    try:
        return standing(plan, store, Register())
    finally:
        stages.make_run = searches.make_run = kept


# --- what is false, and what is found ---


def words(stands: Standing) -> list[str]:
    """The verdicts of the family."""
    assert stands.judgement is not None
    return [c.verdict for c in stands.judgement.verdicts]


def told_apart(stands: Standing, plan: Plan, store: RecordStore) -> bool:
    """Better or worse was said of something."""
    return any(word in ("better", "worse") for word in words(stands))


def apart_where_it_trains(stands: Standing, plan: Plan, store: RecordStore) -> bool:
    """Better or worse was said without counting failures in: of runs that train, or of all."""
    assert stands.judgement is not None
    apart = [c for c in stands.judgement.verdicts if c.verdict in ("better", "worse")]
    return any("failures counted" not in word(c) for c in apart)


def called_equivalent(stands: Standing, plan: Plan, store: RecordStore) -> bool:
    """Equivalent was said of something."""
    return "equivalent" in words(stands)


def better(stands: Standing, plan: Plan, store: RecordStore) -> bool:
    """Everything was found to be better."""
    return set(words(stands)) == {"better"}


def not_tied(stands: Standing, plan: Plan, store: RecordStore) -> bool:
    """Some optimizer was refused the first place."""
    assert stands.judgement is not None
    return any(first > 1 for placed in stands.judgement.places.values() for first, _ in placed.sets.values())


def fails_more(stands: Standing, plan: Plan, store: RecordStore) -> bool:
    """Some optimizer was said to fail more often, or less."""
    assert stands.judgement is not None
    return any(c.fails_more for c in stands.judgement.comparisons.values())


def misses(factor: float) -> Said:
    """The interval of the speed-up does not hold the true factor."""

    def said(stands: Standing, plan: Plan, store: RecordStore) -> bool:
        (row,) = speedups.speedups(Results(store, plan, {}, stands))
        speedup = row.factor
        low, high = (
            edge if math.isnan(end) else end
            for end, edge in ((speedup.low, speedup.least), (speedup.high, speedup.most))
        )
        return not low <= factor <= high

    return said


# --- the cells ---


@dataclass(frozen=True)
class Cell:
    """Studies of one kind: `text` is their YAML (or makes it from a study's number), `outcome` makes a study's records
    from its random generator, `said` tells what is counted. `promise` is "false" (at most 5 %) or "found" (at least
    80 %), else it stands for contrast.
    """

    name: str
    text: str | Callable[[int], str]
    outcome: Callable[[np.random.Generator, Plan], Simulated]
    said: Said
    promise: str = "false"
    #: studies in proportion to the others: tuned ones take longer
    share: float = 1.0
    tuned: bool = False


def yaml(units: str, optimizers: int = 2, tasks: int = 1, more: str = "") -> str:
    """A study of so many optimizers, the first of which is the baseline."""
    listed = "\n".join(f"  - {{name: adamw, lr: {0.001 * (i + 1):g}, label: O{i}}}" for i in range(optimizers))
    sizes = "\n".join(
        f"  - {{task: vision, model: mlp, size: smoke, label: T{t}, overrides: {{steps: {16 + t}}}}}"
        for t in range(tasks)
    )  # fmt: skip
    return f"name: calibration\n{units}\ntasks:\n{sizes}\noptimizers:\n{listed}\n{more}"


def drawn(
    draw: Callable[[np.random.Generator, tuple[int, ...]], Array],
    *,
    shifts: Mapping[int, float] | None = None,
    fail: Mapping[int, float] | None = None,
    samples: int = 0,
) -> Callable[[np.random.Generator, Plan], Simulated]:
    """Outcomes that are drawn independently, paired by nothing: `shifts` and shares of failed runs by optimizer."""

    def outcome(rng: np.random.Generator, plan: Plan) -> Simulated:
        shape = len(plan.tasks), len(plan.optimizers), len(plan.seeds)
        values = draw(rng, shape)
        for i, shift in (shifts or {}).items():
            values[:, i] += shift
        for i, rate in (fail or {}).items():
            values[:, i] = np.where(rng.random(values[:, i].shape) < rate, np.nan, values[:, i])
        tasks = {task["label"]: t for t, task in enumerate(plan.tasks)}
        labels = {o["label"]: i for i, o in enumerate(plan.optimizers)}
        return Simulated(lambda run: float(values[tasks[run.task], labels[run.optimizer], run.seed]), samples)

    return outcome


def gaussian(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Means of 0, deviations of 1."""
    return rng.normal(size=shape)


def lognormal(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Skewed."""
    return rng.lognormal(size=shape)


def heavy(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """t with 3 degrees of freedom."""
    return rng.standard_t(3, size=shape)


def counted(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """95 % of 500 samples: a metric with a grain."""
    return rng.binomial(500, 0.95, size=shape) / 500


def collapsing(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """One run in ten loses nine deviations."""
    return rng.normal(size=shape) - 9.0 * (rng.random(shape) < 0.1)


def scaled(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Deviations of .1 to 1 on the tasks: the metrics of tasks have their own units."""
    return rng.normal(size=shape) * np.logspace(-1, 0, shape[0])[:, None, None]


def budgets(factor: float) -> Callable[[np.random.Generator, Plan], Simulated]:
    """A baseline that gains .02 with each doubling of its budget, and another as good as it at `factor` budgets."""

    def outcome(rng: np.random.Generator, plan: Plan) -> Simulated:
        whole = plan.tasks[0]["steps"]
        shared = rng.normal(0, 0.01, len(plan.seeds))
        noise: dict[str, float] = {}

        def value(run: Run) -> float:
            budget = run.spec["overrides"]["steps"] / whole
            gain = 0.02 * math.log2(factor if run.optimizer != plan.baseline else budget)
            return gain + shared[run.seed] + noise.setdefault(run.id, rng.normal(0, 0.008))

        return Simulated(value)

    return outcome


# --- running them ---


def cells() -> list[Cell]:
    """Every cell that is simulated."""
    few, long = "seeds: [5, 10]", "seeds: [5, 10, 20]"
    listed: list[Cell] = []

    def add(name: str, text: str, outcome: Any, said: Said, promise: str = "false", share: float = 1.0) -> None:
        listed.append(Cell(name, text, outcome, said, promise, share))

    alike = "better or worse, where nothing differs"
    for name, draw, samples in (
        ("Gaussian", gaussian, 0),
        ("lognormal", lognormal, 0),
        ("t with 3 degrees", heavy, 0),
        ("one run in ten collapses, in all", collapsing, 0),
        ("95 % of 500 counted", counted, 500),
    ):
        outcome = drawn(draw, samples=samples)
        add(f"{alike}: 4 comparisons, looks 5, 10, 20, {name}", yaml(long, 5), outcome, told_apart)
    outcome = drawn(counted, samples=500)
    add(f"{alike}: one comparison, 3 seeds, 95 % of 500 counted", yaml("seeds: 3"), outcome, told_apart)
    add(f"{alike}: 19 comparisons, looks 5, 10, Gaussian", yaml(few, 20), drawn(gaussian), told_apart)
    name = "not the best, where nothing differs: 20 optimizers, looks 5, 10"
    add(name, yaml(few, 20), drawn(gaussian), not_tied)

    outcome = drawn(gaussian, shifts={1: -2.0})
    name = "equivalent, where the other is worse by the margin: looks 5, 10"
    add(name, yaml(few, more="margin: 2.0\n"), outcome, called_equivalent)

    trains = "better or worse where it trains, where nothing differs there"
    for rate in (0.05, 0.2):
        add(
            f"{trains}: one arm fails in {rate:.0%}, looks 5, 10",
            yaml(few),
            drawn(gaussian, fail={1: rate}),
            apart_where_it_trains,
        )
    outcome = drawn(gaussian, fail={0: 0.2, 1: 0.2})
    add(f"{trains}: both arms fail in 20%, looks 5, 10", yaml(few), outcome, told_apart)
    outcome = drawn(gaussian, fail=dict.fromkeys(range(5), 0.2))
    add("fails more often, where all fail in 20%: 4 comparisons, looks 5, 10", yaml(few, 5), outcome, fails_more)

    score = "better or worse by score, where nothing differs"
    add(f"{score}: 3 optimizers, 5 tasks, looks 3, 6", yaml("seeds: [3, 6]", 3, 5), drawn(scaled), told_apart)
    add(f"{score}: 2 optimizers, 3 tasks, 3 seeds", yaml("seeds: 3", 2, 3), drawn(scaled), told_apart)
    name, text = "a speed-up of 1.4 that its interval misses: 10 seeds", "speedup: {budgets: [0.5, 1, 2, 4]}\n"
    add(name, yaml("seeds: 10", more=text), budgets(1.4), misses(1.4))

    for units, looks in (("seeds: 10", (10,)), (few, (5, 10))):
        # Of a difference of two independent runs.
        outcome = drawn(gaussian, shifts={1: detectable_effect(looks, 1) * math.sqrt(2)})
        name = f"found: the effect that --dry-run promises, looks {', '.join(map(str, looks))}"
        add(name, yaml(units), outcome, better, "found")
    name = "found: an arm that fails in 80% against one that never does, looks 5, 10"
    add(name, yaml(few), drawn(gaussian, fail={1: 0.8}), fails_more, "contrast")
    return listed


def measure(
    cell: Cell, studies: int, seed: int = 0, advance: Callable[[int, int, str], None] | None = None
) -> dict[str, Any]:
    """How many of so many studies said what the cell counts; `advance` hears how many are over, of how many."""
    count, hits = max(1, round(studies * cell.share)), 0
    for number, (stands, plan, store) in enumerate(simulate(cell, count, seed), 1):
        hits += cell.said(stands, plan, store)
        if advance is not None:
            advance(number, count, cell.name)
    return {"cell": cell.name, "promise": cell.promise, "studies": count, "hits": hits, "tuned": cell.tuned}


def simulate(cell: Cell, studies: int, seed: int = 0) -> Iterator[tuple[Standing, Plan, Simulated]]:
    """The studies of a cell, judged; each has numbers of its own, whatever else is made."""
    plan = planning.expand(parse(cell.text, "calibration.yaml")) if isinstance(cell.text, str) else None
    for number in range(studies):
        rng = np.random.default_rng([seed, number])
        if not isinstance(cell.text, str):
            plan = planning.expand(parse(cell.text(number), "calibration.yaml"))
        assert plan is not None
        store = cell.outcome(rng, plan)
        yield judged(plan, store), plan, store


def digest(cell: Cell, seed: int = 0) -> str:
    """What the first FEW studies of a cell say, to six digits, and what is counted of it: it changes with the cell and
    with the code that plans and judges, and not with where that code stands or how it is written.
    """
    few = [[cell.said(*study), everything(*study)] for study in simulate(cell, FEW, seed)]
    text = json.dumps([cell.name, cell.promise, cell.share, few])
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def everything(stands: Standing, plan: Plan, store: RecordStore) -> list[Any]:
    """The verdicts of a study, of scores, tasks, failures, places and speed-ups, with their numbers to six digits."""
    judgement = stands.judgement
    assert judgement is not None
    said: list[Any] = [judgement.units, judgement.family, sum(judgement.families)]
    for c in (*judgement.comparisons.values(), *judgement.scores.values()):
        d, failed = c.difference, c.failure_test.adjusted if c.failure_test else math.nan
        numbers = (c.p, c.adjusted, c.p_equivalent, c.adjusted_equivalent, d.mean, d.low, d.high, c.detectable, failed)
        said.append([c.verdict, c.fails_more, c.pairs, *(f"{x:.6g}" for x in numbers)])
    said += [dict(places.sets) for places in judgement.places.values()]
    factors = [row.factor for row in speedups.speedups(Results(store, plan, {}, stands))]
    return said + [f"{x:.6g}" for factor in factors for x in (factor.value, factor.low, factor.high)]

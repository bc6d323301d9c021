"""What a ladder says beyond its tasks: loss against tokens, FLOPs and seconds with a trend, speed-up by size, rates.

Everything is worked out unit by unit and then summarised by a t-interval over units, so that the luck of tuning is in
every interval. Intervals hold singly; the verdicts are those of the study's judgement, and nothing here adds to them.

The trend is ln loss = a - alpha ln N - beta ln D by least squares over an optimizer's rungs (N parameters, D tokens): a
power law without an irreducible part, which so few rungs could not tell apart. It describes, and where it goes beyond
the largest rung it supposes that this law goes on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from hf_optim.study.findings import ladder_needs, ladder_rates, naming, speedups
from hf_optim.study.findings.ladder_laws import Line, Point, Rung, estimate, exponential, law, lines, power, shared
from hf_optim.study.findings.ladder_needs import Cost, Need
from hf_optim.study.findings.ladder_rates import Carried, Rate
from hf_optim.study.folder import stages
from hf_optim.study.folder.grouping import grouped
from hf_optim.study.folder.outcomes import Arm, arms
from hf_optim.study.folder.results import Results
from hf_optim.study.folder.store import number
from hf_optim.study.plan.plan import Plan
from hf_optim.study.statistics.intervals import Estimate
from hf_optim.study.statistics.paired import NAN
from hf_optim.study.statistics.speedup import SpeedUp

Logs = dict[tuple[str, str], dict[int, float]]  # by task and optimizer, then by unit
FLAT = 1e-12  # a slope of no more gains nothing, and nothing is divided by it


@dataclass(frozen=True)
class Trend:
    """The power law of an optimizer: exponents of size (NaN where size and tokens only grow together: then that of
    tokens is of both) and of tokens, how far the rungs lie off it (root mean square, in per cent of the loss; NaN for
    three rungs and fewer), and the loss that it says of the next size at the ladder's largest common budget (NaN where
    one size says nothing of another).
    """

    optimizer: str
    units: int
    size: Estimate
    tokens: Estimate
    off: float
    next_parameters: float
    next_tokens: float
    next_loss: Estimate


@dataclass(frozen=True)
class Speed:
    """How many times its tokens the baseline needs to do as well as an optimizer on a rung. `bounded`, from
    complete budgets, is of the test; `fitted` divides the advantage by the slope of the baseline's own law.
    """

    rung: Rung
    optimizer: str
    bounded: SpeedUp
    fitted: Estimate


@dataclass(frozen=True)
class SpeedTrend:
    """By what factor the fitted speed-up changes when the parameters grow tenfold; of no size that was not run."""

    optimizer: str
    multiple: float
    tenfold: Estimate


@dataclass(frozen=True)
class Batch:
    """Steps and tokens that an optimizer needs for `target` at a batch size, from its law over complete budgets."""

    optimizer: str
    size: int
    batch_size: int
    target: float
    steps: Estimate
    tokens: Estimate


@dataclass(frozen=True)
class Ladder:
    """All of it; `counted` says how FLOPs are counted, `metric` what the loss is."""

    metric: str
    counted: str
    baseline: str
    #: whether the baseline was tuned
    tuned: bool
    points: tuple[Point, ...]
    lines: tuple[Line, ...]
    trends: tuple[Trend, ...]
    speeds: tuple[Speed, ...]
    speed_trends: tuple[SpeedTrend, ...]
    rates: tuple[Rate, ...]
    carried: tuple[Carried, ...]
    batches: tuple[Batch, ...]
    needs: tuple[Need, ...]
    cost: Cost | None


def build(results: Results) -> Ladder | None:
    """What the records of a ladder say so far; None for a study without one, or judged by something else than a loss
    that falls.
    """
    if results.plan.ladder is None or results.plan.tasks[0]["primary"]["greater_is_better"]:
        return None
    results = _looked_at(results)
    plan = results.plan
    assert plan.ladder is not None
    rungs = plan.ladder["rungs"]
    points = tuple(p for rung in rungs for p in _points(results, rung))
    by_size = sorted({rung["parameters"] for rung in rungs})
    ahead = by_size[-1] * (by_size[-1] / by_size[-2] if len(by_size) > 1 else 10)
    tokens = max(rung["multiple"] for rung in rungs if rung["all"]) * ahead  # where all optimizers are
    logs = _log_factors(plan, points)
    labels = [o["label"] for o in plan.optimizers]
    by_label = grouped(points, lambda p: p.optimizer)
    of = {label: _comparable(by_label.get(label, [])) for label in labels}
    return Ladder(
        metric=plan.tasks[0]["primary"]["name"],
        counted=rungs[0]["counted"],
        baseline=plan.baseline,
        tuned=naming.searched(plan, plan.baseline)[1] > 0,
        points=points,
        lines=tuple(line for label in labels for line in lines(of[label])),
        trends=tuple(t for label in labels if (t := _trend(of[label], ahead, tokens))),
        speeds=tuple(_speeds(results, points, logs)),
        speed_trends=tuple(_speed_trends(plan, points, logs)),
        rates=tuple(ladder_rates.rates(results)),
        carried=tuple(ladder_rates.carried(results, {(p.rung["task"], p.optimizer): p.losses for p in points})),
        batches=tuple(_batches(plan, points)),
        needs=tuple(ladder_needs.needs(results)),
        cost=ladder_needs.cost(results),
    )


def _looked_at(results: Results) -> Results:
    """The results, or while the trials of the next look are still made those of the last complete one."""
    stands = results.standing
    if stands.state.settled or stands.judgement is None:
        return results
    units = stands.judgement.units
    now = stages.state(results.plan, results.store, units)
    records = {run.id: record for run in now.runs if (record := results.store.record(run.id)) is not None}
    outcomes = arms(results.plan, now.runs, results.store)
    return replace(
        results,
        plan=replace(results.plan, runs=now.runs),
        records=records,
        standing=replace(stands, state=now, units=units, arms=outcomes),
    )


def _points(results: Results, rung: Rung) -> list[Point]:
    plan, points = results.plan, []
    task = next(t for t in plan.tasks if t["label"] == rung["task"])
    for label in task["only"]:
        arm = results.standing.arms.get((rung["task"], label), Arm())
        losses = {u: math.fsum(v) / len(v) for u, v in arm.values.items() if not any(map(math.isnan, v))}
        runs = [(run, r) for run, r in results.runs(rung["task"], label) if r is not None and r["status"] == "ok"]
        if losses and runs:
            flops = float(np.median([_flops(results.history(run), record["time"], rung) for run, record in runs]))
            seconds = float(np.median([number(record["time"].get("train_seconds")) for _, record in runs]))
            points.append(Point(rung, label, losses, float(rung["tokens"]), flops, seconds))
    return points


def _flops(history: Sequence[Mapping[str, Any]], time: Mapping[str, Any], rung: Rung) -> float:
    """Those that a run has spent by its last logged row; where it did not count them, the rung's count for the passes
    it made, of which a backward one has two thirds.
    """
    counted = [number(row["flops"]) for row in history if "flops" in row]
    if counted:
        return counted[-1]
    passes = (number(time.get("forward_passes")) + 2 * number(time.get("backward_passes"))) / 3
    steps = passes if passes > 0 else number(time.get("steps"))
    return float(rung["flops"] * rung["tokens"] / rung["steps"] * steps)


def _usable(points: Sequence[Point]) -> list[Point]:
    return [p for p in points if p.losses and min(p.losses.values()) > 0]


def _comparable(points: Sequence[Point]) -> list[Point]:
    """Those that a law can go through: of one batch size."""
    return [p for p in _usable(points) if p.rung["batch_size"] == points[0].rung["batch_size"]]


def _trend(points: Sequence[Point], ahead: float, tokens: float) -> Trend | None:
    units = shared(points)
    if len({p.tokens for p in points}) < 2 or len(units) < 2:
        return None
    laws = [law(points, unit) for unit in units]
    said = [power(a - alpha * math.log(ahead) - beta * math.log(tokens)) for a, alpha, beta, _ in laws]
    nothing = Estimate(NAN, NAN, NAN)
    return Trend(
        optimizer=points[0].optimizer,
        units=len(units),
        size=estimate([alpha for _, alpha, _, _ in laws]) if any(alpha for _, alpha, _, _ in laws) else nothing,
        tokens=estimate([beta for _, _, beta, _ in laws]),
        off=100 * float(np.mean([off for *_, off in laws])) if len(points) > 3 else NAN,
        next_parameters=ahead,
        next_tokens=tokens,
        next_loss=estimate(said) if len({p.rung["parameters"] for p in points}) > 1 else nothing,
    )


def _shape(rung: Rung) -> tuple[int, int]:
    """What rungs that differ in their tokens alone have in common."""
    return rung["parameters"], rung["batch_size"]


def _speeds(results: Results, points: Sequence[Point], logs: Logs) -> list[Speed]:
    plan, known = results.plan, results.standing.arms
    assert plan.ladder is not None
    tasks = {task["label"]: task for task in plan.tasks}
    rungs = sorted(plan.ladder["rungs"], key=lambda r: r["tokens"])
    bases = grouped((r for r in rungs if plan.baseline in tasks[r["task"]]["only"]), _shape)
    speeds = []
    for p in points:
        base = bases.get(_shape(p.rung), [])
        if p.optimizer == plan.baseline or len(base) < 2:
            continue
        curve = {r["tokens"] / p.tokens: known.get((r["task"], plan.baseline), Arm()) for r in base}
        other = known.get((p.rung["task"], p.optimizer), Arm())
        bounded = speedups.factor(tasks[p.rung["task"]], curve, other, plan.per_unit)
        fitted = exponential(list(logs[p.rung["task"], p.optimizer].values()))
        speeds.append(Speed(p.rung, p.optimizer, bounded, fitted))
    return speeds


def _log_factors(plan: Plan, points: Sequence[Point]) -> Logs:
    """ln of the fitted factor of each point by unit: the advantage in ln loss over the baseline's mean slope against
    ln tokens.
    """
    bases = grouped(_usable([p for p in points if p.optimizer == plan.baseline]), lambda p: _shape(p.rung))
    slopes = {at: {u: law(base, u)[2] for u in shared(base)} for at, base in bases.items() if len(base) > 1}
    losses = {p.rung["task"]: p.losses for base in bases.values() for p in base}
    logs: Logs = {}
    for p in points:
        by_unit, here = slopes.get(_shape(p.rung), {}), losses.get(p.rung["task"], {})
        units = [u for u in by_unit if p.losses.get(u, 0) > 0]
        slope = float(np.mean([by_unit[u] for u in units])) if units else 0.0
        # The baseline may not gain by training longer: then nothing can be told in tokens.
        told = units if here and slope > FLAT else []
        logs[p.rung["task"], p.optimizer] = {u: (math.log(here[u]) - math.log(p.losses[u])) / slope for u in told}
    return logs


def _speed_trends(plan: Plan, points: Sequence[Point], logs: Logs) -> list[SpeedTrend]:
    reach = grouped((p for p in points if p.optimizer == plan.baseline), lambda p: _shape(p.rung))
    budgets = {at: (min(p.tokens for p in base), max(p.tokens for p in base)) for at, base in reach.items()}
    order = {o["label"]: i for i, o in enumerate(plan.optimizers) if o["label"] != plan.baseline}
    groups = grouped((p for p in points if p.optimizer in order), lambda p: (order[p.optimizer], p.rung["multiple"]))
    trends = []
    for (_, multiple), mine in sorted(groups.items(), key=lambda group: group[0]):
        label = mine[0].optimizer
        mine = [p for p in mine if p.rung["batch_size"] == mine[0].rung["batch_size"]]
        fitted = [logs[p.rung["task"], label] for p in mine]
        units = sorted(set.intersection(*map(set, fitted)))
        if len({p.rung["parameters"] for p in mine}) < 2 or len(units) < 2:
            continue
        if not all(_within(budgets[_shape(p.rung)], p, [*f.values()]) for p, f in zip(mine, fitted, strict=True)):
            continue  # what no budget of the baseline reaches is a guess, and so is a line through it
        x = np.log10([p.rung["parameters"] for p in mine])
        lines = [np.polyfit(x, [by_unit[u] for by_unit in fitted], 1) for u in units]
        trends.append(SpeedTrend(label, multiple, exponential([float(line[0]) for line in lines])))
    return trends


def _within(budgets: tuple[float, float], p: Point, logs: Sequence[float]) -> bool:
    """Whether a mean factor lies within the baseline's budgets, of which these are the least and the most tokens."""
    low, high = budgets
    return math.log(low / p.tokens) <= float(np.mean(logs)) <= math.log(high / p.tokens)


def _batches(plan: Plan, points: Sequence[Point]) -> list[Batch]:
    """Steps to the hardest loss that the baseline reaches, on average, at every batch size of a model size."""
    measured = []
    for size, here in sorted(grouped(_usable(points), lambda p: p.rung["parameters"]).items()):
        cells = grouped(here, lambda p: (p.optimizer, p.rung["batch_size"]))
        batches = sorted({batch for _, batch in cells})
        if len(batches) < 2 or not all((plan.baseline, batch) in cells for batch in batches):
            continue
        target = max(min(p.loss.value for p in cells[plan.baseline, batch]) for batch in batches)
        for label in (o["label"] for o in plan.optimizers):
            for batch in batches:
                mine = cells.get((label, batch), [])
                units = shared(mine)
                laws = [law(mine, u) for u in units] if len(mine) > 1 else []
                # Size is one here, so that its exponent is 0 and a holds it.
                logs = [(a - math.log(target)) / beta for a, _, beta, _ in laws if beta > FLAT]
                if len(logs) == len(laws) and logs:
                    tokens = exponential(logs)
                    each = mine[0].tokens / mine[0].rung["steps"]
                    steps = Estimate(*(v / each for v in (tokens.value, tokens.low, tokens.high)))
                    measured.append(Batch(label, size, batch, target, steps, tokens))
    return measured

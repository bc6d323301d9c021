"""Records of worlds in which a statement of a paper is right, wrong, or exactly at the margin.

What a rule asks of the world is written here from the rule's description alone, apart from the code that judges.
`good` levels are turned so that more is better, and into the metric's own direction when the records are made.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from hf_optim.claims.evidence import COUNTED, MAGNITUDE, Evidence
from hf_optim.study.folder.results import Results
from hf_optim.study.plan.plan import Plan

LOWER = {
    "test_loss", "train_loss", "validation_loss", "train_part_loss", "loss_gap", "accuracy_gap", "gap_as_run",
    "test_fid", "test_fid_small_cnn", "parameter_norm", "sharpness", "test_perplexity", "time.train_seconds",
    "time.optimizer_ms_median", "time.step_ms_median", "memory.optimizer_state_bytes", "memory.peak_card_bytes",
    "abs(loss_gap)", "abs(gap_as_run)",
}  # fmt: skip
MIDDLE, STEP, NOISE = 0.5, 0.3, 1e-4
Levels = dict[tuple[str, str, str], float]
COURSES = ("throughout", "smoother", "keeps")
OPPOSITE = {"right": "wrong", "wrong": "right", "margin": "margin"}


class Store:
    """A study's store that lives in memory."""

    folder = Path("in-memory")

    def __init__(self, histories: Mapping[str, list[dict[str, Any]]]) -> None:
        self.histories = histories
        self.unreadable: dict[str, str] = {}

    def course(self, run_id: str) -> list[dict[str, Any]] | None:
        return None if run_id in self.unreadable else list(self.histories.get(run_id, ()))


def noise(*names: object, seeds: int) -> list[float]:
    """Repeatable, with a mean of exactly nothing, and different for every cell."""
    drawn = [random.Random(f"{names} {seed}").gauss(0, NOISE) for seed in range(seeds)]
    return [value - sum(drawn) / seeds for value in drawn]


def metric_of(keys: Mapping[str, Any], plan: Plan) -> str:
    return keys.get("metric") or plan.tasks[0]["primary"]["name"]


def tasks_of(keys: Mapping[str, Any], plan: Plan) -> list[str]:
    labels = [task["label"] for task in plan.tasks]
    return [label for label in keys.get("tasks") or labels if label in labels]


def baselines(keys: Mapping[str, Any]) -> list[str]:
    return [keys["baseline"]] if isinstance(keys["baseline"], str) else list(keys["baseline"])


def levels(keys: Mapping[str, Any], plan: Plan, world: str) -> Levels:
    """What every cell that the rule names is worth, more being better; a value of its own for `at_most`."""
    if keys.get("negated"):
        world = OPPOSITE[world]
    rule, metric, tasks = keys["rule"], metric_of(keys, plan), tasks_of(keys, plan)
    gain = {"right": STEP, "wrong": -STEP, "margin": 0.0}[world]
    placed: Levels = {}
    if rule == "all":
        for part in keys["of"]:
            placed |= levels(part, plan, world)
    elif rule in ("better", "better_on_average", "on_par", "no_worse", "at_most"):
        margin = keys.get("margin", 0.0) * (MIDDLE if keys.get("relative") else 1.0)
        if rule.startswith("better"):
            gain = {"right": STEP, "wrong": -STEP, "margin": keys.get("by", 0.0)}[world]
        else:
            gain = {"right": 0.0, "wrong": -2 * margin, "margin": -margin}[world]
        for task in tasks:
            for label in baselines(keys):
                placed[metric, task, label] = 2.0 if rule == "at_most" else MIDDLE
            placed[metric, task, keys["optimizer"]] = MIDDLE + gain
            if rule == "at_most":
                share = {"right": 0.5, "wrong": 1.5, "margin": 1.0}[world]
                placed[metric, task, keys["optimizer"]] = 2.0 * keys["factor"] * share
    elif rule == "ordered":
        for i, label in enumerate(keys["optimizers"]):
            placed |= {(metric, task, label): MIDDLE + i * gain for task in tasks}
    elif rule == "insensitive":
        off = {"right": 0.0, "wrong": 3.0, "margin": 1.0}[world] * keys["margin"]
        for task in tasks:
            for label in keys.get("optimizers") or [keys["optimizer"]]:
                placed[metric, task, label] = MIDDLE
        placed[next(iter(placed))] -= off * (MIDDLE if keys.get("relative") else 1.0)
    elif rule == "steadier":
        widths = {"right": (0.0, STEP), "wrong": (STEP, 0.0), "margin": (STEP, STEP)}[world]
        for label, width in zip((keys["optimizer"], *baselines(keys)), widths, strict=True):
            placed |= {(metric, task, label): MIDDLE - width * (i == 0) for i, task in enumerate(tasks)}
    elif rule in ("degrades", "degrades_less"):
        drops = {"right": (0.1, 0.3), "wrong": (-0.1, -0.3), "margin": (0.0, 0.0)}[world]
        if rule == "degrades_less":
            drops = {"right": (0.1, 0.3), "wrong": (0.3, 0.1), "margin": (0.2, 0.2)}[world]
        who = (keys["optimizer"], *(baselines(keys) if rule == "degrades_less" else ()))
        for label, drop in zip(who, drops, strict=False):
            placed[metric, keys["reference"], label] = MIDDLE
            placed |= {(metric, task, label): MIDDLE - drop for task in tasks}
    return placed


def histories(
    keys: Mapping[str, Any], plan: Plan, world: str, label: str, task: str, seed: int
) -> list[dict[str, Any]]:
    """The rows that rules on histories read."""
    if keys.get("negated"):
        world = OPPOSITE[world]
    if keys["rule"] == "all":
        return _merged([row for part in keys["of"] for row in histories(part, plan, world, label, task, seed)])
    if keys["rule"] in COURSES and task in tasks_of(keys, plan):
        return _course(keys, plan, world, label, task, seed)
    if keys["rule"] == "sooner" and task in tasks_of(keys, plan):
        first = label == keys["optimizer"]
        step = {"right": 20 if first else 200, "wrong": 200 if first else 20, "margin": 100}[world]
        drawn = noise(task, label, "step", seeds=len(plan.seeds))[plan.seeds.index(seed)]
        good = keys.get("target", 0.5)
        bad = good * (3 if keys["metric"] in LOWER else 1 / 3)
        return [{"step": 1, keys["metric"]: bad}, {"step": step * (1 + drawn), keys["metric"]: good}]
    if keys["rule"] == "bounded" and label == keys["optimizer"]:
        low, high = keys.get("low", -1.0), keys.get("high", 1.0)
        # as Trainer's log and a run's history name an optimizer's own figure
        return [
            {
                "step": 1,
                f"hf_optim_{keys['key']}": {"right": (low + high) / 2, "wrong": high + 1, "margin": high}[world],
            }
        ]
    return []


def _merged(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What several parts of a rule say of the same value of the same run, once."""
    return list({(row["step"], *row): row for row in rows}.values())


def _course(keys: Mapping[str, Any], plan: Plan, world: str, label: str, task: str, seed: int) -> list[dict[str, Any]]:
    """Twelve values, more being better, turned into the metric's own direction."""
    ours = label == keys["optimizer"]
    if not ours and label not in baselines({"baseline": [], **keys}):
        return []

    def drawn(*names: object) -> float:
        return noise(task, label, *names, seeds=len(plan.seeds))[plan.seeds.index(seed)]

    if keys["rule"] == "throughout":  # what comes before `start` says the opposite, and must not count
        gain = {"right": STEP, "wrong": -STEP, "margin": 0.0}[world] * ours
        good = [MIDDLE + (gain if i > 12 * keys.get("start", 0.0) else -gain) + drawn(i) for i in range(1, 13)]
    elif keys["rule"] == "smoother":
        rough = {"right": not ours, "wrong": ours, "margin": True}[world]
        good = [0.02 * i - (STEP + drawn()) * rough * (i % 2) for i in range(1, 13)]
    else:
        lost = {"right": 0.0, "wrong": 3.0, "margin": 1.0}[world] * keys["margin"]
        good = [*(MIDDLE - 0.01 * i for i in range(11, 0, -1)), MIDDLE - 0.01 - lost + drawn()]
    values = [1 - value if keys["metric"] in LOWER else value for value in good]
    return [{"step": 10 * i, keys["metric"]: value} for i, value in enumerate(values, start=1)]


def evidence(
    keys: Mapping[str, Any],
    plan: Plan,
    world: str,
    failing: Collection[tuple[str, str]] = (),
    renamed: Mapping[str, str] | None = None,
) -> Evidence:
    """Records of the world; `failing` are (task, label) whose runs all fail (and arrive nowhere)."""
    names = renamed or {}
    planted = levels(keys, plan, world)
    records, rows = {}, {}
    for run in plan.runs:
        failed = (run.task, run.optimizer) in failing
        metrics = {plan.tasks[0]["primary"]["name"]: MIDDLE}
        parts: dict[str, dict[str, Any]] = {"time": {"steps": 1000}, "memory": {}}
        for (metric, task, label), level in planted.items():
            if (task, label) != (run.task, run.optimizer):
                continue
            drawn = noise(metric, task, label, seeds=len(plan.seeds))[plan.seeds.index(run.seed)]
            value = level if keys["rule"] == "at_most" else (1 - level if metric in LOWER else level)
            if metric not in COUNTED:
                value += drawn
            if within := MAGNITUDE.fullmatch(metric):  # the worse it is, the farther below zero
                metric, value = within[1], -value
            place, dot, name = metric.partition(".")
            if dot:
                parts[place][name] = value
            else:
                metrics[names.get(metric, metric)] = value
        history = histories(keys, plan, world, run.optimizer, run.task, run.seed)
        if "gap_as_run" in metrics:  # test loss minus the loss of the last batches
            history = [{"step": 9, "epoch": 1.0, "train_loss": 1.0}]
            metrics["test_loss"] = 1.0 + metrics.pop("gap_as_run")
        if failed and keys["rule"] in ("sooner", "keeps", "all"):
            history = history[:1]
        elif failed and keys["rule"] in COURSES:
            history = []
        status = "failed" if failed or _diverges(keys, world, run.optimizer, plan.seeds.index(run.seed)) else "ok"
        if status == "failed":
            metrics = {}
        records[run.id] = {"id": run.id, "status": status, "metrics": metrics, **parts}
        rows[run.id] = history
    return Evidence(Results(Store(rows), plan, records, None), names)  # type: ignore[arg-type]


def _diverges(keys: Mapping[str, Any], world: str, label: str, i: int) -> bool:
    if keys["rule"] != "diverges" or label != keys["optimizer"]:
        return False
    return {"right": True, "wrong": False, "margin": i % 2 == 0}[world]

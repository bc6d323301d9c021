"""What tuning, sensitivity and variance have to say, as data for the report and as Markdown."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hf_optim.core import safe_text as safe
from hf_optim.core.wording import counted
from hf_optim.study.findings import expected_best, sensitivity_curves, special_cases, variance_shares
from hf_optim.study.folder.grouping import by_cell
from hf_optim.study.folder.results import Results
from hf_optim.study.folder.searches import Search, Trial, validation_metric
from hf_optim.study.folder.store import RecordStore, number
from hf_optim.study.plan.plan import Plan, flatten
from hf_optim.study.plan.tuning import distinct


@dataclass(frozen=True)
class Chosen:
    """What tuning chose for one optimizer on one task, and what it cost.

    `point` is empty where nothing was tuned; `value` is the validation value of the chosen trial, NaN if every trial
    failed; `steps` are all optimizer steps of the trials.
    """

    task: str
    optimizer: str
    metric: str
    trials: int
    failed: int
    pruned: int
    steps: int
    point: Mapping[str, Any]
    value: float
    edges: tuple[str, ...]
    #: counted from 1; 0 where the tuning is not repeated
    repetition: int = 0
    distinct: int = 0


@dataclass(frozen=True)
class Protocol:
    """Everything below; lists are empty for blocks that the study does not have. `notes` belong below its tables."""

    waiting: int
    chosen: tuple[Chosen, ...]
    expected: tuple[expected_best.Curve, ...]
    sensitivity: tuple[sensitivity_curves.Curve, ...]
    shares: tuple[variance_shares.Share, ...]
    findings: tuple[special_cases.Finding, ...]
    notes: tuple[str, ...]


def asked(plan: Plan) -> bool:
    """Whether the study has any of the blocks that this is about."""
    return any(block is not None for block in (plan.tuning, plan.sensitivity, plan.variance))


def build(results: Results) -> Protocol:
    """From the plan and the records of a study."""
    plan, now = results.plan, results.standing.state
    reader = results.store
    seeds = {plan.tuning_seed(unit): unit for unit in range(results.standing.units)}
    main = [s for s in now.searches if s.seed in seeds and s.budget == 1]
    metrics = {task["label"]: validation_metric(task) for task in plan.tasks}
    chosen = tuple(
        _chosen(search, metrics[search.task], seeds[search.seed] + 1 if plan.repetitions else 0, reader)
        for search in main
        if search.choice and (search.complete or search.choice.trial)
    )
    findings = tuple(special_cases.findings(results)) if plan.tuning else ()
    return Protocol(
        waiting=len(main) - len(chosen),
        chosen=chosen,
        expected=tuple(expected_best.curves(plan, now.searches, reader)),
        sensitivity=tuple(sensitivity_curves.curves(plan, now.grid, reader)),
        shares=tuple(variance_shares.shares(plan, now.variations, reader)),
        findings=findings,
        notes=tuple(_notes(plan, chosen, findings)),
    )


def _chosen(search: Search, metric: str, repetition: int, reader: RecordStore) -> Chosen:
    assert search.choice is not None
    best = search.choice.trial
    return Chosen(
        task=search.task,
        optimizer=search.optimizer,
        metric=metric,
        trials=len(search.trials),
        failed=sum(t.status == "failed" for t in search.trials),
        pruned=sum(t.status == "pruned" for t in search.trials),
        steps=sum(_steps(t, reader) for t in search.trials),
        point=best.point if best else search.trials[0].point if search.trials else {},
        value=best.value if best else math.nan,
        edges=search.choice.edges,
        repetition=repetition,
        distinct=distinct([trial.point for trial in search.trials]),
    )


def _steps(trial: Trial, reader: RecordStore) -> int:
    steps = number(((reader.record(trial.run.id) or {}).get("time") or {}).get("steps"))
    return 0 if math.isnan(steps) else int(steps)


def _notes(plan: Plan, chosen: Sequence[Chosen], findings: Sequence[special_cases.Finding]) -> list[str]:
    notes = []
    for (task, optimizer), some in by_cell(chosen).items():
        notes += [f"{optimizer} on {task}{text}" for text in _search_notes(some)]
    if pruned := sum(choice.pruned for choice in chosen):
        total = sum(choice.trials for choice in chosen)
        notes.append(f"{pruned} of {counted(total, 'trial')} were stopped early (median rule) and cannot be chosen.")
    for f in findings:
        notes.append(
            f"{f.general} lost to its special case {f.special} on {f.task} by {abs(f.difference):.4g} "
            f"(interval of its advantage {f.low:.4g} to {f.high:.4g}), which good tuning does not allow: "
            "doubt its search space or the budget, not the rule."
        )
    return notes


def _search_notes(some: Sequence[Chosen]) -> list[str]:
    """What is doubtful about the searches of one optimizer on one task, all repetitions together."""
    texts = []
    several = len(some) > 1
    for end in dict.fromkeys(
        edge if not several else edge.partition(" = ")[0] for choice in some for edge in choice.edges
    ):
        if not several:
            texts.append(f": the chosen {end}; beyond it may be better: widen the range.")
            continue
        count = sum(any(edge.startswith(f"{end} = ") for edge in choice.edges) for choice in some)
        texts.append(
            f": the chosen {end} lies at an end of its range in {count} of {counted(len(some), 'repetition')}."
        )
    trials, failed = sum(choice.trials for choice in some), sum(choice.failed for choice in some)
    if not trials:
        return [*texts, " was not tuned."]
    lost = sum(choice.failed == choice.trials for choice in some)
    if lost:
        where = f" in {lost} of {counted(len(some), 'repetition')}" if several else ""
        texts.append(f": every trial failed{where}; the judged runs have the first trial's setting.")
    elif failed:
        texts.append(f": {failed} of {counted(trials, 'trial')} failed, counted as worst.")
    few = min(choice.distinct for choice in some)
    if few < min(choice.trials for choice in some):
        texts.append(f": its space has few settings: {few} distinct in {counted(some[0].trials, 'trial')}.")
    return texts


def notes(protocol: Protocol | None) -> str:
    """The notes as they stand below a study's tables; empty where there are none."""
    lines = protocol.notes if protocol else ()
    return "".join(["\nTuning:\n\n", *(f"- {safe.markdown(line)}\n" for line in lines)]) if lines else ""


def markdown(protocol: Protocol, plan: Plan) -> str:
    """`tuning.md`: the choices, their notes, expected best, sensitivity and shares."""
    lines = (
        [f"# {safe.markdown(plan.title)}: tuning", ""]
        if plan.tuning
        else [f"# {safe.markdown(plan.title)}: sensitivity and variance", ""]
    )
    if plan.tuning:
        lines += [_budget(plan), ""]
        if protocol.waiting:
            lines += [
                f"The trials of {counted(protocol.waiting, 'optimizer')} are not all in: nothing is chosen yet.",
                "",
            ]
        lines += _table([_choice_cells(choice, plan.tuning["prune"] != "none") for choice in protocol.chosen])
    lines += [*(f"- {safe.markdown(note)}" for note in protocol.notes), ""] if protocol.notes else []
    lines += _expected(protocol.expected, any(choice.repetition for choice in protocol.chosen))
    lines += _sensitivity(protocol.sensitivity)
    lines += _shares(protocol.shares)
    return "\n".join(lines).rstrip() + "\n"


def _budget(plan: Plan) -> str:
    assert plan.tuning is not None
    block = plan.tuning
    steps = f", at most {counted(block['steps'], 'optimizer step')}" if block["steps"] else ""
    points = "quasi-random" if block["sampler"] == "qmc" else "random"
    pruning = "" if block["prune"] == "none" else "; hopeless trials were stopped early (median rule)"
    again = f", in each of {counted(plan.looks[-1], 'repetition')} at most" if plan.repetitions else ""
    seeds = f"tuning seeds {block['seed']} to {plan.tuning_seed(plan.looks[-1] - 1)}"
    seeds = seeds if plan.repetitions else f"tuning seed {block['seed']}"
    return (
        f"{counted(block['trials'], 'trial')} for each optimizer on each task{again}{steps}, {points} settings, "
        f"{seeds}; chosen by the validation split alone, at the end of training{pruning}."
    )


def _choice_cells(choice: Chosen, pruning: bool) -> dict[str, str]:
    setting = ", ".join(f"{key} = {_short(value)}" for key, value in flatten(choice.point).items())
    return {
        "task": choice.task,
        "optimizer": choice.optimizer,
        **({"repetition": f"{choice.repetition}"} if choice.repetition else {}),
        "chosen": setting or "as given",
        choice.metric: _number(choice.value),
        "trials": str(choice.trials),
        "failed": str(choice.failed),
        **({"stopped": str(choice.pruned)} if pruning else {}),
        "steps": str(choice.steps),
    }


def _expected(curves: Sequence[expected_best.Curve], repeated: bool) -> list[str]:
    lines: list[str] = []
    over = ", the mean over repetitions" if repeated else ""
    for task in dict.fromkeys(curve.task for curve in curves):
        mine = [curve for curve in curves if curve.task == task]
        budgets = _budgets(max(len(c.unbiased) for c in mine))
        lines += [f"## {safe.markdown(task)}: expected best of k trials", ""]
        lines += [f"On the validation split, by the unbiased estimator (the usual one in brackets){over}.", ""]
        rows = []
        for curve in mine:
            cells = {"optimizer": curve.optimizer}
            for k in budgets:
                known = k <= len(curve.unbiased)
                pair = (curve.unbiased[k - 1], curve.biased[k - 1]) if known else (math.nan, math.nan)
                cells[f"k = {k}"] = f"{_number(pair[0])} ({_number(pair[1])})" if known else "–"
            cells["judged test"] = _number(curve.judged)
            rows.append(cells)
        lines += _table(rows)
    return lines


def _budgets(most: int) -> list[int]:
    powers = [2**i for i in range(most.bit_length()) if 2**i <= most]
    return powers if powers[-1] == most else [*powers, most]


def _sensitivity(curves: Sequence[sensitivity_curves.Curve]) -> list[str]:
    lines: list[str] = []
    for task in dict.fromkeys(curve.task for curve in curves):
        mine = [curve for curve in curves if curve.task == task]
        lines += [f"## {safe.markdown(task)}: sensitivity to {safe.markdown(mine[0].key.rpartition('.')[2])}", ""]
        lines += [
            "Validation loss at the end of training, at most that before it; the number is the mean over the grid less "
            "the best (Wortsman et al. 2023), worked out for each seed and then averaged: lower is less sensitive.",
            "",
        ]
        rows = []
        for curve in mine:
            cells = {"optimizer": curve.optimizer}
            for value, loss, failed in zip(curve.values, curve.losses, curve.failed, strict=True):
                cells[repr(value).removesuffix(".0")] = _number(loss) + (" (failed)" if failed else "")
            cells["number"] = _number(curve.number)
            rows.append(cells)
        lines += _table(rows)
    return lines


def _shares(shares: Sequence[variance_shares.Share]) -> list[str]:
    if not shares:
        return []
    lines = ["## Where the spread comes from", ""]
    lines += ["The standard deviation of the test metric when one source alone is varied.", ""]
    return lines + _table(share_cells(shares))


def share_cells(shares: Sequence[variance_shares.Share]) -> list[dict[str, str]]:
    """Each source's share as text, by column."""
    rows = []
    for share in shares:
        rows.append(
            {
                "task": share.task,
                "optimizer": share.optimizer,
                "source": share.source,
                "n": str(share.n) + (f" ({share.failed} failed)" if share.failed else ""),
                "sd": _number(share.sd),
                "95 % interval": "–" if math.isnan(share.low) else f"{_number(share.low)} to {_number(share.high)}",
                "share": "–" if math.isnan(share.share) else f"{100 * share.share:.0f} %",
            }
        )
    return rows


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else value if isinstance(value, str) else json.dumps(value)


def _number(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.4g}"


def _table(rows: Sequence[Mapping[str, str]]) -> list[str]:
    if not rows:
        return []
    names = list(dict.fromkeys(name for row in rows for name in row))

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(map(safe.markdown, cells)) + " |"

    head = [line(names), "|" + "---|" * len(names)]
    return [*head, *(line([row.get(name, "–") for name in names]) for row in rows), ""]

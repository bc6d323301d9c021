"""The report's "What differs": hyper-parameters, tuning and parameter groups of the optimizers side by side."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from hf_optim.core.definitions import own_definitions
from hf_optim.core.safe_text import html as escape
from hf_optim.study.findings import naming
from hf_optim.study.folder.results import Results
from hf_optim.study.plan.entries import split_setting
from hf_optim.study.plan.plan import cell_spec, flatten
from hf_optim.study.report.pieces import html_table
from hf_optim.study.report.tables import OURS

LONG = 12  # a hyper-parameter table with more columns than this shows what was given only


def configurations(results: Results) -> str:
    """What differs between the optimizers: given values strong, defaults pale, a dot where there is none; how each was
    tuned, and its parameter groups.
    """
    ours = "".join(
        f"<li>{escape(o['label'])}: {escape(line)}</li>"
        for o in results.plan.optimizers
        for line in own_definitions(o["spec"])
    )
    plan = results.plan
    given = {o["label"]: _hyper(o["spec"]) for o in plan.optimizers}
    text = f'<h2 id="differs">What differs</h2>{_side_by_side(results, given, "What differs")}{_tuned(results)}'
    return text + (f"<p>{OURS}</p><ul>{ours}</ul>" if ours else "")


def on_task(results: Results, task: Mapping[str, Any]) -> str:
    """The same for one task, folded: its own hyper-parameters included, and the parameter groups trained with."""
    given = {
        o["label"]: _hyper(split_setting(cell_spec(task, o))[0])
        for o in results.plan.optimizers
        if o["label"] in task["only"]
    }
    content = _side_by_side(results, given, f"What differs on {task['label']}")
    content += _groups(results, task["label"]) + _settled(results, task["label"])
    return f"<details class='more'><summary>What differs on {escape(task['label'])}</summary>{content}</details>"


def _side_by_side(results: Results, given: Mapping[str, Mapping[str, Any]], caption: str) -> str:
    """Hyper-parameters that are not the same for all: a column each, given values strong and defaults pale."""
    optimizers = [o for o in results.plan.optimizers if o["label"] in given]
    defaults = {o["label"]: flatten(o["defaults"]) for o in optimizers}
    asked = dict.fromkeys(k for settings in given.values() for k in settings)
    everything = dict.fromkeys([*asked, *(k for settings in defaults.values() for k in settings)])
    differing = [k for k in everything if k != "name" and _differs(k, given, defaults)]
    columns = differing if len(differing) <= LONG else [k for k in differing if k in asked]
    lines = []
    for o in optimizers:
        label = o["label"]
        line = f'<th scope="row">{escape(label)}</th><td class="left">{escape(str(o["spec"]["name"]))}</td>'
        for key in columns:
            if key in given[label]:
                line += f"<td>{escape(_value(given[label][key]))}</td>"
            elif key in defaults[label]:
                line += f'<td class="default">{escape(_value(defaults[label][key]))}</td>'
            else:
                line += '<td class="default">·</td>'
        lines.append(f"<tr>{line}</tr>")
    note = '<p class="soft">Only values that are not the same for all; pale ones are defaults.</p>'
    return note + html_table(["optimizer", "rule", *columns], lines, caption)


def _hyper(spec: Mapping[str, Any]) -> dict[str, Any]:
    given = flatten({k: v for k, v in spec.items() if k != "name"})
    return {k.replace("base.name", "base"): v for k, v in given.items()}


def _differs(key: str, given: Mapping[str, Mapping[str, Any]], defaults: Mapping[str, Mapping[str, Any]]) -> bool:
    values = {json.dumps(given[label].get(key, defaults[label].get(key, "·")), sort_keys=True) for label in given}
    return len(values) > 1


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list):
        return "(" + ", ".join(_value(v) for v in value) + ")"
    return "none" if value is None else str(value)


def _tuned(results: Results) -> str:
    """Trials, spaces and budgets side by side."""
    plan = results.plan
    if plan.tuning is None:
        return '<p class="soft">Nothing was tuned: every value is as given, or a default.</p>'
    spaces: dict[str, dict[str, dict[str, None]]] = {}  # label -> space -> the tasks that have it
    for cell in plan.tuning["cells"]:
        text = ", ".join(f"{key} {_space(bounds)}" for key, bounds in cell["space"].items()) or "untuned"
        spaces.setdefault(cell["optimizer"], {}).setdefault(text, {})[cell["task"]] = None
    lines = []
    for o in plan.optimizers:
        _, trials, different = naming.searched(plan, o["label"])
        mine = spaces.get(o["label"], {"untuned": {}})
        space = "; ".join(text if len(mine) == 1 else f"{', '.join(on)}: {text}" for text, on in mine.items())
        few = f" ({different} distinct)" if different < trials else ""
        count = f"{trials}{few}"
        times = f"{plan.looks[-1]}" if plan.repetitions and trials else "1" if trials else "–"
        steps = f"{plan.tuning['steps']}" if plan.tuning["steps"] else "not bounded"
        lines.append(
            f'<tr><th scope="row">{escape(o["label"])}</th><td>{count}</td><td>{times}</td><td>{steps}</td>'
            f'<td class="wide">{escape(space)}</td></tr>'
        )
    differ = any(naming.unequal(plan, o["label"]) for o in plan.optimizers)
    warning = '<p class="bad">The optimizers had different numbers of trials.</p>' if differ else ""
    head = ["optimizer", "trials", "repetitions at most", "steps of the trials", "space"]
    return html_table(head, lines, "Tuning") + warning


def _space(bounds: Any) -> str:
    return f"in {_value(bounds[1])}" if bounds[0] == "choice" else f"{bounds[1]:g} to {bounds[2]:g} ({bounds[0]})"


def _groups(results: Results, task: str) -> str:
    """The parameter groups each optimizer trained with."""
    return _of_records(results, task, "groups", _group, "parameter groups")


def _settled(results: Results, task: str) -> str:
    """Where the rates and decays of a script of the user's own came from."""
    return _of_records(results, task, "settled", str, "rate and decay, and whence")


def _of_records(results: Results, task: str, key: str, text: Callable[[Any], str], head: str) -> str:
    """What the records of each optimizer's runs say under `key`; empty where they say nothing."""
    seen: dict[str, dict[str, None]] = {}
    for run in results.plan.runs:
        entries = (results.records.get(run.id) or {}).get(key) if run.task == task else None
        if entries:
            seen.setdefault(run.optimizer, {})["; ".join(map(text, entries))] = None
    lines = [
        f'<tr><th scope="row">{escape(label)}</th><td class="wide">{"<br>".join(map(escape, texts))}</td></tr>'
        for label, texts in seen.items()
    ]
    return html_table(["optimizer", head], lines, head.capitalize()) if lines else ""


def _group(group: Mapping[str, Any]) -> str:
    rest = ", ".join(f"{key} {_value(value)}" for key, value in group.items() if key != "parameters")
    return f"{group.get('parameters', 0):,} parameters{f' with {rest}' if rest else ''}"

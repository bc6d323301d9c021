"""The report's "What differs": hyper-parameters, tuning and parameter groups of the optimizers side by side."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hf_optim.core.definitions import own_definitions
from hf_optim.core.importing import paths
from hf_optim.core.safe_text import html as escape
from hf_optim.core.wording import either, plural
from hf_optim.hub.schedules import described
from hf_optim.study.findings import naming, verdicts
from hf_optim.study.folder.results import Results
from hf_optim.study.folder.store import number
from hf_optim.study.plan.entries import split_setting
from hf_optim.study.plan.plan import cell_spec, flatten
from hf_optim.study.plan.tuning import RUN_KEYS
from hf_optim.study.report.pieces import html_table
from hf_optim.study.report.tables import OURS

LONG = 12  # a hyper-parameter table with more columns than this shows what was given only
FEW = 4  # so many chosen values are listed, of more the ends


def configurations(results: Results) -> str:
    """What differs between the optimizers: given values strong, those that hold otherwise pale, a dot where
    there is none, of what was searched the chosen value with its range; how each was tuned, and its parameter groups.
    """
    ours = "".join(
        f"<li>{escape(o['label'])}: {escape(line)}</li>"
        for o in results.plan.optimizers
        for line in own_definitions(o["spec"])
    )
    plan = results.plan
    given = {o["label"]: _by_task(results, o) for o in plan.optimizers}
    content = _side_by_side(results, given, "What differs", plan.tasks)
    return content + _tuned(results) + (f"<p>{OURS}</p><ul>{ours}</ul>" if ours else "")


def on_task(results: Results, task: Mapping[str, Any]) -> str:
    """The same for one task, folded: its own hyper-parameters included, and the parameter groups trained with."""
    given = {
        o["label"]: _hyper(split_setting(cell_spec(task, o))[0])
        for o in results.plan.optimizers
        if o["label"] in task["only"]
    }
    content = _side_by_side(results, given, f"What differs on {task['label']}", [task])
    content += _groups(results, task["label"]) + _settled(results, task["label"])
    return f"<details class='more'><summary>What differs on {escape(task['label'])}</summary>{content}</details>"


def _side_by_side(
    results: Results, given: Mapping[str, Mapping[str, Any]], caption: str, tasks: Sequence[Mapping[str, Any]]
) -> str:
    """Hyper-parameters that are not the same for all, or were searched: a column each."""
    optimizers = [o for o in results.plan.optimizers if o["label"] in given]
    labels = [task["label"] for task in tasks]
    settled = {o["label"]: _in_force(results, o["label"], labels) for o in optimizers}
    defaults = {o["label"]: {**flatten(o["defaults"]), **settled[o["label"]]} for o in optimizers}
    untold = {o["label"] for o in optimizers if paths({k: v for k, v in o["spec"].items() if k in ("name", "base")})}
    searched = {label: _searched(results, label, labels) for label in given}
    asked = dict.fromkeys(k for settings in (*given.values(), *searched.values(), *settled.values()) for k in settings)
    everything = dict.fromkeys([*asked, *(k for settings in defaults.values() for k in settings)])
    tried = {key for told in searched.values() for key in told}
    differing = [k for k in everything if k != "name" and (k in tried or _differs(k, given, defaults))]
    columns = differing if len(differing) <= LONG else [k for k in differing if k in asked]
    lines = []
    for o in optimizers:
        label = o["label"]
        line = f'<th scope="row">{escape(label)}</th><td class="left">{escape(str(o["spec"]["name"]))}</td>'
        for key in columns:
            if key in searched[label]:
                line += f"<td>{escape(searched[label][key])}</td>"
            elif key in given[label]:
                line += f"<td>{escape(_value(given[label][key]))}</td>"
            elif key in defaults[label]:
                line += f'<td class="default">{escape(_value(defaults[label][key]))}</td>'
            else:
                line += f'<td class="default">{"not given" if label in untold else "·"}</td>'
        lines.append(f"<tr>{line}</tr>")
    note = "Only values that differ; pale ones were not given; · where the optimizer has no such thing."
    if untold:
        note += " What was not given to code that is named by its path is left to that code."
    if any(searched.values()):
        note += " Of what was tuned, the chosen value stands before the range that was searched."
    return f'<p class="soft">{note}</p>{html_table(["optimizer", "name", *columns], lines, caption)}'


def _in_force(results: Results, label: str, tasks: Sequence[str]) -> dict[str, Any]:
    """What the runs in a script of one's own settled for what was not given: the script's rate, not the rule's default.
    A text where runs settled it unlike."""
    values: dict[str, dict[str, Any]] = {}
    for _, record in (both for task in tasks for both in results.runs(task, label)):
        for settled in (record or {}).get("in_force") or ():
            for key, value in settled.items():
                values.setdefault(key, {})[_value(value)] = value
    return {key: next(iter(some.values())) if len(some) == 1 else " / ".join(some) for key, some in values.items()}


def _searched(results: Results, label: str, tasks: Sequence[str]) -> dict[str, str]:
    """What was searched of an optimizer on these tasks: the values that were judged, and the ranges they are from."""
    spaces: dict[str, dict[str, None]] = {}
    for space in (space for task in tasks for space in results.spaces.get((task, label), ())):
        for key, bounds in space.items():
            spaces.setdefault(key, {})[_space(bounds, "{}, {}")] = None
    judged = [_settings(run.spec) for task in tasks for run, _ in results.runs(task, label)] if spaces else []
    told = {}
    for key, ranges in spaces.items():
        chosen = list({_value(values[key]): values[key] for values in judged if key in values}.values())
        told[key] = f"{_chosen(chosen)} (searched {either(ranges)})"
    return told


def _settings(spec: Mapping[str, Any]) -> dict[str, Any]:
    """What a run was made with, by the names that spaces have."""
    overrides = spec.get("overrides") or {}
    run = {f"run.{key}": overrides[key] for key in RUN_KEYS if key in overrides}
    schedule = {"run.schedule": spec["schedule"]} if spec.get("schedule") else {}
    return {**flatten({k: v for k, v in spec["optimizer"].items() if k != "name"}), **run, **schedule}


def _chosen(values: Sequence[Any]) -> str:
    """ "0.01", or of several repetitions and tasks "0.01, 0.03", or the ends of many numbers."""
    if not values:
        return "not chosen yet"
    if len(values) > FEW and not any(math.isnan(number(value)) for value in values):
        return f"{_value(min(values))} to {_value(max(values))}"
    return ", ".join(map(_value, values))


def _hyper(spec: Mapping[str, Any]) -> dict[str, Any]:
    given = flatten({k: v for k, v in spec.items() if k != "name"})
    return {k.replace("base.name", "base"): v for k, v in given.items()}


def _by_task(results: Results, optimizer: Mapping[str, Any]) -> dict[str, Any]:
    """What an optimizer is given; of what tasks give it other values, these in words."""
    words = naming.settings(results.plan, optimizer["label"])
    plain = _hyper(optimizer["spec"])
    named = {key.replace("base.name", "base"): text for key, text in words.items()}
    return {key: text if key not in plain or text.endswith(" by task") else plain[key] for key, text in named.items()}


def _differs(key: str, given: Mapping[str, Mapping[str, Any]], defaults: Mapping[str, Mapping[str, Any]]) -> bool:
    values = {json.dumps(given[label].get(key, defaults[label].get(key, "·")), sort_keys=True) for label in given}
    return len(values) > 1


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list):
        return "(" + ", ".join(_value(v) for v in value) + ")"
    if isinstance(value, Mapping):
        return described(value) if "name" in value else json.dumps(value)  # a schedule; anybody's plan may hold more
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
    rows: dict[str, dict[str, str]] = {}
    for o in plan.optimizers:
        _, trials, different = naming.searched(plan, o["label"])
        mine = spaces.get(o["label"], {"untuned": {}})
        space = "; ".join(text if len(mine) == 1 else f"{', '.join(on)}: {text}" for text, on in mine.items())
        few = f" ({different} distinct)" if different < trials else ""
        rows[o["label"]] = {
            "trials": f"{trials}{few}",
            # What the study did not ask for has no column.
            **({"repetitions at most": f"{plan.looks[-1]}" if trials else "–"} if plan.repetitions else {}),
            **({"steps of the trials at most": f"{plan.tuning['steps']}"} if plan.tuning["steps"] else {}),
            "space": space,
        }
    lines = []
    for label, cells in rows.items():
        *first, space = map(escape, cells.values())
        line = "".join(f"<td>{cell}</td>" for cell in first)
        lines.append(f'<tr><th scope="row">{escape(label)}</th>{line}<td class="wide">{space}</td></tr>')
    unlike = [sentence for o in plan.optimizers if (sentence := verdicts.unlike(results, o["label"]))]
    warning = "".join(f'<p class="bad">{escape(sentence)}</p>' for sentence in unlike)
    head = ["optimizer", *next(iter(rows.values()))]
    return html_table(head, lines, "Tuning") + warning


def _space(bounds: Any, shape: str = "{} ({})") -> str:
    """The range and its kind as `shape` puts them."""
    if bounds[0] == "choice":
        return f"in {_value(bounds[1])}"
    return shape.format(f"{bounds[1]:g} to {bounds[2]:g}", bounds[0])


def _groups(results: Results, task: str) -> str:
    """The parameter groups each optimizer trained with."""
    return _of_records(results, task, "groups", _group, "parameter groups")


def _settled(results: Results, task: str) -> str:
    """Where the rates and decays of a script of the user's own came from."""
    return _of_records(results, task, "settled", str, "rate and decay, and whence")


def _of_records(results: Results, task: str, key: str, text: Callable[[Any], str], head: str) -> str:
    """What the records of each optimizer's runs say under `key`; empty where they say nothing."""
    seen: dict[str, dict[str, None]] = {}
    for label in (o["label"] for o in results.plan.optimizers):
        for _, record in results.runs(task, label):
            if entries := (record or {}).get(key):
                seen.setdefault(label, {})["; ".join(map(text, entries))] = None
    lines = [
        f'<tr><th scope="row">{escape(label)}</th><td class="wide">{"<br>".join(map(escape, texts))}</td></tr>'
        for label, texts in seen.items()
    ]
    return html_table(["optimizer", head], lines, head.capitalize()) if lines else ""


def _group(group: Mapping[str, Any]) -> str:
    rest = ", ".join(f"{key} {_value(value)}" for key, value in group.items() if key != "parameters")
    count = number(group.get("parameters"))
    told = f"{'?' if math.isnan(count) else f'{count:,.0f}'} {plural('parameter', count)}"
    return f"{told} with {rest}" if rest else told

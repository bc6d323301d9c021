"""What differs from the paper, computed: the settings of one size against those of the paper's, value by value."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from hf_optim.claims.claim import Claim
from hf_optim.claims.sources import CHOSEN, STUDY
from hf_optim.core.wording import counted
from hf_optim.experiment.task import REST, Preset, Value, load
from hf_optim.study.plan.plan import Plan, cell_spec, expand, flatten

#: values of a preset that say how a run is looked at, and not what it is
LOOKING = ("evaluations", "train_evaluation", "evaluation_batch", "optimizer", "samples")
NAMES = {
    "epochs": "epochs", "steps": "steps", "batch_size": "batch size", "data": "data", "schedule": "schedule",
    "max_grad_norm": "gradient clipping", "validation": "held-out train samples", "drop_last": "last batch dropped",
    "model": "model",
}  # fmt: skip
#: of a model's setting, what may differ whatever the architecture
TOLD_OF_A_MODEL = {
    "augment": "augmentation", "dropout": "dropout", "drop_path_rate": "drop path rate",
    "label_smoothing": "label smoothing", "ema_decay": "average of weights",
}  # fmt: skip


def paper_plan(claim: Claim) -> Plan | None:
    """The study at size paper; None where the claim has none."""
    setting = claim.settings.get("paper")
    return None if setting is None or setting.study is None else expand(setting.study)


def differences(claim: Claim, size: str, plan: Plan) -> list[str]:
    """What the study of `plan` does otherwise than the paper, in sentences.

    At size paper: what the paper does not print and the study therefore takes from its code or from us. At another
    size: what is otherwise than at size paper, too.
    """
    lines = _printed(claim, plan)
    whole = paper_plan(claim)
    if whole is None:
        return [*lines, "The paper has no setting for it, or none is run at size paper: all of it is ours."]
    for task in plan.tasks:
        lines += _task(task, _counterparts(claim, size, task, whole))
    lines += _optimizers(plan, whole)
    lines += [
        f"{ours} is measured where the claim has {theirs}." for theirs, ours in claim.settings[size].metrics.items()
    ]
    return [*lines, *_open(claim, plan, whole)] if size == "paper" else lines


Row = tuple[str, str, str, str, str]


def values(claim: Claim, plan: Plan, brief: bool = False) -> list[Row]:
    """Every value of the study and of every task's setting: (task, name, value, printed / code / ours, note).

    `brief`: an architecture by its name alone, where the rest of the model is told entry by entry.
    """
    known = claim.printed.get("seeds")
    seeds = ("", "seeds", str(len(plan.seeds)), "printed" if known == len(plan.seeds) else "ours", "")
    own = paper_plan(claim)
    rows = [seeds if known in (None, len(plan.seeds)) else (*seeds[:4], f"the paper has {known}")]
    for task in plan.tasks:
        label = task["label"]
        theirs = next((other for other in own.tasks if other["label"] == label), {}) if own is not None else {}
        for name, value in _preset(task, _words(claim, task, theirs)).items():
            if value.parts:
                rows += _parts(label, name, value, brief)
            else:
                rows.append((label, NAMES.get(name, name), _short(value.value), _source(value.source), value.note))
        word = _words(claim, task, theirs).get("schedules", "ours")
        for who, given in (task.get("schedules") or {}).items():
            rows.append((label, f"schedule of {who}", _short(given), word, ""))
    return rows


def _parts(label: str, name: str, value: Value[Any], brief: bool) -> list[Row]:
    """A mapping's entries: those that are told by themselves, and before them the rest."""
    parts = dict(value.parts)
    rest = parts.pop(REST, value.source)
    others = {key: item for key, item in value.value.items() if key not in parts}
    shown = str(others["name"]) if brief and "name" in others else _short(others)
    rows = [(label, name, shown, _source(rest), value.note)]
    for key, word in parts.items():
        item = _short(value.value[key])
        rows.append((label, key, f"({item})" if isinstance(value.value[key], Mapping) else item, _source(word), ""))
    return rows


def _words(claim: Claim, task: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, str]:
    """Where the values that the study gives a task stand; one that is not the claim's own at size paper is ours."""
    label, words = task["label"], {}
    for name, said in claim.sources.get(STUDY, {}).items():
        own = name == "model" or not (name in (task.get("overrides") or {}) or task.get(name))
        if name in CHOSEN and own and isinstance(said, Mapping) and label not in said:
            continue  # the preset says it
        word = said.get(label, "ours") if isinstance(said, Mapping) else said
        here, there = ((each.get("overrides") or {}).get(name, each.get(name)) for each in (task, theirs))
        words[name] = word if here == there else "ours"
    return words


def _source(word: str) -> str:
    return {"paper": "printed"}.get(word, word)


def _preset(task: Mapping[str, Any], words: Mapping[str, str] | None = None) -> dict[str, Value[Any]]:
    """The values of a task's preset and what the study gives in their place, which is ours unless `words` say more."""

    def given(name: str, value: Any, same: Value[Any] | None = None) -> Value[Any]:
        word = (words or {}).get(name)
        if word is None and same is not None:
            return same
        source: Any = {"printed": "paper"}.get(word or "ours", word or "ours")
        return Value(value, source, "set by the study")

    preset: Preset = load(task["task"]).preset(task["model"], task["size"])
    values = {key: value for key, value in preset.sources().items() if key not in LOOKING}
    model = values["model"]
    changed = {**model.value, **(task.get("options") or {})}
    parts = dict(model.parts) | {key: given("options", key).source for key in task.get("options") or {}}
    least = model.source
    if "model" in (words or {}):
        parts[REST] = given("model", None).source
        least = max(least, parts[REST], key=("paper", "code", "ours").index)
    values["model"] = Value({"name": task["model"], **changed}, least, model.note, parts)
    for key, value in (task.get("overrides") or {}).items():
        if key in values:
            values[key] = given(key, value, values[key] if values[key].value == value else None)
    for key in ("data", "schedule"):
        if task.get(key):
            values[key] = given(key, task[key])
    for key in ("data", "batch_size"):
        if key in (words or {}) and not task.get(key) and key not in (task.get("overrides") or {}):
            values[key] = replace(values[key], source=given(key, None).source)
    if values["steps"].value is None:
        del values["steps"]
    elif "epochs" in (task.get("overrides") or {}):
        del values["steps"]
    else:
        del values["epochs"]
    return values


def _short(value: Any) -> str:
    if isinstance(value, Mapping):
        name = value.get("name", "")
        rest = ", ".join(f"{key} {_short(item)}" for key, item in value.items() if key != "name")
        return f"{name} ({rest})" if name and rest else str(name or rest)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _printed(claim: Claim, plan: Plan) -> list[str]:
    """Against the numbers that the claim file quotes from the paper."""
    lines = []
    if "seeds" in claim.printed and claim.printed["seeds"] != len(plan.seeds):
        lines.append(f"{counted(len(plan.seeds), 'seed')} for the paper's {claim.printed['seeds']}.")
    elif "seeds" not in claim.printed:
        lines.append(f"{counted(len(plan.seeds), 'seed')}; the paper prints no number of them.")
    return lines


def _open(claim: Claim, plan: Plan, whole: Plan) -> list[str]:
    """What the paper does not print, once for all tasks that share it."""
    by_line: dict[str, list[str]] = {}
    for task in plan.tasks:
        theirs = next((other for other in whole.tasks if other["label"] == task["label"]), {})
        for name, value in _preset(task, _words(claim, task, theirs)).items():
            if value.source != "paper":
                shown = value.note if name == "model" else _short(value.value)
                note = f": {value.note}" if value.note and name != "model" else ""
                line = (
                    f"{NAMES.get(name, name)} {shown} is {'from the code' if value.source == 'code' else 'ours'}{note}."
                )
                by_line.setdefault(line, []).append(task["label"])
    everywhere = len(plan.tasks)
    return [line if len(tasks) == everywhere else f"{', '.join(tasks)}: {line}" for line, tasks in by_line.items()]


def _counterparts(claim: Claim, size: str, task: Mapping[str, Any], whole: Plan) -> list[Mapping[str, Any]]:
    named = claim.settings[size].stands_for.get(task["label"])
    if named is None:
        same = [other for other in whole.tasks if other["label"] == task["label"]]
        return same or list(whole.tasks)
    return [other for other in whole.tasks if other["label"] in named]


def _task(task: Mapping[str, Any], stands_for: Iterable[Mapping[str, Any]]) -> list[str]:
    ours = _preset(task)
    theirs = [_preset(other) for other in stands_for]
    lines = []
    for name in dict.fromkeys([*ours, *(key for preset in theirs for key in preset)]):
        here = _text(name, ours)
        there = list(dict.fromkeys(_text(name, preset) for preset in theirs))
        if there != [here]:
            lines.append(f"{NAMES.get(name, name)} {here} for {' / '.join(there)}")
        if name == "model":
            lines += _of_model(ours, theirs)
    return [f"{task['label']}: {'; '.join(lines)}."] if lines else []


def _of_model(ours: Mapping[str, Value[Any]], theirs: list[dict[str, Value[Any]]]) -> list[str]:
    """What is not the architecture's own in a model's setting, where that differs: augmentation, dropout, smoothing."""
    lines = []
    for key, words in TOLD_OF_A_MODEL.items():
        here, *there = (
            _short(preset["model"].value[key]) if preset["model"].value.get(key) else "none"
            for preset in (ours, *theirs)
        )
        if set(there) != {here}:
            lines.append(f"{words} {here} for {' / '.join(dict.fromkeys(there))}")
    return lines


def _text(name: str, preset: Mapping[str, Value[Any]]) -> str:
    if name not in preset:
        return "as its epochs have it" if name == "steps" else "as its steps have it"
    value = preset[name].value
    return str(value["name"]) if name == "model" else _short(value)


def _optimizers(plan: Plan, whole: Plan) -> list[str]:
    lines = []
    for optimizer in plan.optimizers:
        label = optimizer["label"]
        other = next((entry for entry in whole.optimizers if entry["label"] == label), None)
        if other is None:
            lines.append(f"{label} is not in the paper's study.")
            continue
        here = {_spec(cell_spec(task, optimizer)) for task in plan.tasks if label in task["only"]}
        there = {_spec(cell_spec(task, other)) for task in whole.tasks if label in task["only"]}
        if here and there and not here & there:
            a, b = dict(min(here)), dict(min(there))
            changed = [
                f"{key} {a.get(key, 'default')} for {b.get(key, 'default')}"
                for key in dict.fromkeys([*a, *b])
                if a.get(key) != b.get(key)
            ]
            lines.append(f"{label}: {', '.join(changed)}.")
    gone = [entry["label"] for entry in whole.optimizers if entry["label"] not in {o["label"] for o in plan.optimizers}]
    return [*lines, *([f"Without {', '.join(gone)}."] if gone else [])]


def _spec(spec: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    return tuple(sorted((key, _short(value)) for key, value in flatten(spec).items()))

"""Every setting of the optimizers and of the training at size paper with its source, as few words as it takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hf_optim import registry
from hf_optim.claims import defaults, settings, sources
from hf_optim.claims.claim import Claim
from hf_optim.core.wording import both
from hf_optim.study.plan.plan import Plan, expand, flatten

MOST_VALUES = 2  # of one setting over the tasks, before only their range is told


def lines(claim: Claim, plan: Plan | None = None) -> list[str]:
    """A line for all optimizers that share it: "AdamW, AdamW(AGR): lr 0.001 (printed), decay_all yes (code)".

    What `plan`, the study that ran, sets otherwise than the claim's own at size paper is ours. None where the claim
    says no sources.
    """
    setting = claim.settings.get("paper")
    if not claim.sources or setting is None or setting.study is None:
        return []
    whole = expand(setting.study)
    own = _by_label(whole)
    ran = own if plan is None else _by_label(plan)
    rules = {label: str(spec.get("name")) for _, label, spec in (whole if plan is None else plan).cells()}
    told = {}
    for label, by_task in ran.items():
        said = claim.sources.get(label, {})
        told[label] = _items(said, by_task, own.get(label, {}), _unset(rules[label], by_task))
    return _told(told)


def _unset(rule: str, by_task: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The defaults that a rule runs with, as far as it is a registered one."""
    if rule not in registry.list_optimizers():
        return {}
    given = {name for values in by_task.values() for name in values}
    return {name: value for name, value in registry.info(rule).defaults.items() if name not in given}


def training(claim: Claim) -> list[str]:
    """A line for all tasks that share it: "all: epochs 100 (printed), held-out train samples 5000 (ours)"; none where
    the claim has no study at size paper.
    """
    plan = settings.paper_plan(claim)
    if plan is None:
        return []
    everywhere: list[tuple[str, str]] = []
    told: dict[str, list[tuple[str, str]]] = {task["label"]: [] for task in plan.tasks}
    for label, name, value, word, _ in settings.values(claim, plan, brief=True):
        colon = ":" if " of " in name else ""  # the schedule of one optimizer
        (told[label] if label else everywhere).append((f"{name}{colon} {value}", word))
    return _told({label: [*everywhere, *items] for label, items in told.items()})


def of_defaults(plan: Plan) -> list[str]:
    """A line for each rule that runs with a default of its own: "adam: eps 1e-08 (printed), maximize no (code)"."""
    lines = []
    for name, given in sorted(defaults.always_given(spec for _, _, spec in plan.cells()).items()):
        items = [
            (f"{key} {short(value)}", word)
            for word, values in defaults.by_word(name, given).items()
            for key, value in values.items()
        ]
        lines += [f"{name}: {_joined(items)}"] if items else []
    return lines


def _told(told: Mapping[str, list[tuple[str, str]]]) -> list[str]:
    """A line for all labels with the same items, after one for what all have."""
    shared = [item for item in next(iter(told.values()), []) if len(told) > 1 and all(item in i for i in told.values())]
    grouped: dict[str, list[str]] = {}
    for label, items in told.items():
        rest = [item for item in items if item not in shared]
        if rest:
            grouped.setdefault(_joined(rest), []).append(label)
    whole = _joined(shared).replace("its defaults", "their defaults")
    return ([f"all: {whole}"] if shared else []) + [f"{_and(who)}: {t}" for t, who in grouped.items()]


def _and(labels: list[str]) -> str:
    return (" / " if any("," in label for label in labels) else ", ").join(labels)


def _joined(items: list[tuple[str, str]]) -> str:
    """The settings with each source once, behind all that have it."""
    by_source: dict[str, list[str]] = {}
    for text, word in items:
        by_source.setdefault(word, []).append(text)
    return ", ".join(f"{', '.join(texts)}{f' ({word})' if word else ''}" for word, texts in by_source.items())


def _by_label(plan: Plan) -> dict[str, dict[str, dict[str, Any]]]:
    """label -> task -> setting -> value."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for task, label, spec in plan.cells():
        flat = flatten(spec)
        found.setdefault(label, {})[task["label"]] = {name: flat[name] for name in sources.names(spec)}
    return found


def _items(
    said: Mapping[str, Any],
    by_task: Mapping[str, Mapping[str, Any]],
    own: Mapping[str, Mapping[str, Any]],
    unset: Mapping[str, Any],
) -> list[tuple[str, str]]:
    """(setting and values, source) of one optimizer."""
    items = []
    for name in dict.fromkeys(name for values in by_task.values() for name in values):
        by_source: dict[str, dict[str, list[str]]] = {}
        for task, values in by_task.items():
            if name in values:
                word = said.get(name, "")
                word = word.get(task, "") if isinstance(word, Mapping) else word
                word = word if own.get(task, {}).get(name) == values[name] else "ours"
                by_source.setdefault(word, {}).setdefault(short(values[name]), []).append(task)
        items += [(_item(name, shown, len(by_task)), word) for word, shown in by_source.items()]
    items += [(f"{name} {short(unset[name])}", word) for name, word in said.items() if name in unset]
    if word := said.get(sources.DEFAULTS):
        items.append(("otherwise its defaults" if items else "its defaults", word))
    return items


def _item(name: str, shown: Mapping[str, list[str]], tasks: int) -> str:
    if len(shown) > MOST_VALUES:
        kinds = list(shown)
        return f"{name} {kinds[0]} to {kinds[-1]} by task"
    everywhere = len(shown) == 1 and len(next(iter(shown.values()))) == tasks
    values = [value if everywhere else f"{value} on {' / '.join(on)}" for value, on in shown.items()]
    return f"{name} {both(values)}"


def short(value: Any) -> str:
    """A value as the pages have it."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return "/".join(short(item) for item in value)
    return f"{value:g}" if isinstance(value, float) else str(value)

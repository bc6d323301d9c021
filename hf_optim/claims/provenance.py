"""Every setting of the optimizers at size paper with its source, as few words as it takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hf_optim.claims import sources
from hf_optim.claims.claim import Claim
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
    own = _by_label(expand(setting.study))
    ran = own if plan is None else _by_label(plan)
    told = {label: _items(claim.sources.get(label, {}), by_task, own.get(label, {})) for label, by_task in ran.items()}
    shared = [item for item in next(iter(told.values()), []) if len(told) > 1 and all(item in i for i in told.values())]
    grouped: dict[str, list[str]] = {}
    for label, items in told.items():
        rest = [item for item in items if item not in shared]
        if rest:
            grouped.setdefault(_joined(rest), []).append(label)
    return ([f"all: {_joined(shared)}"] if shared else []) + [f"{', '.join(who)}: {t}" for t, who in grouped.items()]


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
    said: Mapping[str, Any], by_task: Mapping[str, Mapping[str, Any]], own: Mapping[str, Mapping[str, Any]]
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
                by_source.setdefault(word, {}).setdefault(_short(values[name]), []).append(task)
        items += [(_item(name, shown, len(by_task)), word) for word, shown in by_source.items()]
    if word := said.get(sources.DEFAULTS):
        items.append(("otherwise its defaults" if items else "its defaults", word))
    return items


def _item(name: str, shown: Mapping[str, list[str]], tasks: int) -> str:
    if len(shown) > MOST_VALUES:
        kinds = list(shown)
        return f"{name} {kinds[0]} to {kinds[-1]} by task"
    everywhere = len(shown) == 1 and len(next(iter(shown.values()))) == tasks
    values = [value if everywhere else f"{value} on {' / '.join(on)}" for value, on in shown.items()]
    return f"{name} {' and '.join(values)}"


def _short(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return "/".join(_short(item) for item in value)
    return f"{value:g}" if isinstance(value, float) else str(value)

"""Where the settings of a claim's study at size paper stand: in the paper, in its code, or with us.

What a task's preset holds says so itself; here is what the study sets, for its optimizers and for its tasks.

sources:
  all: {lr: code}                          # of every optimizer that has the setting; a label of its own goes before
  AdamW: {weight_decay: printed, lr: {Swin-T: code, VGG11: printed}}     # by the task's label, where tasks differ
  TLR(SGD): {gamma: printed, base.lr: ours}
  Prodigy: code                            # one word: of every setting that it has, and of its defaults
  TLR as run: {base.lr: printed, defaults: code}     # `defaults`: of what is not set, that the default is taken
  SGDM: {lr: printed, momentum: printed, defaults: code}     # a default may be told by itself
  study: {batch_size: printed, schedules: {WRN: printed}}     # of what the study gives its tasks: overrides by their
                                           # name, and data, options, schedule, schedules; and of the data, the model
                                           # and the batch_size of the presets where the claim's own sentences say
                                           # otherwise than the preset: {model: ours}
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from hf_optim.core.validate import closest
from hf_optim.registry import info, list_optimizers

if TYPE_CHECKING:
    from hf_optim.study.plan.source import Source, Where

WORDS = ("printed", "code", "ours")
EVERY = "all"
DEFAULTS = "defaults"
STUDY = "study"
#: what a preset says of itself, and a claim may know better: another section of its paper names them, or its own alone
CHOSEN = ("data", "model", "batch_size")
#: overrides that say how a run is looked at, and not what it is
LOOKING = ("eval_every", "train_curve", "sharpness", "evaluations", "train_evaluation", "evaluation_batch")
#: label -> setting -> its word, or the word of each task
Sources = Mapping[str, Mapping[str, str | Mapping[str, str]]]


def read(source: Source, value: Any, study: Any) -> Sources:
    """The key `sources` of a claim file, checked against the study at size paper, with `all` spread over the labels."""
    where: Where = ("sources",)
    source.check_type(where, value, dict, "a mapping from an optimizer's label to where its settings stand")
    if not isinstance(study, Mapping):
        raise source.error(where, "sources are of the optimizers of paper_size, which has no study")
    known, own = _settings(study), _defaults(study)
    if STUDY in known and STUDY in value:
        raise source.error((*where, STUDY), f"sources: {STUDY} is of the tasks; give the optimizer another label")
    found: dict[str, dict[str, str | Mapping[str, str]]] = {label: {} for label in known}
    if STUDY in value:
        given = of_tasks(study)
        words = _of(source, (*where, STUDY), value[STUDY], {**_chosen(study), **given})
        for name in words.keys() & given.keys() & set(CHOSEN):
            word = words[name]
            if isinstance(word, str):  # of what the study gives, and not of a preset's
                words[name] = dict.fromkeys(given[name], word)
        found[STUDY] = words
        value = {key: said for key, said in value.items() if key != STUDY}
    for key in sorted(value, key=lambda key: key in known):  # `all` first
        if key not in known and key != EVERY:
            near = closest(key, known)
            message = f"sources: no optimizer of paper_size has the label {key!r}{near}; labels: {_list(known)}"
            raise source.error((*where, key), message)
        if key not in known:
            _anybody(source, (*where, key), value[key], known)
        for label in known if key not in known else [key]:
            found[label] |= _of(source, (*where, key), value[key], known[label], key not in known, own[label])
    return found


def _anybody(source: Source, where: Where, value: Any, known: Mapping[str, Mapping[str, list[str]]]) -> None:
    """Whether every setting, and every task of one, under `all` is some optimizer's."""
    for name, said in value.items() if isinstance(value, dict) else ():
        tasks = [task for has in known.values() for task in has.get(name, [])]
        if not tasks and name != DEFAULTS:
            raise source.error((*where, name), f"sources: no optimizer of paper_size sets {name!r}")
        for task in said if isinstance(said, dict) else ():
            if task not in tasks:
                raise source.error((*where, name, task), f"sources: no optimizer has {name} on {task!r}")


def _of(
    source: Source,
    where: Where,
    value: Any,
    has: Mapping[str, list[str]],
    spread: bool = False,
    own: Mapping[str, Any] | None = None,
) -> dict[str, str | Mapping[str, str]]:
    """The words of one optimizer's settings, whose rule has the defaults `own`; `spread`: what it does not set is let
    be. Of the tasks' settings: None.
    """
    if not isinstance(value, dict):
        word = _word(source, where, value)
        return dict.fromkeys(has if own is None else [*has, DEFAULTS], word)
    words: dict[str, str | Mapping[str, str]] = {}
    for name, said in value.items():
        here = (*where, name)
        if name not in has and not (own is not None and name == DEFAULTS):
            if spread:
                continue
            if name in (own or ()) and not isinstance(said, dict):
                words[name] = _word(source, here, said)
                continue
            near = closest(name, has)
            raise source.error(here, f"sources: {where[-1]} sets no {name!r}{near}; it sets: {_list(has)}")
        if not isinstance(said, dict):
            words[name] = _word(source, here, said)
            continue
        tasks = has.get(name, [])
        for task, word in said.items():
            if task not in tasks and not spread:
                near = closest(task, tasks)
                raise source.error((*here, task), f"sources: {where[-1]} has no {name} on {task!r}{near}")
            _word(source, (*here, task), word)
        words[name] = said
    return words


def _word(source: Source, where: Where, value: Any) -> str:
    return str(source.check_choice(where, value, WORDS))


def _list(names: Iterable[str]) -> str:
    return ", ".join(names) or "nothing"


def _settings(study: Mapping[str, Any]) -> dict[str, dict[str, list[str]]]:
    """label -> setting -> tasks that run with it, as the YAML has them: what is wrong there the study says itself."""
    tasks = [task for task in _entries(study, "tasks") if isinstance(task, Mapping)]
    found: dict[str, dict[str, list[str]]] = {}
    for entry in _entries(study, "optimizers"):
        spec = dict(entry) if isinstance(entry, Mapping) else {"name": entry}
        label = str(spec.pop("label", spec.get("name")))
        found[label] = {}
        for task in tasks:
            only, hyper = task.get("only"), task.get("hyper")
            if isinstance(only, list) and label not in only:
                continue
            here = hyper.get(label) if isinstance(hyper, Mapping) else None
            for name in dict.fromkeys([*names(spec), *names(here if isinstance(here, Mapping) else {})]):
                found[label].setdefault(name, []).append(str(task.get("label")))
    return found


def _defaults(study: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """label -> the defaults of its rule; of one that is not registered, none are known."""
    found: dict[str, Mapping[str, Any]] = {}
    for entry in _entries(study, "optimizers"):
        spec = entry if isinstance(entry, Mapping) else {"name": entry}
        name = str(spec.get("name"))
        found[str(spec.get("label", name))] = info(name).defaults if name in list_optimizers() else {}
    return found


def of_tasks(study: Mapping[str, Any]) -> dict[str, list[str]]:
    """What the study gives its tasks -> the tasks that it gives it."""
    found: dict[str, list[str]] = {}
    for task in _entries(study, "tasks"):
        if not isinstance(task, Mapping):
            continue
        overrides = task.get("overrides")
        names = [name for name in overrides if name not in LOOKING] if isinstance(overrides, Mapping) else []
        for name in [*names, *(key for key in ("data", "options", "schedule", "schedules") if task.get(key))]:
            found.setdefault(name, []).append(str(task.get("label")))
    return found


def _chosen(study: Mapping[str, Any]) -> dict[str, list[str]]:
    """What every task's preset has, whether the study gives it or not -> the tasks."""
    labels = [str(task.get("label")) for task in _entries(study, "tasks") if isinstance(task, Mapping)]
    return dict.fromkeys(CHOSEN, labels)


def _entries(study: Mapping[str, Any], key: str) -> list[Any]:
    value = study.get(key)
    return value if isinstance(value, list) else []


def names(spec: Mapping[str, Any], prefix: str = "") -> list[str]:
    """The settings of an optimizer's specification, those of its base as `base.lr`; which rule it is, is none."""
    found: list[str] = []
    for key, item in spec.items():
        if isinstance(item, Mapping):
            found += names(item, f"{prefix}{key}.")
        elif key not in ("name", "label", "base"):
            found.append(f"{prefix}{key}")
    return found

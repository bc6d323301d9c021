"""Studies over all options of their YAML, for tests of what reads a study.

A draw is one level of every factor; `covering` draws until every two levels that a study can have together were in one.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from hf_optim.core import yaml12

Draw = Mapping[str, Any]
OWN = '''"""A training and an optimizer of one's own, neither of which is called here."""
from hf_optim import study
from hf_optim.optimizers.sgd import SGD

@study.training(metric="test_score", greater_is_better=True)
def train(optimizer, seed, log, width=3):
    raise RuntimeError("nothing is trained")

class Mine(SGD):
    search_space = {"lr": ("log", 0.001, 1.0), "momentum": ("choice", [0.0, 0.9])}
'''
MLP = {"task": "vision", "model": "mlp", "size": "smoke", "label": "MLP"}
WORDS = {"task": "finetune", "size": "smoke", "label": "Words | $x$ <b>"}
DIGITS = {"task": "logistic", "label": "Digits: *all*"}
RUNG = {"model": "gpt2", "size": "smoke", "tokens": [0.1, 0.2], "parameters": [30000]}
TUNED = {"trials": 3}
REPEATED = {"trials": 2, "repetitions": 2}
FACTORS: dict[str, dict[str, Any]] = {
    "tasks": {
        "one": [MLP],
        "lower": [DIGITS],
        "two": [MLP, WORDS],
        "alike": [MLP, {**MLP, "label": "MLP, longer"}],
        "three": [MLP, DIGITS, WORDS],
        "own": [{"task": "mine.py:train", "options": {"width": 5}}],
        "own and": [{"task": "mine.py:train", "label": "Own"}, MLP],
        "bare": ["vision", {"task": "translation", "size": "smoke"}],
        "four": [MLP, DIGITS, WORDS, {"task": "ddpm", "size": "smoke"}],
        "ladder": {**RUNG, "parameters": [20000, 40000]},
        "ladder, more": {**RUNG, "baseline_tokens": [0.05, 0.4], "batch_size": 4},
        "ladder, batches": {**RUNG, "parameters": [20000, 40000], "batch_size": [2, 4]},
    },
    "length": {
        "preset": {},
        "steps": {"steps": 40},
        "epochs": {"epochs": 2},
        "passes": {"steps": 40, "passes": 60},
        "seconds": {"steps": 40, "seconds": 2.5},
        "both": {"steps": 50, "passes": 80, "seconds": 3.0, "eval_every": 10, "patience": 2},
    },
    "further": {
        "none": {},
        "seeds": {"init_seed": 3, "order_seed": 4},
        "batch": {"batch_size": 8, "max_grad_norm": 1.0, "gradient_accumulation_steps": "auto"},
        "curve": {"train_curve": 16, "sharpness": 8, "precision": "fp32", "workers": 1},
    },
    "schedule": {
        "none": {},
        "task": {"schedule": {"name": "cosine", "warmup": 0.1}},
        "arm": {"schedules": 1},
    },
    "hyper": {"none": None, "first": 0, "last": -1},
    "only": {"all": None, "no baseline on the last": "baseline", "one fewer": "other", "baseline alone": "alone"},
    "settings": {"own": False, "of the first": True},
    "optimizers": {
        "one": ["adamw"],
        "two": ["adamw", {"name": "smaran", "label": "SMARAN"}],
        "arms": [{"name": "adamw", "lr": 0.1}, {"name": "adamw", "lr": 0.01}, {"name": "adamw", "betas": [0.8, 0.9]}],
        "wrapped": ["sgd", {"name": "tlr", "base": "sgd"}, {"name": "lookahead", "base": {"name": "sgd", "lr": 0.1}}],
        "texts": [{"name": "sgd", "label": "=a|b`c`"}, {"name": "adam", "label": "<i>$x_1$ & \\é"}, "lion"],
        "own": [{"name": "mine.py:Mine"}, "adamw"],
        "transformed": [{"name": "sgd", "grad_transform": {"name": "normalize", "outliers": 5.0}}, "sgd", "sls"],
        "many": ["adamw", "sgd", "lion", "adam", "radam", {"name": "smaran", "gamma": 0.8}],
    },
    "baseline": {"given": 0, "last": -1, "default": None},
    "seeds": {"one": 1, "two": 2, "four": 4, "looks": [2, 4], "three looks": [2, 3, 5], "these": {"these": [7, 1, 30]}},
    "tuning": {
        "none": None,
        "trials": TUNED,
        "one trial": {"trials": 1, "seed": 500},
        "random": {**TUNED, "sampler": "random"},
        "steps": {**TUNED, "steps": 90},
        "median": {"trials": 6, "prune": "median"},
        "median, steps": {"trials": 6, "prune": "median", "steps": 220},
        "repeated": REPEATED,
        "looks": {**REPEATED, "repetitions": [2, 3], "seeds": 2},
        "repeated, steps": {**REPEATED, "trials": 3, "repetitions": 3, "steps": 90},
        "repeated, median": {"trials": 5, "repetitions": 2, "prune": "median", "seeds": 2},
    },
    "space": {
        "declared": None,
        "rate": lambda label: {"lr": [0.001, 0.1, "log"]},
        "first only": lambda label: {"lr": {"choices": [0.01, 0.1]}},
        "untuned": lambda label: {},
        "run": lambda label: {
            "lr": [0.001, 0.5, "linear"],
            "run": {"schedule": {"choices": [{"name": "cosine"}, {"name": "linear", "warmup": 2}]},
                    "max_grad_norm": [0.1, 10, "log"]},
        },
        "batch": lambda label: {"run": {"batch_size": {"choices": [8, 16]}}},
    },
    "rates": {"tuned": {}, "carried": {"rates": "carried"}, "both": {"rates": "both"}},
    "sensitivity": {
        "none": None,
        "default": {},
        "values": {"values": [0.001, 0.1, 0.01], "seeds": 2},
        "momentum": {"key": "momentum", "values": [0.5, 0.9]},
    },
    "variance": {
        "none": None,
        "default": {"seeds": 2},
        "some": {"seeds": 3, "sources": ["order", "init"], "optimizers": 1},
        "tuning": {"seeds": 2, "sources": ["tuning", "split"]},
    },
    "margin": {"none": None, "one": 0.02, "large": 5.0, "first": "first", "every": "every"},
    "targets": {"none": None, "reached": 0.5, "never": "never", "own": "own"},
    "speedup": {
        "none": None,
        "steps": {"budgets": [0.5, 1, 2]},
        "passes": {"budgets": [1, 2], "in": "passes"},
        "seconds": {"budgets": [0.5, 1], "in": "seconds"},
    },
    "family": {"default": None, "tasks": "tasks", "score": "score"},
    "title": {"none": None, "odd": "A <title> | with $all$ of `it`"},
    # what became of the runs
    "values": {
        name: name
        for name in ("noise", "apart", "ties", "alike", "zero", "negative", "huge", "tiny", "coarse", "none",
                     "infinite", "in vain")
    },
    "failures": {"none": 0.0, "some": 0.25, "one arm": "arm", "baseline": "baseline", "all": 1.0, "machine": "machine"},
    "history": {name: name for name in ("whole", "spent", "one point", "no start", "empty", "none")},
    "record": {name: name for name in ("whole", "bare")},
    "stopped": {"no": None, "at once": 0.0, "early": 0.3, "late": 0.8},
}  # fmt: skip


def _overridden(entry: Any, draw: Draw) -> dict[str, Any]:
    """A task's entry with what the draw says of every task."""
    entry = {"task": entry} if isinstance(entry, str) else dict(entry)
    own = str(entry.get("task", "lm")).startswith("mine.py")
    overrides = {} if own else {**FACTORS["length"][draw["length"]], **FACTORS["further"][draw["further"]]}
    if "parameters" in entry:  # of a ladder, which says its length itself
        overrides = {k: v for k, v in overrides.items() if k not in ("steps", "epochs", "batch_size")}
    if entry.get("label") == "MLP, longer":
        overrides |= {"eval_every": 7}
    return {**entry, **({"overrides": overrides} if overrides else {})}


def _per_label(entry: dict[str, Any], draw: Draw, labels: list[str], baseline: str, last: bool) -> dict[str, Any]:
    """The parts of an entry that name optimizers."""
    schedule = FACTORS["schedule"][draw["schedule"]]
    entry |= {"schedules": {labels[-1]: {"name": "constant", "warmup": 1}}} if "schedules" in schedule else schedule
    if (place := FACTORS["hyper"][draw["hyper"]]) is not None:
        entry["hyper"] = {labels[place]: {"run": {"max_grad_norm": 2.0}}}
    match FACTORS["only"][draw["only"]]:
        case "baseline" if last:
            entry["only"] = [label for label in labels if label != baseline]
            if "overrides" in entry:  # it has nothing to be faster than, and need not say how long by what else
                entry["overrides"] = {k: v for k, v in entry["overrides"].items() if k not in ("passes", "seconds")}
        case "other":
            entry["only"] = [baseline, *(label for label in labels[1:-1] if label != baseline)]
        case "alone" if last:
            entry["only"] = [baseline]
    return entry


def study_yaml(draw: Draw) -> dict[str, Any]:
    """The study of a draw as its YAML holds it, which may be one that is refused."""
    from hf_optim.study.plan.entries import default_labels

    study: dict[str, Any] = {"name": "drawn"}
    optimizers = FACTORS["optimizers"][draw["optimizers"]]
    specs = [{"name": o} if isinstance(o, str) else dict(o) for o in optimizers]
    own = [spec.pop("label", None) for spec in specs]
    names = iter(default_labels([spec for spec, label in zip(specs, own, strict=True) if label is None]))
    labels = [label or next(names) for label in own]
    place = FACTORS["baseline"][draw["baseline"]]
    baseline = labels[place or 0]
    if place is not None:
        study["baseline"] = baseline
    for key in ("title", "family"):
        if (value := FACTORS[key][draw[key]]) is not None:
            study[key] = value
    tasks = FACTORS["tasks"][draw["tasks"]]
    if isinstance(tasks, dict):
        study["ladder"] = _per_label(
            {**_overridden(tasks, draw), **FACTORS["rates"][draw["rates"]]}, draw, labels, baseline, False
        )
    else:
        count = len(tasks)
        study["tasks"] = [
            _per_label(_overridden(task, draw), draw, labels, baseline, i == count - 1) for i, task in enumerate(tasks)
        ]
        if FACTORS["settings"][draw["settings"]]:
            study["tasks"][-1]["settings"] = study["tasks"][0].get("label", "vision/lenet/small")
    study["optimizers"] = list(optimizers)
    tuning = FACTORS["tuning"][draw["tuning"]]
    if tuning is not None:
        study["tuning"] = dict(tuning)
        if (space := FACTORS["space"][draw["space"]]) is not None:
            few = labels[:1] if draw["space"] in ("first only", "untuned") else labels
            study["tuning"]["space"] = {label: space(label) for label in few}
    if tuning is None or "repetitions" not in tuning:
        study["seeds"] = FACTORS["seeds"][draw["seeds"]]
    for key in ("sensitivity", "speedup"):
        if FACTORS[key][draw[key]] is not None:
            study[key] = FACTORS[key][draw[key]]
    if (variance := FACTORS["variance"][draw["variance"]]) is not None:
        study["variance"] = {**variance, **({"optimizers": labels[-1:]} if "optimizers" in variance else {})}
    first = (study.get("tasks") or [{"label": "gpt2 20k × 0.1"}])[0].get("label", "mine.py:train/own/small")
    listed = [task.get("label", "") for task in study.get("tasks", ())]
    if (margin := FACTORS["margin"][draw["margin"]]) is not None:
        by_label = {"first": {first: 0.01}, "every": dict.fromkeys(listed, 0.05)}
        study["margin"] = by_label.get(margin, margin)
    goals = {
        "reached": {"metric": "validation_loss", "value": 1.5},
        "never": {"metric": "validation_loss", "value": -9},
        "own": {"metric": "validation_rows", "value": 0, "better": "lower"},
    }
    if FACTORS["targets"][draw["targets"]] is not None:
        study["targets"] = {first: goals[draw["targets"]]}
    return study


def reordered(study: Mapping[str, Any]) -> dict[str, Any]:
    """The same question with tasks, optimizers and blocks in another order."""
    turned = {key: study[key] for key in reversed(study)}
    turned["optimizers"] = study["optimizers"][::-1]
    if "tasks" in study and not any("settings" in task for task in study["tasks"] if not isinstance(task, str)):
        turned["tasks"] = study["tasks"][::-1]
    return turned


def write_study(study: Mapping[str, Any], folder: Path) -> Path:
    """The study's file in a folder, beside the code that it names."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "mine.py").write_text(OWN)
    (folder / "study.yaml").write_text(yaml12.dump(dict(study)))
    return folder / "study.yaml"


def covering(valid: Callable[[Draw], bool], seed: int = 0, patience: int = 300) -> Iterator[dict[str, str]]:
    """Draws until every two levels of two factors have been together, as far as `valid` lets them: it ends after so
    many draws in a row with nothing new in them.
    """
    chance = random.Random(seed)
    pairs = itertools.combinations(FACTORS, 2)
    left = {((a, x), (b, y)) for a, b in pairs for x in FACTORS[a] for y in FACTORS[b]}
    tried = 0
    wanted = sorted(left)
    while left and tried < patience:
        (a, x), (b, y) = chance.choice(wanted)
        best = max((filled({a: x, b: y}, chance) for _ in range(4)), key=lambda draw: len(_new(draw, left)))
        tried += 1
        if valid(best):
            left -= _new(best, left)
            wanted, tried = sorted(left), 0
            yield best


def filled(draw: Mapping[str, str], chance: random.Random) -> dict[str, str]:
    """The draw with a level of every other factor, of which those fall that others leave no room for: what a study
    would refuse, or not read.
    """
    wanted = {factor: draw.get(factor) or chance.choice([*levels]) for factor, levels in FACTORS.items()}

    def plain(*factors: str) -> None:
        wanted.update({factor: next(iter(FACTORS[factor])) for factor in factors})

    ladder, tuned = wanted["tasks"].startswith("ladder"), FACTORS["tuning"][wanted["tuning"]]
    own = wanted["tasks"].startswith("own")
    if tuned is not None and tuned.get("steps") and own:
        wanted["tuning"], tuned = "trials", FACTORS["tuning"]["trials"]
    if tuned is None:
        plain("space", "rates", "settings")
        if wanted["variance"] == "tuning":
            plain("variance")
    elif "repetitions" in tuned:
        plain("seeds")
    if not ladder:
        plain("rates")
    if own:
        plain("schedule", "speedup", "further", "length")
    if ladder or own or len(FACTORS["tasks"][wanted["tasks"]]) < 2 or wanted["tasks"] == "bare":
        plain("settings")
    if wanted["settings"] != "own" or wanted["rates"] == "carried":
        plain("hyper", "only")
    if tuned is not None and tuned.get("steps"):
        if wanted["space"] == "batch":
            plain("space")
    if (tuned is not None and tuned.get("steps")) or wanted["speedup"] == "steps":
        wanted["length"] = wanted["length"] if wanted["length"] not in ("preset", "epochs") else "steps"
    if wanted["speedup"] in ("passes", "seconds"):
        wanted["length"] = wanted["speedup"] if wanted["length"] != "both" else "both"
    if wanted["seeds"] == "one" and wanted["sensitivity"] == "values":
        plain("sensitivity")
    return wanted


def _new(draw: Draw, left: set[Any]) -> set[Any]:
    return {pair for pair in itertools.combinations(draw.items(), 2) if pair in left}

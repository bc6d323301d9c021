"""The command `hf-optim compare`: the short way to a study, which it writes down before it runs it."""

from __future__ import annotations

import hashlib
import re
import shlex
import sys
from collections.abc import Sequence
from typing import Any

from hf_optim.commands.parser import Parser
from hf_optim.core import importing
from hf_optim.errors import UserError
from hf_optim.experiment.spec import SIZES

ABOUT = "compare a few optimizers on one task: the short way to a study"
EXAMPLES = (
    "hf-optim compare adamw smaran --task lm",
    'hf-optim compare adamw "tlr(sgd)" "{name: smaran, lr: 0.05}" --task vision --model resnet --trials 8',
    'hf-optim compare adamw "{name: adamw, lr: 1e-4, label: a tenth}" --task vision',
    'hf-optim compare adamw my.py:Mine --task lm --trials 8 --space "{my.py:Mine: {lr: [1e-4, 0.1, log]}}"',
)
LONGEST = 80  # characters of a study's name
EPILOG = """
The first optimizer is the baseline; two settings of one are told apart by what differs, or by a label. The study's YAML
lies in its folder as study.yaml: copy it to ask for more. Without --trials the rates are the defaults, and the
verdict is about these settings; with it each optimizer is tuned alike, on the validation split. Interrupt it at any
moment: the same command goes on.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Write the study, run what is missing of it, report. Gives 1 if a run failed."""
    parser = Parser(
        "hf-optim compare", "Compare optimizers on one task over several seeds, and write a report.", EXAMPLES, EPILOG
    )
    add = parser.add_argument
    add("optimizers", nargs="+", metavar="OPTIMIZER", help="names, 'wrapper(base)', 'file.py:Class', or mappings")
    add("--task", required=True, metavar="NAME", help="a task (`list --tasks`) or file.py:NAME")
    add("--model", metavar="NAME", help="one of its models (default: its first)")
    add("--size", choices=SIZES, default="small", help="its size (default: small)")
    add("--data", metavar="NAME|PATH", help="an embedded set, or your own files (default: the preset's)")
    add("--seeds", type=int, default=5, metavar="N", help="seeds 0 to N-1 (default: 5)")
    add("--trials", type=int, metavar="N", help="tune each optimizer with N trials first (default: no tuning)")
    add("--space", metavar="YAML", help="what --trials searches of an optimizer, in place of what its file declares")
    add("--output", metavar="DIR", help="the study's folder (default: studies/A-vs-B-TASK)")
    add("--jobs", type=int, metavar="N", help="runs at a time (default: one on each core, or on each GPU)")
    add("--report-to", metavar="NAMES", help="trackers beside the records, as tensorboard,trackio,wandb")
    add("--dry-run", action="store_true", help="show the plan and what it costs, and write nothing")
    given = parser.parse_args(sys.argv[1:] if argv is None else argv)
    for option in ("seeds", "trials"):
        if getattr(given, option) is not None and getattr(given, option) < 1:
            raise UserError(f"--{option} must be at least 1, got {getattr(given, option)}")
    if given.space and not given.trials:
        raise UserError("--space says what --trials searches: give --trials N, too")
    if len(given.optimizers) < 2:
        raise UserError("give two optimizers or more; `hf-optim train` trains with one")
    from hf_optim.experiment import trackers
    from hf_optim.study.conduct import study
    from hf_optim.study.plan.source import parse

    text = written(given)
    return study(
        "hf-optim compare", source=parse(text, ""), output=given.output, jobs=given.jobs,
        dry_run=given.dry_run, trust=True, report_to=trackers.names(given.report_to),
    )  # fmt: skip


def written(given: Any) -> str:
    """The YAML of the study that the options ask for."""
    from hf_optim.core import yaml12
    from hf_optim.study.plan.entries import default_labels
    from hf_optim.toys.trajectory import label_of, parse

    specs = [parse(text, labelled=True) for text in given.optimizers]
    bare = [{key: value for key, value in spec.items() if key != "label"} for spec in specs]
    labels = [str(spec.get("label", label_of(one))) for spec, one in zip(specs, bare, strict=True)]
    if len(set(labels)) < len(labels):
        labels = [str(spec.get("label", one)) for spec, one in zip(specs, default_labels(bare), strict=True)]
    study = {
        "name": _name(given, labels, given.task, [*importing.paths(specs), *importing.paths({"task": given.task})]),
        "seeds": given.seeds,
        "tasks": [{key: getattr(given, key) for key in ("task", "model", "size", "data") if getattr(given, key)}],
        "optimizers": specs,
    }
    if given.trials:
        study["tuning"] = {"trials": given.trials, **({"space": _space(given.space)} if given.space else {})}
    return f"{_asked(given)}\n{yaml12.dump(study)}"


def _name(given: Any, labels: Sequence[str], task: str, paths: Sequence[str] = ()) -> str:
    """The study's name, which its folder has, too. Where it gets too long, the last part stands for each of `paths`."""
    compared = "-vs-".join(map(_dashed, labels))[:60]
    if foreign := [label for label in labels if not label.isascii()]:  # of which nothing may be left
        compared = f"{compared[:53]}-{hashlib.sha256(repr(foreign).encode()).hexdigest()[:6]}"
    rest = f"-{_dashed('-'.join(filter(None, (task, given.model))))}"
    rest += "" if given.size == "small" else f"-{given.size}"
    rest += f"-tuned{given.trials}" if given.trials else ""
    if paths and len(compared + rest) > LONGEST:
        for path in paths:
            last = path.rpartition(":")[2]
            labels, task = [label.replace(path, last) for label in labels], task.replace(path, last)
        return _name(given, labels, task)
    return f"{compared[: max(1, LONGEST - len(rest))]}{rest}"[:LONGEST].lstrip("-._")  # labels may have no such letters


def _dashed(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._]+", "-", text).strip("-")


def _asked(given: Any) -> str:
    """The command that a shell takes, as a comment: with all that makes another study."""
    more = {"model": None, "size": "small", "data": None, "seeds": 5, "trials": None, "space": None}
    asked = {"task": given.task, **{key: value for key in more if (value := getattr(given, key)) != more[key]}}
    options = [word for key, value in asked.items() for word in (f"--{key}", str(value))]
    return "# " + " ".join(shlex.join(["hf-optim", "compare", *given.optimizers, *options]).splitlines())


def _space(text: str) -> Any:
    import yaml

    from hf_optim.core import yaml12

    try:
        return yaml12.load(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        raise UserError(f"--space {text}: not YAML; as in '{{my.py:Mine: {{lr: [1e-4, 0.1, log]}}}}'") from None

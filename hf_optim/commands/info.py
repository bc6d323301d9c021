"""The command `hf-optim info`: all that is known of a name, whatever it names, without importing torch."""

from __future__ import annotations

import ast
import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hf_optim import registry
from hf_optim.commands.parser import Parser
from hf_optim.core.catalogue import FOREIGN, Info, shown
from hf_optim.core.safe_text import terminal
from hf_optim.core.validate import closest
from hf_optim.errors import UserError

#: keyword-only options that rules share, which a rule's own text only names
OPTIONS = {
    "compile": "None or True run each pass as one kernel over all tensors, False runs the rule as it is written",
    "grad_transform": "a gradient transform by name or `{name: ..., ...}`",
    "state_dtype": "`fp32`, or stochastically rounded `bf16` or `int8` state (`int8` where it suits, for averages of "
    "large tensors); by default the parameters' own precision, at least fp32",
    "on_bad_loss": "`raise` or `skip` (counted) a loss that is not finite or that the theory does not allow",
}

#: what goes before a metric's name in records
SPLIT = re.compile("^(best_)?(train|validation|test)_")

ABOUT = "show what is known of an optimizer, a task, a model, a metric, a study or a claim"


def main(argv: Sequence[str] | None = None) -> int:
    """Print what is known of one name; gives 0."""
    parser = Parser(
        "hf-optim info",
        "Show what is known of a name that `hf-optim list` shows: an optimizer's algorithm, defaults and source, a\n"
        "task's models and sizes, a model's presets, what a metric means, a study's file, what a claim says.",
        ("hf-optim info smaran", "hf-optim info vision", "hf-optim info my_optimizer.py:Mine"),
    )
    parser.add_argument("name", help="an optimizer, a task, a model, a metric, a study, a claim, or file.py:Class")
    return info(parser.parse_args(sys.argv[1:] if argv is None else argv).name)


def info(name: str) -> int:
    """Prints everything of that name. Raises UserError with the closest names if nothing is called so."""
    if ":" in name:
        # What a file says of its class may be a stranger's.
        print(terminal(_fitted(optimizer(name), shutil.get_terminal_size((80, 24)).columns)))
        return 0
    known: list[str] = []
    told = 0
    for names, show in _KINDS:
        here = names()
        known += here
        if name in here:
            text = show(name) if show is study else _fitted(show(name), shutil.get_terminal_size((80, 24)).columns)
            print(terminal("\n" * bool(told) + text))
            told += 1
    if not told:  # a metric's name as `list --tasks` and records have it?
        split, of = SPLIT.match(name), SPLIT.sub("", name)
        if split and of in _metrics():
            text = f"{name}: {'the best ' if split[1] else ''}{of} on the {split[2]} split\n\n{metric(of)}"
            print(terminal(_fitted(text, shutil.get_terminal_size((80, 24)).columns)))
            return 0
        near = registry.meant(of) or closest(of, known)
        kinds = "optimizer, task, model, metric, study or claim"
        raise UserError(f"there is no {kinds} {name!r}{near}; `hf-optim list --help` says how to list them")
    return 0


def optimizer(name: str) -> str:
    """An optimizer's class, needs, defaults, algorithm and source."""
    about = registry.about(name)
    int8 = "" if about.int8_bytes is None else f", {about.int8_bytes:.2f} with state_dtype='int8'"
    pairs = [
        ("class", about.cls),
        ("family", about.family),
        ("needs", ", ".join(sorted(about.needs)) or "nothing beyond gradients"),
        ("source", about.paper or "–"),
        *([("state", f"{about.state_bytes:g} bytes a parameter (fp32){int8}")] if about.family != FOREIGN else []),
        ("defaults", ", ".join(f"{k}={_value(v)}" for k, v in about.defaults.items()) or "–"),
        ("search space", _space(about)),
    ]
    shared = [(key, OPTIONS[key]) for key in about.options if key in OPTIONS]
    parts = [_page(name, pairs), about.doc, _page("options that rules share", shared) if shared else ""]
    return "\n\n".join(part for part in parts if part)


def _space(about: Info) -> str:
    """Where hyper-parameters are looked for; of a user's own class, what is wrong with what it declares."""
    if about.family == FOREIGN or ":" in about.name:
        from hf_optim.study.plan.tuning import check_declared

        try:
            check_declared(about)
        except UserError as error:
            return str(error)
    return "; ".join(f"{k} {searched(v)}" for k, v in about.search_space.items()) or "–"


def searched(space: tuple[Any, ...]) -> str:
    """Where a hyper-parameter is looked for, in words: "0.001 to 1, logarithmic"."""
    if space[0] == "choice":
        return ", ".join(map(_value, space[1]))
    return f"{space[1]:g} to {space[2]:g}" + (", logarithmic" if space[0] == "log" else "")


def task(name: str) -> str:
    """A task's models, sizes, data and metrics."""
    from hf_optim.experiment.task import load

    loaded = load(name)
    pairs = [
        ("task", loaded.title),
        ("models", ", ".join(loaded.models)),
        *((f"size {size}", entry.about) for size, entry in loaded.sizes.items()),
        ("judged by", f"{loaded.primary.name}, {_way(loaded.primary.greater_is_better)}"),
        ("metrics", ", ".join(metric.name for metric in loaded.metrics) or "loss"),
        *((f"data {key}", about) for key, about in loaded.embedded.items()),
    ]
    options = [(f"--model.{key}", about) for key, about in loaded.options.items()]
    return _page(name, pairs) + (f"\n\n{_page('options', options)}" if options else "")


def _tasks() -> list[str]:
    from hf_optim.experiment.task import names

    return names()


def _models() -> list[str]:
    from hf_optim.experiment.task import load

    return [model for name in _tasks() for model in load(name).models]


def model(name: str) -> str:
    """The presets of a model at each size, with where each value is from."""
    from hf_optim.experiment.task import load

    lines = []
    for owner in map(load, _tasks()):
        if name not in owner.models:
            continue
        lines.append(f"{name}, a model of the task {owner.name}")
        for size, entry in owner.sizes.items():
            if name in entry.presets:
                values = {k: v for k, v in entry.presets[name].sources().items() if v.value not in (None, {})}
                lines.append(f"  {size}:")
                lines += [f"    {k + ':':20s}{_value(v.value)}  ({v.source})" for k, v in values.items()]
    return "\n".join(lines)


def _metrics() -> list[str]:
    from hf_optim import metrics
    from hf_optim.experiment.task import EVERY_RUN, load

    declared = [metric.name for name in _tasks() for metric in load(name).metrics]
    return sorted({*metrics.names(), *declared, *(metric.name for metric in EVERY_RUN)})


def metric(name: str) -> str:
    """Which way is better and in what unit, by task, and what the metric's own file says."""
    from hf_optim import metrics
    from hf_optim.experiment.task import EVERY_RUN, load

    pairs = []
    for owner in map(load, _tasks()):
        declared = next((m for m in (*owner.metrics, *EVERY_RUN) if m.name == name), None)
        if declared is not None:
            unit = f", in {declared.unit}" if declared.unit else ""
            pairs.append((owner.name, f"{_way(declared.greater_is_better)}{unit}"))
    text = _page(f"{name}, a metric", pairs)
    if name in metrics.names():
        doc = ast.get_docstring(ast.parse(Path(metrics.path(name)).read_text(encoding="utf-8"))) or ""
        text += f"\n\n{doc}\n\nevaluate.load({metrics.path(name)!r}), or hf_optim.metrics.load({name!r})"
    return text


def _studies() -> list[str]:
    from hf_optim.study.plan.shipped import shipped_studies

    return list(shipped_studies())


def study(name: str) -> str:
    """A study's file, whole: it says what it asks and how."""
    from hf_optim.study.plan.shipped import shipped_studies

    path = shipped_studies()[name]
    return f"{name}, a study: hf-optim study {name}\n\n{path.read_text(encoding='utf-8').rstrip()}"


def _claims() -> list[str]:
    from hf_optim.commands.list import claims

    return [row[0] for row in claims()[1]]


def claim(name: str) -> str:
    """What a paper says at one place, and at which sizes that is tried."""
    from hf_optim.claims.claim import load

    loaded = load(name)
    pairs = [
        ("claim", loaded.title),
        ("paper", f"{loaded.paper}, {loaded.where}"),
        ("sizes", ", ".join(loaded.settings) or "none"),
    ]
    pairs += [("says", f"“{each.says}” ({each.section})") for each in loaded.statements]
    return _page(name, pairs) + f"\n\nhf-optim reproduce {name}"


_KINDS: tuple[tuple[Callable[[], list[str]], Callable[[str], str]], ...] = (
    (registry.list_optimizers, optimizer),
    (_tasks, task),
    (_models, model),
    (_metrics, metric),
    (_studies, study),
    (_claims, claim),
)


def _page(title: str, pairs: Sequence[tuple[str, str]]) -> str:
    width = max([13, *(len(key) + 1 for key, _ in pairs)])
    return "\n".join([title, *(f"  {key + ':':{width}s} {value}" for key, value in pairs)])


def _fitted(text: str, width: int) -> str:
    """`text` in lines of at most `width`, where words allow it: what a line has too many goes on below it, together
    with the lines below that were wrapped already."""
    lines: list[list[str]] = []
    for line in text.splitlines():
        last = lines[-1] if lines else [""]
        insets = (_inset(last[-1]), _inset(last[0]) + 4)
        goes_on = len(last[-1]) > max(width, 100) and _prose(last[-1]) and _prose(line) and _inset(line) in insets
        if goes_on:
            last.append(line)
        else:
            lines.append([line])
    return "\n".join(_wrapped(parts, width) for parts in lines)


def _prose(line: str) -> bool:
    """Not empty, and nothing that stands in columns."""
    return bool(line.strip()) and "  " not in line.strip()


def _wrapped(lines: Sequence[str], width: int) -> str:
    if len(lines) == 1 and len(lines[0]) <= width:
        return lines[0]
    pair = re.match(r"  \S[^:]*: +", lines[0])
    alone = len(pair[0]) if pair else _inset(lines[0]) + 4 * (_inset(lines[0]) > 0)
    hang = " " * (_inset(lines[1]) if lines[1:] else alone)
    text = " ".join([lines[0], *(line.strip() for line in lines[1:])])
    return textwrap.fill(text, width, subsequent_indent=hang, break_long_words=False, break_on_hyphens=False)


def _inset(line: str) -> int:
    return len(line) - len(line.lstrip())


def _way(greater_is_better: bool) -> str:
    return "higher is better" if greater_is_better else "lower is better"


def _value(value: object) -> str:
    return repr(value) if isinstance(value, str) else f"{value:g}" if isinstance(value, float) else shown(value)

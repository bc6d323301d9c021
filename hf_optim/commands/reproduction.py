"""What `hf-optim reproduce` does: what it costs and can decide, the study, and the page of what came out."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_optim.claims import claim as claims
from hf_optim.claims.wishes import Wish
from hf_optim.core import importing, safe_text
from hf_optim.core.safe_text import terminal
from hf_optim.core.wording import both, counted, either
from hf_optim.errors import UserError, one_line
from hf_optim.experiment.files import by_default

if TYPE_CHECKING:
    from hf_optim.claims.agenda import Entry
    from hf_optim.claims.cost import Machine
    from hf_optim.claims.judge import Outcome
    from hf_optim.experiment.cards import Card
    from hf_optim.study.plan.plan import Plan
    from hf_optim.study.plan.source import Source

#: what is written beside reproduction.json
PAGE = ("reproduction.md", "reproduction.svg")
#: true in reproduction.json where it is of tables that were there before, which no command writes over
PAGE_ALONE = "page_alone"


@dataclass(frozen=True)
class Options:
    """How a claim is to be reproduced; see the command's help."""

    size: str = "small"
    output: str | None = None
    wish: Wish = Wish()
    seeds: int | None = None
    jobs: int | None = None
    jobs_per_gpu: int = 1
    checkpoint_every: int | None = None
    dry_run: bool = False
    anyway: bool = False
    share: bool = True
    machine: Machine | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)
    card: Card | None = None

    def folder(self, name: str) -> Path:
        """Where the study of the claim `name` lies."""
        own = f"{name}-{self.size}{self.wish.suffix}"
        return Path(self.output) if self.output else by_default("reproductions", own)

    def again(self, name: str) -> str:
        """The command that does the same."""
        words = ["hf-optim", "reproduce", name, "--size", self.size, *self.wish.words()]
        for option, value in (("--seeds", self.seeds), ("--output", self.output)):
            words += [option, str(value)] if value is not None else []
        for key, value in self.overrides.items():
            words += [f"--{key.replace('_', '-')}", *([] if value is True else [str(value)])]
        return shlex.join([*words, *(["--anyway"] if self.anyway else [])])


def reproduce(name: str, options: Options) -> int:
    """Run what is missing of the claim's study, and write and show what came out.

    Raises:
        UserError: no such claim, or it has no setting of this size, or its stand-in cannot decide it.
    """
    chosen, setting = _chosen(name, options)
    folder = options.folder(chosen.name)
    if setting.study is None:
        return _run_commands(chosen, options, folder)
    _standing(chosen, options, folder)
    from hf_optim.claims import wishes
    from hf_optim.study import conduct as command
    from hf_optim.study.folder import begun
    from hf_optim.study.plan.plan import expand

    with importing.refused("a dry run runs none", trust=not options.dry_run, way=importing.NO_DRY_RUN):
        source = wishes.study(setting.study, options.wish, options.seeds)
        plan = expand(source, seeds=options.seeds, overrides=options.overrides)
        _check_looks(plan, chosen.name)
        if not options.output:
            begun.check(folder, _origin(chosen), source.text)
        _announce(chosen, plan, options, folder)
    try:
        code = command.study(
            f"{chosen.name} ({options.size})", source=source, output=str(folder), jobs=options.jobs,
            seeds=options.seeds, dry_run=options.dry_run, checkpoint_every=options.checkpoint_every,
            overrides=options.overrides, jobs_per_gpu=options.jobs_per_gpu, card=options.card, sharing=options.share,
            origin=_origin(chosen),
        )  # fmt: skip
    except KeyboardInterrupt:
        if (folder / "plan.json").is_file():
            write(chosen, options, folder, source)
        raise
    if not options.dry_run:
        write(chosen, options, folder, source)
    return code


def page(name: str, options: Options) -> int:
    """Write the page of what is there; code that the claim's file names, at any size, is not run."""
    chosen, setting = _chosen(name, options)
    folder = options.folder(chosen.name)
    if setting.study is None:
        return _write_tables(chosen, options, folder)
    _standing(chosen, options, folder)
    from hf_optim.claims import wishes
    from hf_optim.study.folder import begun

    with importing.refused("--page runs nothing", way="without --page it is run"):
        if not options.output:
            begun.check(folder, _origin(chosen), wishes.study(setting.study, options.wish, options.seeds).text)
        write(chosen, options, folder, setting.study)
    return 0


def _origin(chosen: claims.Claim) -> str | Path:
    return chosen.file if chosen.file in claims.names() else Path(chosen.file)


def _chosen(name: str, options: Options) -> tuple[claims.Claim, claims.Setting]:
    chosen = claims.load(name)
    if options.size not in chosen.settings:
        if not chosen.settings:
            raise UserError(f"{chosen.name} has nothing to run: {chosen.statements[0].not_testable}")
        raise UserError(f"{chosen.name} has no setting of size {options.size}: choose {either(chosen.settings)}")
    return chosen, chosen.settings[options.size]


def _check_looks(plan: Plan, name: str) -> None:
    """Raise a UserError for a study that may stop at a look: the rules of claims know nothing of looks, and a sentence
    that is asked again and again holds some time.
    """
    if len(plan.looks) > 1:
        looks = both(map(str, plan.looks))
        raise UserError(f"{name}: its study is looked at after {looks}, and a claim is judged once: plan one number")


def _announce(chosen: claims.Claim, plan: Plan, options: Options, folder: Path) -> None:
    """What it costs and what it can decide; a UserError for a stand-in that cannot decide anything published."""
    from hf_optim.claims import cost, power

    machine = options.machine or (cost.GPU if options.size == "paper" else cost.CORE)
    left = [run for run in plan.runs if not (folder / "runs" / run.id / "record.json").is_file()]
    console = safe_text.console()
    safe_text.say(console, f"To run: {cost.of(left, machine).sentence(machine)}")
    outlooks = power.outlooks(chosen, options.size, plan)
    told = [outlook for outlook in outlooks if outlook.decides is not None or outlook.visible is not None]
    for sentence in dict.fromkeys(outlook.sentence() for outlook in told):
        safe_text.say(console, f"  {safe_text.line(sentence)}")
    if power.hopeless(outlooks) and not options.anyway and not options.dry_run and left:
        needed = min(outlook.needed for outlook in outlooks if outlook.needed is not None)
        raise UserError(
            f"{chosen.name} at size {options.size} cannot decide what the paper claims with "
            f"{counted(len(plan.seeds), 'seed')} (its largest published effect needs {needed}): give --anyway "
            f"to run it all the same, or --seeds {needed}"
        )


def _run_commands(chosen: claims.Claim, options: Options, folder: Path) -> int:
    """What a figure or a theorem without a study shows: the output of commands and checks, and verdicts on it."""
    import importlib

    from hf_optim.claims import theorems
    from hf_optim.experiment.disk import writing
    from hf_optim.experiment.files import own_folder

    setting = chosen.settings[options.size]
    if not options.dry_run:
        if not _check_place(chosen, options, folder):
            _begin(chosen, options, folder)
    for place, words in setting.commands.items():
        print(safe_text.line(shlex.join(["hf-optim", *words, "--output", str(folder / place)])))
        if not options.dry_run:
            with writing(folder):
                own_folder(folder, place)
            command = importlib.import_module(f"hf_optim.commands.{words[0]}")
            command.main([*words[1:], "--output", str(folder / place)])
    for name in setting.checks:
        print(terminal(f"check {name}"))
    if options.dry_run:
        return 0
    with writing(folder):
        theorems.write(list(setting.checks), folder)
    return _write_tables(chosen, options, folder)


def _begin(chosen: claims.Claim, options: Options, folder: Path) -> None:
    """A reproduction.json without verdicts: by it an interrupted one goes on, and writes over no tables of others."""
    from hf_optim.experiment.disk import writing
    from hf_optim.experiment.files import write_atomically

    what = {"claim": chosen.name, "size": options.size, "tables": chosen.settings[options.size].tables}
    told = {**what, **_marks_kept(chosen, folder), "judgements": []}
    with writing(folder):
        write_atomically(folder, "reproduction.json", json.dumps(told, indent=1) + "\n")


def _tables(setting: claims.Setting) -> tuple[str, ...]:
    """What commands and checks leave below the claim's folder: folders and tables."""
    return (*setting.commands, *(f"{name}.csv" for name in setting.checks))


def _standing(chosen: claims.Claim, options: Options, folder: Path) -> Mapping[str, Any] | None:
    """The reproduction of the claim that stands in the folder, None without one; a UserError for another claim's."""
    from hf_optim.core import shape
    from hf_optim.experiment.files import read_json

    other = f"{folder} is not empty and holds no reproduction"
    if not os.path.lexists(folder / "reproduction.json"):
        if there := [name for name in PAGE if os.path.lexists(folder / name)]:
            raise UserError(f"{other}, but a {there[0]} of somebody's: choose another --output")
        return None
    try:
        standing = read_json(folder, "reproduction.json")
        shape.check_shape(standing, {"claim": str, "size": str, "judgements": [{}]}, "reproduction.json")
    except (OSError, ValueError) as error:
        raise UserError(f"{other} ({one_line(error)}): take that file away, or choose another --output") from None
    if (standing["claim"], standing["size"]) != (chosen.name, options.size):
        what = f"{standing['claim']} at size {standing['size']}"
        raise UserError(f"{folder} holds the reproduction of {what}: choose another --output")
    marks = _marks(chosen, folder) if not options.output else {}
    if marks and all(standing.get(key, mark) != mark for key, mark in marks.items()):
        raise UserError(
            f"{folder} holds the reproduction of a claim that is called {chosen.name}, too: choose another --output"
        )
    return dict(standing)


def _marks(chosen: claims.Claim, folder: Path) -> dict[str, str]:
    """By which a reproduction knows its claim's file: it may change, or be moved, but not both."""
    if not chosen.file:
        return {}
    from hf_optim.study.folder import begun
    from hf_optim.study.folder.aside import digest

    file = claims.names().get(chosen.file, Path(chosen.file))
    return {begun.BEGUN: begun.mark(folder, _origin(chosen)), "claim_sha256": digest(file.read_text(encoding="utf-8"))}


def _marks_kept(chosen: claims.Claim, folder: Path) -> dict[str, str]:
    """The marks to write: a copy of the file is let through by its text, and does not take the file's place."""
    from hf_optim.experiment.files import read_json
    from hf_optim.study.folder import begun

    marks = _marks(chosen, folder)
    with suppress(OSError, ValueError):
        standing = read_json(folder, "reproduction.json")
        if marks and isinstance(standing, dict) and standing.get("claim_sha256") == marks["claim_sha256"]:
            marks[begun.BEGUN] = str(standing.get(begun.BEGUN, ""))
    return marks


def _check_place(chosen: claims.Claim, options: Options, folder: Path, beside: Collection[str] = ()) -> bool:
    """Whether this reproduction was begun there; a UserError where something else stands than its page alone, or files
    called as one `beside` it.
    """
    from hf_optim.experiment.leftovers import is_left

    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file: choose another --output")
    if (standing := _standing(chosen, options, folder)) is not None:
        own = chosen.settings[options.size].tables
        # one of a release of before does not say it, and is taken for that of the claim that comes with the package
        if standing.get("tables", own if chosen.file in claims.names() else None) != own:
            raise UserError(
                f"{folder} holds the reproduction of a claim that is called {chosen.name}, too, and has other commands "
                "or checks: choose another --output"
            )
        if beside or not standing.get(PAGE_ALONE):
            return not standing.get(PAGE_ALONE)
        beside = ("reproduction.json", *PAGE)
    names = {path.name for path in folder.iterdir() if not is_left(path.name)} if folder.exists() else set()
    if names - {*beside}:
        raise UserError(f"{folder} is not empty and holds no reproduction: choose another --output")
    return False


def _write_tables(chosen: claims.Claim, options: Options, folder: Path) -> int:
    from hf_optim.claims import judge

    tables = _tables(chosen.settings[options.size])
    begun = _check_place(chosen, options, folder, beside=tables)  # a page of tables alone writes over none
    reproduced = judge.of_tables(chosen, options.size, folder, options.again(chosen.file or chosen.name))
    own = [folder / name for name in tables]
    # commands leave no folders: what lies deeper is a stranger's, to any depth
    left = [path for place in own for path in (place, *place.glob("*")) if not place.is_symlink()]
    files = sorted(str(path.relative_to(folder)) for path in left if path.is_file() and not path.is_symlink())
    _write(reproduced, folder, {**_marks_kept(chosen, folder), **({} if begun else {PAGE_ALONE: True})}, tuple(files))
    return 0


def write(chosen: claims.Claim, options: Options, folder: Path, study: Source) -> None:
    """Judge the records in `folder`; write reproduction.md, .json and .svg, and show the tables.

    Tasks are asked for their presets: code of a task is run where the claim's own `study` names it, and not where the
    folder's plan alone does.
    """
    from hf_optim.claims import judge
    from hf_optim.study.folder import results as records

    results = records.load(folder)
    if code := sorted({*importing.paths(results.plan.tasks)} - {*importing.paths(study.value)}):
        raise importing.Untrusted(f"{folder}: its plan names code that the claim does not: {', '.join(code)}")
    _check_rules(results.plan, study, folder)
    _check_looks(results.plan, chosen.name)
    if other := {str(t["size"]) for t in results.plan.tasks if (t["size"] == "paper") != (options.size == "paper")}:
        raise UserError(f"{folder}: its runs are of size {either(sorted(other))}, and size {options.size} is asked for")
    reproduced = judge.of_study(chosen, options.size, results, options.again(chosen.file or chosen.name))
    records.tell_unreadable([results])
    _write(reproduced, folder, _marks_kept(chosen, folder))


def _check_rules(plan: Plan, study: Source, folder: Path) -> None:
    """Raise a UserError where the plan in `folder` calls another rule what the claim's `study` calls so: what a
    sentence says of the one would be judged on the other's runs.
    """
    from hf_optim.study.plan import entries
    from hf_optim.study.plan.plan import KEYS

    asked = study.check_keys((), study.value, KEYS, ("optimizers",))["optimizers"]
    own = {one["label"]: entries.rules(one["spec"]) for one in entries.optimizers(study, asked)}
    for one in plan.optimizers:
        there = entries.rules(one["spec"])
        if (rules := own.get(one["label"], there)) != there:
            named = f"{both(there)} {one['label']!r}, which is {both(rules)} in the claim"
            raise UserError(f"{folder}: its plan calls {named}: choose another --output")


def _write(reproduced: Outcome, folder: Path, marks: Mapping[str, Any], files: tuple[str, ...] = ()) -> None:
    from hf_optim.claims import show
    from hf_optim.claims.drawing import drawing
    from hf_optim.experiment.disk import writing
    from hf_optim.experiment.files import write_atomically

    drawn = drawing(reproduced)
    with writing(folder):
        told = json.dumps({**show.plain(reproduced), **marks}, indent=1, ensure_ascii=False)
        write_atomically(folder, "reproduction.json", told + "\n")  # first: by it the others are known to be ours
        write_atomically(folder, PAGE[0], show.markdown(reproduced, files))
        if drawn:
            write_atomically(folder, PAGE[1], drawn)
    console = safe_text.console()
    show.terminal(reproduced, console)
    safe_text.say(console, f"Reproduction: {folder / 'reproduction.md'}")


def within(budget: str, options: Options) -> int:
    """Everything that fits into the budget, most decidable first; says what it leaves out."""
    from hf_optim.claims import agenda, cost

    machine = options.machine or (cost.GPU if options.size == "paper" else cost.CORE)
    chosen, left = agenda.plan(cost.hours(budget), options.size, options.wish, options.seeds, machine)
    for entry in chosen:
        print(safe_text.line(f"{entry.name}: {entry.why}, {cost.duration(entry.hours)}"))
    print(
        terminal(f"{counted(len(chosen), 'claim')}, {cost.duration(sum(entry.hours for entry in chosen))} of {budget}")
    )
    for entry in left:
        print(safe_text.line(f"left out: {entry.name}: {entry.why}, {cost.duration(entry.hours)}"))
    if options.dry_run:
        from hf_optim.experiment import forecast
        from hf_optim.study.launch.launcher import default_jobs

        jobs = options.jobs or default_jobs(1, options.jobs_per_gpu)
        print(terminal("\n".join(forecast.lines(_kinds(chosen, options.overrides), options.card, jobs=jobs))))
        return 0
    code = 0
    for entry in chosen:
        try:
            code = max(code, reproduce(entry.name, replace(options, anyway=True)))
        except UserError as error:  # what is wrong with one keeps none of the others from being decided
            print(safe_text.line(f"error: {entry.name}: {error}"), file=sys.stderr)
            code = 2
    return code


def _kinds(chosen: Sequence[Entry], overrides: Mapping[str, Any]) -> list[tuple[str, dict[str, Any], int]]:
    """(claim and task, the specification of one run, how many) of all runs; what claims share counts once."""
    kinds: dict[str, tuple[dict[str, Any], int]] = {}
    counted: set[str] = set()
    for entry in chosen:
        for run in entry.runs:
            if run.id in counted:
                continue
            counted.add(run.id)
            label = f"{entry.name}, {run.task}"
            spec = {**run.spec, "overrides": {**(run.spec.get("overrides") or {}), **overrides}}
            first, count = kinds.get(label, (spec, 0))
            kinds[label] = first, count + 1
    return [(label, spec, count) for label, (spec, count) in kinds.items()]

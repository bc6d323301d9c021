"""An honest study, whatever its options and whatever became of its runs, has a report that agrees with itself.

Studies are drawn over all options (`study_options`), their runs are made up, and all that reads a study is called.
A part of what `scripts/draw_studies.py` does with every two options.
"""

from __future__ import annotations

import contextlib
import csv
import io
import itertools
import json
import math
import os
import random
import re
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from study_options import FACTORS, OWN, Draw, covering, filled, reordered, study_yaml, write_study
from study_oracle import check_numbers, check_report, near, number, same_tables, table_of
from study_trainer import Stopped, Trainer

from hf_optim.commands import export, publish, report, results
from hf_optim.core import yaml12
from hf_optim.errors import UserError
from hf_optim.study import api, conduct
from hf_optim.study.folder.changes import read_plan
from hf_optim.study.folder.stages import run_count
from hf_optim.study.launch import launcher
from hf_optim.study.plan import plan as planning
from hf_optim.study.plan import source

#: how many are drawn beside `FOUND`, and with which seed
STUDIES, SEED = int(os.environ.get("HF_OPTIM_STUDIES", "3")), int(os.environ.get("HF_OPTIM_STUDIES_SEED", "0"))
#: files that hold no seconds: the same records give the same bytes
SAME = ("table.md", "table.csv", "statistics.md", "statistics.json", "runs.csv", "tuning.md")


def valid(draw: Draw) -> bool:
    """Whether a study of the draw can be; one that cannot is refused in one line."""
    try:
        planning.expand(source.parse(yaml12.dump(study_yaml(draw)), "study.yaml"))
    except UserError as error:
        assert "\n" not in str(error)
        return False
    return True


def quietly(act: Any, *arguments: Any) -> str:
    """What a command printed."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        act(*arguments)
    return out.getvalue()


def go_on(
    draw: Draw, file: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, share: float | None = None, **options: Any
) -> None:
    """The study's command, with made-up runs, stopped after a share of all runs."""
    plan = planning.expand(source.read(file))
    most = math.inf if share is None else int(share * run_count(plan))
    monkeypatch.setattr(launcher, "execute", Trainer(draw, plan, most))
    with contextlib.suppress(Stopped):
        quietly(lambda: conduct.study(str(file), output=str(folder), jobs=1, **options))


def texts(folder: Path) -> dict[str, str]:
    return {name: (folder / name).read_text() for name in SAME if (folder / name).exists()}


# --- what reads a study ---


def read_everything(folder: Path, aside: Path, thorough: bool) -> None:
    """Every command and every frame, none of which may raise."""
    name = str(folder)
    quietly(report.main, [name])
    for options in (
        ["--where", "status=ok"], ["--where", "value>=0.5,stage=judged"], ["--columns", "optimizer,seed,value,time*"],
        ["--by", "task,optimizer"], ["--by", "stage,seed", "--columns", "value"], ["--by", "spec.optimizer.lr"], [],
    ):  # fmt: skip
        allowed(results.main, [name, *options])
    plan = read_plan(folder)
    labels = [o["label"] for o in plan.optimizers]
    for pair in itertools.pairwise(labels):
        allowed(results.main, [name, "--compare", *pair])
    for label in labels:
        if label != plan.baseline:
            check_compared(folder, aside, label, plan.baseline)
    for ending in ("csv", "md", "tex", "parquet"):
        quietly(results.main, [name, "--export", str(aside / f"rows.{ending}")])
        allowed(results.main, [name, "--by", "task,optimizer", "--export", str(aside / f"by.{ending}")])
    for kind in ("latex", "markdown", "csv"):
        text = quietly(export.main, [name, "--table", kind])
        assert text and not re.search(r"\b(nan|None|inf)\b", text), text
    check_grouped(folder, aside, plan.per_unit)
    if thorough:
        with warnings.catch_warnings():
            warnings.simplefilter("default")  # what matplotlib says is taken there
            allowed(export.main, [name, "--figure", "svg", "--output", str(aside / "figures")])
        quietly(publish.main, [name, str(aside / "public")])
        assert (aside / "public" / "report.html").stat().st_size > 1000
    mine = api.load(folder)
    assert len(mine.runs) and len(mine.verdicts) and repr(mine) and mine._repr_html_()
    _ = mine.curves
    if plan.tuning:
        check_chosen(plan, mine.runs)


def allowed(command: Any, arguments: list[str]) -> None:
    """A command that may have nothing to say of this study, in one line."""
    try:
        quietly(command, arguments)
    except UserError as error:
        assert "\n" not in str(error), str(error)


def check_grouped(folder: Path, aside: Path, per_unit: int) -> None:
    """`results --by`, the paper's table and table.csv count and average the same."""
    name, file = str(folder), aside / "grouped.csv"
    allowed(results.main, [name, "--where", "stage=judged", "--by", "task,optimizer", "--export", str(file)])
    lines = table_of(folder / "table.csv")
    (aside / "paper.csv").write_text(quietly(export.main, [name, "--table", "csv"]))
    paper = table_of(aside / "paper.csv").values()  # which calls some optimizers otherwise
    for line, row in zip(lines.values(), paper, strict=True):
        said, shown = (some["verdict"].removesuffix(" (exploratory)") for some in (line, row))
        assert (per_unit > 1 or row["n"] == line["finished"]) and (shown or "not yet") in (
            said or "baseline",
            "not yet",
        )
    for cell, row in table_of(file).items() if file.exists() else ():
        line = lines[cell]
        counts = [row[key] for key in ("runs", "ok", "failed", "missing")]
        assert counts == [line[key] for key in ("planned", "finished", "failed", "missing")], cell
        mean = row.get(f"{line['metric']} mean") or row.get("value mean")
        if per_unit == 1 and (line["mean"] or mean):
            assert math.isclose(float(mean or "nan"), float(line["mean"]), rel_tol=1e-9), cell


def check_compared(folder: Path, aside: Path, label: str, baseline: str) -> None:
    """`results --compare` has the numbers and the verdicts of table.csv."""
    file = aside / "compared.csv"
    file.unlink(missing_ok=True)
    allowed(results.main, [str(folder), "--compare", label, baseline, "--export", str(file)])
    lines = table_of(folder / "table.csv")
    with open(file, newline="") if file.exists() else io.StringIO() as text:
        for row in csv.DictReader(text):
            line = lines[row["task"], next(name for task, name in lines if name.lstrip("'") == label)]
            assert (row["pairs"], row["verdict"]) == (line["units"], line["verdict"])
            for mine, theirs in (
                ("difference", "difference"),
                ("low", "difference_low"),
                ("p corrected", "p_corrected"),
            ):
                assert near(number(row[mine]), number(line[theirs])), (row, line)
            assert near(number(row["a mean"]), number(line["mean"])), (row, line)


def check_chosen(plan: planning.Plan, runs: Any) -> None:
    """Judged runs have the settings of the trial that is best on validation, where one is."""
    settings = [name for name in runs.columns if name.startswith("spec.optimizer.")]
    tasks = {task["label"]: task["primary"] for task in plan.tasks}
    carried = plan.ladder is not None and plan.ladder["rates"] == "carried"  # to rungs whose own search is a check
    known = {(task, label, seed): some for (task, label, seed), some in
             runs[(runs.stage == "tuning") & (runs.status == "ok")].groupby(["task", "optimizer", "seed"])}  # fmt: skip
    for run in runs[runs.stage == "judged"].itertuples():
        unit = plan.seeds.index(run.seed) // plan.per_unit
        some = known.get((run.task, run.optimizer, plan.tuning_seed(unit)))
        column = f"validation_{tasks[run.task]['name'].removeprefix('test_')}"
        if some is None or plan.speedup or carried or some[column].isna().any():
            continue
        best = some[column].max() if tasks[run.task]["greater_is_better"] else some[column].min()
        if len(chosen := some[some[column] == best]) == 1:
            mine, theirs = runs.loc[run.Index, settings], chosen.iloc[0][settings]
            assert [str(value) for value in mine] == [str(value) for value in theirs], run


def check_merged(folder: Path, aside: Path) -> None:
    """Two halves of the records make the study of before."""
    halves = [aside / "a", aside / "b"]
    for i, half in enumerate(halves):
        shutil.copytree(folder, half)
        for j, home in enumerate(sorted((half / "runs").iterdir())):
            if j % 2 == i and home.is_dir():
                shutil.rmtree(home)
    quietly(results.main, [*map(str, halves), "--merge", str(aside / "both")])
    assert texts(aside / "both") == texts(folder)


def check_parts(draw: Draw, study: dict[str, Any], folder: Path, aside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Studies of some of the seeds, or of some of the optimizers, merge to the study of all."""
    if "tuning" in study or not isinstance(study["seeds"], dict) or draw["sensitivity"] == "values":
        return  # a grid of two seeds is none of a part with one
    these = study["seeds"]["these"]
    for i, some in enumerate((these[:1], these[1:])):
        file = write_study({**study, "seeds": {"these": some}}, aside / f"part{i}")
        go_on(draw, file, aside / f"part{i}" / "out", monkeypatch)
    into = aside / "parts"
    allowed(results.main, [str(aside / "part0" / "out"), str(aside / "part1" / "out"), "--merge", str(into)])
    if into.exists():
        check_numbers(into)
        check_report(into)
        assert (into / "runs.csv").read_text().count("\n") == (folder / "runs.csv").read_text().count("\n")
        same_tables(folder, into)


def check_changed(draw: Draw, study: dict[str, Any], out: Path, aside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is asked otherwise afterwards: failed runs again, one more optimizer, another margin and fewer tasks."""
    more = {**study, "optimizers": [*study["optimizers"], {"name": "adam", "lr": 0.003, "label": "added"}]}
    if "tuning" in study:
        more["tuning"] = {**study["tuning"], "space": {**study["tuning"].get("space", {}), "added": {}}}
    fewer = {**study, "margin": 0.3, "targets": {}} | ({"tasks": study["tasks"][:1]} if "tasks" in study else {})
    for i, changed in enumerate((study, more, fewer)):
        file = write_study(changed, aside / f"changed{i}")
        try:
            go_on(draw, file, out, monkeypatch, accept_change=True, retry_failed=i == 0)
        except UserError as error:
            assert "\n" not in str(error)
            continue
        check_numbers(out)
        check_report(out)
        quietly(report.main, [str(out)])


def check_order(draw: Draw, study: dict[str, Any], folder: Path, aside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tasks and optimizers in another order have the same numbers and verdicts."""
    if "baseline" not in study:
        return
    file = write_study(reordered(study), aside / "turned")
    go_on(draw, file, aside / "turned" / "out", monkeypatch)
    same_tables(folder, aside / "turned" / "out")


def go(draw: Draw, folder: Path, monkeypatch: pytest.MonkeyPatch, extras: set[str]) -> None:
    """Everything about one drawn study."""
    study = study_yaml(draw)
    file = write_study(study, folder / "yaml")
    monkeypatch.chdir(folder / "yaml")
    monkeypatch.setattr(conduct, "_show_costs", lambda *_: None)  # which would train
    share, out = FACTORS["stopped"][draw["stopped"]], folder / "s"
    for name in ("stopped", "whole"):
        (folder / name).mkdir()
    if "dry" in extras:
        quietly(lambda: conduct.study(str(file), output=str(out), dry_run=True, trust=True))
    if share is not None:
        go_on(draw, file, out, monkeypatch, share)
        quietly(report.main, [str(out)])
        check_numbers(out)
        check_report(out)
        if "read" in extras:
            read_everything(out, folder / "stopped", False)
        if "merge" in extras:
            check_merged(out, folder / "stopped")
    go_on(draw, file, out, monkeypatch)
    check_numbers(out)
    check_report(out)
    whole = texts(out)
    if "read" in extras:
        read_everything(out, folder / "whole", "figures" in extras)
        assert texts(out) == whole
    if "merge" in extras:
        check_merged(out, folder / "whole")
    if "order" in extras:
        check_order(draw, study, out, folder, monkeypatch)
    if share is not None and "straight" in extras:
        go_on(draw, file, folder / "straight", monkeypatch)
        assert texts(folder / "straight") == whole
    if "parts" in extras:
        check_parts(draw, study, out, folder, monkeypatch)
    if "changed" in extras:
        check_changed(draw, study, out, folder, monkeypatch)


#: what a study had in which a fault was, whoever found it, and what is done with it to see it again
FOUND: list[tuple[dict[str, str], set[str]]] = [
    # A view of one task asked how long a trial on another was.
    ({"tasks": "two", "tuning": "steps", "length": "steps", "stopped": "no", "only": "all"}, {"order"}),
    # A task without the baseline was asked for seconds that it need not have.
    (
        {"tasks": "two", "only": "no baseline on the last", "speedup": "seconds", "tuning": "none", "stopped": "no"},
        set(),
    ),
    # Halves that had not all of the first look merged to a study that ended there.
    (
        {"tasks": "one", "seeds": "three looks", "tuning": "none", "values": "in vain", "stopped": "no"}
        | {"failures": "none", "history": "whole"},
        {"merge", "read"},
    ),
    # Between two looks of a tuning no run was there.
    (
        {"tasks": "lower", "tuning": "looks", "values": "noise", "failures": "none", "stopped": "late"}
        | {
            "optimizers": "two",
            "only": "all",
            **dict.fromkeys(("sensitivity", "variance", "speedup", "margin"), "none"),
        },
        {"straight", "read"},
    ),
    # No fault, but verdicts of both kinds where higher is better, and where lower is.
    (
        {"tasks": "two", "values": "apart", "seeds": "four", "tuning": "none", "optimizers": "many", "margin": "none"}
        | {"failures": "none", "only": "all", "stopped": "no", "history": "spent", "baseline": "last"},
        {"order"},
    ),
    # A tie had an interval of dashes.
    ({"tasks": "one", "tuning": "none", "seeds": "four", "values": "ties", "failures": "none"}, {"changed"}),
]
#: what is done with the other draws, in turn
EXTRAS = [{"read", "dry", "parts"}, {"merge", "straight"}, {"order", "changed"}, {"read", "figures", "merge"}]


def found() -> Iterator[tuple[Draw, set[str]]]:
    for seed, (part, extras) in enumerate(FOUND):
        every = (filled(part, random.Random(f"{seed} {again}")) for again in itertools.count())
        yield next(draw for draw in every if part.items() <= draw.items() and valid(draw)), extras


def test_an_honest_study_has_its_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPLBACKEND", "Agg")
    monkeypatch.setattr(os, "fsync", lambda *_: None)  # no power fails here
    (tmp_path / "mine.py").write_text(OWN)
    faults = []

    def valid_here(draw: Draw) -> bool:
        monkeypatch.chdir(tmp_path)
        return valid(draw)

    monkeypatch.chdir(tmp_path)
    some = zip(covering(valid_here, SEED), itertools.cycle(EXTRAS), strict=False)
    for count, (draw, extras) in enumerate(itertools.chain(list(found()), itertools.islice(some, STUDIES))):
        home = tmp_path / str(count)
        try:
            with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
                warnings.simplefilter("error")
                go(draw, home, patch, extras)
        except Exception as fault:
            fault.add_note(f"{home}, with {sorted(extras)}: {json.dumps(draw)}")
            faults.append(fault)
        else:
            shutil.rmtree(home)
    if faults:
        raise ExceptionGroup(f"{len(faults)} studies", faults)

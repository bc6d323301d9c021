"""What a plan says of its tuning holds together: every search that it asks for, and no more in one than in another."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from attack_parts import command
from study_fakes import make_study
from tuning_fakes import YAML, expand, finish, good_rate, rate, whole

from hf_optim.core import importing
from hf_optim.errors import UserError
from hf_optim.study.findings import expected_best, profiles, verdicts
from hf_optim.study.findings.protocol import build
from hf_optim.study.folder import searches, stages
from hf_optim.study.folder.results import load
from hf_optim.study.launch.beginning import prepare
from hf_optim.study.launch.follow import follow
from hf_optim.study.plan.plan import Plan as Planned
from hf_optim.study.plan.plan import make_run
from hf_optim.study.report.run_pages import parts

Plan = dict[str, Any]
PLAIN = YAML[: YAML.index("tuning:")]
SMALL = YAML.replace("trials: 6", "trials: 2")
REPEATED = SMALL.replace("seeds: 3\n", "").replace("trials: 2", "trials: 2\n  repetitions: [2, 3]")
BLOCKS = SMALL + "speedup: {budgets: [0.5, 1]}\nvariance: {seeds: 3, optimizers: [SMARAN]}\n"
BATCHES = SMALL.replace("SMARAN: {lr", "SMARAN: {run: {batch_size: {choices: [8, 16]}}, lr")


def with_more_trials(cell: Plan) -> None:
    cell["points"] *= 2


def with_a_trial_outside(cell: Plan) -> None:
    cell["points"][0]["lr"] = 2 * cell["space"]["lr"][2]


def with_a_space_of_others(cell: Plan) -> None:
    cell["space"]["lr"] = ["choice", [7.0]]


def with_another_rule(cell: Plan) -> None:
    """What stood as SMARAN's was SGD's."""
    cell["space"] = {"name": ["choice", ["sgd"]]}
    cell["points"] = [{"name": "sgd"}] * len(cell["points"])


@pytest.mark.parametrize(
    "lie", [with_more_trials, with_a_trial_outside, with_a_space_of_others, with_another_rule, None]
)
def test_all_are_tuned_as_the_plan_says(lie: Callable[[Plan], None] | None, tmp_path: Path, capsys: Any) -> None:
    """One optimizer had more trials than all others, outside of what it was said to search, or was tuned twice."""
    study = whole(expand(SMALL), tmp_path / "study")
    plan = json.loads((study / "plan.json").read_text())
    (cell,) = (cell for cell in plan["tuning"]["cells"] if cell["optimizer"] == "SMARAN")
    if lie is None:
        plan["tuning"]["cells"].append(cell)
    else:
        lie(cell)
    (study / "plan.json").write_text(json.dumps(plan))
    code, _, said = command(capsys, "report", study)
    assert code == 2 and "the cell of 'SMARAN' on 'MLP' is damaged" in said


@pytest.mark.parametrize(
    ("text", "gone", "said"),
    [
        (REPEATED, {"optimizer": "SMARAN", "seed": 1002}, "'SMARAN' on 'MLP' with seed 1002 is missing"),
        (BLOCKS, {"optimizer": "adamw", "budget": 0.5}, "'adamw' on 'MLP' with seed 1000 and budget 0.5 is missing"),
        (BLOCKS, {"optimizer": "SMARAN", "seed": 1001}, "'SMARAN' on 'MLP' with seed 1001 is missing"),
        (BLOCKS, {"optimizer": "nobody"}, ""),
        (REPEATED, {"optimizer": "nobody"}, ""),
    ],
)
def test_every_search_is_there(text: str, gone: Plan, said: str, tmp_path: Path, capsys: Any) -> None:
    """Of a repetition that had not begun it was a traceback of the report; the baseline at another budget, and what
    varied by its tuning, had the settings of no search, and nothing said so.
    """
    study = whole(expand(text), tmp_path / "study")
    plan = json.loads((study / "plan.json").read_text())
    cells = plan["tuning"]["cells"]
    plan["tuning"]["cells"] = [cell for cell in cells if any(cell.get(key) != value for key, value in gone.items())]
    (study / "plan.json").write_text(json.dumps(plan))
    code, _, err = command(capsys, "report", study)
    assert (code, said in err) == (2 if said else 0, True), err


@pytest.mark.parametrize("shift", [0, 1000])
def test_no_seed_tunes_and_judges_under_another_name(shift: int, tmp_path: Path, capsys: Any) -> None:
    """A tuning seed of 2**32 was the judged seed 0, of which runs have the rest; the settings that were chosen with
    seed 1000 were judged with it on a task whose seeds were shifted.
    """
    plan = json.loads(json.dumps(expand(SMALL).to_dict()))
    if shift:
        (task,) = plan["tasks"]
        plan["tasks"].append({**task, "label": "again", "settings": "MLP", "seed_shift": shift})
    else:
        plan["tuning"]["seed"] = 2**32
        plan["tuning"]["cells"] = [{**cell, "seed": 2**32} for cell in plan["tuning"]["cells"]]
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    code, _, err = command(capsys, "report", tmp_path)
    assert code == 2 and "seeds of judging or tuning belong to two units" in err


@pytest.mark.parametrize("hyper", [{"name": "sgd"}, {"base": "sgd"}, {"base": {"name": "adam"}}])
def test_a_task_has_the_optimizers_that_are_called_so(hyper: Plan, tmp_path: Path, capsys: Any) -> None:
    """Under `hyper` an optimizer was another rule on one task, and the verdict was said of its own settings."""
    label = "tlr(sgd)" if isinstance(hyper.get("base"), dict) else "SMARAN"
    named = json.dumps({label: hyper})
    with pytest.raises(UserError, match="s.yaml, line 4: (hyper names another rule|.*base)"):
        expand(PLAIN.replace("{steps: 100}", f"{{steps: 100}}, hyper: {named}"))
    plan = json.loads(json.dumps(expand(PLAIN).to_dict()))
    plan["tasks"][0]["hyper"] = {label: hyper}
    plan["runs"] = [run for run in plan["runs"] if run["optimizer"] != label]
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    code, _, err = command(capsys, "report", tmp_path)
    assert code == 2 and "'MLP': hyper names another rule, or another base" in err


@pytest.mark.parametrize("batch", [None, 0, "8"])
def test_a_searched_batch_size_needs_the_tasks_own(batch: Any, tmp_path: Path, capsys: Any) -> None:
    """Which the number of steps is worked out from: without it every command was a traceback."""
    plan = json.loads(json.dumps(expand(BATCHES).to_dict()))
    plan["tasks"][0].pop("batch") if batch is None else plan["tasks"][0].update(batch=batch)
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    code, _, err = command(capsys, "report", tmp_path)
    assert code == 2 and ("says no batch size of its own" in err or "batch: expected a whole number" in err)


def test_an_optimizer_is_not_searched() -> None:
    with pytest.raises(UserError, match="name is no setting"):
        expand(SMALL.replace("SMARAN: {lr", "SMARAN: {name: {choices: [sgd, smaran]}, lr"))


@pytest.mark.parametrize("key", ["run", "name", "base", "base.run"])
def test_the_grid_of_an_optimizer_of_ones_own_is_of_a_setting(key: str, tmp_path: Path, capsys: Any) -> None:
    """Whatever a plan called it was taken for a setting of a class whose file nobody runs: a traceback of every command
    for one, a refusal of the whole study for others.
    """
    text = PLAIN.replace("- adamw\n", "- adamw\n  - {name: 'mine.py:Mine', label: mine}\n")
    with importing.refused("nobody asked"):
        plan = json.loads(json.dumps(expand(text + "sensitivity: {key: lr}\n").to_dict()))
    plan["sensitivity"]["key"] = key
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    code, _, err = command(capsys, "report", tmp_path)
    assert (code, err) == (0, "")


def test_a_plan_that_nobody_could_read_again_is_not_begun(tmp_path: Path) -> None:
    """A YAML's choices may be longer than settings are, which is known once they are drawn."""
    long = [round((i + 1) / 1100, 5) for i in range(1000)]
    choices = f"SMARAN: {{run: {{schedule: {{choices: [{{name: multistep, at: {long}}}]}}}}, lr"
    plan = expand(SMALL.replace("SMARAN: {lr", choices))
    with pytest.raises(UserError, match="the search space of 'SMARAN' on 'MLP' is longer than 5,000 characters"):
        prepare(plan, "", tmp_path / "study")
    assert not (tmp_path / "study").exists()


def test_a_search_has_no_trials_without_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What the best of k of them is takes the square of their number: of 99,000 a quarter of an hour."""
    plan = expand(YAML).to_dict()
    cells = [{**cell, "points": cell["points"][:1] * 10_001} for cell in plan["tuning"]["cells"]]
    plan["tuning"] |= {"trials": 10_001, "cells": cells}
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    code, _, said = command(capsys, "results", tmp_path)
    assert code == 2 and "asks for 10,001 trials of an optimizer, and a study has at most 10,000" in said


def test_a_search_has_no_choices_without_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each point is looked for among all of them, and a verdict names them: two million in a plan took hours."""
    plan = expand(YAML).to_dict()
    (cell,) = (cell for cell in plan["tuning"]["cells"] if cell["optimizer"] == "SMARAN")
    cell |= {"space": {"lr": ["choice", [1] * 2000]}, "points": [{"lr": 1}] * 6}
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    code, _, said = command(capsys, "results", tmp_path)
    assert code == 2 and "the search space of 'SMARAN' on 'MLP' is longer than 5,000 characters" in said


def test_a_trial_is_made_once_however_many_looks_there_are(tmp_path: Path, monkeypatch: Any) -> None:
    """Each look made all trials anew, and the pages of runs once more: a plan of a megabyte took hours."""
    looks = REPEATED.replace("repetitions: [2, 3]", f"repetitions: {list(range(2, 9))}")
    study = whole(expand(looks), tmp_path / "study")
    made: list[object] = []
    for module in (searches, stages):
        monkeypatch.setattr(module, "make_run", lambda *args: made.append(args) or make_run(*args))
    loaded = load(study)
    assert loaded.standing.units == 8
    assert len(list(parts(loaded))) > len(loaded.standing.known)
    trials = sum(len(search.trials) for search in loaded.standing.state.searches)
    assert len(made) == trials + len(loaded.plan.runs)


def test_a_tuned_optimizer_is_not_there_twice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Under a hundred labels one run was a hundred arms, each of which read its history again."""
    study = whole(expand(SMALL), tmp_path / "study")
    plan = json.loads((study / "plan.json").read_text())
    (twin,) = (one for one in plan["optimizers"] if one["label"] == "adamw")
    (cell,) = (cell for cell in plan["tuning"]["cells"] if cell["optimizer"] == "adamw")
    plan["optimizers"].append({**twin, "label": "twin"})
    plan["tasks"][0]["only"].append("twin")
    plan["tuning"]["cells"].append({**cell, "optimizer": "twin"})
    (study / "plan.json").write_text(json.dumps(plan))
    code, _, said = command(capsys, "report", study)
    assert code == 2 and "'twin' on 'MLP' is the same as 'adamw' and has the same space" in said


def test_a_run_that_is_many_trials_is_read_once(tmp_path: Path, monkeypatch: Any) -> None:
    """A history without a beginning was read for each trial of the one setting: half a megabyte took hours."""
    plan = expand(YAML).to_dict()
    cells = [{**cell, "points": cell["points"][:1] * 6} for cell in plan["tuning"]["cells"]]
    planned = Planned.from_dict({**plan, "tuning": {**plan["tuning"], "cells": cells}}, "plan.json")
    loaded = load(whole(planned, tmp_path / "study"))
    read: list[str] = []
    monkeypatch.setattr(loaded.store, "untrained", lambda run, _: read.append(run) or math.nan)
    expected_best.curves(loaded.plan, loaded.standing.state.searches, loaded.store)
    assert len(read) == len(set(read)) == 3


@pytest.mark.parametrize("base", [{}, {"lr": 0.1}])
def test_a_wrapper_in_a_plan_may_wrap_what_is_not_named(base: Any, tmp_path: Path, capsys: Any) -> None:
    """A grid over rates, and what holds another rule as its special case, looked for the name: a traceback."""
    study = make_study(tmp_path / "study", seeds=2)
    plan = json.loads((study / "plan.json").read_text())
    plan["optimizers"].append({"label": "more", "spec": {"name": "tlr", "base": base}, "defaults": {}})
    plan["tasks"][0]["only"].append("more")
    plan["sensitivity"] = {"key": "lr", "values": [0.01, 0.1], "seeds": 1}
    (study / "plan.json").write_text(json.dumps(plan))
    for words in (["report"], ["results"], ["export", "--table", "csv"]):
        assert command(capsys, words[0], study, *words[1:])[0] == 0


def damaged_record(folder: Path, trial: searches.Trial) -> None:
    (folder / "runs" / trial.run.id / "record.json").write_text('{"id":')


def damaged_history(folder: Path, trial: searches.Trial) -> None:
    """A line less moves the medians, and so the names of all trials after them."""
    file = folder / "runs" / trial.run.id / "history.jsonl"
    first, _, *rest = file.read_text().splitlines()
    file.write_text("\n".join([first, '{"step": 25, "val', *rest]))


@pytest.mark.parametrize("which", ["chosen", "another"])
@pytest.mark.parametrize(
    ("text", "damage"),
    [
        (YAML, damaged_record),
        (YAML.replace("trials: 6", "trials: 6\n  prune: median"), damaged_record),
        (YAML.replace("trials: 6", "trials: 6\n  prune: median"), damaged_history),
        (BLOCKS, damaged_record),
        (REPEATED, damaged_record),
    ],
    ids=["plain", "pruned", "history", "blocks", "looks"],
)
def test_a_trial_that_cannot_be_read_takes_no_run_from_the_report(
    text: str, damage: Callable[[Path, searches.Trial], None], which: str, tmp_path: Path, capsys: Any
) -> None:
    """All judged runs of all optimizers were then "not run", and their report was written over."""
    study = whole(expand(text), tmp_path / "study")
    before = load(study)
    search = next(s for s in before.standing.state.searches if s.optimizer == "SMARAN" and s.budget == 1)
    assert search.choice and search.choice.trial
    chosen = search.choice.trial
    # the first four make the medians
    others = (t for t in search.trials[:4] if t.status == "ok" and t.number != chosen.number)
    trial = chosen if which == "chosen" and damage is damaged_record else next(others)
    damage(study, trial)
    after = load(study)
    state = after.standing.state
    assert {run.id for run in state.after_tuning} == {run.id for run in before.standing.state.after_tuning}
    if not state.settled or damage is damaged_record:  # a line less may move no median
        assert not state.settled and not after.standing.finished and after.standing.judgement is None
    assert command(capsys, "report", study)[0] == 0
    assert f"runs/{trial.run.id}/" in (study / "report.html").read_text()
    assert "not run" not in (study / "table.md").read_text()


@pytest.mark.parametrize("first", [{"validation_loss": 0.05}, {"validation_accuracy": -50}, {"validation_accuracy": 1}])
def test_what_one_optimizers_runs_say_of_the_beginning_is_said_of_no_other(first: Plan, tmp_path: Path) -> None:
    """One changed number in a run of AdamW's made all rates of SMARAN equally good, or its failures successes."""
    text = YAML + "sensitivity: {values: [0.1, 0.001], seeds: 2}\n"
    failing = {"validation_accuracy": 0.1, "validation_loss": 2.3, "test_accuracy": 0.1}
    study = whole(expand(text), tmp_path / "s", lambda run: failing if rate(run) == 0.1 else good_rate(run))

    def found() -> tuple[Any, ...]:
        loaded = load(study)
        protocol = build(loaded)
        mine = [curve for curve in (*protocol.sensitivity, *protocol.expected) if curve.optimizer == "SMARAN"]
        return mine, {run.id for run in loaded.plan.runs if run.id in loaded.in_vain and run.optimizer == "SMARAN"}

    before = found()
    assert len(before[0]) == 2
    for file in study.glob("runs/*/record.json"):
        if json.loads(file.read_text())["spec"]["optimizer"]["name"] == "adamw":
            history = file.with_name("history.jsonl")
            row, _, rest = history.read_text().partition("\n")
            history.write_text(json.dumps(json.loads(row) | first) + "\n" + rest)
    assert found() == before


def test_a_damaged_trial_and_a_damaged_run_take_none_of_the_others(tmp_path: Path, capsys: Any) -> None:
    """Only the first unit's run was asked for the setting that had been chosen."""
    study = whole(expand(YAML), tmp_path / "study")
    before = load(study)
    (search,) = (s for s in before.standing.state.searches if s.optimizer == "SMARAN")
    first = next(run for run in before.plan.runs if run.optimizer == "SMARAN")
    for run in (search.trials[0].run, first):
        (study / "runs" / run.id / "record.json").write_text('{"id":')
    after = load(study)
    assert {run.id for run in after.plan.runs} == {run.id for run in before.plan.runs}
    assert {run.id for run, _ in after.unreadable()} == {search.trials[0].run.id, first.id}


def test_a_trial_that_cannot_be_read_is_no_other_tuning(tmp_path: Path) -> None:
    """SMARAN had 28 trials, adamw 36: those after it wait for it, and may have been made."""
    text = REPEATED.replace("trials: 2", "trials: 8\n  steps: 800\n  prune: median")
    text += "    adamw: {lr: [0.0001, 0.1, log]}\n"
    study = whole(expand(text), tmp_path / "study")
    before = load(study)
    last = before.standing.state.searches[-1].seed
    search = next(s for s in before.standing.state.searches if (s.optimizer, s.seed) == ("SMARAN", last))
    damaged_record(study, search.trials[0])
    after = load(study)
    (search,) = (s for s in after.standing.state.searches if (s.optimizer, s.seed) == ("SMARAN", last))
    assert search.waiting and verdicts.unlike(after, "SMARAN") == verdicts.unlike(before, "SMARAN") == ""


def test_a_damaged_trial_of_a_look_leaves_the_study_at_that_look(tmp_path: Path) -> None:
    """A study that had been decided there had all trials of the next one left."""
    planned = expand(REPEATED)
    study = tmp_path / "study"
    for stage in follow(planned, study):
        if stage.units > 2:
            break
        for run in stage.todo:
            finish(run, study)
    (study / "plan.json").write_text(json.dumps(planned.to_dict()))
    damaged_record(study, load(study).standing.state.searches[0].trials[0])
    assert load(study).standing.units == 2


def test_of_a_run_whose_history_cannot_be_read_it_is_not_known_when_it_arrived(tmp_path: Path) -> None:
    """It had "never" reached the target."""
    target = {"MLP": {"metric": "validation_accuracy", "value": 0.2, "better": "higher"}}
    study = whole(expand(YAML), tmp_path / "study")
    plan = json.loads((study / "plan.json").read_text())
    (study / "plan.json").write_text(json.dumps({**plan, "targets": target}))
    (whole_table,) = profiles.target_tables(load(study))
    lost = [run for run in load(study).plan.runs if run.optimizer == "adamw"][:2]
    (study / "runs" / lost[0].id / "history.jsonl").write_text("{")
    (study / "runs" / lost[1].id / "history.jsonl").unlink()
    (table,) = profiles.target_tables(load(study))
    assert [row["reached"] for row in profiles.cells(whole_table)] == ["3/3"] * 3
    assert [row["reached"] for row in profiles.cells(table)] == ["1/1", "3/3", "3/3"]


@pytest.mark.parametrize("overrides", [{"depth": 1}, {"steps": -1}, {"steps": True}, {"precision": "int4"}])
def test_what_a_tuned_tasks_runs_take_is_named_with_its_file(overrides: Plan, tmp_path: Path, capsys: Any) -> None:
    """Under a tuning the plan has no runs yet that could say so, and the line named no file."""
    study = whole(expand(SMALL), tmp_path / "study")
    plan = json.loads((study / "plan.json").read_text())
    plan["tasks"][0]["overrides"] = overrides
    (study / "plan.json").write_text(json.dumps(plan))
    for words in (["report", study], ["results", study], ["publish", study, tmp_path / "public"]):
        code, _, err = command(capsys, *words)
        assert code == 2 and err.startswith(f"error: {study}/plan.json: 'MLP': overrides: "), err

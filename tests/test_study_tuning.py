"""Tuning: equal budgets, settings that depend on nothing but the seed, choices that only validation can influence."""

from __future__ import annotations

import json
import math
import random
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tuning_fakes import YAML, contents, expand, finish, good_rate, rate, steps, whole, write

from hf_optim import registry
from hf_optim.errors import UserError
from hf_optim.study.findings import protocol as tuning_report
from hf_optim.study.folder import changes, pruning, searches, stages
from hf_optim.study.folder import results as records
from hf_optim.study.folder.store import RecordStore
from hf_optim.study.launch import journal as tuning_log
from hf_optim.study.launch.beginning import prepare
from hf_optim.study.launch.follow import follow
from hf_optim.study.plan import tuning
from hf_optim.study.plan import tuning_points as points
from hf_optim.study.plan.plan import Plan, Run, make_run

LOCAL = {"suppress_health_check": [HealthCheck.function_scoped_fixture]}


def first_trials(planned: Plan, folder: Path) -> list[Run]:
    return list(next(follow(planned, folder)).runs)


def chosen(planned: Plan, folder: Path) -> dict[str, int]:
    numbers = {}
    for search in stages.state(planned, RecordStore(folder)).searches:
        assert search.choice and search.choice.trial
        numbers[search.optimizer] = search.choice.trial.number
    return numbers


# --- the search space ---


def test_spaces_are_the_declared_ones_without_what_the_yaml_fixes() -> None:
    cells = {c["optimizer"]: c["space"] for c in expand().tuning["cells"]}
    assert cells["adamw"] == {key: list(bounds) for key, bounds in registry.info("adamw").search_space.items()}
    assert cells["SMARAN"] == {"lr": ["log", 0.003, 1.0]}
    assert set(cells["tlr(sgd)"]) == {"gamma", "p", "base.lr", "base.weight_decay"}
    text = YAML.replace("  - adamw", "  - {name: adamw, weight_decay: 0.1}")
    fixed = expand(text.replace("base: sgd", "gamma: 0.3, base: {name: sgd, lr: 0.1}"))
    cells = {c["optimizer"]: c["space"] for c in fixed.tuning["cells"]}
    assert set(cells["adamw"]) == {"lr"} and set(cells["tlr(sgd)"]) == {"p", "base.weight_decay"}


def test_every_optimizer_gets_the_same_number_of_trials_with_valid_settings(tmp_path: Path) -> None:
    planned = expand()
    runs = first_trials(planned, tmp_path)
    assert sorted({r.optimizer for r in runs}) == ["SMARAN", "adamw", "tlr(sgd)"]
    assert all(sum(r.optimizer == label for r in runs) == 6 for label in ("adamw", "SMARAN", "tlr(sgd)"))
    assert {r.seed for r in runs} == {1000} and not planned.runs
    for run in runs:
        registry.check_spec(run.spec["optimizer"])
    # Trial by trial: what an interrupted tuning has is balanced.
    assert [r.optimizer for r in runs[:3]] == ["adamw", "SMARAN", "tlr(sgd)"]
    wrapped = next(r for r in runs if r.optimizer == "tlr(sgd)").spec["optimizer"]
    assert wrapped["base"]["name"] == "sgd" and 1e-3 <= wrapped["base"]["lr"] <= 1.0


def test_every_registered_space_makes_runs_that_can_be_built() -> None:
    for name in registry.list_optimizers():
        spec = {"name": name} | ({"base": {"name": "sgd"}} if registry.info(name).family == "wrapper" else {})
        spec = {"name": name} if registry.info(name).base is not None else spec
        spec |= dict.fromkeys(registry.info(name).required, 10)
        space = tuning.declared(spec)
        if space:
            for point in points.draw(space, "qmc", 5, 2):
                registry.check_spec(tuning.assign(spec, point))


CHOICES = st.one_of(st.integers(0, 9), st.booleans(), st.none(), st.tuples(st.floats(0, 1), st.floats(0, 1)).map(list))
SPACES = st.dictionaries(
    st.sampled_from(["lr", "base.lr", "k", "betas", "eps"]),
    st.one_of(
        st.tuples(st.just("log"), st.floats(1e-9, 1e-3), st.floats(2e-3, 10.0)).map(list),
        st.tuples(st.just("linear"), st.floats(-5, 0), st.floats(0.5, 5)).map(list),
        st.lists(CHOICES, min_size=1, max_size=4, unique_by=repr).map(lambda values: ["choice", values]),
    ),
    min_size=1,
)


@settings(max_examples=25)
@given(SPACES, st.integers(0, 2**32 - 1), st.integers(1, 12), st.integers(0, 12), st.sampled_from(["qmc", "random"]))
def test_points_lie_in_their_space_and_a_larger_budget_extends_a_smaller(space, seed, few, more, sampler) -> None:
    short, long = (points.draw(space, sampler, seed, n) for n in (few, few + more))
    assert long[:few] == short and len(long) == few + more
    assert points.draw(dict(reversed(space.items())), sampler, seed, few) == short
    for point in long:
        assert set(point) == set(space)
        for key, (kind, *bounds) in space.items():
            assert point[key] in bounds[0] if kind == "choice" else bounds[0] <= point[key] <= bounds[1]


def test_points_cover_the_range_evenly_and_change_with_the_seed() -> None:
    space = {"lr": ["log", 1e-4, 1.0]}
    drawn = [p["lr"] for p in points.draw(space, "qmc", 3, 16)]
    # A quasi-random sequence has one point in each sixteenth; independent draws would leave a third of them empty.
    assert len({int(16 * (math.log10(x) + 4) / 4) for x in drawn}) >= 15
    assert drawn != [p["lr"] for p in points.draw(space, "qmc", 4, 16)]
    wider = points.draw(space | {"k": ["choice", [1, 2]]}, "qmc", 3, 16)
    assert {p["k"] for p in wider} == {1, 2}


def test_two_optimizers_with_one_space_try_the_same_values(tmp_path: Path) -> None:
    text = YAML.replace("name: smaran", "name: adamw_agr").replace("SMARAN: {lr: [0.003, 1.0, log]}", "{}")
    runs = first_trials(expand(text), tmp_path)
    assert [rate(r) for r in runs if r.optimizer == "adamw"] == [rate(r) for r in runs if r.optimizer == "SMARAN"]


# --- the choice ---


def test_the_best_validation_value_is_chosen_and_judged_on_other_seeds(tmp_path: Path) -> None:
    planned = expand()
    whole(planned, tmp_path)
    now = stages.state(planned, RecordStore(tmp_path))
    for search in now.searches:
        best = min(search.trials, key=lambda t: abs(math.log10(rate(t.run) / 0.01)))
        assert search.choice and search.choice.trial and search.choice.trial.number == best.number
        judged = [r for r in now.runs if r.optimizer == search.optimizer]
        assert [r.seed for r in judged] == [0, 1, 2]
        assert all(r.spec["optimizer"] == best.run.spec["optimizer"] for r in judged)
    assert records.load(tmp_path).plan.runs == now.runs


METRIC = st.floats(allow_nan=True, allow_infinity=True)


@settings(max_examples=12, **LOCAL)
@given(st.lists(st.tuples(METRIC, METRIC), min_size=18, max_size=18))
def test_test_metrics_cannot_influence_the_choice(tmp_path: Path, metrics: list[tuple[float, float]]) -> None:
    planned = expand()
    folder = tmp_path / "a"
    plain = chosen(planned, whole(planned, folder))
    for run, (accuracy, loss) in zip(first_trials(planned, tmp_path / "none"), metrics, strict=True):
        others = {"test_accuracy": accuracy, "test_loss": loss, "best_validation_accuracy": accuracy}
        write(run, folder, {**good_rate(run), **others})
    assert chosen(planned, folder) == plain


def test_failed_trials_count_as_worst_and_ties_go_to_the_lower_loss_then_the_earlier(tmp_path: Path) -> None:
    planned = expand(YAML.replace("trials: 6", "trials: 4"))
    trials = [r for r in first_trials(planned, tmp_path) if r.optimizer == "adamw"]

    def outcomes(*values: tuple[float, float] | None) -> int:
        for run, value in zip(trials, values, strict=True):
            write(run, tmp_path, value and {"validation_accuracy": value[0], "validation_loss": value[1]})
        search = next(s for s in stages.state(planned, RecordStore(tmp_path)).searches if s.optimizer == "adamw")
        assert search.choice
        return search.choice.trial.number if search.choice.trial else -1

    assert outcomes((0.2, 1.0), None, (0.1, 0.1), None) == 0
    assert outcomes((0.8, 0.7), (0.8, 0.6), (0.8, 0.6), None) == 1
    assert outcomes((0.0, 0.7), (math.nan, 0.0), None, None) == 0
    assert outcomes(None, None, None, None) == -1


def test_a_lower_metric_is_better_where_the_task_says_so() -> None:
    run = make_run(dict(expand().tasks[0]), "adamw", {"name": "adamw"}, 0)
    trials = [searches.Trial(i, {}, run, "ok", value, 0.0, 1) for i, value in enumerate((3.0, 1.0, 2.0))]
    assert (
        searches.best_trial(trials, greater=False).number == 1 and searches.best_trial(trials, greater=True).number == 0
    )


def test_when_every_trial_failed_the_judged_runs_say_so(tmp_path: Path) -> None:
    planned = expand()
    whole(planned, tmp_path, lambda run: None if run.optimizer == "SMARAN" else good_rate(run))
    now = stages.state(planned, RecordStore(tmp_path))
    search = next(s for s in now.searches if s.optimizer == "SMARAN")
    judged = next(r for r in now.runs if r.optimizer == "SMARAN")
    assert judged.spec["optimizer"] == search.trials[0].run.spec["optimizer"]
    notes = tuning_report.build(records.load(tmp_path)).notes
    assert any("SMARAN on MLP: every trial failed" in note for note in notes)


def test_an_optimizer_may_be_left_untuned(tmp_path: Path) -> None:
    planned = expand(YAML.replace("{lr: [0.003, 1.0, log]}", "{}").replace("label: SMARAN", "label: SMARAN, lr: 0.1"))
    assert not [r for r in first_trials(planned, tmp_path) if r.optimizer == "SMARAN"]
    whole(planned, tmp_path)
    loaded = records.load(tmp_path)
    assert {r.spec["optimizer"]["lr"] for r in loaded.plan.runs if r.optimizer == "SMARAN"} == {0.1}
    assert "SMARAN on MLP was not tuned." in tuning_report.build(loaded).notes


@pytest.mark.parametrize(
    ("space", "value", "end"),
    [
        (["log", 1e-4, 1.0], 1.4e-4, "lower"), (["log", 1e-4, 1.0], 1.7e-4, ""), (["log", 1e-4, 1.0], 0.65, "upper"),
        (["log", 1e-4, 1.0], 0.6, ""), (["linear", 0.0, 10.0], 0.5, "lower"), (["linear", 0.0, 10.0], 9.4, ""),
        (["linear", 0.0, 10.0], 10.0, "upper"), (["choice", [1, 2]], 1, ""),
    ],
)  # fmt: skip
def test_values_within_five_per_cent_of_an_edge_are_flagged(space: list, value: float, end: str) -> None:
    notes = tuning.edges({"lr": space}, {"lr": value})
    assert (f"at the {end} end" in notes[0]) if end else not notes


# --- killed, resumed, extended, shared ---


@settings(max_examples=8, **LOCAL)
@given(st.lists(st.integers(0, 12), max_size=6), st.sampled_from(["none", "median"]), st.randoms(use_true_random=False))
def test_killed_anywhere_and_started_again_nothing_changes(
    tmp_path: Path, kills: list[int], prune: str, chance: random.Random
) -> None:
    planned = expand(YAML.replace("trials: 6", f"trials: 6\n  prune: {prune}"))
    straight, broken = whole(planned, tmp_path / "a" / prune), Path(tempfile.mkdtemp(dir=tmp_path))
    executed: list[str] = []
    for kill in kills:
        for i, run in enumerate(steps(planned, broken)):
            if i == kill:
                break  # the run that it was at has no record
            executed.append(run.id)
        journal = broken / tuning_log.FILE
        if journal.exists() and chance.random() < 0.5:  # killed while the log was written
            journal.write_bytes(journal.read_bytes()[: -chance.randrange(1, 40)])
    whole(planned, broken)
    assert contents(broken) == contents(straight)
    assert stages.state(planned, RecordStore(broken)).runs == stages.state(planned, RecordStore(straight)).runs


def test_two_launchers_share_a_folder(tmp_path: Path) -> None:
    planned = expand(YAML.replace("trials: 6", "trials: 6\n  prune: median"))
    alone = whole(planned, tmp_path / "alone")
    first, other = steps(planned, tmp_path / "both"), steps(planned, tmp_path / "both")
    for _ in range(200):
        if next(first, None) is None and next(other, None) is None:
            break
    assert contents(tmp_path / "both") == contents(alone)


def test_a_larger_budget_keeps_the_trials_and_says_that_the_choice_is_made_anew(tmp_path: Path) -> None:
    small, large = expand(), expand(YAML.replace("trials: 6", "trials: 9"))
    whole(small, tmp_path)
    before = contents(tmp_path)
    change = changes.since(tmp_path, large)
    assert change is not None and len(change.still) == 18 and len(change.new) == 9 and len(change.gone) == 9
    assert {r.id for r in first_trials(small, tmp_path / "x")} <= {r.id for r in first_trials(large, tmp_path / "x")}
    whole(large, tmp_path)
    assert {k: v for k, v in contents(tmp_path).items() if k in before} == before
    # More seeds only add.
    more = expand(YAML.replace("trials: 6", "trials: 9").replace("seeds: 3", "seeds: 5"))
    change = changes.since(tmp_path, more)
    assert change is not None and not change.gone and len(change.new) == 6


def test_another_tuning_seed_or_space_is_another_study(tmp_path: Path) -> None:
    whole(expand(), tmp_path)
    for old, new in (("trials: 6", "trials: 6\n  seed: 7"), ("0.003, 1.0", "0.003, 2.0")):
        change = changes.since(tmp_path, expand(YAML.replace(old, new)))
        assert change is not None and change.gone


def test_failed_trials_are_retried_when_asked_and_pruned_ones_are_not(tmp_path: Path) -> None:
    planned = expand(YAML.replace("trials: 6", "trials: 6\n  prune: median"))
    whole(planned, tmp_path, lambda run: None if run.optimizer == "adamw" and rate(run) > 0.01 else good_rate(run))
    made_by_id = {i: json.loads((tmp_path / "runs" / i / "record.json").read_text()) for i in contents(tmp_path)}
    stopped = {i for i, record in made_by_id.items() if record.get("pruned")}
    failed = {i for i, record in made_by_id.items() if record["status"] == "failed"} - stopped
    assert stopped and failed
    again: set[str] = set()
    prepare(planned, YAML, tmp_path, retry_failed=True)
    for stage in follow(planned, tmp_path):
        again |= {run.id for run in stage.todo}
        for run in stage.todo:
            finish(run, tmp_path)
    # A trial whose median has changed since is another run, so not every failed one comes back under its id.
    assert failed & again and not stopped & again & {r.id for r in first_trials(planned, tmp_path)}
    made = stages.state(planned, RecordStore(tmp_path)).searches
    assert all(trial.status in ("ok", "pruned") for search in made for trial in search.trials)
    import optuna

    study = optuna.load_study(study_name=_name(planned, tmp_path, "adamw"), storage=_storage(tmp_path))
    states = [t.state.name for t in study.trials]
    assert "FAIL" in states and states.count("COMPLETE") + states.count("PRUNED") == 6


def test_a_record_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    planned = expand()
    for stage in (stages_ := follow(planned, tmp_path)):
        for run in stage.todo:
            (tmp_path / "runs" / run.id).mkdir(parents=True)
            (tmp_path / "runs" / run.id / "record.json").write_text("{}")
        break
    with pytest.raises(UserError, match="record.json: not a record of a run; remove it"):
        next(stages_)


# --- the log ---


def _storage(folder: Path):
    from optuna.storages.journal import JournalFileBackend, JournalStorage

    return JournalStorage(JournalFileBackend(str(folder / tuning_log.FILE)))


def _name(planned: Plan, folder: Path, optimizer: str) -> str:
    made = stages.state(planned, RecordStore(folder)).searches
    return tuning_log.name(next(s for s in made if s.optimizer == optimizer))


def test_the_journal_holds_every_trial_once(tmp_path: Path) -> None:
    import optuna

    planned = expand()
    for i, _ in enumerate(steps(planned, tmp_path)):
        if i == 8:
            break
    whole(planned, tmp_path)
    study = optuna.load_study(study_name=_name(planned, tmp_path, "adamw"), storage=_storage(tmp_path))
    search = next(s for s in stages.state(planned, RecordStore(tmp_path)).searches if s.optimizer == "adamw")
    assert [t.user_attrs["run"] for t in study.trials] == [t.run.id for t in search.trials]
    assert [t.params for t in study.trials] == [dict(t.point) for t in search.trials]
    assert [t.value for t in study.trials] == [t.value for t in search.trials]
    assert search.choice and search.choice.trial and study.best_trial.user_attrs["number"] == search.choice.trial.number


def test_a_damaged_or_lost_journal_is_made_again(tmp_path: Path) -> None:
    planned = expand()
    whole(planned, tmp_path)
    runs, journal = stages.state(planned, RecordStore(tmp_path)).runs, tmp_path / tuning_log.FILE
    lines = journal.read_text().splitlines(keepends=True)
    journal.write_text("".join([*lines[:3], "{broken\n", *lines[4:]]))
    whole(planned, tmp_path)
    assert (tmp_path / "tuning.damaged").exists() and len(journal.read_text().splitlines()) >= len(lines) - 20
    journal.unlink()
    whole(planned, tmp_path)
    assert journal.exists() and stages.state(planned, RecordStore(tmp_path)).runs == runs


# --- budgets ---


def test_pruning_measures_later_trials_by_the_medians_of_the_first(tmp_path: Path) -> None:
    planned = expand(YAML.replace("trials: 6", "trials: 12\n  prune: median"))
    assert len(first_trials(planned, tmp_path)) == 3 * pruning.FIRST
    whole(planned, tmp_path)
    for search in stages.state(planned, RecordStore(tmp_path)).searches:
        first = sorted(t.value for t in search.trials[: pruning.FIRST])
        middle = (first[1] + first[2]) / 2
        for trial in search.trials:
            fine = trial.number < pruning.FIRST or good_rate(trial.run)["validation_accuracy"] >= middle
            assert trial.status == ("ok" if fine else "pruned")
    assert all(not run.spec.get("pruning") for run in records.load(tmp_path).plan.runs)
    notes = tuning_report.build(records.load(tmp_path)).notes
    assert any("were stopped early (median rule)" in note for note in notes)


def test_thresholds_leave_out_the_start_and_the_end_and_count_failures_as_worst() -> None:
    def rows(*values: float) -> list[dict[str, float]]:
        return [{"step": 10.0 * i, "validation_accuracy": v} for i, v in enumerate(values)]

    histories = [rows(0.1, 0.2, 0.9, 0.9), rows(0.1, 0.4, 0.5, 0.9), rows(0.1, 0.6, 0.7, 0.9)]
    assert pruning.thresholds(histories, "validation_accuracy", True) == [(10, 0.4), (20, 0.7)]
    with_failure = pruning.thresholds([*histories, None], "validation_accuracy", True)
    assert with_failure == [(10, pytest.approx(0.3)), (20, pytest.approx(0.6))]
    assert pruning.thresholds([histories[0], None, None], "validation_accuracy", True) == []
    assert pruning.thresholds([None], "validation_accuracy", True) == []


def test_a_budget_in_steps_buys_more_trials_where_some_stop_early(tmp_path: Path) -> None:
    text = YAML.replace("trials: 6", "trials: 12\n  steps: 650")
    plain = expand(text)
    assert stages.planned(plain) == (18, 9, 0)
    whole(plain, tmp_path / "plain")
    spent = [[t.steps for t in s.trials] for s in stages.state(plain, RecordStore(tmp_path / "plain")).searches]
    assert all(len(amounts) == 6 for amounts in spent)
    pruned = expand(text.replace("steps: 650", "steps: 650\n  prune: median"))
    whole(pruned, tmp_path / "pruned")
    spent = [[t.steps for t in s.trials] for s in stages.state(pruned, RecordStore(tmp_path / "pruned")).searches]
    assert all(sum(x for x in amounts if x) <= 650 for amounts in spent) and any(len(amounts) > 6 for amounts in spent)

"""Units of chance: repetitions with seeds of their own, looks, and the stages that follow from them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from study_fakes import make_study
from tuning_fakes import YAML, even, expand, finish, good_rate, one_in_vain, whole

from hf_optim.errors import UserError
from hf_optim.study.findings import speedups, table
from hf_optim.study.folder import results as records
from hf_optim.study.folder import stages
from hf_optim.study.folder.standing import standing
from hf_optim.study.folder.store import RecordStore
from hf_optim.study.launch.follow import follow
from hf_optim.study.plan import tuning_points
from hf_optim.study.plan.plan import Plan, Run

REPEATED = YAML.replace("seeds: 3\n", "").replace("  trials: 6\n", "  trials: 3\n  repetitions: [2, 4]\n  seeds: 2\n")


def every_run(planned: Plan, folder: Path) -> list[Run]:
    """All runs of the plan up to its last look, made by following it with records that decide nothing."""
    store = RecordStore(whole(planned, folder))
    now = stages.state(planned, store)
    return [*(t.run for s in now.searches for t in s.trials), *now.after_tuning]


def test_no_tuning_seed_and_no_judged_seed_occurs_in_two_repetitions(tmp_path: Path) -> None:
    planned = expand(REPEATED)
    units = [(set(planned.unit_seeds(u)), planned.tuning_seed(u)) for u in range(planned.looks[-1])]
    judged = [seed for seeds, _ in units for seed in seeds]
    tuning = [seed for _, seed in units]
    assert len(judged) == len(set(judged)) == 8 and len(tuning) == len(set(tuning)) == 4
    assert not set(judged) & set(tuning)
    # Not the rule alone: the runs that are made.
    runs = every_run(planned, tmp_path)
    owner = {seed: u for u, (seeds, own) in enumerate(units) for seed in (*seeds, own)}
    assert {run.seed for run in runs} == set(owner)
    # Judged runs of a repetition have the setting that its own trials chose.
    now = stages.state(planned, RecordStore(tmp_path))
    chosen = {(s.optimizer, s.seed): s.choice.spec for s in now.searches if s.choice}
    for run in now.runs:
        assert run.spec["optimizer"] == chosen[run.optimizer, planned.tuning_seed(owner[run.seed])]


def test_repetitions_have_points_of_their_own_and_tasks_too() -> None:
    two = REPEATED.replace(
        "optimizers:", "  - {task: vision, model: mlp, size: smoke, label: Other, overrides: {steps: 90}}\noptimizers:"
    )
    cells = [c for c in expand(two).tuning["cells"] if c["optimizer"] == "SMARAN"]
    assert len(cells) == 8 and len({json.dumps(c["points"]) for c in cells}) == 8
    once = [c for c in expand(YAML).tuning["cells"] if c["optimizer"] == "SMARAN"]
    assert once[0]["points"] == tuning_points.draw(once[0]["space"], "qmc", 1000, 6)


THREE = "".join(
    f"  - {{task: vision, model: mlp, size: smoke, label: T{i}, overrides: {{steps: {100 + i}}}}}\n" for i in range(2)
)


def test_a_score_adds_up_tasks_that_share_no_seed(tmp_path: Path) -> None:
    """Neither of tuning nor of judging; within a task all optimizers keep the same ones, and so the same weights."""
    planned = expand(REPEATED.replace("optimizers:", f"{THREE}optimizers:", 1))
    assert planned.family == "score"
    seeds: dict[str, dict[str, set[int]]] = {}
    for run in every_run(planned, tmp_path):
        seeds.setdefault(run.task, {}).setdefault(run.optimizer, set()).add(run.spec["seed"])
    for arms in seeds.values():
        assert len(arms) == 3 and len({frozenset(some) for some in arms.values()}) == 1
    every = [seed for arms in seeds.values() for seed in next(iter(arms.values()))]
    assert len(every) == len(set(every)) == 3 * 12
    assert Plan.from_dict(planned.to_dict(), "plan.json").to_dict() == planned.to_dict()
    plain = YAML[: YAML.index("tuning:")].replace("optimizers:", f"{THREE}optimizers:", 1)
    folder = whole(expand(plain), tmp_path / "untuned", even)
    assert records.load(folder).standing.judgement.family == "score"
    # Comparisons task by task need no such thing, and runs of one task keep their ids whatever others there are.
    by_tasks = expand(REPEATED.replace("optimizers:", f"{THREE}optimizers:", 1) + "family: tasks\n")
    assert not any("seed_shift" in task for task in by_tasks.tasks)
    with pytest.raises(UserError, match=r"s\.yaml.*seed 100003 would belong to 'MLP' and 'T0'"):
        expand(
            YAML[: YAML.index("tuning:")]
            .replace("seeds: 3", "seeds: {these: [3, 100003]}")
            .replace("optimizers:", f"{THREE}optimizers:", 1)
        )


def test_a_list_of_seeds_is_said_to_be_looks_and_refused_where_it_named_seeds(tmp_path: Path, capsys) -> None:
    from hf_optim.study import conduct

    text = YAML[: YAML.index("tuning:")].replace("seeds: 3", "seeds: [3, 5, 7]")
    file, folder = tmp_path / "s.yaml", tmp_path / "out"
    file.write_text(text)
    assert conduct.study(str(file), output=str(folder), dry_run=True) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "seeds: [3, 5, 7] are looks: at most 7 seeds (0 to 6), looked at after 3, 5, 7" in said
    assert "write seeds: {these: [3, 5, 7]}" in said
    # A folder of before looks, whose list named the seeds.
    old = expand(text.replace("[3, 5, 7]", "{these: [3, 5, 7]}")).to_dict()
    folder.mkdir()
    (folder / "plan.json").write_text(json.dumps({k: v for k, v in old.items() if k not in ("looks", "per_unit")}))
    with pytest.raises(UserError, match=r"begun when a list named its seeds.*\{these: \[3, 5, 7\]\}"):
        conduct.study(str(file), output=str(folder), dry_run=True)
    file.write_text(text.replace("[3, 5, 7]", "{these: [3, 5, 7]}"))
    assert conduct.study(str(file), output=str(folder), dry_run=True) == 0
    assert "are looks" not in capsys.readouterr().out


def test_points_are_optunas_quasi_random_ones() -> None:
    import optuna

    space = {"lr": ["log", 1e-4, 1.0], "k": ["choice", [1, [2, 3], None]], "a": ["linear", -2.0, 5.0]}
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(sampler=optuna.samplers.QMCSampler(qmc_type="sobol", scramble=True, seed=7))
    ranges = tuning_points.distributions(space)
    study.ask(ranges)
    for point in tuning_points.draw(space, "qmc", 7, 5):
        theirs = study.ask(ranges).params
        assert point["k"] == json.loads(theirs["k"])
        assert (point["lr"], point["a"]) == pytest.approx((theirs["lr"], theirs["a"]), rel=1e-3)


def test_units_are_added_until_everything_is_decided(tmp_path: Path) -> None:
    """One command: the second look is reached where the first left something open, and only there."""
    planned = expand(REPEATED)
    asked = []
    for stage in follow(planned, tmp_path / "open"):
        asked.append((stage.name, stage.units))
        for run in stage.todo:
            finish(run, tmp_path / "open", even)
    assert asked == [("tuning", 2), ("runs", 2), ("tuning", 4), ("runs", 4)]

    def clear(run: Run) -> dict[str, float]:
        gap = {"adamw": 0.0, "SMARAN": 0.1, "tlr(sgd)": -0.1}[run.optimizer]
        return {**good_rate(run), "test_accuracy": 0.8 + gap + 1e-6 * run.seed * (len(run.optimizer))}

    asked = []
    for stage in follow(planned, tmp_path / "clear"):
        asked.append((stage.name, stage.units))
        for run in stage.todo:
            finish(run, tmp_path / "clear", clear)
    assert asked == [("tuning", 2), ("runs", 2)]


def test_before_the_first_look_and_between_looks_there_is_progress_and_no_new_verdict(tmp_path: Path) -> None:
    planned = expand(YAML[: YAML.index("tuning:")].replace("seeds: 3", "seeds: [3, 6]"))
    (tmp_path / "plan.json").write_text(json.dumps(planned.to_dict()))
    runs = list(stages.state(planned, RecordStore(tmp_path)).runs)
    heard = []
    for run in runs:
        finish(run, tmp_path, even)
        judgement = standing(planned, RecordStore(tmp_path)).judgement
        heard.append(judgement.units if judgement else 0)
    assert heard == [0] * 8 + [3] * 9 + [6]
    assert records.load(tmp_path).standing.finished


def test_while_the_next_looks_trials_are_made_the_tables_keep_the_runs_of_the_last_look(tmp_path: Path) -> None:
    """They had the verdicts of these runs and of the runs none: no mean, and nothing in runs.csv."""
    planned = expand(REPEATED)
    (tmp_path / "plan.json").write_text(json.dumps(planned.to_dict()))
    for stage in follow(planned, tmp_path):
        for run in stage.todo[: None if stage.units == 2 else 1]:
            finish(run, tmp_path, even)
        if stage.units == 4:
            break
    results = records.load(tmp_path)
    (rows,) = (one.rows for one in table.build(results))
    assert results.standing.judgement.units == 2 and not results.standing.finished
    assert len(results.plan.runs) == 12
    assert [(row.planned, len(row.values), row.mean.n) for row in rows] == [(4, 4, 2)] * 3


def test_a_failed_machine_leaves_its_optimizer_out_and_the_look_is_taken(tmp_path: Path) -> None:
    planned = expand(YAML[: YAML.index("tuning:")])
    (tmp_path / "plan.json").write_text(json.dumps(planned.to_dict()))
    for run in planned.runs:
        finish(run, tmp_path, lambda r: None if r.optimizer == "SMARAN" and r.seed == 1 else even(r))
        file = tmp_path / "runs" / run.id / "record.json"
        if run.optimizer == "SMARAN" and run.seed == 1:
            file.write_text(json.dumps({**json.loads(file.read_text()), "fault": "machine"}))
    judgement = records.load(tmp_path).standing.judgement
    assert judgement is not None and judgement.families == (1,)
    lost = judgement.comparisons["MLP", "SMARAN"]
    assert lost.verdict == "no verdict" and "cannot be run here" in lost.reason
    assert judgement.comparisons["MLP", "tlr(sgd)"].pairs == 3


def test_an_arm_that_never_trains_has_no_verdict_no_figures_and_no_place(tmp_path: Path) -> None:
    planned = expand(YAML[: YAML.index("tuning:")])
    whole(planned, tmp_path, lambda r: None if r.optimizer == "SMARAN" else even(r))
    judgement = records.load(tmp_path).standing.judgement
    assert judgement is not None
    never = judgement.comparisons["MLP", "SMARAN"]
    assert (never.verdict, never.over) == ("no verdict", False) and "no run of SMARAN trained" in never.reason
    assert math.isnan(never.difference.mean) and math.isnan(never.adjusted)
    assert (never.failures[0].count, never.failures[1].count) == (3, 0)
    assert {label for some in judgement.places["MLP"].pairs for label in some} == {"adamw", "tlr(sgd)"}


def test_what_was_decided_outlives_later_failures_and_a_machine_that_fails_later(tmp_path: Path) -> None:
    """Decided at the first look; the second is reached because the other optimizer is open."""
    plain = YAML[: YAML.index("tuning:")].replace("seeds: 3", "seeds: [5, 10]") + "margin: 0.05\n"
    for late, verdict in ((False, "equivalent"), (True, "better")):
        made, folder = expand(plain), tmp_path / verdict

        def outcome(run: Run, late: bool = late) -> dict[str, float] | None:
            if run.optimizer == "SMARAN" and run.seed == 7:
                return None
            rest = {"validation_accuracy": 0.5, "validation_loss": 1.0}
            wobble = 0.1 if run.optimizer == "tlr(sgd)" else 0.001
            gap = 0.2 if late and run.optimizer == "SMARAN" else 0.0
            return {**rest, "test_accuracy": 0.5 + gap + wobble * ((run.seed * 7 + len(run.optimizer)) % 5 - 2)}

        whole(made, folder, outcome)
        if late:
            (run,) = (r for r in made.runs if (r.optimizer, r.seed) == ("SMARAN", 7))
            file = folder / "runs" / run.id / "record.json"
            file.write_text(json.dumps({**json.loads(file.read_text()), "fault": "machine"}))
        judgement = records.load(folder).standing.judgement
        assert judgement is not None and judgement.units == 10
        kept = judgement.comparisons["MLP", "SMARAN"]
        # The machine's fault is no failure of the optimizer, of whose units five were looked at.
        failed = (0, 5) if late else (1, 10)
        assert (kept.verdict, kept.pairs, kept.reason) == (verdict, 5, "")
        assert (kept.failures[0].count, kept.failures[0].n) == failed
    # What was open when the machine failed stays without a verdict.
    (run,) = (r for r in made.runs if (r.optimizer, r.seed) == ("tlr(sgd)", 9))
    file = folder / "runs" / run.id / "record.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "status": "failed", "fault": "machine"}))
    judgement = records.load(folder).standing.judgement
    lost = judgement.comparisons["MLP", "tlr(sgd)"]
    assert lost.verdict == "no verdict" and "cannot be run here" in lost.reason and judgement.decided


def test_runs_that_a_seed_does_not_change_get_no_verdict(tmp_path: Path) -> None:
    planned = expand(YAML[: YAML.index("tuning:")])
    (tmp_path / "plan.json").write_text(json.dumps(planned.to_dict()))
    for run in planned.runs:
        fixed = {"validation_accuracy": 0.5, "validation_loss": 1.0, "test_accuracy": 0.9, "train_loss": 0.25}
        finish(run, tmp_path, lambda r, fixed=fixed: fixed if r.optimizer == "SMARAN" else even(r))
    judgement = records.load(tmp_path).standing.judgement
    assert judgement is not None and "the seed does nothing" in judgement.comparisons["MLP", "SMARAN"].reason


def test_no_better_than_untrained_is_a_failure(tmp_path: Path) -> None:
    one_in_vain(tmp_path)
    judgement = records.load(tmp_path).standing.judgement
    assert judgement is not None
    mine, other = judgement.comparisons["MLP", "SMARAN"].failures or (None, None)
    assert mine is not None and other is not None and (mine.count, other.count) == (1, 0)


def test_a_batch_size_that_is_searched_keeps_the_samples(tmp_path: Path) -> None:
    text = YAML.replace("SMARAN: {lr: [0.003, 1.0, log]}", "SMARAN: {run: {batch_size: {choices: [32, 128]}}}")
    planned = expand(text)
    whole(planned, tmp_path, even)
    batch = planned.tasks[0]["batch"]
    runs = [
        t.run
        for s in stages.state(planned, RecordStore(tmp_path)).searches
        if s.optimizer == "SMARAN"
        for t in s.trials
    ]
    for run in runs:
        over = run.spec["overrides"]
        assert over["batch_size"] * over["steps"] == 100 * batch and "run" not in run.spec["optimizer"]
    with pytest.raises(UserError, match="run: unknown key 'betas'"):
        expand(text.replace("batch_size: {choices: [32, 128]}", "betas: {choices: [1]}"))
    with pytest.raises(UserError, match="batch_size must be a number"):
        expand(text.replace("[32, 128]", "[big]"))


def test_what_a_run_does_is_searched_and_read_back(tmp_path: Path) -> None:
    """Schedules with their warm-up, clipping, betas and batch sizes; a plan in a folder has them as the YAML has."""
    space = "{betas: {choices: [[0.9, 0.999], [0.8, 0.9]]}, run: {max_grad_norm: [0.1, 10, log], "
    space += "schedule: {choices: [{name: cosine}, {name: cosine, warmup: 0.1}]}, batch_size: {choices: [32, 128]}}}"
    text = YAML.replace("SMARAN: {lr: [0.003, 1.0, log]}", f"adamw: {space}")
    made = expand(text)
    whole(made, tmp_path, even)
    assert records.load(tmp_path).plan.to_dict() == made.to_dict()
    (search,) = (s for s in records.load(tmp_path).standing.state.searches if s.optimizer == "adamw")
    specs = [trial.run.spec for trial in search.trials]
    for values in ([s["optimizer"]["betas"] for s in specs], [s["schedule"] for s in specs]):
        assert len({json.dumps(value) for value in values}) == 2
    assert len({s["overrides"]["max_grad_norm"] for s in specs}) == 6
    with pytest.raises(UserError, match=r"'adamw' is tuned over the batch size, which changes them"):
        expand(text.replace("  trials: 6", "  trials: 6\n  steps: 1000"))


def test_the_baseline_is_tuned_and_judged_at_every_budget(tmp_path: Path) -> None:
    planned = expand(REPEATED.replace("repetitions: [2, 4]", "repetitions: 3") + "speedup: {budgets: [0.5, 1, 2]}\n")

    def outcome(run: Run) -> dict[str, float]:
        # The baseline gains .1 with each doubling; the others are as good as it at 1.5 times the budget.
        import math

        steps = run.spec["overrides"]["steps"] / 100 if run.optimizer == "adamw" else 1.5
        wobble = 0.002 * ((run.seed * 3 + len(run.optimizer)) % 5 - 2)
        return {**good_rate(run), "test_accuracy": 0.5 + 0.1 * math.log2(steps) + wobble}

    whole(planned, tmp_path, outcome)
    results = records.load(tmp_path)
    at = {budgeted.budget: budgeted.run for budgeted in results.standing.state.budgets}
    assert {b: run.spec["overrides"]["steps"] for b, run in at.items()} == {0.5: 50, 2: 200}
    assert len(results.standing.state.budgets) == 2 * 3 * 2 and all(r.optimizer == "adamw" for r in at.values())
    for row in speedups.speedups(results):
        assert (row.unit, row.short) == ("steps", 0)
        assert row.factor.value == pytest.approx(1.5, rel=0.05)
        assert row.factor.low <= row.factor.value <= row.factor.high


def test_budgets_are_multiplied_in_passes_or_seconds_too(tmp_path: Path) -> None:
    text = REPEATED.replace("repetitions: [2, 4]", "repetitions: 2")
    spent = text.replace("{steps: 100}", "{steps: 100, passes: 120, seconds: 8.0}")
    for unit in ("passes", "seconds"):
        planned = expand(spent + f"speedup: {{budgets: [0.5, 1, 2], in: {unit}}}\n")
        folder = tmp_path / unit
        whole(planned, folder, even)
        for file in folder.glob("runs/*/record.json"):
            time = {"steps": 100, "forward_passes": 40, "backward_passes": 40, "train_seconds": 5.0}
            file.write_text(json.dumps({**json.loads(file.read_text()), "time": time}))
        results = records.load(folder)
        over = {budgeted.budget: budgeted.run.spec["overrides"] for budgeted in results.standing.state.budgets}
        assert {b: (o["steps"], o["passes"], o["seconds"]) for b, o in over.items()} == {
            0.5: (50, 60, 4.0), 2: (200, 240, 16.0)
        }  # fmt: skip
        # What ended with its steps had passes and seconds left at the budgets 1 and 2, which is told.
        row = speedups.speedups(results)[0]
        assert row.unit == unit and row.short == 2 * 2 * 3
        assert f"before the {unit}: give more steps" in speedups.said(row)
    for more, message in (
        ("in: passes", "'MLP' has no passes to multiply"),
        ("in: flops", "in must be steps, passes or seconds, got the text 'flops'"),
    ):
        with pytest.raises(UserError, match=message):
            expand(text + f"speedup: {{budgets: [0.5, 1], {more}}}\n")
    with pytest.raises(UserError, match=r"ends after 100 steps.*give it overrides: \{steps: 250\} at least"):
        expand(spent.replace("passes: 120", "passes: 500") + "speedup: {budgets: [1, 2], in: passes}\n")


def test_a_task_without_the_baseline_has_no_speed_ups_and_needs_no_seconds(tmp_path: Path) -> None:
    """Of a study that was taken as it stands no report was made."""
    alone = "  - {task: vision, model: mlp, size: small, label: Other, only: [SMARAN], overrides: {steps: 100}}\n"
    text = YAML[: YAML.index("tuning:")].replace("optimizers:", f"{alone}optimizers:", 1)
    text = text.replace("{steps: 100}", "{steps: 100, seconds: 8.0}", 1)
    whole(expand(text + "speedup: {budgets: [0.5, 1], in: seconds}\n"), tmp_path, even)
    assert {row.task for row in speedups.speedups(records.load(tmp_path))} == {"MLP"}


def test_what_was_measured_before_training_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_study(tmp_path, labels=("adamw",), seeds=1)
    store = RecordStore(folder)
    (run,) = (home.name for home in (folder / "runs").iterdir())
    file = folder / "runs" / run / "history.jsonl"
    file.rename(file.with_suffix(".away"))
    assert math.isnan(store.untrained(run, "validation_loss"))
    rows = [{"step": 0, "validation_loss": 2.5}, {"step": 0, "validation_loss": 9.0}, {"step": 5, "late": 1.0}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert store.untrained(run, "validation_loss") == 2.5  # it is there now, and the first row counts
    monkeypatch.setattr(store, "history", None)
    assert store.untrained(run, "validation_loss") == 2.5 and math.isnan(store.untrained(run, "late"))

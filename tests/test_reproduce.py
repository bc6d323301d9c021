"""`hf-optim reproduce`: the page, the costs, what is shared, and what fits into a budget."""

import json
from dataclasses import replace

import pytest
from study_fakes import make_study, replan, write_run

from hf_optim.claims import agenda, claim, cost, counterparts, judge, power, show, wishes
from hf_optim.claims.evidence import Evidence
from hf_optim.claims.wishes import Wish
from hf_optim.commands import main as cli
from hf_optim.commands import reproduction
from hf_optim.commands.reproduction import Options
from hf_optim.errors import UserError
from hf_optim.experiment import cards
from hf_optim.study import conduct
from hf_optim.study.folder import questions, shared
from hf_optim.study.folder import results as records
from hf_optim.study.plan import plan
from hf_optim.study.plan.source import parse

HEAD = "name: x\npaper: AGR\nwhere: Table 6\ntitle: T\npublished: [Table 6]\nprinted: {seeds: 4}\n"
STUDY = "small:\n  study:\n    name: x\n    seeds: 1\n    tasks: [{task: vision}]\n    optimizers: [adamw, smaran]\n"
SAYS = "claims:\n  - {says: AGR helps, section: Section 5.4, rule: better, optimizer: smaran, baseline: adamw}\n"


def read_claim(text: str, name: str = "x.yaml") -> claim.Claim:
    return claim.parse(parse(text, name), claim.published())


def study(folder, means: dict[str, float], **more) -> records.Results:
    """A study in which each label's accuracy lies around its mean, by a thousandth."""

    def value(label: str, seed: int) -> float:
        return means[label] + 0.001 * ((seed * 7 + len(label) * 3) % 5 - 2)

    return records.load(make_study(folder, list(means), seeds=6, value=value, **more))


def test_a_page_quotes_judges_and_shows_published_beside_obtained(tmp_path, capsys) -> None:
    loaded = read_claim(
        HEAD + "notes: [printed twice]\n" + SAYS + "cells:\n"
        "  - {match: {optimizer: AdamW, setting: weight decay 0}, task: MLP, optimizer: adamw, metric: test_accuracy,"
        " scale: 100}\n  - {match: {setting: weight decay 2e-4}, why: for a reason}\n" + STUDY
    )  # fmt: skip
    study(tmp_path, {"adamw": 0.90, "smaran": 0.95})
    reproduction.write(loaded, Options(), tmp_path, loaded.settings["small"].study)
    written = (tmp_path / "reproduction.md").read_text()
    assert "- **holds**: “AGR helps” (Section 5.4)" in written
    assert "| ALBERT, AdamW, weight decay 0 | SOP accuracy | 80.02 % | 89.97" in written
    assert "- 2: for a reason" in written and "- 7: this size has no counterpart" in written
    assert "- printed twice" in written and "6 seeds for the paper's 4." in written
    assert "12 of 12 runs finished with 6 seeds" in written and "not made yet" not in written
    plain = json.loads((tmp_path / "reproduction.json").read_text())
    figure = next(f for f in plain["figures"] if f["obtained"] is not None)
    values = [json.loads((tmp_path / "runs" / run / "record.json").read_text())["metrics"]["test_accuracy"]
              for run in figure["runs"]]  # fmt: skip
    assert figure["obtained"] == pytest.approx(100 * sum(values) / 6) and figure["published"] == 80.02
    assert len(plain["judgements"][0]["comparisons"][0]["runs"]) == 12
    assert (tmp_path / "reproduction.svg").read_text().count("<circle") == 2
    assert "stand-in" in capsys.readouterr().out


def test_a_half_finished_study_has_a_page_that_says_what_ran(tmp_path) -> None:
    missing = [("smaran", seed) for seed in range(6)] + [("adamw", 5)]
    results = study(tmp_path, {"adamw": 0.90, "smaran": 0.95}, missing=missing)
    page = show.markdown(judge.of_study(read_claim(HEAD + SAYS + STUDY), "small", results))
    assert "5 of 12 runs finished" in page and "7 not made yet (none at all of smaran on MLP)" in page
    assert "**not tested**" in page and "smaran −" not in page.partition("## ")[0]


def test_a_page_names_the_runs_that_cannot_be_read(tmp_path, capsys) -> None:
    """Of their records it said "not made yet", and of their histories nothing."""
    loaded = read_claim(HEAD + SAYS.replace("baseline: adamw}", "baseline: adamw, metric: gap_as_run}") + STUDY)
    plan = study(tmp_path, {"adamw": 0.90, "smaran": 0.95}, missing=[("smaran", 5)]).plan
    homes = {(run.optimizer, run.seed): tmp_path / "runs" / run.id for run in plan.runs}
    (homes["adamw", 0] / "record.json").write_text("{")
    (homes["adamw", 1] / "history.jsonl").unlink()
    reproduction.write(loaded, Options(), tmp_path, loaded.settings["small"].study)
    page = (tmp_path / "reproduction.md").read_text()
    assert "10 of 12 runs finished with 6 seeds, 1 unreadable, 1 not made yet." in page
    left_out = page.partition("Not readable, and left out:\n\n")[2].partition("\n\n")[0].splitlines()
    assert [text.partition(": ")[0] for text in left_out] == ["- adamw on MLP, seed 0", "- adamw on MLP, seed 1"]
    assert "record.json" in left_out[0] and "history.jsonl" in left_out[1]
    err = capsys.readouterr().err
    assert err.startswith("unreadable: adamw on MLP, seed 0: ") and "1 more" in err and err.count("\n") == 1


def test_a_page_says_what_was_changed_after_results_were_known(tmp_path, capsys) -> None:
    """The study's own report did; on the page an extension until a sentence held looked as if it had been planned."""
    (tmp_path / "x.yaml").write_text(HEAD + SAYS + STUDY)
    results = study(tmp_path / "out", {"adamw": 0.90, "smaran": 0.95})
    questions.register(tmp_path / "out", replace(results.plan, looks=(3,)), 0)
    questions.register(tmp_path / "out", results.plan, 6)  # 6 records
    assert cli.main(["reproduce", str(tmp_path / "x.yaml"), "--page", "--output", str(tmp_path / "out")]) == 0
    said = "Changed after results were known: looks: [3] became [6]; what it touches is exploratory."
    assert said in " ".join(capsys.readouterr().out.split())
    assert f"- {said}" in (tmp_path / "out" / "reproduction.md").read_text().replace("\\", "")
    assert json.loads((tmp_path / "out" / "reproduction.json").read_text())["changed"] == [said]


def test_a_page_of_one_size_is_not_made_of_runs_of_another(tmp_path, capsys) -> None:
    """`--page --size paper --output` said "Size paper" of small runs."""
    paper = STUDY.replace("small:", "paper_size:").replace("vision", "vision, size: paper")
    (tmp_path / "x.yaml").write_text(HEAD + SAYS + STUDY + paper)
    study(tmp_path / "out", {"adamw": 0.90, "smaran": 0.95})
    page = ["reproduce", str(tmp_path / "x.yaml"), "--page", "--output", str(tmp_path / "out"), "--size"]
    assert cli.main([*page, "paper"]) == 2 and not (tmp_path / "out" / "reproduction.md").exists()
    assert "its runs are of size small, and size paper is asked for" in capsys.readouterr().err
    assert cli.main([*page, "small"]) == 0


def test_a_claim_is_not_judged_at_look_after_look(tmp_path, capsys) -> None:
    """Its sentences have no correction for looks, and the study stopped at the first that decided."""
    (tmp_path / "x.yaml").write_text(HEAD + SAYS + STUDY.replace("seeds: 1", "seeds: [3, 6]"))
    study(tmp_path / "out", {"adamw": 0.90, "smaran": 0.95})
    replan(tmp_path / "out", lambda plan: plan.update(looks=[3, 6]))
    for more in ((), ("--page",)):
        assert cli.main(["reproduce", str(tmp_path / "x.yaml"), *more, "--output", str(tmp_path / "out")]) == 2
        assert "looked at after 3 and 6, and a claim is judged once" in capsys.readouterr().err


def test_the_command_that_repeats_a_page_is_the_users_own(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my x.yaml").write_text(HEAD + SAYS + STUDY)
    study(tmp_path / "my out", {"adamw": 0.90, "smaran": 0.95})
    given = [
        "reproduce",
        "my x.yaml",
        "--page",
        "--output",
        "my out",
        "--seeds",
        "6",
        "--epochs",
        "3",
        "--only",
        "adamw",
    ]
    assert cli.main(given) == 0
    again = "Again: `hf-optim reproduce 'my x.yaml' --size small --epochs 3 --only adamw --seeds 6 --output 'my out'`"
    assert again in (tmp_path / "my out" / "reproduction.md").read_text()


def test_the_command_of_a_page_stays_quoted(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A grave accent became an apostrophe, which ended the quotation: what followed would be a command of its own."""
    monkeypatch.chdir(tmp_path)
    name = "a`; touch mark; `.yaml"
    (tmp_path / name).write_text(HEAD + SAYS + STUDY)
    study(tmp_path / "out", {"adamw": 0.90, "smaran": 0.95})
    assert cli.main(["reproduce", name, "--page", "--output", "out"]) == 0
    page = (tmp_path / "out" / "reproduction.md").read_text()
    assert f"Again: ``hf-optim reproduce '{name}' --size small --output out``\n" in page


def test_a_figure_at_an_epoch_needs_a_row_near_it(tmp_path) -> None:
    cell = "cells: [{match: {optimizer: AdamW}, task: MLP, optimizer: adamw, metric: validation_accuracy, at: 400}]\n"
    loaded = read_claim(HEAD + SAYS + cell + STUDY)
    study(tmp_path, {"adamw": 0.90, "smaran": 0.95})

    def obtained(epoch: float) -> int:
        for file in (tmp_path / "runs").glob("*/history.jsonl"):
            file.write_text(json.dumps({"step": 9, "epoch": epoch, "validation_accuracy": 0.5}) + "\n")
        evidence = Evidence(records.load(tmp_path))
        return counterparts.pairs(loaded, list(loaded.settings["small"].cells), evidence)[0].obtained.n

    assert [obtained(epoch) for epoch in (400.0, 403.0, 397.0, 405.0, 10.0)] == [6, 6, 6, 0, 0]


def test_as_printed_and_as_run_stand_side_by_side_and_one_owns_the_published_figure(tmp_path) -> None:
    cell = (
        "cells: [{match: {optimizer: AdamW(AGR)}, task: MLP, optimizer: smaran, metric: test_accuracy, scale: 100}]\n"
    )
    text = HEAD + "readings: {as run: {smaran: adan}}\npublished_is: as run\n" + SAYS + cell + STUDY
    judged = judge.of_study(read_claim(text), "small", study(tmp_path, {"adamw": 0.90, "smaran": 0.95, "adan": 0.85}))
    assert [(j.statement.variant, j.ruling.verdict) for j in judged.judgements] == [
        ("as printed", "holds"),
        ("as run", "contradicted"),
    ]
    first, second = [pair for pair in judged.pairs if pair.obtained.n][:2]
    assert (first.variant, first.belongs, second.variant, second.belongs) == ("as printed", False, "as run", True)
    assert "(of the other reading)" in show.markdown(judged)


def test_figures_over_tasks_and_against_another_optimizer(tmp_path) -> None:
    def value(label: str, seed: int) -> float:
        return {"adamw": 0.8, "smaran": 0.9, "adan": 0.7}[label] + seed / 1000

    results = records.load(make_study(tmp_path, tasks=["one", "two"], seeds=3, value=value))
    for cell, expected, n in (
        ("task: [one, two], metric: test_accuracy", 0.901, 2),
        ("task: one, metric: test_accuracy, against: adamw, form: difference", 0.1, 3),
        ("task: one, metric: test_accuracy, against: adamw, form: reduction", 1 - 0.901 / 0.801, 3),
    ):
        loaded = read_claim(HEAD + SAYS + f"cells: [{{match: {{}}, optimizer: smaran, {cell}}}]\n" + STUDY)
        pair = counterparts.pairs(loaded, list(loaded.settings["small"].cells), Evidence(results))[0]
        assert pair.obtained.n == n and pair.obtained.mean == pytest.approx(expected, rel=1e-3)


# --- what is asked for ---------------------------------------------------------------------------------------------


def test_epochs_rows_and_columns_narrow_a_study() -> None:
    source = claim.load("tlr-table1").settings["small"].study
    less = plan.expand(wishes.study(source, Wish(epochs=2, only=("TLR", "1e-1, batch 64"))))
    assert {(run.task, run.optimizer) for run in less.runs} == {("1e-1, batch 64", "TLR")}
    assert less.runs[0].spec["overrides"] == {"batch_size": 64, "epochs": 2} and less.baseline == "TLR"
    rows = plan.expand(wishes.study(source, Wish(only=("TLR",))))
    assert len(rows.tasks) == 6 and [o["label"] for o in rows.optimizers] == ["TLR"]
    # A part of the study is made of the study's own runs.
    assert {run.id for run in rows.runs} <= {run.id for run in plan.expand(source).runs}
    steps = plan.expand(wishes.study(claim.load("agr-table6").settings["small"].study, Wish(epochs=1)))
    assert steps.runs[0].spec["overrides"] == {"epochs": 1}  # in place of steps, which bound the run too
    with pytest.raises(UserError, match="--only 'TRL'.*labels: 1e-1, batch 64"):
        wishes.study(source, Wish(only=("TRL",)))
    with pytest.raises(UserError, match="--epochs must be at least 1"):
        wishes.study(source, Wish(epochs=0))
    assert Wish(epochs=3, only=("a b",), tuned=4).suffix == "-epochs3-only-a_b-tuned4"
    early = plan.expand(wishes.study(source, Wish(only=("TLR",), patience=20)))
    assert early.runs[0].spec["overrides"] == {"batch_size": 64, "patience": 20}


def test_the_printed_grid_can_be_searched() -> None:
    tuned = plan.expand(wishes.study(claim.load("amvt-section52").settings["small"].study, Wish(tuned=5)))
    assert tuned.tuning is not None and tuned.tuning["trials"] == 5
    cell = next(c for c in tuned.tuning["cells"] if c["optimizer"] == "AMVT")
    assert cell["space"]["lr"] == ["choice", [1e-5, 1e-4, 1e-3, 1e-2, 1e-1]]
    assert cell["space"]["weight_decay"] == ["choice", [0.0, 1e-5, 1e-4, 1e-3]]
    with pytest.raises(UserError, match="varies the rate"):
        wishes.study(claim.load("tlr-figure2").settings["small"].study, Wish(tuned=5))


def test_the_command_lists_plans_and_says_what_is_wrong(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["reproduce", "--list"]) == 0
    assert "agr-table6" in capsys.readouterr().out
    assert cli.main(["reproduce", "tlr-figure1", "--dry-run", "--seeds", "2", "--dollars-per-hour", "2"]) == 0
    shown = capsys.readouterr().out
    assert "16 runs" in shown and "To run: 16 runs, about" in shown and "$2 an hour" in shown
    assert not list(tmp_path.iterdir())
    for words, message in (
        (["agr-table66"], "agr-table6"),
        (["amvt-limits", "--size", "paper"], "has no setting of size paper: choose small"),
        (["agr-figures"], "has nothing to run: a drawing"),
        (["agr-table4"], "cannot decide what the paper claims with 5 seeds"),
        (["agr-table4", "--tflops", "0"], "--tflops must be above 0"),
    ):
        assert cli.main(["reproduce", *words]) == 2
        assert message in capsys.readouterr().err
    for words in (["--all"], ["agr-table4", "--all", "--budget", "1h"], ["--all", "--budget", "1h", "--only", "TLR"]):
        assert cli.main(["reproduce", *words]) == 2
    assert not list(tmp_path.iterdir())


def test_a_check_without_a_study_runs_judges_and_leaves_its_table(tmp_path, capsys) -> None:
    assert cli.main(["reproduce", "agr-theorem41", "--output", str(tmp_path / "out")]) == 0
    page = (tmp_path / "out" / "reproduction.md").read_text()
    certain = "(each case computed once: no noise, no interval)"
    assert f"- **holds** {certain}: “We have the following results" in page and "- [agr-theorem41.csv]" in page
    assert f"- **contradicted** {certain}: “We have the following results" in page and "3.11114 against 1" in page
    assert (
        json.loads((tmp_path / "out" / "reproduction.json").read_text())["judgements"][1]["verdict"] == "contradicted"
    )


# --- beforehand ----------------------------------------------------------------------------------------------------


def test_what_a_stand_in_can_decide_is_said_beforehand() -> None:
    """Against scipy's own power of the paired t-test."""
    from scipy.stats import nct, t

    text = HEAD + SAYS.replace("}", ", metric: test_accuracy, effect: 0.02}") + STUDY
    loaded = read_claim(text.replace("small:\n", "small:\n  noise: {test_accuracy: 0.02}\n"))
    study_plan = plan.expand(loaded.settings["small"].study, seeds=5)
    (outlook,) = power.outlooks(loaded, "small", study_plan)

    def chance(n: int) -> float:
        critical = t.ppf(0.975, n - 1)
        return nct.sf(critical, n - 1, n**0.5) + nct.cdf(-critical, n - 1, n**0.5)

    assert chance(outlook.needed) >= 0.8 > chance(outlook.needed - 1)
    assert outlook.needed == 10 and outlook.decides is False and power.hopeless([outlook])
    assert "needs 10 seeds, planned: 5" in outlook.sentence()
    (enough,) = power.outlooks(loaded, "small", plan.expand(loaded.settings["small"].study, seeds=10))
    assert enough.decides and not power.hopeless([enough])
    (unknown,) = power.outlooks(read_claim(HEAD + SAYS + STUDY), "small", study_plan)
    assert unknown.decides is None and not power.hopeless([unknown])


def test_a_cost_is_the_operations_over_what_the_machine_reaches() -> None:
    runs = plan.expand(claim.load("agr-table4").settings["paper"].study, seeds=1).runs
    by_hand = 3 * 300 * 95_000 * 2 * (2.5e9 + 4.0e9 + 8.5e9) * 1.5  # three rows of three models, two of them agr
    price = cost.of(runs, cost.Machine("GPU", 1e13, 0.0, 2.0))
    assert price.operations == pytest.approx(by_hand, rel=0.02) and len(runs) == price.runs == 9
    assert price.hours == pytest.approx(price.operations / 1e13 / 3600)
    slow = cost.of(runs, cost.Machine("GPU", 1e30, 0.1, 2.0))
    assert slow.hours == pytest.approx(9 * 300 * 372 * 0.1 / 3600, rel=0.01)  # nothing but the steps' own time
    diffusion = cost.of(plan.expand(claim.load("agr-table2").settings["paper"].study, seeds=1).runs[:1], cost.GPU)
    assert diffusion.operations > 1.1 * 3 * 12.44e9 * 49_000 * 2000  # the pictures cost too
    assert [cost.hours(text) for text in ("10h", "90m", "2d", "3")] == [10, 1.5, 48, 3]
    for text in ("soon", "-1h", "0", "nanh"):
        with pytest.raises(UserError, match="--budget"):
            cost.hours(text)


def test_every_model_of_a_claim_is_counted() -> None:
    for name in claim.names():
        for size, setting in claim.load(name).settings.items():
            if setting.study is not None:
                assert cost.of(plan.expand(setting.study, seeds=1).runs, cost.CORE).unknown == 0, (name, size)


def test_a_budget_takes_what_is_decidable_first_and_pays_for_shared_runs_once() -> None:
    names = ["agr-table1", "agr-table2", "agr-table4", "agr-theorem41", "amvt-ablation"]
    chosen, left = agenda.plan(100, "small", Wish(), None, cost.CORE, names)
    assert [entry.name for entry in chosen[:2]] == ["agr-theorem41", "amvt-ablation"]
    prices = {entry.name: entry.hours for entry in chosen}
    assert prices["agr-table1"] > 1 and prices["agr-table2"] == 0  # the same runs
    assert [entry.name for entry in left] == ["agr-table4"] and "seeds or more" in left[0].why
    few, rest = agenda.plan(0.5, "small", Wish(), None, cost.CORE, names)
    assert sum(entry.hours for entry in few) <= 0.5 and {entry.name for entry in rest} >= {"agr-table1", "agr-table2"}


def test_finished_runs_of_another_study_are_taken_and_failed_ones_are_not(tmp_path) -> None:
    make_study(tmp_path / "one", failed=[("adan", 0)])
    other = records.load(
        make_study(tmp_path / "two", missing=[(x, s) for x in ("adamw", "smaran", "adan") for s in range(3)])
    )
    brought = shared.collect(other.plan, tmp_path / "two", tmp_path)
    assert len(brought) == 8 and shared.collect(other.plan, tmp_path / "two", tmp_path) == []
    assert len(records.load(tmp_path / "two").records) == 8
    assert not list((tmp_path / "two" / "runs").glob(".*"))


def test_a_study_of_its_own_begins_with_the_runs_of_those_beside_it(tmp_path, capsys) -> None:
    source = parse(STUDY.partition("study:")[2].replace("\n    ", "\n"), "x.yaml")
    for entry in plan.expand(source).to_dict()["runs"]:
        home = tmp_path / "one" / "runs" / entry["id"]
        home.mkdir(parents=True)
        write_run(home, entry, 0.9, False, 40, 5.0)
    assert conduct.study("x", source=source, output=str(tmp_path / "two"), sharing=True) == 0
    told = capsys.readouterr().out
    assert "2 runs taken" in told and "2 runs, 2 finished before" in told
    assert len(records.load(tmp_path / "two").records) == 2


def test_within_a_budget_a_claim_that_cannot_be_run_keeps_no_other_from_it(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "reproductions").mkdir()
    (tmp_path / "reproductions" / "agr-theorem41-small").write_text("a file in the way")
    tried = agenda.plan(1, "small", Wish(), None, cost.CORE, ["agr-theorem41", "agr-theorem42"])
    monkeypatch.setattr(agenda, "plan", lambda *rest: tried)
    assert reproduction.within("1h", Options()) == 2
    captured = capsys.readouterr()
    assert "error: agr-theorem41: " in captured.err and "AGR" in captured.out
    assert (tmp_path / "reproductions" / "agr-theorem42-small" / "reproduction.md").is_file()


def test_a_dry_run_within_a_budget_counts_shared_runs_once(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    (entry,), _ = agenda.plan(100, "small", Wish(), None, cost.CORE, ["amvt-ablation"])
    monkeypatch.setattr(agenda, "plan", lambda *rest: ([entry, replace(entry, name="again")], []))
    asked = Options(dry_run=True, card=cards.find("T4"), overrides={"precision": "bf16"})
    assert reproduction.within("1h", asked) == 0
    assert "of unknown cost (--card: T4 does not compute in bf16" in capsys.readouterr().out
    assert reproduction.within("1h", replace(asked, card=cards.find("A100"))) == 0
    told = capsys.readouterr().out.partition("costs on A100")[2].splitlines()[1:]
    assert len(told) == 1 + len({run.task for run in entry.runs}) and "again" not in "".join(told)
    for line, task in zip(told, dict.fromkeys(run.task for run in entry.runs), strict=False):
        count = sum(run.task == task for run in entry.runs)
        assert line.startswith(f"  amvt-ablation, {task}: {count} runs, each ") and "FLOPs" in line and "MB" in line
    assert not list(tmp_path.iterdir())


def test_early_stopping_ends_a_run_that_no_longer_improves() -> None:
    from types import SimpleNamespace

    from hf_optim.experiment.training import EarlyStopping

    def stops(losses: list[float]) -> bool:
        rows = [{"step": 10 * i, "eval_measured_loss": loss} for i, loss in enumerate(losses)]
        control = SimpleNamespace(should_training_stop=False)
        EarlyStopping(2).on_evaluate(None, SimpleNamespace(log_history=[{"step": 5, "loss": 0.1}, *rows]), control)
        return control.should_training_stop

    assert not stops([3.0, 2.0, 2.5]) and stops([3.0, 2.0, 2.5, 2.0]) and not stops([3.0, 2.0, 2.5, 1.9])

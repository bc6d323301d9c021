"""The question is written down, its changes are told, and every door to a verdict gives the same one."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from study_fakes import make_study
from tuning_fakes import YAML, even, expand, finish, good_rate

from hf_optim.commands.main import main
from hf_optim.errors import UserError
from hf_optim.study.api import Study
from hf_optim.study.findings import analysis, design, naming, table, verdicts
from hf_optim.study.folder import merge, pairs, questions, rows, stages
from hf_optim.study.folder import results as records
from hf_optim.study.folder.store import RecordStore
from hf_optim.study.launch import beginning, worker
from hf_optim.study.launch.follow import follow
from hf_optim.study.launch.messages import Request
from hf_optim.study.plan.plan import Plan, Run
from hf_optim.study.report import html as report
from hf_optim.study.report import paper, summary
from hf_optim.study.report.tables import result_csv

PLAIN = YAML[: YAML.index("tuning:")].replace("seeds: 3", "seeds: 5").replace("label: SMARAN", "label: SMARAN, lr: 0.1")
PLAIN = PLAIN.replace("base: sgd", "base: {name: sgd, lr: 0.1}").replace("- adamw", "- {name: adamw, lr: 0.01}")


def begin(text: str, folder: Path, *, accept: bool = False) -> Plan:
    planned = expand(text)
    beginning.prepare(planned, text, folder, accept_change=accept)
    return planned


def run_all(planned: Plan, folder: Path) -> None:
    def outcome(run: Run) -> dict[str, float]:
        gap = {"adamw": 0.0, "SMARAN": 0.05, "tlr(sgd)": 0.001}.get(run.optimizer, -0.05)
        wobble = 0.001 * ((run.seed * 7 + len(run.optimizer) * 3) % 5)
        return {**good_rate(run), "test_accuracy": 0.8 + gap + wobble}

    for run in stages.state(planned, RecordStore(folder)).runs:
        finish(run, folder, outcome)


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / questions.FILE).read_text().splitlines()]


def test_a_question_is_registered_once_and_changes_before_any_record_are_free(tmp_path: Path) -> None:
    begin(PLAIN, tmp_path)
    begin(PLAIN, tmp_path)
    assert len(lines(tmp_path)) == 1 and lines(tmp_path)[0]["records"] == 0
    begin(PLAIN + "margin: 0.01\n", tmp_path)
    register = questions.read(tmp_path)
    assert len(lines(tmp_path)) == 2 and not register.changes and register.exploratory("MLP", "SMARAN") == ()
    assert register.digest == questions.digest(questions.question(expand(PLAIN + "margin: 0.01\n")))
    # The digest is of what is asked: labels and titles of the page are no part of it, the order of keys neither.
    assert (
        questions.digest(questions.question(expand(PLAIN.replace("name: tuned", "name: other\ntitle: T"))))
        == lines(tmp_path)[0]["sha256"]
    )


CHANGES = {
    "a margin": (PLAIN + "margin: 0.05\n", "MLP: margin: none became 0.05", {"SMARAN", "tlr(sgd)"}),
    "another baseline": (PLAIN + "baseline: SMARAN\n", "baseline: adamw became SMARAN", {"adamw", "tlr(sgd)"}),
    "an optimizer less": (PLAIN.replace("  - {name: smaran, label: SMARAN, lr: 0.1}\n", ""), "SMARAN was left out",
                          {"tlr(sgd)"}),
    "a rate": (PLAIN.replace("SMARAN, lr: 0.1", "SMARAN, lr: 0.2"), "SMARAN on MLP: spec.lr: 0.1 became 0.2",
               {"SMARAN"}),
    "the baseline's rate": (PLAIN.replace("adamw, lr: 0.01", "adamw, lr: 0.02"),
                            "adamw on MLP: spec.lr: 0.01 became 0.02", {"SMARAN", "tlr(sgd)"}),
    "more seeds": (PLAIN.replace("seeds: 5", "seeds: 6"), "looks: [5] became [6]", {"SMARAN", "tlr(sgd)"}),
    "a family": (PLAIN + "family: score\n", "family: tasks became score", {"SMARAN", "tlr(sgd)"}),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_after_records_is_told_and_makes_what_it_touches_exploratory(tmp_path: Path, change: str) -> None:
    text, words, touched = CHANGES[change]
    run_all(begin(PLAIN, tmp_path), tmp_path)
    planned = begin(text, tmp_path, accept=True)
    run_all(planned, tmp_path)
    results = records.load(tmp_path)
    judgement = results.standing.judgement
    assert judgement is not None and lines(tmp_path)[-1]["records"] == 15
    assert {label for (_, label), c in judgement.comparisons.items() if c.exploratory} == touched
    page = report.render(results, table.build(results))
    assert words in page.replace("&quot;", '"') and page.index(words) < page.index('class="legend"')


def test_between_two_looks_of_a_tuning_the_runs_that_are_known_count(tmp_path: Path) -> None:
    """While the trials of the next look were made there was no judged record, and a margin was free to be added."""
    text = YAML.replace("seeds: 3\n", "").replace("trials: 6\n", "trials: 2\n  repetitions: [2, 3]\n")
    planned = begin(text, tmp_path)
    for stage in follow(planned, tmp_path):
        if stage.units == 3:
            break
        for run in stage.todo:
            finish(run, tmp_path, even)
    begin(text + "margin: 0.5\n", tmp_path)
    assert [change.words for change in questions.read(tmp_path).changes] == ["MLP: margin: none became 0.5"]


def test_an_added_optimizer_is_a_family_of_its_own(tmp_path: Path) -> None:
    run_all(begin(PLAIN, tmp_path), tmp_path)
    before = records.load(tmp_path).standing.judgement
    planned = begin(PLAIN + "  - {name: sgdm, lr: 0.1, label: late}\n", tmp_path)
    run_all(planned, tmp_path)
    results = records.load(tmp_path)
    after = results.standing.judgement
    assert before is not None and after is not None
    for key, c in before.comparisons.items():
        assert repr(after.comparisons[key]) == repr(c) and not c.exploratory  # NaN is not NaN
    late = after.comparisons["MLP", "late"]
    assert late.adjusted == pytest.approx(late.p) and not late.exploratory
    assert after.families == (2, 1) and "over the family (2 and 1 comparisons)" in table.note(results)
    first, _, last = verdicts.sentences(results, table.build(results))
    assert "Holm over 2" in first and "Holm" not in last
    assert any("late was added: a family of its own" in text for text in verdicts.changed(results))


def test_failures_of_an_added_optimizer_leave_the_others_as_they_were(tmp_path: Path) -> None:
    """Fisher's tests, too, are of one family each: four failures of five against none are 0.048, of two 0.095."""

    def outcome(run: Run) -> dict[str, float] | None:
        return None if run.optimizer in ("SMARAN", "late") and run.seed else good_rate(run)

    made = begin(PLAIN, tmp_path)
    for text in (PLAIN, PLAIN + "  - {name: sgdm, lr: 0.1, label: late}\n"):
        made = begin(text, tmp_path)
        for run in made.runs:
            finish(run, tmp_path, outcome)
        judgement = records.load(tmp_path).standing.judgement
        assert judgement is not None and judgement.comparisons["MLP", "SMARAN"].fails_more == "more often"
    assert judgement.comparisons["MLP", "late"].fails_more == "more often"


def test_a_merge_looks_once_at_seeds_that_no_study_planned_and_tells_it(tmp_path: Path) -> None:
    for name, text in (("a", PLAIN), ("b", PLAIN.replace("seeds: 5", "seeds: {these: [5, 6, 7]}"))):
        run_all(begin(text, tmp_path / name), tmp_path / name)
    merge.merge([tmp_path / "a", tmp_path / "b"], tmp_path / "ab")
    results = records.load(tmp_path / "ab")
    judgement = results.standing.judgement
    assert judgement is not None and results.plan.looks == (8,) == (judgement.units,)
    assert "Question not registered" in verdicts.looked(results)


def test_a_merge_of_one_question_keeps_it(tmp_path: Path) -> None:
    """Halves of one study, run on two machines, were said to be nobody's question."""
    for name in ("a", "b"):
        made = begin(PLAIN, tmp_path / name)
        for run in made.runs:
            if (run.seed < 3) == (name == "a"):
                finish(run, tmp_path / name, good_rate)
    merge.merge([tmp_path / "a", tmp_path / "b"], tmp_path / "ab")
    register = records.load(tmp_path / "ab").standing.register
    assert register.digest == questions.digest(questions.question(made)) and not register.changes
    for plan in (replace(made, looks=(4,)), made):
        questions.register(tmp_path / "b", plan, 6)
    merge.merge([tmp_path / "a", tmp_path / "b"], tmp_path / "again")
    register = records.load(tmp_path / "again").standing.register
    assert register.digest and [c.words for c in register.changes][0].startswith("b: looks: [5] became [4]")


def test_folders_of_before_say_that_nothing_was_registered(tmp_path: Path) -> None:
    results = records.load(make_study(tmp_path, seeds=5))
    assert results.standing.register.digest == "" and "Question not registered" in verdicts.looked(results)
    # Registering now would pretend that it had been asked before.
    assert questions.register(tmp_path, results.plan, records=15) == "" and not (tmp_path / questions.FILE).exists()


def test_results_compare_is_the_report_to_the_digit_whatever_is_filtered(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_study(tmp_path, ("adamw", "smaran", "adan", "lion"), seeds=6, tasks=("A", "B"))
    results = records.load(tmp_path)
    judgement = results.standing.judgement
    assert judgement is not None
    some = rows.where(rows.of(results), ["task=A", "seed<4", "optimizer!=lion"])
    for a, b, sign in (("smaran", "adamw", 1), ("adamw", "smaran", -1)):
        compared, worth = pairs.compare([results], some, a, b)
        assert [row["task"] for row in compared] == ["A", "B"] and "the family of 6" in worth
        for row in compared:
            c = judgement.comparisons[row["task"], "smaran"]
            assert (row["difference"], row["p corrected"]) == (sign * c.difference.mean, c.adjusted)
            assert {row["low"], row["high"]} == {sign * c.difference.low, sign * c.difference.high}
            assert row["verdict"] == c.verdict or sign < 0
    compared, worth = pairs.compare([results], some, "adan", "lion")
    assert "all pairs" in worth and compared[0]["p corrected"] == judgement.places["A"].pairs["adan", "lion"].adjusted
    assert main(["results", str(tmp_path), "--compare", "smaran", "adamw", "--where", "task=A"]) == 0
    assert "the study's own numbers, whatever is filtered" in capsys.readouterr().out


def test_a_comparison_that_no_study_planned_is_exploratory(tmp_path: Path) -> None:
    loaded = [records.load(make_study(tmp_path / name, seeds=5)) for name in ("a", "b")]
    every = [row | {"study": name} for study, name in zip(loaded, "ab", strict=True) for row in rows.of(study)]
    compared, worth = pairs.compare(loaded, every, "study=a,optimizer=adamw", "study=b,optimizer=smaran")
    assert worth.startswith("exploratory") and compared[0]["verdict"] in (
        "undecided", "better (exploratory)", "worse (exploratory)",
    )  # fmt: skip
    with pytest.raises(UserError, match="no verdict before the first look"):
        pairs.compare([records.load(make_study(tmp_path / "c", missing={("adan", 2)}))], [], "adan", "adamw")


# --- what a verdict is said to speak of ---


def test_without_repetitions_everything_is_said_of_these_settings(tmp_path: Path) -> None:
    results = records.load(make_study(tmp_path, seeds=5))
    tables = table.build(results)
    for sentence in verdicts.sentences(results, tables):
        assert sentence.count("with these settings (lr 0.1, untuned)") == 2
    assert all(t.suffix == " (with these settings)" for t in tables) and naming.SCOPE in table.note(results)
    page = report.render(results, tables)
    assert "MLP (with these settings)" in page and "holds with these settings" in page
    # The first screen's short list and its line on the best, statistics, exports, frames and comparisons say it too.
    assert "<b>MLP (with these settings)</b><ul>" in page and "</b> (with these settings): " in page
    assert "MLP (with these settings)" in analysis.markdown(analysis.analyse(results, tables), "T", {})
    frame = Study(results.folder).verdicts
    settings = "smaran with these settings (lr 0.1, untuned)"
    assert settings in set(frame["named"]) and settings in result_csv(tables) and settings in paper.csv(tables)
    _, worth = pairs.compare([results], [], "smaran", "adamw")
    assert worth.endswith("; verdicts hold with these settings")


def test_with_repetitions_a_verdict_names_optimizer_space_and_trials() -> None:
    text = YAML.replace("seeds: 3\n", "").replace("trials: 6", "trials: 6\n  repetitions: 5")
    planned = expand(text.replace("SMARAN: {lr: [0.003, 1.0, log]}", "SMARAN: {lr: {choices: [0.1, 0.2]}}"))
    assert naming.named(planned, "adamw").startswith("adamw (tuned: 6 trials over lr, ")
    assert "6 trials over lr, 2 distinct settings" in naming.named(planned, "SMARAN")
    untuned = expand(text.replace("SMARAN: {lr: [0.003, 1.0, log]}", "SMARAN: {}"))
    assert naming.named(untuned, "SMARAN") == "SMARAN with these settings (defaults, untuned)"
    script = replace(untuned, tasks=[{**task, "task": "own.py:train"} for task in untuned.tasks])
    assert naming.named(script, "SMARAN") == "SMARAN with these settings (nothing given, untuned)"  # its rate may hold
    assert naming.unlike(untuned, "adamw") == ""
    over = "adamw was tuned with 6 trials over 2 hyper-parameters."
    assert naming.unlike(untuned, "SMARAN") == f"Not tuned alike: SMARAN was not tuned, {over}"
    few = "SMARAN was tuned with 6 trials over 1 hyper-parameter, 2 of them distinct"
    assert naming.unlike(planned, "SMARAN") == f"Not tuned alike: {few}, {over}"
    alike = expand(
        text.replace(
            "    SMARAN: {lr: [0.003, 1.0, log]}\n", "    SMARAN: {lr: [0.1, 1.0, log], eps: [1e-8, 1e-4, log]}\n"
        )
    )
    assert naming.unlike(alike, "SMARAN") == ""
    assert f"Not tuned alike: {few}, {over}"[:-1] in design.lines(planned), "it is said before anything has run"


def test_the_dry_run_says_what_the_first_look_costs_and_what_all_of_it_does(capsys, tmp_path: Path) -> None:
    """The default of two cores, five optimizers: 250 to 500 runs, said beforehand."""
    text = YAML.replace("seeds: 3\n", "").replace("trials: 6", "trials: 8\n  repetitions: [5, 10]\n  seeds: 2")
    text = text.replace("  - adamw\n", "  - adamw\n  - lion\n  - adan\n")
    (tmp_path / "s.yaml").write_text(text)
    assert main(["study", str(tmp_path / "s.yaml"), "--dry-run"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "400 trials, 100 runs at most (250 of them before the first look), seeds 0 to 19 (20)" in said
    assert "with 80 % (4 comparisons, looks after 5 and 10 repetitions)" in said


def test_the_dry_run_says_what_the_design_finds_and_warns() -> None:
    few = design.lines(expand(PLAIN.replace("seeds: 5", "seeds: 3")))
    assert few[0].startswith("finds differences of 4.6 deviations of a seed with 80 % (2 comparisons")
    doubt = "warning: differences below 4.6 deviations of a seed will hardly be decided; plan more seeds"
    assert doubt in few  # whole, since the report shows it without the line before
    more = "".join(f"  - {{task: vision, model: mlp, size: smoke, label: T{i}}}\n" for i in range(2))
    score = design.lines(expand(PLAIN.replace("seeds: 5", "seeds: 3").replace("optimizers:", f"{more}optimizers:", 1)))
    assert score[0].startswith("finds differences of 2.7 deviations of a seed on each of 3 tasks that vary alike")
    assert not any("hardly be decided" in line for line in score)  # 4.6 over the root of 3
    tuned = design.lines(expand(YAML.replace("trials: 6", "trials: 4")))
    assert any("few trials, 4: below" in line for line in tuned) and any("with these settings only" in x for x in tuned)
    assert any("gives no verdict" in line for line in design.lines(expand(PLAIN.replace("seeds: 5", "seeds: 1"))))


def test_a_score_says_what_failed_what_a_step_costs_and_how_little_it_differs(tmp_path: Path) -> None:
    def outcome(run: Run) -> dict[str, float] | None:
        if run.optimizer == "SMARAN" and run.task == "T1" and run.seed:
            return None
        gap = {"SMARAN": 1e-4, "tlr(sgd)": 1e-5}.get(run.optimizer, 0.0)
        wobble = 1e-5 * ((run.seed * 7 + len(run.optimizer) * 3 + int(run.task[-1], 36)) % 5)
        return {"validation_accuracy": 0.8, "validation_loss": 0.5, "test_accuracy": 0.8 + gap + wobble}

    more = "".join(f"  - {{task: vision, model: mlp, size: smoke, label: T{i}}}\n" for i in range(2))
    text = PLAIN.replace("overrides: {steps: 100}", "overrides: {steps: 90}")
    made = begin(text.replace("optimizers:", f"{more}optimizers:", 1), tmp_path)
    for run in made.runs:
        finish(run, tmp_path, outcome)
        file = tmp_path / "runs" / run.id / "record.json"
        time = {"steps": 100, "forward_passes": 300 if run.optimizer == "SMARAN" else 100, "backward_passes": 100}
        file.write_text(json.dumps({**json.loads(file.read_text()), "time": time}))
    results = records.load(tmp_path)
    tables = table.build(results)
    smaran, tlr = verdicts.sentences(results, tables)
    assert "fails more often on T1 (4 of 5 against 0 of 5" in smaran
    assert "failures 4 of 15, at most 55 % (the baseline's 0 of 15, at most 22 %)" in smaran
    assert "a step costs 3 forward and 1 backward pass (adamw: 1 forward and 1 backward pass)" in smaran
    assert tlr.rstrip(".").endswith("; a step costs the same passes")
    first = [re.sub("<[^>]+>", "", text) for text in summary.sentences(results, tables)[:3]]  # then the tasks
    assert first[0].startswith("SMARAN") and first[1].startswith("tlr(sgd)") and "best" in first[2]
    # Two figures of the interval at least: "between 0.00 worse and 0.00 better" would say nothing.
    c = results.standing.judgement.scores["tlr(sgd)"]
    said = re.search(r"score (\S+) \[(\S+), (\S+)\]", tlr)
    assert said is not None and 0 < c.difference.high - c.difference.low < 1e-3
    half = (c.difference.high - c.difference.low) / 2
    assert [float(x) for x in said.groups()] == pytest.approx([c.difference.mean, c.difference.low, c.difference.high],
                                                              abs=0.05 * half)  # fmt: skip


# --- the machine's fault ---


def test_want_of_memory_is_tried_again_and_then_no_failure_of_the_optimizer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def out_of_memory(home: Path, *_: object) -> None:
        raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(worker, "_train", out_of_memory)
    run = expand(PLAIN).runs[0]
    assert worker.execute(Request(tmp_path, run.id, dict(run.spec), last=False)) == "fault"
    assert not (tmp_path / "runs" / run.id / "record.json").exists()
    assert worker.execute(Request(tmp_path, run.id, dict(run.spec))) == "failed"
    assert json.loads((tmp_path / "runs" / run.id / "record.json").read_text())["fault"] == "machine"


def test_questions_without_end_are_not_read(tmp_path: Path) -> None:
    """Each line was looked through, and all of them were in memory: more than a gigabyte of a file of 60 MB."""
    study = make_study(tmp_path / "study")
    questions.register(study, records.load(study).plan, 0)
    assert questions.read(study).digest
    with (study / questions.FILE).open("a") as file:
        file.write(f"[{'0,' * 1_500_000}0]\n" * 3)
    assert not questions.read(study).digest

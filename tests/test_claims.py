"""Claim files, the rules that judge them, and what a reproduction writes."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from study_fakes import make_study

from hf_optim.claims import claim, judges, show
from hf_optim.commands import main as cli
from hf_optim.commands import reproduce
from hf_optim.errors import UserError
from hf_optim.experiment.spec import RunSpec
from hf_optim.experiment.training import train
from hf_optim.study.folder import results as records
from hf_optim.study.plan import plan
from hf_optim.study.plan.source import parse


@pytest.mark.parametrize("name", claim.names())
def test_every_shipped_claim_reads_and_its_studies_expand(name) -> None:
    one = claim.load(name)
    assert one.name == name
    for size, setting in one.settings.items():
        if setting.study is None:
            assert setting.command[0] in reproduce.COMMANDS and {s["rule"] for s in one.statements} == {"shown"}
            continue
        expanded = plan.expand(setting.study)
        assert expanded.runs and expanded.name == f"{name}-{size}"
        labels = {o["label"] for o in expanded.optimizers}
        tasks = {t["label"] for t in expanded.tasks}
        assert all(t["size"] == size for t in expanded.tasks)
        for cell in setting.cells:
            assert cell.optimizer in labels and cell.task in tasks, cell
        for statement in one.statements:
            for key in ("optimizer", "baseline", "optimizers"):
                named = statement.get(key, [])
                assert set([named] if isinstance(named, str) else named) <= labels, statement
            assert set(statement.get("tasks") or []) <= tasks or size == "paper", statement


def test_every_printed_figure_belongs_to_a_claim() -> None:
    covered = {(one.paper, row["table"]) for one in map(claim.load, claim.names()) for row in one.published}
    printed = {(row["paper"], row["table"]) for row in claim.published()}
    # The abstract repeats figures of the tables.
    assert printed - covered == {("AMVT", "Abstract")}


HEAD = "name: x\npaper: AGR\nwhere: Table 6\ntitle: T\npublished: [Table 6]\n"
STUDY = (
    "small:\n  differs: [smaller]\n  study:\n"
    "    name: x\n    seeds: 1\n    tasks: [{task: vision}]\n    optimizers: [adamw]\n"
)
A_B = "claims:\n  - {text: A, rule: better, optimizer: a"
CELL = "cells: [{match: {optimizer: SGD}, task: a, optimizer: b, metric: c}]\n"
GOOD = "claims:\n  - {text: A, rule: better, optimizer: adamw, baseline: sgd}\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (HEAD + "claims: []\n" + STUDY, "line 6: claims is empty"),
        (HEAD + A_B.replace("better", "bettr") + "}\n" + STUDY, "line 7: unknown rule 'bettr'"),
        (HEAD + A_B + "}\n" + STUDY, "line 7: the key 'baseline' is missing"),
        (HEAD + A_B + ", baseline: b, target: 1}\n" + STUDY, "unknown key 'target'"),
        (HEAD + GOOD, "needs a setting"),
        (HEAD.replace("AGR", "ADAM") + GOOD + STUDY, "paper must be one of"),
        (HEAD.replace("[Table 6]", "[Table 66]") + GOOD + STUDY, "no printed figures under 'Table 66'"),
        (HEAD + GOOD + CELL + STUDY, "no published row"),
    ],
)  # fmt: skip
def test_a_wrong_claim_file_is_named_with_its_line(text, message) -> None:
    with pytest.raises(UserError, match=message):
        claim.parse(parse(text, "x.yaml"), claim.published())


def test_an_error_in_the_study_points_into_the_claim_file() -> None:
    one = claim.parse(parse(HEAD + GOOD + STUDY.replace("[adamw]", "[adamww]"), "x.yaml"), claim.published())
    with pytest.raises(UserError, match="x.yaml, line 14: .*adamw"):
        plan.expand(one.settings["small"].study)


def results(folder: Path, means: dict[str, float], *, seeds: int = 6, **more) -> records.Results:
    """A study in which each label's accuracy lies around its mean, by a thousandth."""

    def value(label: str, seed: int) -> float:
        return means[label] + 0.001 * ((seed * 7 + len(label) * 3) % 5 - 2)

    return records.load(make_study(folder, list(means), seeds=seeds, value=value, **more))


def judged(found: records.Results, rule: str, **keys) -> judges.Judgement:
    return judges.judge({"text": "T", "rule": rule, **keys}, found, {})


def test_better_holds_is_contradicted_or_stays_open(tmp_path) -> None:
    found = results(tmp_path, {"adamw": 0.90, "smaran": 0.95, "adan": 0.9001})
    assert judged(found, "better", optimizer="smaran", baseline=["adamw", "adan"]).verdict == "holds"
    assert judged(found, "better", optimizer="adamw", baseline="smaran").verdict == "contradicted"
    both = judged(found, "better", optimizer="adan", baseline=["adamw"])
    assert both.verdict == "undecided" and "6 seeds" in both.words
    assert judged(found, "ordered", optimizers=["adamw", "smaran"]).verdict == "holds"
    assert judged(found, "ordered", optimizers=["adamw", "smaran", "adan"]).verdict == "contradicted"
    # Of another metric, lower is better; the fakes' loss is one minus the accuracy.
    assert judged(found, "better", optimizer="smaran", baseline="adamw", metric="test_loss").verdict == "holds"
    line = judged(found, "better", optimizer="smaran", baseline="adamw").lines[0]
    assert (line.first, line.second, line.comparison.pairs) == ("smaran", "adamw", 6)


def test_one_favourable_comparison_of_two_is_partly(tmp_path) -> None:
    found = results(tmp_path, {"adamw": 0.90, "smaran": 0.95, "adan": 0.9499})
    assert judged(found, "better", optimizer="smaran", baseline=["adamw", "adan"]).verdict == "partly"


def test_one_seed_or_a_failed_run_tests_nothing(tmp_path) -> None:
    one = results(tmp_path / "a", {"adamw": 0.9, "smaran": 0.95}, seeds=1)
    assert judged(one, "better", optimizer="smaran", baseline="adamw").verdict == "not tested"
    failed = results(tmp_path / "b", {"adamw": 0.9, "smaran": 0.95}, failed=[("smaran", 2)])
    assert judged(failed, "better", optimizer="smaran", baseline="adamw").verdict == "not tested"
    assert judged(failed, "insensitive", optimizers=["adamw", "smaran"], margin=1.0).verdict == "not tested"


def test_insensitive_needs_every_setting_within_the_margin(tmp_path) -> None:
    found = results(tmp_path, {"adamw": 0.90, "smaran": 0.905, "adan": 0.80})
    assert judged(found, "insensitive", optimizers=["adamw", "smaran"], margin=0.02).verdict == "holds"
    assert judged(found, "insensitive", optimizers=["adamw", "smaran", "adan"], margin=0.02).verdict == "contradicted"
    assert judged(found, "insensitive", optimizers=["adamw", "smaran"], margin=0.005).verdict == "undecided"
    assert judged(found, "insensitive", optimizers=["adamw", "adan"], margin=0.2, relative=True).verdict == "holds"


def test_bounded_reads_the_histories(tmp_path) -> None:
    found = results(tmp_path, {"adamw": 0.9})
    assert judged(found, "bounded", optimizer="adamw", key="effective_lr", low=0, high=0.1).verdict == "holds"
    assert judged(found, "bounded", optimizer="adamw", key="effective_lr", low=0, high=0.05).verdict == "contradicted"
    assert judged(found, "bounded", optimizer="adamw", key="V", low=0, high=1).verdict == "not tested"


def test_sooner_compares_the_steps_to_a_target(tmp_path) -> None:
    # The fakes' validation accuracy grows by a quarter of its end every ten steps.
    found = results(tmp_path, {"adamw": 0.60, "smaran": 0.90})
    fast = judged(found, "sooner", optimizer="smaran", baseline="adamw", metric="validation_accuracy", target=0.44)
    assert [round(line.comparison.difference.mean, 3) for line in fast.lines] == [-0.405]  # log(20 / 30)
    assert "0.67x" in fast.words
    never = judged(found, "sooner", optimizer="smaran", baseline="adamw", metric="validation_accuracy", target=0.8)
    assert "adamw did not reach 0.8" in never.words and never.verdict == "not tested"


def test_steadier_compares_ranges_over_the_settings(tmp_path) -> None:
    folder = make_study(tmp_path, ["adamw", "smaran"], tasks=["one", "two"], seeds=6)
    for file in (tmp_path / "runs").glob("*/record.json"):
        record = json.loads(file.read_text())
        runs = json.loads((tmp_path / "plan.json").read_text())["runs"]
        task = next(run["task"] for run in runs if run["id"] == record["id"])
        seed, wide = record["spec"]["seed"], record["spec"]["optimizer"]["name"] == "adamw"
        record["metrics"]["test_accuracy"] = 0.9 - (task == "two") * (0.3 + seed / 100 if wide else 0.01)
        file.write_text(json.dumps(record))
    found = records.load(folder)
    keys = {"tasks": ["one", "two"]}
    assert judged(found, "steadier", optimizer="smaran", baseline="adamw", **keys).verdict == "holds"
    assert judged(found, "steadier", optimizer="adamw", baseline="smaran", **keys).verdict == "contradicted"


def test_a_reproduction_shows_published_beside_obtained_and_names_its_records(tmp_path, capsys) -> None:
    text = (
        HEAD + "notes: [printed twice]\n"
        "claims:\n  - {text: AGR helps, rule: better, optimizer: smaran, baseline: adamw}\n"
        "cells:\n  - {match: {optimizer: AdamW, setting: weight decay 0}, task: MLP, optimizer: adamw,"
        " metric: test_accuracy, scale: 100}\n"
        + STUDY
    )  # fmt: skip
    one = claim.parse(parse(text, "x.yaml"), claim.published())
    results(tmp_path, {"adamw": 0.90, "smaran": 0.95})
    reproduce.write(one, "small", tmp_path)
    written = (tmp_path / "reproduction.md").read_text()
    assert "- **holds**: AGR helps" in written and "| AdamW, weight decay 0" in written.replace("ALBERT, ", "")
    assert "80.02 %" in written and "- smaller" in written and "- printed twice" in written
    plain = json.loads((tmp_path / "reproduction.json").read_text())
    figure = next(f for f in plain["figures"] if f["obtained"] is not None)
    values = [json.loads((tmp_path / "runs" / run / "record.json").read_text())["metrics"]["test_accuracy"]
              for run in figure["runs"]]  # fmt: skip
    assert figure["obtained"] == pytest.approx(100 * sum(values) / 6) and figure["published"] == 80.02
    assert len(plain["judgements"][0]["comparisons"][0]["runs"]) == 12
    assert (tmp_path / "reproduction.svg").read_text().count("<circle") == 2
    assert "stand-in" in capsys.readouterr().out
    show.markdown(show.judge(one, "small", records.load(tmp_path)))


def test_the_command_lists_plans_and_says_what_is_wrong(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["reproduce", "--list"]) == 0
    assert "agr-table6" in capsys.readouterr().out
    assert cli.main(["reproduce", "tlr-figure2", "--dry-run"]) == 0
    assert "54 runs" in capsys.readouterr().out and not list(tmp_path.iterdir())
    assert cli.main(["reproduce", "agr-table66"]) == 2
    assert "agr-table6" in capsys.readouterr().err
    assert cli.main(["reproduce", "amvt-limits", "--size", "paper"]) == 2
    assert "has no setting of size paper: choose small" in capsys.readouterr().err


def test_a_figure_without_a_study_is_a_command(tmp_path) -> None:
    text = HEAD.replace("published: [Table 6]\n", "") + (
        "claims:\n  - {text: It nears the minimum, rule: shown}\nsmall:\n  differs: [ours]\n"
        "  command: [landscape, quadratic, --optimizers, sgd, --steps, 3, --lr, sgd=0.1, --no-plots]\n"
    )
    (tmp_path / "x.yaml").write_text(text)
    assert cli.main(["reproduce", str(tmp_path / "x.yaml"), "--output", str(tmp_path / "out")]) == 0
    assert "- It nears the minimum" in (tmp_path / "out" / "reproduction.md").read_text()


def test_the_page_of_claims_is_up_to_date() -> None:
    script = Path(__file__).parent.parent / "scripts" / "build_claims_docs.py"
    done = subprocess.run([sys.executable, str(script), "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_example_of_a_task_trains_and_that_of_a_claim_reads(tmp_path) -> None:
    text = (Path(__file__).parent.parent / "docs" / "adding.md").read_text(encoding="utf-8")
    (tmp_path / "mine.py").write_text(re.search(r"```python\n(.*?)```", text, flags=re.S)[1])
    optimizer, task = {"name": "adamw", "lr": 0.1}, f"{tmp_path}/mine.py:TASK"
    spec = RunSpec(task=task, size="smoke", optimizer=optimizer, overrides={"epochs": 30})
    record = train(spec, tmp_path / "run", progress=False)
    assert record["status"] == "ok" and record["metrics"]["test_loss"] < 0.1
    (tmp_path / "my-table1.yaml").write_text(re.search(r"```yaml\n(.*?)```", text, flags=re.S)[1])
    assert plan.expand(claim.load(str(tmp_path / "my-table1.yaml")).settings["small"].study).runs

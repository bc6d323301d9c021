"""What results show, export and merge of the records of studies."""

from __future__ import annotations

import csv
import dataclasses
import json
import shutil
from pathlib import Path

import pytest
from study_fakes import accuracy, make_study, replan
from tuning_fakes import YAML, even, expand, one_in_vain, whole

from hf_optim.commands.main import main
from hf_optim.errors import UserError
from hf_optim.study.findings import profiles, table, verdicts
from hf_optim.study.folder import merge, pairs, questions
from hf_optim.study.folder import results as records


def command(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main(arguments)
    out, err = capsys.readouterr()
    return code, out, err


@pytest.fixture
def two(tmp_path: Path) -> list[str]:
    """Two studies of the same plan on other tasks, one run of the first failed."""
    first = make_study(tmp_path / "one", tasks=("MLP",), failed=[("adan", 1)])
    return [str(first), str(make_study(tmp_path / "two", tasks=("CNN",), seeds=2))]


def test_a_run_in_vain_is_failed_wherever_runs_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The report's table had one of three failed, `results --by` and runs.csv none, and a mean that held it."""
    one_in_vain(tmp_path)
    code, out, _ = command(capsys, "results", str(tmp_path), "--by", "optimizer")
    assert code == 0 and [line.split()[:4] for line in out.splitlines() if "SMARAN" in line] == [
        ["SMARAN", "3", "2", "1"]
    ]
    # Nor has it reached a target that it passed and lost: a failed run has not.
    plan = json.loads((tmp_path / "plan.json").read_text())
    plan["targets"] = {"MLP": {"metric": "validation_accuracy", "value": 0.1, "better": "higher"}}
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    (targets,) = profiles.target_tables(records.load(tmp_path))
    assert {row.optimizer: row.count for row in targets.rows} == {"adamw": 3, "SMARAN": 2, "tlr(sgd)": 3}
    assert main(["report", str(tmp_path)]) == 0
    rows = [row for row in csv.DictReader((tmp_path / "runs.csv").open()) if row["status"] != "ok"]
    assert [(row["optimizer"], row["seed"], row["status"], row["error"]) for row in rows] == [
        ("SMARAN", "2", "failed", "no better on validation than untrained")
    ]


def test_means_of_a_comparison_and_counts_of_failures_are_of_the_tables_units(tmp_path: Path) -> None:
    """With a failed run in one of them the mean over runs is another, and so is its share of failures."""
    text = YAML.replace("seeds: 3\n", "").replace("  trials: 6\n", "  trials: 3\n  repetitions: 3\n  seeds: 2\n")
    planned = expand(text)
    folder = whole(planned, tmp_path, lambda run: None if run.optimizer == "SMARAN" and run.seed == 1 else even(run))
    loaded = records.load(folder)
    (row,), _ = pairs.compare([loaded], [], "SMARAN", "adamw")
    (task_table,) = table.build(loaded)
    means = {r.optimizer: r.mean.mean for r in task_table.rows}
    (said, *_) = [s for s in verdicts.sentences(loaded, [task_table]) if s.startswith("SMARAN")]
    assert "failures in 1 of 3 repetitions, at most 91 % (the baseline's 0 of 3, at most 71 %)" in said
    assert [row["a mean"], row["b mean"]] == pytest.approx([means["SMARAN"], means["adamw"]], abs=1e-12)


def test_runs_are_grouped_by_a_setting_that_is_a_list(
    two: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`--by betas` was a traceback."""

    def given(plan: dict) -> None:
        for number, optimizer in enumerate(plan["optimizers"]):
            optimizer["spec"]["betas"] = [0.9, 0.99 if number else 0.999]

    replan(tmp_path / "two", given)
    code, out, _ = command(capsys, "results", two[1], "--by", "betas")
    assert code == 0 and [line.split("  ")[0] for line in out.splitlines()[1:]] == ["[0.9, 0.999]", "[0.9, 0.99]"]
    assert [line.split()[2] for line in out.splitlines()[1:]] == ["2", "4"]


def test_a_merge_beside_its_parts_is_no_second_sample(
    two: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`results studies/*` counted each run twice: the deviation of twice as many runs, of which half were copies."""
    both = [*two, str(make_study(tmp_path / "part", missing=[("adan", 0)]))]
    part = [two[0], str(tmp_path / "part")]  # adan's seed 1 failed in the one, and did not in the other
    assert command(capsys, "results", *two, "--merge", str(tmp_path / "ab"))[0] == 0
    for names, more in ((two, [str(tmp_path / "ab"), two[0]]), (part, [str(tmp_path / "ab"), *both])):
        where = ("--where", "task=MLP", "--by", "optimizer")
        alone, beside = (command(capsys, "results", *folders, *where)[1] for folders in (names, [*names, *more]))
        assert alone == beside
    *table, said = alone.splitlines()
    assert [line.split()[:5] for line in table[1:]] == [
        ["adamw", "3", "3", "0", "0"], ["smaran", "3", "3", "0", "0"], ["adan", "4", "3", "1", "0"]
    ]  # fmt: skip
    assert said.startswith("1 run with more than one result, each counted (adan on MLP, seed 1: failed and ok 0.")


def test_results_filters_and_exports(two: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = command(capsys, "results", *two, "--where", "optimizer=sma*,seed<=1", "--columns", "task,seed,value")
    assert code == 0
    lines = [line.split() for line in out.splitlines()]
    assert lines[0] == ["task", "seed", "value"] and [x[:2] for x in lines[1:]] == [
        ["MLP", "0"], ["MLP", "1"], ["CNN", "0"], ["CNN", "1"]
    ]  # fmt: skip
    assert float(lines[1][2]) == pytest.approx(accuracy("smaran", 0), rel=1e-5)
    file = tmp_path / "x.csv"
    assert command(capsys, "results", *two, "--where", "status!=ok", "--export", str(file))[0] == 0
    (row,) = list(csv.DictReader(file.open()))
    assert row["error"] == "the loss became NaN at step 13" and row["spec.optimizer.lr"] == "0.1"
    assert float(row["train_seconds"]) == 2.0 and row["value"] == ""


def test_parquet_keeps_types_and_every_run(two: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from pyarrow import parquet

    file = tmp_path / "x.parquet"
    assert command(capsys, "results", *two, "--export", str(file))[0] == 0
    table = parquet.read_table(file)
    assert table.num_rows == 15
    kinds = {name: str(table.schema.field(name).type) for name in ("seed", "value", "task", "error", "steps")}
    assert kinds == {"seed": "int64", "value": "double", "task": "string", "error": "string", "steps": "int64"}
    whole = table.column("value").to_pylist()
    assert whole[0] == accuracy("adamw", 0) and whole.count(None) == 1


def test_latex_and_markdown_are_tables(two: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tex, md = tmp_path / "x.tex", tmp_path / "x.md"
    for file in (tex, md):
        asked = ("--by", "task,optimizer", "--columns", "test_accuracy", "--export", str(file))
        assert command(capsys, "results", *two, *asked)[0] == 0
    lines = tex.read_text().splitlines()
    assert lines[0] == r"\begin{tabular}{llrrrrrr}" and lines[-1] == r"\end{tabular}"
    assert lines[2].startswith(r"task & optimizer & runs & ok & failed & missing & test\_accuracy mean")
    assert len([x for x in lines if x.endswith(r"\\")]) == 1 + 6
    assert md.read_text().splitlines()[1].startswith("|---|---:|")
    assert "| MLP | adan | 3 | 2 | 1 | 0 |" in md.read_text()


def test_compare_pairs_by_seed(two: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = command(capsys, "results", *two, "--compare", "smaran", "adamw")
    assert code == 0
    _, first, second = (line.split() for line in out.splitlines()[:-1])
    assert out.splitlines()[-1].startswith("exploratory: no study planned this comparison")
    assert first[:2] == ["MLP", "test_accuracy"] and second[0] == "CNN"
    expected = sum(accuracy("smaran", s) - accuracy("adamw", s) for s in range(3)) / 3
    assert any(float(x) == pytest.approx(expected, rel=1e-4) for x in first[5:8])
    # A failed run has no value, and leaving it out would flatter.
    code, _, err = command(capsys, "results", *two, "--compare", "adan", "adamw")
    assert code == 2 and "failed" in err
    # Nor has one that ended with NaN, which was left out as if nobody had asked for it.
    (lost,) = (run.id for run in records.load(Path(two[1])).plan.runs if (run.optimizer, run.seed) == ("smaran", 1))
    file = Path(two[1]) / "runs" / lost / "record.json"
    record = json.loads(file.read_text())
    file.write_text(json.dumps({**record, "metrics": {**record["metrics"], "test_accuracy": None}}))
    code, _, err = command(capsys, "results", *two, "--compare", "smaran", "adamw")
    assert code == 2 and "a run of 'smaran' on CNN with seed 1 failed" in err
    code, out, _ = command(capsys, "results", *two, "--by", "task,optimizer")
    (line,) = (line.split() for line in out.splitlines() if line.split()[:2] == ["CNN", "smaran"])
    assert line[2:6] == ["2", "1", "1", "0"]  # runs, ok, failed, missing


def test_studies_that_contradict_each_other_are_not_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The study named last decided alone whose result of a run counted."""
    mine, theirs = (make_study(tmp_path / name) for name in ("mine", "theirs"))
    file = next(file for file in theirs.glob("runs/*/record.json") if '"smaran"' in file.read_text())
    record = json.loads(file.read_text())
    file.write_text(json.dumps({**record, "metrics": {**record["metrics"], "test_accuracy": 0.99}}))
    for folders in ((mine, theirs), (theirs, mine)):
        code, _, err = command(capsys, "results", *map(str, folders), "--compare", "smaran", "adamw")
        assert code == 2 and "has two results" in err and "0.99" in err
    assert command(capsys, "results", str(mine), "--compare", "smaran", "adamw")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--where", "optimizr=a"), "no column 'optimizr' (did you mean optimizer?)"),
        (("--where", "optimizer"), "is no condition"),
        (("--where", "seed<few"), "needs a number"),
        (("--where", "optimizer=nobody"), "no run meets"),
        (("--where", "optimizer=smaram"), "no run meets optimizer=smaram (did you mean smaran?)"),
        (("--columns", "nope"), "no column 'nope'"),
        (("--export", "x.xls"), "must end in"),
        (("--compare", "adamw", "nobody"), "no run matches 'nobody'"),
        (("--compare", "adamw", "status=ok"), "matches two runs"),
        (("--keep-first",), "belongs to --merge"),
        (("--by", "task", "--compare", "a", "b"), "ask for one of them"),
        (("--merge", "x", "--where", "seed=1"), "use it alone"),
    ],
)
def test_mistakes_are_one_line(
    two: list[str], capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    code, out, err = command(capsys, "results", *two, *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1) and message in err


def test_no_study_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = command(capsys, "results", str(tmp_path))
    assert code == 2 and "no study in" in err


# --- merging ---


def test_a_study_that_cannot_be_read_keeps_no_other_from_being_shown(
    two: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (damaged := tmp_path / "damaged").mkdir()
    (damaged / "plan.json").write_text("{}")
    capsys.readouterr()
    for more in ([], ["--by", "optimizer"], ["--export", str(tmp_path / "all.csv")]):
        assert main(["results", two[0], *more]) == 0
        rest = capsys.readouterr().out
        assert main(["results", str(damaged), two[0], *more]) == 2
        shown = capsys.readouterr()
        assert shown.out == rest and "damaged" in shown.err and shown.err.count("\n") == 1
    for more in ([two[0], "--compare", "sgd", "adamw"], [two[0], "--merge", str(tmp_path / "both")], []):
        code, out, err = command(capsys, "results", str(damaged), *more)
        assert (code, out) == (2, "") and "damaged" in err


def test_merging_is_the_union_also_of_merges(two: list[str], tmp_path: Path) -> None:
    for into, sources in ((tmp_path / "all", two), (tmp_path / "again", [str(tmp_path / "all"), *two])):
        plan = merge.merge([Path(x) for x in sources], into)
        assert [t["label"] for t in plan.tasks] == ["MLP", "CNN"] and plan.seeds == (0, 1, 2)
        results = records.load(into)
        assert len(results.plan.runs) == len(results.records) == 15
        for source in two:
            for run_id, record in records.load(Path(source)).records.items():
                assert results.records[run_id] == record
                assert (into / "runs" / run_id / "history.jsonl").exists()
        assert not [p for p in (into / "runs").iterdir() if p.name.startswith(".")]


def test_halves_of_one_study_become_whole(tmp_path: Path) -> None:
    whole = make_study(tmp_path / "whole")
    a = make_study(tmp_path / "a", missing=[("adan", 0), ("adan", 1)])
    b = make_study(tmp_path / "b", missing=[("adamw", 2)])
    merge.merge([a, b], tmp_path / "ab")
    assert records.load(tmp_path / "ab").records == records.load(whole).records
    assert (tmp_path / "ab" / "study.yaml").read_text() == "name: fake\n"


def test_halves_of_a_study_with_looks_keep_the_runs_of_all_looks(tmp_path: Path) -> None:
    """Where neither half had all of the first look, the merged plan ended there: nine of fifteen results were gone."""
    planned = expand(YAML[: YAML.index("tuning:")].replace("seeds: 3", "seeds: [2, 5]"))
    halves = [whole(planned, tmp_path / name, even) for name in ("a", "b")]
    for i, run in enumerate(planned.runs):
        shutil.rmtree(halves[i % 2] / "runs" / run.id)
    assert merge.merge(halves, tmp_path / "ab").runs == planned.runs
    assert len(records.load(tmp_path / "ab").records) == 15


def test_a_merge_keeps_what_was_changed_after_results_were_known(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A merge of one study made a verdict without "exploratory", and a copy that is published as well."""
    a = make_study(tmp_path / "a")
    make_study(tmp_path / "b", tasks=("CNN",))
    plan = records.load(a).plan
    questions.register(a, dataclasses.replace(plan, looks=(2,)), 0)
    questions.register(a, plan, 9)  # 9 records
    before = "looks: [2] became [3]"
    for step, (names, into) in enumerate(((["a", "b"], "ab"), (["b", "ab"], "bab"))):
        code, out, _ = command(capsys, "results", *(str(tmp_path / n) for n in names), "--merge", str(tmp_path / into))
        assert code == 0 and f"Changed after results were known: {'ab: ' * step}a: {before}; what" in out
        assert out.count("Changed after") == 1 and "whether more was changed" in out
        assert f"(exploratory: {'ab: ' * step}a: {before})" in " ".join(out.split())
    assert command(capsys, "publish", str(tmp_path / "bab"), str(tmp_path / "public"))[0] == 0
    assert [c.words for c in questions.read(tmp_path / "public").changes] == [f"ab: a: {before}"]


def test_changes_without_end_are_named_once() -> None:
    """Each verdict had all of them, so that a report grew with the square of what a folder holds."""
    changes = tuple(questions.Change(f"change {i} {'x' * 1000}") for i in range(1000))
    named = questions.Register(changes=changes).exploratory("MLP", "adan")
    assert len(named) == questions.MOST_WORDS + 1 and named[-1] == "and 980 more" and max(map(len, named)) <= 200


def test_a_merge_writes_over_nothing_that_is_called_as_its_own(
    two: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file merged.json, whose ever, made a folder one of an interrupted merge, and its report.html was replaced."""
    for text in ('{"mine": 1}', "[]", "mine"):
        (tmp_path / "home").mkdir(exist_ok=True)
        for name in ("merged.json", "report.html"):
            (tmp_path / "home" / name).write_text(text)
        code, _, error = command(capsys, "results", *two, "--merge", str(tmp_path / "home"))
        assert code == 2 and "is not empty: choose a new folder" in error
        assert {path.read_text() for path in (tmp_path / "home").iterdir()} == {text}


def test_contradictions_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    a = make_study(tmp_path / "a")
    b = make_study(tmp_path / "b", value=lambda label, seed: accuracy(label, seed) + (label == "adan"))
    into = tmp_path / "ab"
    with pytest.raises(UserError, match=r"adan on MLP, seed 0 .* two results, in a and in b: test_accuracy") as raised:
        merge.merge([a, b], into)
    assert "\n" not in str(raised.value) and not into.exists()
    merge.merge([a, b], into, keep_first=True)
    assert records.load(into).records == records.load(a).records
    noted = json.loads((into / merge.ORIGIN).read_text())["set_aside"]
    assert len(noted) == 3 and {x["kept"] for x in noted} == {"a"}
    # Who chooses between results knows them: the report says so, also after another merge.
    merge.merge([into, make_study(tmp_path / "c", tasks=("CNN",))], tmp_path / "abc")
    told = records.load(tmp_path / "abc").standing.register
    assert [c.words.split(" (")[0] for c in told.changes] == [
        f"ab: adan on MLP, seed {seed}: b's result was set aside for a's" for seed in range(3)
    ]
    assert len(told.exploratory("MLP", "adan")) == 3 and not told.exploratory("CNN", "adan")
    assert not told.exploratory("MLP", "smaran")
    other = make_study(tmp_path / "d", value=lambda label, seed: accuracy(label, seed) + (label == "adamw"))
    merge.merge([a, other], tmp_path / "ad", keep_first=True)
    assert len(records.load(tmp_path / "ad").standing.register.exploratory("MLP", "smaran")) == 3  # the baseline's
    for place in ("x", "y"):
        (tmp_path / place).mkdir()
    folders = [a.rename(tmp_path / "x" / "s"), b.rename(tmp_path / "y" / "s")]
    with pytest.raises(UserError, match="two results, in x/s and in y/s: .*takes x/s's"):  # "in s and in s"
        merge.merge(folders, tmp_path / "xy")


def test_a_run_in_vain_is_one_result_whichever_study_judges_it(tmp_path: Path) -> None:
    """Judged it was failed, and ok in a folder whose plan has left it out: a merge took that for two results."""
    for place in ("judged", "left"):
        (tmp_path / place).mkdir()
        planned = one_in_vain(tmp_path / place)
    without = json.loads((tmp_path / "left" / "plan.json").read_text())
    for file in tmp_path.glob("*/runs/*/record.json"):  # as every run's of ours says
        file.write_text(json.dumps({**json.loads(file.read_text()), "primary": without["tasks"][0]["primary"]}))
    without["runs"] = [run for run in without["runs"] if run["optimizer"] != "SMARAN"]
    without["optimizers"] = [optimizer for optimizer in without["optimizers"] if optimizer["label"] != "SMARAN"]
    for task in without["tasks"]:
        task["only"].remove("SMARAN")
    (tmp_path / "left" / "plan.json").write_text(json.dumps(without))
    merged = merge.merge([tmp_path / "judged", tmp_path / "left"], tmp_path / "both")
    assert len(merged.runs) == len(planned.runs)


def test_a_label_with_two_meanings_is_refused(tmp_path: Path) -> None:
    a, b = make_study(tmp_path / "a"), make_study(tmp_path / "b")
    replan(b, lambda plan: plan["optimizers"][1]["spec"].update(lr=0.2))
    with pytest.raises(UserError, match="the optimizer 'smaran' differs .*lr: 0.1 in a, 0.2 in b.* another label"):
        merge.merge([a, b], tmp_path / "ab")


def test_merging_makes_the_report(two: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = command(capsys, "results", *two, "--merge", str(tmp_path / "all"))
    assert code == 0 and "Report:" in out
    assert {"table.md", "report.html", "runs.parquet", "plan.json"} <= {p.name for p in (tmp_path / "all").iterdir()}


def test_a_run_without_its_number_is_told_as_it_is_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = make_study(tmp_path / "one", ("adamw",), seeds=2)
    other = Path(shutil.copytree(one, tmp_path / "other"))
    path = next(other.glob("runs/*/record.json"))
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, "metrics": dict.fromkeys(record["metrics"])}))
    said = command(capsys, "results", str(one), str(other), "--by", "optimizer")[1]
    assert "1 run with more than one result" in said and " and failed)" in said

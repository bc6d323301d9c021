"""A study's YAML: what it expands to, and one clear line for everything that is wrong with it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hf_optim import registry
from hf_optim.errors import UserError
from hf_optim.study.folder import standing
from hf_optim.study.folder.store import RecordStore
from hf_optim.study.launch import beginning
from hf_optim.study.plan import entries, plan, shipped, source

GOOD = """\
name: good
seeds: 2
baseline: adamw
tasks:
  - {task: vision, model: mlp, size: smoke}
  - task: vision
    model: resnet
    size: smoke
    label: small net
    overrides: {epochs: 1}
    hyper:
      tlr(sgd): {base: {lr: 0.3}}
optimizers:
  - adamw
  - {name: smaran, lr: 1e-1, label: SMARAN}
  - {name: tlr, base: {name: sgd, lr: 0.1}}
"""


def expand(text: str, **options: object) -> plan.Plan:
    return plan.expand(source.parse(text, "s.yaml"), **options)  # type: ignore[arg-type]


def test_expansion() -> None:
    planned = expand(GOOD)
    assert len(planned.runs) == 2 * 2 * 3 and planned.seeds == (0, 1)
    assert [o["label"] for o in planned.optimizers] == ["adamw", "SMARAN", "tlr(sgd)"]
    assert [t["label"] for t in planned.tasks] == ["vision/mlp/smoke", "small net"]
    # Seed by seed, so that what an interrupted study has is balanced.
    assert [r.seed for r in planned.runs] == [0] * 6 + [1] * 6
    rates = {(r.task, r.optimizer): r.spec["optimizer"].get("base", {}).get("lr") for r in planned.runs}
    assert (rates["vision/mlp/smoke", "tlr(sgd)"], rates["small net", "tlr(sgd)"]) == (0.1, 0.3)
    assert planned.runs[1].spec["optimizer"] == {"name": "smaran", "lr": 0.1}
    assert len({r.id for r in planned.runs}) == 12


def test_labels_and_order_do_not_change_the_identity_of_runs() -> None:
    a = expand(GOOD)
    other = GOOD.replace("label: SMARAN", "label: other").replace("model: mlp, size: smoke", "size: smoke, model: mlp")
    b = expand(other)
    assert [r.id for r in a.runs] == [r.id for r in b.runs]
    c = expand(GOOD.replace("1e-1", "0.2"))
    assert {r.id for r in a.runs} - {r.id for r in c.runs} == {r.id for r in a.runs if r.optimizer == "SMARAN"}


def test_only_restricts_a_task() -> None:
    planned = expand(GOOD.replace("label: small net", "label: small net\n    only: [adamw, tlr(sgd)]"))
    assert sum(r.task == "small net" for r in planned.runs) == 4


def test_seeds_from_the_command_line_and_lists() -> None:
    assert expand(GOOD, seeds=5).seeds == (0, 1, 2, 3, 4)
    assert expand(GOOD.replace("seeds: 2", "seeds: {these: [7, 42]}")).seeds == (7, 42)
    looks = expand(GOOD.replace("seeds: 2", "seeds: [2, 4]"))
    assert looks.looks == (2, 4) and looks.seeds == (0, 1, 2, 3)


def test_plan_json_round_trip() -> None:
    planned = expand(GOOD, origin="good")
    assert plan.Plan.from_dict(json.loads(json.dumps(planned.to_dict())), "plan.json") == planned


BAD = {
    "unknown key": (("seeds: 2", "seeds: 2\nsteps: 3"), 3, "unknown key 'steps'"),
    "unknown task key": (("label: small net", "lable: small net"), 9, "unknown key 'lable' (did you mean label?)"),
    "missing key": (("seeds: 2\n", ""), 1, "'seeds' is missing"),
    "wrong type": (("seeds: 2", "seeds: many"), 2, "seeds must be a number, a list of looks"),
    "boolean seeds": (("seeds: 2", "seeds: true"), 2, "seeds must be"),
    "no seeds": (("seeds: 2", "seeds: []"), 2, "to name seeds write {these: [1, 7, 42]}"),
    "zero seeds": (("seeds: 2", "seeds: 0"), 2, "at least 1"),
    "same seed twice": (("seeds: 2", "seeds: {these: [1, 1]}"), 2, "seed 1 is given twice"),
    "negative seed": (("seeds: 2", "seeds: {these: [-1]}"), 2, "lies between 0"),
    "looks that do not ascend": (("seeds: 2", "seeds: [5, 5]"), 2, "looks ascend from 2"),
    "an odd family": (("seeds: 2", "seeds: 2\nfamily: all"), 3, "family must be tasks or score"),
    "a speed-up in epochs": (("seeds: 2", "seeds: 2\nspeedup: {budgets: [0.5, 1, 2]}"), 3, "measured in epochs"),
    "a speed-up without the whole": (("seeds: 2", "seeds: 2\nspeedup: {budgets: [0.5, 2]}"), 3, "1 is among them"),
    "key twice": (("seeds: 2", "seeds: 2\nseeds: 3"), 3, "'seeds' is given twice"),
    "unknown baseline": (("baseline: adamw", "baseline: adam"), 3, "no optimizer's label (did you mean adamw?)"),
    "unknown optimizer": (("  - adamw", "  - adamww"), 14, "mean adamw"),
    "unknown hyper-parameter": (("lr: 1e-1", "gama: 0.9"), 15, "gamma"),
    "unknown base": (("name: sgd,", "name: sdg,"), 16, "sgd"),
    "duplicate label": (("label: SMARAN", "label: adamw"), 15, "'adamw' is used twice"),
    "no optimizers": ((GOOD[GOOD.index("  - adamw") :], "  []\n"), 13, "optimizers is empty"),
    "a task of no optimizer": (("label: small net", "label: small net\n    only: []"), 10, "only is empty"),
    "nameless optimizer": (("name: smaran, ", ""), 15, "needs a name"),
    "unknown task": (("- {task: vision,", "- {task: visoin,"), 5, "vision"),
    "unknown model": (("model: mlp", "model: mpl"), 5, "mlp, resnet"),
    "a model without a name": (("model: mlp", "model: ''"), 5, "has no model ''"),
    "data without a name": (("model: mlp", "model: mlp, data: ''"), 5, "expected a name or a path, got ''"),
    "unknown size": (("model: mlp, size: smoke", "model: mlp, size: tiny"), 5, "smoke, small or paper"),
    "misspelt size": (("model: mlp, size: smoke", "model: mlp, size: smok"), 5, "(did you mean smoke?)"),
    "unknown override": (("{epochs: 1}", "{epocs: 1}"), 10, "epochs"),
    "unknown label in hyper": (("tlr(sgd): {base", "tlr: {base"), 12, "no optimizer has the label 'tlr'"),
    "bad hyper for one task": (("{base: {lr: 0.3}}", "{gama: 0.3}"), 12, "gamma"),
    "missing data": (("model: mlp", "model: mlp, data: nowhere"), 5, "no data set and no file or folder 'nowhere'"),
    "the same run twice": (("  - adamw", "  - adamw\n  - {name: adamw, label: again}"), 1, "is the same run as"),
    "bad name": (("name: good", "name: ../up"), 1, "letters, digits"),
    "not YAML": (("tasks:", "tasks: ["), 5, "not valid YAML"),
    "a tag": (("seeds: 2", "seeds: !!python/object:os.system 2"), 2, "not allowed"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_studies_say_file_line_and_remedy(case: str) -> None:
    (old, new), line, message = BAD[case]
    assert old in GOOD
    with pytest.raises(UserError) as error:
        expand(GOOD.replace(old, new))
    text = str(error.value)
    # The parser notices an unclosed bracket a little later than where it stands.
    place = text.split(":")[0]
    assert place == f"s.yaml, line {line}" or (case == "not YAML" and place.startswith("s.yaml, line"))
    assert message in text and "\n" not in text


@pytest.mark.parametrize("text", ["", "just words", "- a\n- b", "a: &x [*x]", "a: &a [1]\n? [b]\n: 2", "name: \x00"])
def test_what_is_no_study_at_all(text: str) -> None:
    with pytest.raises(UserError, match="s.yaml"):
        expand(text)


def test_an_alias_bomb_is_refused_quickly() -> None:
    text = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 9)
    )
    with pytest.raises(UserError, match="more than"):
        expand(text)


def test_numbers_follow_yaml_1_2() -> None:
    numbers = source.parse("[1e-3, 1.5e+3, 0.1, 3, '1e-3', 2026-01-01, .5, v1, 1., -2E4]", "n").value
    assert numbers == [0.001, 1500.0, 0.1, 3, "1e-3", "2026-01-01", 0.5, "v1", 1.0, -20000.0]


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="not a UTF-8 text file"):
        shipped.find(str(tmp_path / "binary.yaml"))
    with pytest.raises(UserError, match="quickstart"):
        shipped.find("no_such_study")


def test_every_shipped_study_expands() -> None:
    studies = shipped.shipped_studies()
    assert {"quickstart", "smoke"} <= set(studies)
    for name in studies:
        planned = plan.expand(shipped.find(name)[0])
        assert planned.name == name


def test_ten_optimizers_compares_the_papers_methods() -> None:
    planned = plan.expand(shipped.find("ten_optimizers")[0])
    names = {o["spec"]["name"] for o in planned.optimizers}
    assert len(planned.optimizers) >= 8 and len(planned.seeds) == 3
    assert {"smaran", "adamw_agr", "adan_agr", "amvt", "tlr"} <= names
    assert {o["spec"]["base"]["name"] for o in planned.optimizers if o["spec"]["name"] == "tlr"} >= {"sgd", "adamw"}


def known(planned: plan.Plan, folder: Path) -> set[str]:
    return {run.id for run in standing.pending(planned, RecordStore(folder))}


def test_a_folder_takes_additions_and_refuses_changes(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    beginning.prepare(expand(GOOD), GOOD, folder)
    assert len(known(expand(GOOD), folder)) == 12
    more = GOOD.replace("  - adamw", "  - adamw\n  - adan")
    beginning.prepare(expand(more, seeds=3), more, folder)
    assert len(known(expand(more, seeds=3), folder)) == 24
    with pytest.raises(UserError, match="12 are no longer in the plan.*--accept-change"):
        beginning.prepare(expand(GOOD), GOOD, folder)
    changed = more.replace("1e-1", "0.2")
    with pytest.raises(UserError, match=r"SMARAN on vision/mlp/smoke, seed 0: optimizer.lr: 0.1 there, 0.2 here"):
        beginning.prepare(expand(changed, seeds=3), changed, folder)
    assert (folder / "study.yaml").read_text() == more


def test_a_folder_with_other_things_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(UserError, match="not empty and holds no study"):
        beginning.prepare(expand(GOOD), GOOD, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]
    with pytest.raises(UserError, match="is a file"):
        beginning.prepare(expand(GOOD), GOOD, tmp_path / "thesis.txt")


def test_only_failed_runs_are_retried(tmp_path: Path) -> None:
    planned = expand(GOOD)
    beginning.prepare(planned, GOOD, tmp_path / "s")
    for planned_run, status in zip(planned.runs, ("ok", "failed"), strict=False):
        home = tmp_path / "s" / "runs" / planned_run.id
        home.mkdir(parents=True)
        (home / "record.json").write_text(
            json.dumps({"id": planned_run.id, "spec": planned_run.spec, "status": status, "metrics": {}})
        )
    beginning.prepare(planned, GOOD, tmp_path / "s")
    assert len(known(planned, tmp_path / "s")) == 10
    beginning.prepare(planned, GOOD, tmp_path / "s", retry_failed=True)
    assert len(known(planned, tmp_path / "s")) == 11 and planned.runs[1].id in known(planned, tmp_path / "s")


def test_a_retry_removes_nothing_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run's folder that became a link once it was read."""
    planned = expand(GOOD)
    beginning.prepare(planned, GOOD, tmp_path / "s")
    home = tmp_path / "s" / "runs" / planned.runs[0].id
    home.mkdir()
    record = {"id": home.name, "spec": planned.runs[0].spec, "status": "failed", "metrics": {}}
    (home / "record.json").write_text(json.dumps(record))

    def swapped() -> None:
        home.rename(tmp_path / "mine")
        home.symlink_to(tmp_path / "mine")

    with pytest.raises(UserError, match="is a link"):
        beginning.prepare(planned, GOOD, tmp_path / "s", retry_failed=True, ready=swapped)
    assert (tmp_path / "mine" / "record.json").is_file()


def test_options_of_a_task_reach_its_runs() -> None:
    planned = expand(GOOD.replace("label: small net", "label: small net\n    options: {embedding_size: 8}"))
    assert {r.spec.get("options", {}).get("embedding_size") for r in planned.runs if r.task == "small net"} == {8}
    with pytest.raises(UserError, match="line 10: .*unknown option 'depth'"):
        expand(GOOD.replace("label: small net", "label: small net\n    options: {depth: 8}"))


def test_a_class_of_another_package_may_be_compared() -> None:
    planned = expand(GOOD.replace("  - adamw\n", "  - adamw\n  - {name: 'torch.optim:NAdam', lr: 1e-3}\n"))
    assert planned.optimizers[1]["label"] == "torch.optim:NAdam" and planned.optimizers[1]["defaults"] == {}


def test_the_plan_of_every_optimizer_is_strict_json():
    def entry(name: str) -> dict:
        info = registry.info(name)
        base = {"base": {"name": "sgd", "lr": 0.1}} if info.family == "wrapper" and info.base is None else {}
        return {"name": name, **dict.fromkeys(info.required, 0.1), **base, "label": name}

    text = json.dumps([entry(name) for name in registry.list_optimizers()])
    planned = expand(f"name: all\nseeds: 1\ntasks: [{{task: logistic, size: smoke}}]\noptimizers: {text}\n")
    read = json.loads(json.dumps(planned.to_dict(), allow_nan=False))
    defaults = {optimizer["label"]: optimizer["defaults"] for optimizer in read["optimizers"]}
    assert len(defaults) > 50 and defaults["tlr_legacy"]["cap"] == "inf"


def test_arms_of_one_optimizer_are_told_apart_by_what_differs() -> None:
    def labels(*optimizers: object) -> list[str]:
        text = GOOD[: GOOD.index("    hyper:")].replace("baseline: adamw\n", "")
        text += f"optimizers: {json.dumps(optimizers)}\n"
        return [o["label"] for o in expand(text).optimizers]

    fast, slow = {"name": "adamw", "lr": 0.01}, {"name": "adamw", "lr": 1e-4, "weight_decay": 0.1}
    assert labels("adamw", fast) == ["adamw", "adamw lr=0.01"]
    assert labels(fast, slow) == ["adamw lr=0.01", "adamw lr=0.0001 weight_decay=0.1"]
    assert labels(fast, {**slow, "label": "slow"}) == ["adamw", "slow"], "one alone needs no more than its name"
    same = [{"name": "tlr", "base": {"name": "sgd", "lr": lr}, "gamma": 0.3} for lr in (0.1, 0.3)]
    assert labels(*same) == ["tlr(sgd) base.lr=0.1", "tlr(sgd) base.lr=0.3"], "and what they share is not said"
    with pytest.raises(UserError, match="'adamw' is used twice"):
        labels("adamw", {"name": "adamw"})


def test_data_without_a_name_are_not_the_current_folder() -> None:
    assert entries.with_data(["vision"], "") == [{"task": "vision", "data": ""}]

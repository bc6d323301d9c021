"""Claim files: what they quote, what they ask of a study, and what is wrong with a wrong one."""

import json
import re
from pathlib import Path

import pytest
import ranks
import torch

from hf_optim import registry
from hf_optim.claims import cells, claim, settings, theorems
from hf_optim.errors import UserError
from hf_optim.experiment.spec import RunSpec
from hf_optim.experiment.training import train
from hf_optim.study.plan import plan
from hf_optim.study.plan.source import parse

NAMES = claim.names()


@pytest.mark.parametrize("name", NAMES)
def test_every_shipped_claim_reads_and_its_studies_expand(name) -> None:
    loaded = claim.load(name)
    assert loaded.name == name
    for size, setting in loaded.settings.items():
        assert set(setting.checks) <= set(theorems.CHECKS)
        if setting.study is None:
            assert all(s.keys is None or s.on_tables() for s in loaded.statements)
            continue
        expanded = plan.expand(setting.study)
        assert expanded.runs and expanded.name == f"{name}-{size}"
        assert all(t["size"] == size for t in expanded.tasks)
        labels = {o["label"] for o in expanded.optimizers}
        for statement in loaded.judged():
            assert statement.labels() <= labels, statement
        for row in loaded.published:
            cell = cells.find(list(setting.cells), row)
            if cell is not None and not cell.why:
                tasks = {t["label"] for t in expanded.tasks}
                assert cell.optimizer in labels and cell.tasks and set(cell.tasks) <= tasks, (row, cell)
                assert not cell.against or cell.against in labels
    tasks = {
        task["label"]
        for setting in loaded.settings.values()
        if setting.study is not None
        for task in plan.expand(setting.study).tasks
    }
    for statement in loaded.statements:
        for part in (statement.keys or {}).get("of", [statement.keys or {}]):
            assert set(part.get("tasks") or []) <= tasks, statement


def test_every_statement_quotes_the_paper_and_is_judged_or_says_why_not() -> None:
    for loaded in map(claim.load, NAMES):
        for statement in loaded.statements:
            assert statement.says and statement.section, loaded.name
            assert (statement.keys is None) == bool(statement.not_testable)
            # What a margin or a choice of ours adds is told apart from what the paper says.
            if statement.keys is not None and {"margin", "factor"} & set(statement.keys):
                assert statement.reading, (loaded.name, statement.says)


def test_every_printed_figure_has_a_cell_or_a_reason() -> None:
    """All 242: at the paper's size, where the claim has one, of the claim that its table belongs to."""
    seen = set()
    for loaded in map(claim.load, NAMES):
        setting = loaded.settings.get("paper", loaded.settings.get("small"))
        for row in loaded.published:
            assert setting is not None and cells.find(list(setting.cells), row) is not None, row
            seen.add(json.dumps(row, sort_keys=True))
    assert len(seen) == len(claim.published()) == 242


def test_published_code_that_is_another_algorithm_has_its_own_rows() -> None:
    as_run = {"smaran": {"norm_scope": "tensor"}, "tlr": {"name": "tlr_legacy"}}
    as_run |= {name: {"agr_scope": "all", "agr_moments": "all"} for name in ("adamw_agr", "adan_agr")}
    for loaded in map(claim.load, NAMES):
        for setting in loaded.settings.values():
            if setting.study is None or not loaded.readings:
                continue
            rows = {o["label"]: o["spec"] for o in plan.expand(setting.study).optimizers}
            for printed, run in loaded.readings["as run"].items():
                changed = as_run.get(rows[printed]["name"])
                if changed is not None:
                    assert changed.items() <= rows[run].items(), (loaded.name, run)
                assert {**rows[run], **changed} != rows[printed] if changed else rows[run] != rows[printed]
        assert not loaded.readings or not loaded.published or loaded.published_is == "as run"


def test_values_of_the_papers_settings() -> None:
    """Single values that were wrong once, against the papers and their code."""

    def spec(name: str, label: str, task: str | None = None, size: str = "paper") -> dict:
        study = plan.expand(claim.load(name).settings[size].study)
        return next(s for t, o, s in study.cells() if o == label and task in (None, t["label"]))

    assert spec("tlr-figure5", "Adam") == {"name": "adam", "lr": 1e-4, "betas": [0.9, 0.98], "eps": 1e-9}
    base = spec("tlr-figure3", "TLR as run")["base"]
    assert (base["momentum"], base["weight_decay"], base["decay_all"]) == (0.8, 5e-4, True)
    assert spec("tlr-table1", "TLR", "1e-2, batch 256")["base"]["lr"] == 1e-2
    assert spec("tlr-table1", "additive 1e-1", "1e-2, batch 256")["interval"] == 35  # .2 x ceil(45000 / 256)
    assert spec("agr-table3", "AdamW", "ConvNeXt-T")["lr"] == 4e-3
    assert spec("agr-table3", "AdamW", "Swin-T")["lr"] == 2.5e-4
    assert spec("smaran-figure2", "SMARAN")["decay_all"] is True  # Algorithm 1 decays the whole vector
    for name in ("smaran-figure4", "smaran-figure7"):
        tasks = [t["label"] for t in plan.expand(claim.load(name).settings["paper"].study).tasks]
        assert sum("DenseNet-121" in label for label in tasks) == 2
    rows = [o["label"] for o in plan.expand(claim.load("tlr-figure4").settings["paper"].study).optimizers]
    assert {"Adam", "SPS", "SLS"} <= set(rows)


def test_rows_of_two_tables_that_are_the_same_runs_are_the_same() -> None:
    def runs(name: str, size: str) -> set[str]:
        return {run.id for run in plan.expand(claim.load(name).settings[size].study).runs}

    for size in ("small", "paper"):
        assert runs("agr-table1", size) == runs("agr-table2", size)
        assert (
            len(runs("agr-table8", size) & runs("agr-table2", size)) >= 3 * 4
        )  # no AGR, AGR throughout, both readings
    assert len(runs("agr-table7", "paper") & runs("agr-table4", "paper")) == 3 * 4
    assert runs("agr-table3", "small") == runs("agr-table4", "small") == runs("agr-table5", "small")
    # What repeats within a study only by its label would be an error there: expand refuses it.


def test_differences_are_computed_from_the_two_settings() -> None:
    loaded = claim.load("agr-table4")
    small = settings.differences(loaded, "small", plan.expand(loaded.settings["small"].study))
    text = "\n".join(small)
    assert "5 seeds for the paper's 4." in small
    assert "epochs 20 for 300" in text and "batch size 64 for 256" in text and "data emoji for tiny-imagenet" in text
    assert "model resnet@emoji for tinyvit_5m / tinyvit_11m / tinyvit_21m" in text
    assert "AdamW: lr 0.001 for 0.00025, weight_decay default for 0.05." in small
    whole = settings.paper_plan(loaded)
    paper = settings.differences(loaded, "paper", whole)
    assert not any("for tinyvit" in line for line in paper)
    assert "gradient clipping 5 is from the code." in paper
    assert any(line.startswith("held-out train samples 5000 is ours") for line in paper)
    marks = {(name, source) for _, name, _, source, _ in settings.values(loaded, whole)}
    assert {("epochs", "printed"), ("batch size", "printed"), ("gradient clipping", "code")} <= marks


def test_every_value_of_a_paper_preset_is_marked() -> None:
    for loaded in map(claim.load, NAMES):
        whole = settings.paper_plan(loaded)
        if whole is not None:
            rows = settings.values(loaded, whole)
            assert {source for _, _, _, source, _ in rows} <= {"printed", "code", "ours"}
            for task in whole.tasks:
                named = {name for label, name, *_ in rows if label == task["label"]}
                assert {"batch size", "data", "schedule", "model"} <= named and {"epochs", "steps"} & named


# --- wrong files ---------------------------------------------------------------------------------------------------

HEAD = "name: x\npaper: AGR\nwhere: Table 6\ntitle: T\npublished: [Table 6]\n"
STUDY = "small:\n  study:\n    name: x\n    seeds: 1\n    tasks: [{task: vision}]\n    optimizers: [adamw]\n"
A_B = "claims:\n  - {says: A, section: S, rule: better, optimizer: a"
CELL = "cells: [{match: {optimizer: SGD}, task: a, optimizer: b, metric: c}]\n"
GOOD = "claims:\n  - {says: A, section: S, rule: better, optimizer: adamw, baseline: sgd}\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (HEAD + "claims: []\n" + STUDY, "line 6: claims is empty"),
        (HEAD + A_B.replace("better", "bettr") + "}\n" + STUDY, "line 7: unknown rule 'bettr'"),
        (HEAD + A_B + "}\n" + STUDY, "line 7: the key 'baseline' is missing"),
        (HEAD + A_B + ", baseline: b, target: 1}\n" + STUDY, "unknown key 'target'"),
        (HEAD + A_B + ", baseline: b, given: {rule: degrades}}\n" + STUDY, "the key 'optimizer' is missing"),
        (HEAD + A_B + ", baseline: b, given: {rule: lowest, file: f, where: {}, optimizer: a, column: c}}\n" + STUDY,
         "given and the rule read the same"),
        (HEAD + "shared_notes: [codes]\n" + GOOD + STUDY, "line 6: unknown note 'codes' .did you mean code"),
        (HEAD + A_B.replace("better", "throughout") + ", baseline: b, metric: m, start: 1}\n" + STUDY,
         "start is a share of the training"),
        (HEAD + "claims:\n  - {section: S, rule: better, optimizer: a, baseline: b}\n" + STUDY, "'says' is missing"),
        (HEAD + f"claims:\n  - {{says: {'word ' * 61}, section: S, not_testable: w}}\n" + STUDY, "at most 60 words"),
        (HEAD + "claims:\n  - {says: A, section: S}\n" + STUDY, "either a rule or not_testable"),
        (HEAD + "claims:\n  - {says: A, section: S, rule: sooner, optimizer: a, baseline: b, metric: c}\n" + STUDY,
         "either a target or a share"),
        (HEAD + "claims:\n  - {says: A, section: S, rule: all, of: [{rule: bettr}]}\n" + STUDY, "unknown rule 'bettr'"),
        (HEAD + GOOD, "needs a setting"),
        (HEAD + GOOD + STUDY + "  checks: [agr]\n", "a study, or commands, or checks"),
        (HEAD + GOOD + "small: {checks: [agr]}\n", "line 8: unknown check 'agr'"),
        (HEAD + GOOD + "readings: {as run: {adamw: sgd}}\n" + STUDY, "say under published_is"),
        (HEAD.replace("AGR", "ADAM") + GOOD + STUDY, "paper must be SMARAN, "),
        (HEAD.replace("[Table 6]", "[Table 66]") + GOOD + STUDY, "no printed figures under 'Table 66'"),
        (HEAD + GOOD + CELL + STUDY, "no published row"),
    ],
)  # fmt: skip
def test_a_wrong_claim_file_is_named_with_its_line(text, message) -> None:
    with pytest.raises(UserError, match=message):
        claim.parse(parse(text, "x.yaml"), claim.published())


def test_an_error_in_the_study_points_into_the_claim_file() -> None:
    loaded = claim.parse(parse(HEAD + GOOD + STUDY.replace("[adamw]", "[adamww]"), "x.yaml"), claim.published())
    with pytest.raises(UserError, match="x.yaml, line 13: .*adamw"):
        plan.expand(loaded.settings["small"].study)


# --- documents -----------------------------------------------------------------------------------------------------


def test_the_page_of_claims_is_up_to_date() -> None:
    ranks.run("scripts/build_claims_docs.py", "--check")


def test_a_verdict_without_noise_says_so_in_its_row() -> None:
    page = (Path(__file__).parent.parent / "docs" / "claims.md").read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if re.search(r"\*\*(holds|contradicted)\*\*", line)]
    sure = {rule: [row for row in rows if f"| {rule} |" in row] for rule in ("lowest", "inequality", "falls_as")}
    assert all("no noise, no interval)" in row for row in (*sure["lowest"], *sure["inequality"]))
    assert all("one deterministic run of each" in row for row in sure["lowest"])
    seeded = [row for row in rows if " at small" in row and "memory." not in row] + sure["falls_as"]
    assert all(sure.values()) and seeded and not any("no noise" in row for row in seeded)


def test_the_example_of_a_factory_makes_an_optimizer(tmp_path) -> None:
    text = (Path(__file__).parent.parent / "docs" / "adding.md").read_text(encoding="utf-8")
    (tmp_path / "mine.py").write_text(re.search(r"```python\n(.*?)```", text, flags=re.S)[1])
    opt = registry.create(f"{tmp_path}/mine.py:make_optimizer", torch.nn.Linear(3, 2), lr=0.5)
    assert [(group["lr"], len(group["params"])) for group in opt.param_groups] == [(0.5, 1), (3e-4, 1)]


def test_the_example_of_a_task_trains_and_that_of_a_claim_reads(tmp_path) -> None:
    text = (Path(__file__).parent.parent / "docs" / "adding.md").read_text(encoding="utf-8")
    a_task = text.split("\n## A task\n")[1]
    (tmp_path / "mine.py").write_text(re.search(r"```python\n(.*?)```", a_task, flags=re.S)[1])
    optimizer, task = {"name": "adamw", "lr": 0.1}, f"{tmp_path}/mine.py:TASK"
    spec = RunSpec(task=task, size="smoke", optimizer=optimizer, overrides={"epochs": 30})
    record = train(spec, tmp_path / "run", progress=False)
    assert record["status"] == "ok" and record["metrics"]["test_loss"] < 0.1
    (tmp_path / "my-table1.yaml").write_text(re.search(r"```yaml\n(.*?)```", text, flags=re.S)[1])
    assert plan.expand(claim.load(str(tmp_path / "my-table1.yaml")).settings["small"].study).runs

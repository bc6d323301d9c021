"""More of what a stranger's files may try: paths of our own making, numbers without end, models without end."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from attack_parts import command
from study_fakes import make_study, replan

from hf_optim.core import safe_text, yaml12
from hf_optim.errors import UserError
from hf_optim.experiment import checkpoint as checkpoints
from hf_optim.experiment import files, plain_json
from hf_optim.experiment.spec import RunSpec, id_of
from hf_optim.study.api import load
from hf_optim.study.folder import results as records
from hf_optim.study.folder import shared, store
from hf_optim.study.plan.plan import MOST_NAMES
from hf_optim.study.plan.source import read


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    folder = tmp_path / "home"
    folder.mkdir()
    return folder


# --- where we write when nothing else is said ---


def test_figures_are_not_written_through_a_link(
    tmp_path: Path, elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = make_study(tmp_path / "study", ("adamw", "sgd"), seeds=2)
    (study / "figures").symlink_to(elsewhere)
    code, _, err = command(capsys, "export", study, "--figure", "svg")
    assert code == 2 and "not written through" in err and not [*elsewhere.iterdir()]


def test_what_a_check_found_is_not_written_through_a_link(
    tmp_path: Path, elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (elsewhere / "mine").write_text("mine")
    for file in (files := (tmp_path / "found.json", tmp_path / "found.md")):
        file.symlink_to(elsewhere / "mine")
    asked = "check", "sgd", "--fast", "--checks", "convex", "--json", files[0], "--markdown"
    assert command(capsys, *asked, files[1])[0] == 0
    assert (elsewhere / "mine").read_text() == "mine" and all("sgd" in file.read_text() for file in files)


def test_an_inspection_is_not_written_through_a_link(tmp_path: Path, elsewhere: Path) -> None:
    from hf_optim.commands import inspect

    (tmp_path / "inspection").symlink_to(elsewhere)
    with pytest.raises(UserError, match="not written through|link"):
        inspect._write(None, tmp_path, {"loss": 1.0}, [])
    assert not [*elsewhere.iterdir()]
    assert inspect._write(elsewhere, tmp_path, {"loss": 1.0}, []) == elsewhere


# --- runs that are taken from the studies beside one ---


def link(home: Path, elsewhere: Path) -> None:
    (elsewhere / "key").write_text("secret")
    (home / "log.txt").symlink_to(elsewhere / "key")


def pipe(home: Path, elsewhere: Path) -> None:
    (home / "record.json").unlink()
    os.mkfifo(home / "record.json")


def deep(home: Path, elsewhere: Path) -> None:
    (home / "record.json").write_text("[" * 5000)


def turned(home: Path, elsewhere: Path) -> None:
    """Brought, it would be no record of the plan's, and stop the study."""
    record = json.loads((home / "record.json").read_text())
    record["primary"] = {"name": "test_loss", "greater_is_better": False}
    (home / "record.json").write_text(json.dumps(record))


@pytest.mark.parametrize("attack", [link, pipe, deep, turned])
def test_runs_of_a_study_beside_are_taken_whole_or_not(
    tmp_path: Path, elsewhere: Path, attack: Callable[[Path, Path], None]
) -> None:
    plan = records.load(make_study(tmp_path / "all" / "theirs", ("adamw", "sgd"), seeds=1)).plan
    runs = plan.runs
    attack(tmp_path / "all" / "theirs" / "runs" / runs[0].id, elsewhere)
    assert shared.collect(plan, tmp_path / "all" / "mine", tmp_path / "all") == [runs[1].id]
    assert [p.name for p in (tmp_path / "all" / "mine" / "runs").iterdir()] == [runs[1].id]


# --- numbers and depths ---


@pytest.mark.parametrize("value", [1e308, -1e308, 1e200])
def test_a_metric_whose_square_no_float_holds_is_unreadable(
    tmp_path: Path, value: float, capsys: pytest.CaptureFixture[str]
) -> None:
    study = make_study(tmp_path / "study", ("adamw", "sgd"), seeds=2, value=lambda label, seed: value * (1 - seed))
    for arguments in (["report", study], ["export", study, "--table", "latex"]):
        assert command(capsys, *arguments)[0] == 0
    assert "expected a number" in (study / "report.html").read_text()


def test_curves_of_the_largest_and_the_smallest_numbers_are_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = make_study(tmp_path / "study", ("adamw", "sgd"), seeds=2)
    for history in study.glob("runs/*/history.jsonl"):
        rows = [{"step": 1, "train_loss": 1e308}, {"step": 2, "train_loss": 5e-324}, {"step": 3, "train_loss": 1.0}]
        history.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"step": 1e300, "train_loss": -1e307}]))
    assert command(capsys, "report", study)[0] == 0


def test_no_record_of_ours_is_unreadable_for_its_numbers(tmp_path: Path) -> None:
    files.write_json(tmp_path, "r.json", {"perplexity": math.exp(460), "loss": 460.0, "bad": math.inf})
    assert json.loads((tmp_path / "r.json").read_text()) == {"perplexity": None, "loss": 460.0, "bad": None}


def test_a_number_is_one_that_can_be_computed_with() -> None:
    assert [store.number(v) for v in (2, 0.5, -1e149, 0, 5e-324)] == [2.0, 0.5, -1e149, 0.0, 0.0]
    assert all(store.number(v) != store.number(v) for v in (1e151, float("inf"), 10**400, True, "1", None))


def test_folders_without_end_are_refused(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    at = os.open(tmp_path / "home", os.O_RDONLY)
    for _ in range(1200):
        os.mkdir("d", dir_fd=at)
        below = os.open("d", os.O_RDONLY, dir_fd=at)
        os.close(at)
        at = below
    os.close(at)
    with pytest.raises(files.Refused, match="deep"):
        files.check_tree(tmp_path / "home")
    (tmp_path / "key").write_text("secret")
    (tmp_path / "home" / "d" / "link").symlink_to(tmp_path)
    files.remove(tmp_path, "home")  # what Python's rmtree has no levels for
    assert [path.name for path in tmp_path.iterdir()] == ["key"]


def test_a_file_full_of_holes_is_not_copied(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = make_study(tmp_path / "study", ("adamw", "sgd"), seeds=1)
    with next(study.glob("runs/*/record.json")).with_name("log.txt").open("wb") as log:
        log.truncate(1 << 42)
    code, _, err = command(capsys, "results", study, "--merge", tmp_path / "into")
    assert code == 2 and "holds more than 1024 MB" in err and not (tmp_path / "into" / "runs").exists()


def test_a_journal_without_end_is_set_aside_unread(tmp_path: Path) -> None:
    from hf_optim.study.launch import journal

    with (tmp_path / journal.FILE).open("wb") as file:
        file.truncate(1 << 42)
    journal._open(tmp_path / journal.FILE)
    assert (tmp_path / "tuning.damaged").stat().st_size == 1 << 42


def test_a_name_that_is_too_long_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("report", "results", "study", "reproduce"):
        assert command(capsys, name, "x" * 5000)[0] == 2  # from Python 3.14 on it is one that is not there


# --- YAML ---


def test_a_yaml_file_has_an_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "s.yaml").write_text("# " + "x" * yaml12.LARGEST)
    assert "more than 262,144 characters" in command(capsys, "study", tmp_path / "s.yaml", "--dry-run")[2]
    with pytest.raises(UserError, match="more than 262,144 characters"):
        read(Path("/dev/zero"))


def test_an_optimizer_in_words_has_no_aliases() -> None:
    with pytest.raises(yaml.YAMLError, match="aliases"):
        yaml12.load("{a: &a [1, 1], b: [*a, *a]}")


def test_a_record_of_megabytes_is_unreadable(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = make_study(tmp_path / "study", ("adamw", "sgd"), seeds=1)
    next(study.glob("runs/*/record.json")).write_text("[" + "[]," * store.LARGEST + "[]]")
    assert "is larger than" in command(capsys, "report", study)[1]


def test_of_a_log_without_end_its_end_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It was read whole, 64 MB of holes for each of thousands of runs, and not shown where it was longer."""
    study = make_study(tmp_path / "study", ("adamw",), seeds=1)
    (home,) = (study / "runs").iterdir()
    with (home / "log.txt").open("wb") as log:
        log.truncate(1 << 40)
        log.seek(1 << 40)
        log.write(b"x" * 30_000 + b" the end of it")
    assert command(capsys, "report", study)[0] == 0
    page = (study / "pages" / f"{home.name}.html").read_text()
    assert "the end of it" in page and len(page) < 100_000


@pytest.mark.parametrize(
    "text", ['{"":0}\n' * (store.MOST_ROWS + 1), '{"a":[' + "[]," * plain_json.MOST_VALUES + "1]}"]
)
def test_a_history_without_end_is_unreadable(tmp_path: Path, text: str) -> None:
    """Its zip has some kB; parsed it would have gigabytes."""
    study = make_study(tmp_path / "study", ("adamw", "sgd"), seeds=1)
    run = records.load(study).plan.runs[0]
    (study / "runs" / run.id / "history.jsonl").write_text(text)
    results = records.load(study)
    assert results.history(run) == [] and "more than" in results.store.unreadable[run.id]


def test_figures_without_end_make_no_table_without_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = make_study(tmp_path / "study", ("adamw", "sgd"), seeds=2)
    for i, file in enumerate(study.glob("runs/*/record.json")):
        written = json.loads(file.read_text())
        written["metrics"] |= {f"{i} {k}": 1.0 for k in range(MOST_NAMES // 2)}
        file.write_text(json.dumps(written))
    assert command(capsys, "report", study)[1].count("names of figures") == 3
    study = make_study(tmp_path / "other", ("adamw", "sgd"), seeds=2)
    with next(study.glob("runs/*/history.jsonl")).open("w") as history:
        history.write(json.dumps({"step": 0} | {f"{k}": 1.0 for k in range(3999)}) + "\n" + '{"step": 1}\n' * 3000)
    with pytest.raises(UserError, match=r"rows of 4,0\d\d columns, nearly all of them empty"):
        _ = load(study).curves


# --- notebooks ---


@pytest.mark.parametrize(
    ("settings", "why"),
    [({"lr": 10**400}, "more than 64 bits"), ({f"k{i}": 1 for i in range(MOST_NAMES + 1)}, "names of settings")],
    ids=["a number", "names"],
)
def test_settings_without_end_are_one_line(
    tmp_path: Path, settings: dict[str, Any], why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    study = make_study(tmp_path / "study", ("adamw", "sgd"), seeds=1)
    plan = json.loads((study / "plan.json").read_text())
    for run in plan["runs"]:
        run["spec"]["optimizer"] |= settings
        run["id"] = id_of(run["spec"])
    (study / "plan.json").write_text(json.dumps(plan))
    code, _, err = command(capsys, "report", study)
    assert code == 2 and why in err


def test_charts_of_labels_that_are_alike_keep_their_files(tmp_path: Path) -> None:
    from hf_optim.study.report import figures, pieces

    written: list[Path] = []
    for label in ("A/b", "a-B", "数据", "données", "x" * 300, "x" * 301):
        written.append(figures._new(tmp_path, pieces.file_name(label, "result"), "svg", written))
    assert len({path.name.casefold() for path in written}) == 6 and all(len(path.name) < 200 for path in written)


def test_a_notebook_shows_texts(tmp_path: Path) -> None:
    bad = "<b>\x1b[2J$\\href{javascript:alert(1)}{x}$"
    study = load(make_study(tmp_path / "study", ("adamw", bad[:40]), seeds=3))
    for file in study.folder.glob("runs/*/history.jsonl"):
        row = {"step": 41, bad: bad, "nested": [bad, {bad: [bad]}]}
        file.write_text(file.read_text() + json.dumps(row))
    frames = [frame.to_string() for frame in (study.runs, study.verdicts, study.curves)]
    assert not [text for text in (repr(study), *study.sentences, *frames) if "\x1b" in text]
    assert "nested" in frames[2]
    html = study._repr_html_()
    assert html.startswith('<div class="tex2jax_ignore mathjax_ignore">') and "<b>\ufffd" not in html


# --- plans ---


def test_a_plan_holds_what_a_yaml_may_say(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = make_study(tmp_path / "study", ("adamw", "sgd"), seeds=2)
    how = {"precision": "bf16", "compile_model": True, "gradient_accumulation_steps": "auto"}
    plan = replan(study, lambda plan: plan["tasks"][0].update(overrides=how))
    assert command(capsys, "report", study)[0] == 0
    rung = {"task": "MLP", "size": 1, "parameters": 5, "multiple": 1.0, "tokens": 5, "steps": 1, "batch_size": 1}
    rung |= {"flops": 1.0, "counted": "x", "all": True, "smallest": "MLP"}
    for key in ("parameters", "multiple", "tokens", "steps", "batch_size", "flops"):
        wrong = {**plan, "ladder": {"rates": "tuned", "rungs": [{**rung, key: 0}]}}
        (study / "plan.json").write_text(json.dumps(wrong))
        assert "rung counts is above 0" in command(capsys, "report", study)[2]
    (study / "plan.json").write_text(json.dumps({**plan, "ladder": {"rates": "tuned", "rungs": []}}))
    assert "the ladder has no rungs" in command(capsys, "report", study)[2]


# --- charts ---


def test_a_label_is_no_formula_of_matplotlib(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = make_study(tmp_path / "study", ("adamw", r"$\evil$", r"\$a$_b"), seeds=2)
    assert command(capsys, "export", study, "--figure", "svg", "--output", tmp_path / "out")[0] == 0
    drawn = (tmp_path / "out" / "mlp-result.svg").read_text()
    assert r"$\evil$" in drawn and safe_text.plot("a$b\n") == r"a\$b"


# --- models ---


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from hf_optim.experiment.task import check_run

    folder = tmp_path_factory.mktemp("saved") / "checkpoint-1"
    task, model, preset = check_run(RunSpec("vision", "convnext_tiny", "smoke", {"name": "sgd"}))
    task.model(model, preset, task.data(preset, None)).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("key", "value", "why"),
    [
        ("depths", [10**9, 1, 1, 1], "counts beyond"),
        ("depths", [9000, 1, 1, 1], "layers"),
        ("hidden_sizes", [10**6, 10**6, 10**6, 10**6], "more numbers than its files hold"),
    ],
)
def test_a_model_without_end_is_refused_before_memory_ends(
    saved: Path, key: str, value: Any, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hf_optim.experiment.task import load

    monkeypatch.setattr(checkpoints, "MOST_PARTS", 2000)
    config = saved / "config.json"
    before = config.read_text()
    assert checkpoints.read_model(load("vision"), "convnext_tiny", saved) is not None
    config.write_text(json.dumps({**json.loads(before), key: value}))
    try:
        with pytest.raises(UserError, match=why):
            checkpoints.read_model(load("vision"), "convnext_tiny", saved)
    finally:
        config.write_text(before)


@pytest.mark.parametrize(
    "config",
    [
        {"architecture": "hf-hub:them/model"},
        {"architecture": "local-dir:/home/me"},
        {"model_args": {"checkpoint_path": "/home/me/weights.pth"}},
        {"vision_config": {"model_args": {"pretrained_cfg": {"file": "x"}}}},
        {"model_type": "dpt", "backbone": "them/model", "use_timm_backbone": False},  # asked of the Hub
        {"model_type": "detr", "use_timm_backbone": False},  # transformers 5.6 asks whether it has a "resnet50"
        {"model_type": "detr", "backbone_kwargs": {"out_indices": [1]}},
    ],
)
def test_timm_reads_nothing_that_a_checkpoint_names(tmp_path: Path, config: dict[str, Any]) -> None:
    """Older ones read it as a pickle that may call anything."""
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="asks for code or files of others"):
        checkpoints.check_checkpoint(tmp_path)


def test_a_language_model_of_a_folder_is_looked_through_before(tmp_path: Path) -> None:
    from hf_optim.tasks.models import language

    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2", "n_layer": 10**9}))
    with pytest.raises(UserError, match="counts beyond what its files hold"):
        language.pretrained(str(tmp_path), {})
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2", "auto_map": {"AutoModelForCausalLM": "x"}}))
    with pytest.raises(UserError, match="asks for code"):
        language.pretrained(str(tmp_path), {})


def test_links_of_a_checkpoint_lead_into_its_cache_or_nowhere(tmp_path: Path, elsewhere: Path) -> None:
    snapshot, blobs = tmp_path / "models--a--b" / "snapshots" / "1", tmp_path / "models--a--b" / "blobs"
    snapshot.mkdir(parents=True), blobs.mkdir()
    (blobs / "abc").write_text("{}")
    (snapshot / "config.json").symlink_to("../../blobs/abc")
    checkpoints.check_checkpoint(snapshot)
    (elsewhere / "mine").write_text("{}")
    (snapshot / "model.safetensors").symlink_to(elsewhere / "mine")
    with pytest.raises(UserError, match="a link that leads elsewhere"):
        checkpoints.check_checkpoint(snapshot)
    run = tmp_path / "models--a--b" / "run" / "checkpoint-2"  # beside which blobs are anybody's
    run.mkdir(parents=True)
    (run / "config.json").symlink_to("../../blobs/abc")
    with pytest.raises(UserError, match="a link that leads elsewhere"):
        checkpoints.check_checkpoint(run)


def test_a_resumed_run_reads_no_shards_elsewhere(tmp_path: Path) -> None:
    from hf_optim.experiment.preparation import check_kept

    spec = RunSpec("vision", "mlp", "smoke", {"name": "sgd"})
    whole = tmp_path / "checkpoint-3"
    whole.mkdir()
    (whole / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../../x.safetensors"}}))
    with pytest.raises(UserError, match="names a file that is not beside it"):
        check_kept(tmp_path, spec)

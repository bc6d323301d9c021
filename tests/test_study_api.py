"""Studies from Python: frames, charts, reprs, and a training of one's own; the example notebook runs as it stands."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from study_fakes import accuracy, make_study

from hf_optim import study
from hf_optim.errors import UserError
from hf_optim.experiment.spec import RunSpec
from hf_optim.study.folder.store import RecordStore

EXAMPLES = Path(__file__).parent.parent / "docs" / "examples"


@pytest.fixture(autouse=True)
def no_window(monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "Agg")


def test_frames_hold_what_the_records_hold(tmp_path):
    make_study(tmp_path, seeds=4, failed={("adan", 1)}, spent=True)
    mine = study.load(tmp_path)
    runs = mine.runs
    assert len(runs) == 12 and runs.status.value_counts().to_dict() == {"ok": 11, "failed": 1}
    row = runs[(runs.optimizer == "smaran") & (runs.seed == 2)].iloc[0]
    assert row.test_accuracy == accuracy("smaran", 2)
    verdicts = mine.verdicts.set_index("optimizer")
    assert verdicts.loc["adamw", "verdict"] == "baseline" and verdicts.loc["adan", "failed"] == 1
    mean = sum(accuracy("smaran", s) - accuracy("adamw", s) for s in range(4)) / 4
    assert verdicts.loc["smaran", "difference"] == pytest.approx(mean)
    curve = mine.curves[(mine.curves.optimizer == "adamw") & (mine.curves.seed == 0)]
    assert curve.step.max() == 40 and curve.train_loss.count() == 40
    assert "A fake study" in repr(mine) and "<table>" in mine._repr_html_() and len(mine.sentences) == 2


def test_a_label_is_text_in_a_notebook_too(tmp_path):
    make_study(tmp_path, ("<script>alert(1)</script>", "b"))
    assert "<script" not in study.load(tmp_path)._repr_html_()


def test_charts_are_drawn_on_axes(tmp_path):
    from matplotlib import pyplot

    make_study(tmp_path, seeds=4, spent=True)
    mine = study.load(tmp_path)
    _, axes = pyplot.subplots()
    assert mine.plot("result", axes=axes) is axes
    assert [t.get_text() for t in axes.get_yticklabels()][::-1] == list(mine.verdicts.optimizer)
    steps, passes = mine.plot("train_loss"), mine.plot("train_loss", over="passes")
    ends = [line.get_xdata()[-1] for line in passes.lines]
    assert [line.get_xdata()[-1] for line in steps.lines] == [40, 40, 40] and ends == [80, 120, 160]
    steps.set_xlim(0, 2)
    assert all(tick == int(tick) for tick in steps.get_xticks()), "there is no half a step"
    for wrong in ({"what": "no_such"}, {"over": "metres"}, {"task": "ML"}, {"what": "train_loss", "over": "tokens"}):
        with pytest.raises(UserError):
            mine.plot(**wrong)
    with pytest.raises(UserError, match="did you mean seconds"):
        mine.plot("train_loss", over="secnds")
    pyplot.close("all")


def test_without_pandas_there_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    make_study(tmp_path)
    with pytest.raises(UserError, match="pip install pandas"):
        _ = study.load(tmp_path).verdicts


# --- a training of one's own ---


@study.training(metric="test_loss", greater_is_better=False)
def halves(optimizer, seed, log, to=3, give="test_loss"):
    """Halves a number."""
    for step in range(1, to + 1):
        log(step, train_loss=0.5**step)
    return {give: 0.5**to * (1 + seed), "validation_loss": 1.0}


def spec(**options):
    return RunSpec("mine.py:halves", "own", optimizer={"name": "sgd"}, seed=2, options=options)


def test_a_function_is_a_run(tmp_path):
    record = halves.run(spec(to=4), tmp_path)
    assert record["status"] == "ok" and record["metrics"]["test_loss"] == 3 / 16 and record["time"]["steps"] == 4
    rows = [json.loads(line) for line in (tmp_path / "history.jsonl").read_text().splitlines()]
    assert [row["train_loss"] for row in rows] == [0.5, 0.25, 0.125, 0.0625]
    assert json.loads((tmp_path / "record.json").read_text())["primary"]["name"] == "test_loss"


@study.training(metric="test_loss", greater_is_better=False)
def attaches(optimizer, seed):
    from transformers import TrainingArguments

    from hf_optim.hub.arguments import settle

    settle(optimizer, TrainingArguments("out", weight_decay=0.1), {})
    return {"test_loss": 1.0}


def test_a_record_says_where_rate_and_decay_came_from(tmp_path):
    run = RunSpec("mine.py:attaches", "own", optimizer={"name": "adan", "lr": 0.02})
    record = attaches.run(run, tmp_path)
    assert record["settled"] == ["lr=0.02 as given", "weight_decay=0.1 from TrainingArguments.weight_decay"]
    assert record["in_force"] == [{"lr": 0.02, "weight_decay": 0.1}]
    run = RunSpec("mine.py:attaches", "own", optimizer={"name": "tlr_adamw", "base": {"lr": 0.02}})
    attaches.run(run, tmp_path / "runs" / run.id)
    asked = {"base.lr": 0.02, "base.weight_decay": 0.1, "base.betas": [0.9, 0.999], "base.eps": 1e-8}
    assert RecordStore(tmp_path).record(run.id)["in_force"] == [asked]
    run = RunSpec("mine.py:attaches", "own", optimizer={"name": "adan", "weight_decay": 0.0})
    assert attaches.run(run, tmp_path)["settled"] == [
        "lr=0.001, the rule's default (TrainingArguments.learning_rate=5e-05 is not set)",
        "weight_decay=0.0 as given",
    ]
    assert halves.run(spec(), tmp_path)["settled"] == []


def test_mistakes_of_a_training_are_one_line(tmp_path):
    record = halves.run(spec(give="tset_loss"), tmp_path)
    assert record["status"] == "failed" and "and no test_loss" in record["error"]
    with pytest.raises(UserError, match="give it as an argument"):
        halves.run(RunSpec("m.py:halves", "own", optimizer={"name": "sgd"}, overrides={"steps": 3}), tmp_path)
    for key, value in (("overrides", {"steps": 3}), ("schedule", {"name": "linear"}), ("data", "x")):
        with pytest.raises(UserError, match=f"{key}: halves is a training of its own"):  # before anything runs
            task = {"task": halves, key: value}
            study.run({"name": "x", "seeds": 1, "tasks": [task], "optimizers": ["sgd"]}, tmp_path / "x")
    assert not (tmp_path / "x").exists()
    with pytest.raises(UserError, match="takes `optimizer` and `seed`"):
        study.training(metric="test_loss", greater_is_better=False)(lambda seed: None)
    with pytest.raises(UserError, match="test_"):
        study.training(metric="loss", greater_is_better=False)
    with pytest.raises(UserError, match="decorate it"):
        study.run({"name": "x", "seeds": 1, "tasks": [{"task": print}], "optimizers": ["sgd"]})
    scope: dict = {}
    exec("def cell(optimizer, seed): return {}", scope)
    with pytest.raises(UserError, match="writefile"):
        _ = study.training(metric="test_loss", greater_is_better=False)(scope["cell"]).path


def test_a_notebook_shows_progress_in_one_line(monkeypatch):
    import types

    from hf_optim.core import safe_text
    from hf_optim.study.launch.progress import Display

    shown: list[str] = []
    handle = types.SimpleNamespace(update=lambda line: shown.append(repr(line)))
    module = types.SimpleNamespace(display=lambda line, display_id: shown.append(repr(line)) or handle)
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(display=module))
    monkeypatch.setitem(sys.modules, "IPython.display", module)
    with Display(safe_text.console(force_jupyter=True), 3, 1, 1) as display:
        display.finished(None, "failed", 1.0)
    assert shown == ["1 of 3 runs", "2 of 3 runs, 1 failed"]


def test_a_notebook_without_widgets_is_told_nothing_about_them():
    """tqdm.auto takes us for a notebook's kernel, misses ipywidgets, and draws its plain bars without a word."""
    code = """
import sys, types
shell = types.SimpleNamespace(config={"IPKernelApp": {}}, kernel=None)
sys.modules["IPython"] = types.SimpleNamespace(get_ipython=lambda: shell)
sys.modules["ipywidgets"] = None
import hf_optim.study.api
import tqdm.auto, tqdm.std
assert issubclass(tqdm.auto.tqdm, tqdm.std.tqdm) and "notebook" not in tqdm.auto.tqdm.__mro__[1].__module__
"""
    done = subprocess.run([sys.executable, "-W", "always", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and "IProgress" not in done.stderr, done.stderr


def test_the_example_notebook_runs_as_it_stands(tmp_path, monkeypatch):
    shutil.copy(EXAMPLES / "own.py", tmp_path)
    monkeypatch.chdir(tmp_path)
    scope: dict = {}
    for cell in json.loads((EXAMPLES / "study.ipynb").read_text())["cells"]:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), scope)
    mine = scope["mine"]
    assert len(mine.runs) == 6 and set(mine.runs.status) == {"ok"}
    assert set(mine.curves.columns) >= {"train_loss", "validation_loss"}
    assert (tmp_path / "studies" / "notebook" / "report.html").is_file()

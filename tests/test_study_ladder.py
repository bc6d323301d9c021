"""A ladder is a study: what its block expands into, and what is found where losses follow a law that is known."""

from __future__ import annotations

import importlib.util
import json
import math
import random
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hf_optim.commands.main import main
from hf_optim.errors import UserError
from hf_optim.experiment.files import write_json, write_rows
from hf_optim.experiment.task import load
from hf_optim.hub import schedules
from hf_optim.study.conduct import study
from hf_optim.study.findings import ladder, table
from hf_optim.study.findings.ladder import Ladder
from hf_optim.study.folder import questions, results, stages
from hf_optim.study.folder.store import RecordStore
from hf_optim.study.launch.follow import follow
from hf_optim.study.plan import plan, shipped, source
from hf_optim.study.plan.plan import Plan, Run
from hf_optim.study.report import figures
from hf_optim.study.report.charts import style_of
from hf_optim.study.report.html import render
from hf_optim.study.report.ladder import section
from hf_optim.tasks.presets import shapes

YAML = """\
name: steps
baseline: AdamW
ladder:
  model: gpt2
  size: smoke
  parameters: [2000, 8000]
  tokens: [4, 8]
  baseline_tokens: [2, 16]
  batch_size: 4
  options: {held_out: 8}
  rates: both
optimizers:
  - {name: adamw, label: AdamW}
  - {name: lion, label: Lion}
  - {name: sgd, label: SGD, lr: 0.1}
tuning: {trials: 3, repetitions: 3, space: {SGD: {}, AdamW: {lr: [1e-4, 0.1, log]}, Lion: {lr: [1e-5, 0.01, log]}}}
"""
ROOT = Path(__file__).parent.parent
ALPHA, BETA, FASTER, CARRYING = 0.07, 0.05, 1.5, 0.02


def expand(text: str = YAML) -> Plan:
    return plan.expand(source.parse(text, "s.yaml"))


def loss(run: Run, rung: dict[str, Any], carried: bool) -> float:
    """The law, with Lion 1.5 times as fast as AdamW and the larger size's own settings a little better."""
    tokens = rung["tokens"] * (FASTER if run.optimizer == "Lion" else 0.5 if run.optimizer == "SGD" else 1.0)
    ln = 3.0 - ALPHA * math.log(rung["parameters"]) - BETA * math.log(tokens)
    noise = random.Random(f"{run.seed} {rung['parameters']}").gauss(0, 0.002)  # the same for all on a seed
    own = random.Random(f"{run.seed} {run.optimizer} {run.task}").gauss(0, 0.0005)
    return math.exp(ln + noise + own) + CARRYING * carried


def run_all(planned: Plan, folder: Path) -> Ladder:
    """The whole study with records that follow the law; trials are best at the geometric middle of their range."""
    folder.mkdir()
    (folder / "plan.json").write_text(json.dumps(planned.to_dict()), encoding="utf-8")
    questions.register(folder, planned, 0)
    assert planned.ladder is not None
    rungs = {rung["task"]: rung for rung in planned.ladder["rungs"]}
    for stage in follow(planned, folder):
        now = stages.state(planned, RecordStore(folder))
        own = {run.id for run in now.runs}
        extra = {carried.run.id for carried in now.carried} - own
        for run in stage.todo:
            value = loss(run, rungs[run.task], run.id in extra)
            home = folder / "runs" / run.id
            home.mkdir(parents=True)
            write_rows(home, "history.jsonl", [{"step": 0, "validation_loss": 9.0}])
            metrics = {"validation_loss": value, "test_loss": value}
            steps = rungs[run.task]["steps"]
            time = {"steps": steps, "forward_passes": steps, "backward_passes": steps, "train_seconds": steps / 100}
            record = {"id": run.id, "spec": run.spec, "status": "ok", "error": None, "metrics": metrics}
            write_json(home, "record.json", {**record, "time": time, "memory": {}, "history": "history.jsonl"})
    findings = ladder.build(results.load(folder))
    assert findings is not None
    return findings


@pytest.fixture(scope="module")
def climbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ladder]:
    folder = tmp_path_factory.mktemp("ladder") / "s"
    return folder, run_all(expand(), folder)


# --- the block -------------------------------------------------------------------------------------------------------


def test_a_rung_is_a_task_whose_steps_follow_from_its_tokens() -> None:
    planned = expand()
    assert planned.ladder is not None
    assert [t["label"] for t in planned.tasks][:4] == [f"gpt2 2k × {m}" for m in (2, 4, 8, 16)]
    for task, rung in zip(planned.tasks, planned.ladder["rungs"], strict=True):
        assert task["label"] == rung["task"]
        assert rung["tokens"] == task["overrides"]["steps"] * 4 * 31  # a block of 32 predicts 31
        assert rung["tokens"] == pytest.approx(rung["multiple"] * rung["parameters"], rel=0.02)
        assert task["only"] == (["AdamW", "Lion", "SGD"] if rung["all"] else ["AdamW"])
    assert Plan.from_dict(json.loads(json.dumps(planned.to_dict())), "plan.json") == planned


@pytest.mark.parametrize(("model", "tied"), [("gpt2", True), ("llama", False), ("llama", True)])
@pytest.mark.parametrize("asked", [2500, 9000])
def test_the_count_is_that_of_the_model_that_is_made(model: str, tied: bool, asked: int) -> None:
    task = load("lm")
    options = {"parameters": asked, **({} if model == "gpt2" else {"tie_word_embeddings": tied})}
    preset = task.with_options(model, task.preset(model, "smoke"), {"vocabulary": 300, **options})
    data = task.data(preset, None)
    assert data.facts["vocabulary"] == 300
    network = task.model(model, preset, data)
    assert sum(p.numel() for p in network.parameters()) == task.rung(model, preset).parameters


@pytest.mark.parametrize("model", ["gpt2", "llama"])
def test_shapes_are_near_what_is_asked_and_neither_flat_nor_thin(model: str) -> None:
    for asked in (30_000_000, 125_000_000, 300_000_000):
        shape = shapes.options(model, asked, 32_768, 1024, True)
        width = shape["n_embd" if model == "gpt2" else "hidden_size"]
        depth = shape["n_layer" if model == "gpt2" else "num_hidden_layers"]
        assert shapes.count(model, shape, 32_768, 1024, True) == pytest.approx(asked, rel=0.06)
        assert 30 < width / depth < 80 and width % 64 == 0


def test_carried_rates_are_tuned_at_the_smallest_size_alone() -> None:
    planned = expand(YAML.replace("rates: both", "rates: carried"))
    assert planned.tuning is not None
    assert {cell["task"] for cell in planned.tuning["cells"]} == {f"gpt2 2k × {m}" for m in (2, 4, 8, 16)}
    assert [t.get("settings") for t in planned.tasks][-1] == "gpt2 2k × 16"
    assert questions.question(planned)["tasks"]["gpt2 8k × 4"]["settings"] == "gpt2 2k × 4"


def test_runs_of_larger_sizes_have_the_settings_of_the_smallest(tmp_path: Path) -> None:
    planned = expand(YAML.replace("rates: both", "rates: carried"))
    run_all(planned, tmp_path / "s")
    now = stages.state(planned, RecordStore(tmp_path / "s"))
    chosen = {(s.task, s.optimizer, s.seed): s.choice.spec for s in now.searches if s.choice}
    for run in now.runs:
        home = run.task.replace("8k", "2k")
        assert run.spec["optimizer"] == chosen[home, run.optimizer, planned.tuning_seed(run.seed)]


def test_what_is_planned_on_each_task_is_what_is_run(climbed: tuple[Path, Ladder]) -> None:
    folder, _ = climbed
    planned = expand()
    assert sum(stages.planned_on(planned).values()) == stages.run_count(planned)
    assert stages.run_count(planned) >= len(list((folder / "runs").iterdir()))  # a setting may be carried into itself


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("tokens: [4, 8]", "tokens: [8, 4]", "ascend"),
        ("baseline_tokens: [2, 16]", "baseline_tokens: [4]", "among tokens already"),
        ("rates: both", "rates: tuned\n  overrides: {steps: 5}", "is the ladder's"),
        ("rates: both", "rates: some", "rates must be"),
        ("model: gpt2", "model: lstm", "chooses the shape of gpt2 and llama"),
        ("parameters: [2000, 8000]", "parameters: [20, 8000]", "has about 20 parameters"),
        ("ladder:", "tasks: [vision]\nladder:", "either tasks: or a ladder:"),
        ("parameters: [2000, 8000]", "sizes: [1]", "unknown key 'sizes'"),
    ],
)
def test_a_mistake_is_one_line_with_its_place(old: str, new: str, said: str) -> None:
    with pytest.raises(UserError, match=r"s.yaml, line \d+") as error:
        expand(YAML.replace(old, new))
    assert said in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["lm_ladder", "lm_batch", "lm_ladder_gpu"])
def test_the_shipped_ladders_are_plans(name: str) -> None:
    file, _ = shipped.find(name)
    assert plan.expand(file).ladder


def test_data_of_the_command_line_are_those_of_every_rung(tmp_path: Path) -> None:
    planned = plan.expand(source.parse(YAML, "s.yaml"), data=str(tmp_path))
    assert {task["data"] for task in planned.tasks} == {str(tmp_path)}
    with pytest.raises(UserError, match="no data set and no file or folder 'nowhere'"):
        plan.expand(source.parse(YAML, "s.yaml"), data="nowhere")
    assert plan.expand(source.parse(YAML, "s.yaml"), data="c4").tasks[0]["data"] == "c4"


def test_steps_from_outside_are_the_ladders_too() -> None:
    """`overrides={"steps": 5}` made a plan that no command reads: its rungs are not what their runs are."""
    with pytest.raises(UserError, match="steps is the ladder's"):
        plan.expand(source.parse(YAML, "s.yaml"), overrides={"steps": 5})
    assert plan.expand(source.parse(YAML, "s.yaml"), overrides={"precision": "fp32"}).ladder


def test_wsd_rises_stays_and_falls() -> None:
    factor = schedules.factor({"name": "wsd", "warmup": 0.1, "decay": 0.2, "end": 0.1}, 100)
    assert factor(0) == pytest.approx(1 / 11) and factor(9) == pytest.approx(10 / 11)
    assert factor(10) == factor(80) == 1.0
    assert factor(90) == pytest.approx(0.55) and factor(100) == pytest.approx(0.1)
    with pytest.raises(UserError, match="decay must be above 0"):
        schedules.check_schedule({"name": "wsd", "decay": 0})


# --- what is found ---------------------------------------------------------------------------------------------------


def test_the_law_that_made_the_losses_is_found(climbed: tuple[Path, Ladder]) -> None:
    _, findings = climbed
    for trend in findings.trends:
        assert trend.tokens.value == pytest.approx(BETA, abs=0.003)
        assert trend.size.value == pytest.approx(ALPHA, abs=0.004)
    ahead = next(t for t in findings.trends if t.optimizer == "AdamW")
    said = math.exp(3.0 - ALPHA * math.log(ahead.next_parameters) - BETA * math.log(ahead.next_tokens))
    assert ahead.next_loss.low < said < ahead.next_loss.high


def test_the_planted_speed_up_is_found_at_every_size(climbed: tuple[Path, Ladder]) -> None:
    _, findings = climbed
    for speed in findings.speeds:
        true = FASTER if speed.optimizer == "Lion" else 0.5
        assert speed.fitted.value == pytest.approx(true, rel=0.05)
        # An end that the baseline's budgets do not reach is open; the loss itself is interpolated, not its logarithm.
        assert not speed.bounded.low > 1.02 * true and not speed.bounded.high < 0.98 * true
        assert speed.optimizer == "SGD" or speed.bounded.low > 1
    for trend in findings.speed_trends:
        assert trend.tenfold.value == pytest.approx(1.0, abs=0.05)  # it does not depend on the size


def test_each_law_is_fitted_once(climbed: tuple[Path, Ladder], monkeypatch: pytest.MonkeyPatch) -> None:
    """It was for each point that was compared with it: five hundred rungs took minutes."""
    law, fitted = ladder.law, []
    monkeypatch.setattr(ladder, "law", lambda *of: fitted.append(repr(of)) or law(*of))
    assert ladder.build(results.load(climbed[0])) and len({*fitted}) == len(fitted) > 0


def test_what_carrying_costs_is_found(climbed: tuple[Path, Ladder]) -> None:
    _, findings = climbed
    assert {c.optimizer for c in findings.carried} == {"AdamW", "Lion"}  # SGD is not tuned
    for carried in findings.carried:
        assert carried.rung["size"] == 8000 and carried.rung["all"]
        assert carried.costs.value == pytest.approx(CARRYING, abs=0.004)


def test_counted_flops_go_before_estimated_ones() -> None:
    rung = {"flops": 10.0, "tokens": 600, "steps": 3}
    time = {"steps": 3, "forward_passes": 6, "backward_passes": 3}  # a second forward pass a step
    assert ladder._flops([{"step": 3}], time, rung) == pytest.approx(10 * 600 * 4 / 3)
    assert ladder._flops([{"step": 1, "flops": 50}, {"step": 3, "flops": 70}, {"step": 3}], time, rung) == 70


def test_flops_count_passes_and_seconds_are_those_of_the_records(climbed: tuple[Path, Ladder]) -> None:
    _, findings = climbed
    for p in findings.points:
        assert p.flops == pytest.approx(p.tokens * p.rung["flops"])
        assert p.seconds == pytest.approx(p.rung["steps"] / 100)


def test_steps_to_a_loss_at_each_batch_size(tmp_path: Path) -> None:
    text = YAML.replace("parameters: [2000, 8000]", "parameters: [2000]").replace("rates: both", "rates: tuned")
    findings = run_all(expand(text.replace("batch_size: 4", "batch_size: [2, 8]")), tmp_path / "s")
    lion, adamw = ([b for b in findings.batches if b.optimizer == label] for label in ("Lion", "AdamW"))
    # The law knows tokens alone: four times the batch is a quarter of the steps.
    assert adamw[0].steps.value / adamw[1].steps.value == pytest.approx(4, rel=0.1)
    assert adamw[0].tokens.value / lion[0].tokens.value == pytest.approx(FASTER, rel=0.1)
    assert all(math.isnan(t.next_loss.value) for t in findings.trends)  # of one size
    html = section(results.load(tmp_path / "s"), style_of(["AdamW", "Lion", "SGD"]))
    assert "Best rate against batch size" in html and "nothing is said of another" in html and "nan" not in html
    for word in ("× 4, batch 2", "× 4, batch 8", "× 8, batch 2", "× 8, batch 8"):
        assert html.count(f">{word}<") == 2, word  # of AdamW and Lion


def test_what_is_open_says_how_many_tokens_it_would_take(climbed: tuple[Path, Ladder]) -> None:
    folder, findings = climbed
    assert findings.cost is not None and expand().ladder is not None
    tokens = {rung["task"]: rung["tokens"] for rung in (expand().ladder or {})["rungs"]}
    planned = expand()
    now = stages.state(planned, RecordStore(folder))
    every = [*(t.run for s in now.searches for t in s.trials), *now.after_tuning]
    assert findings.cost.tokens_a_unit == pytest.approx(sum(tokens[r.task] for r in every) / 3)


def test_the_section_shows_all_of_it_and_nothing_without_a_ladder(climbed: tuple[Path, Ladder]) -> None:
    folder, _ = climbed
    loaded = results.load(folder)
    html = section(loaded, style_of(["AdamW", "Lion", "SGD"]))
    for title in ("The ladder", "The trend", "Speed-up over tuned AdamW", "Rates", "The rate carried over"):
        assert title in html
    assert html.count("<svg") == 3 + 3 and "nan" not in html
    drawn = {path.name for path in figures.write_all(loaded, table.build(loaded), folder / "drawn", kind="svg")}
    assert {"ladder-loss.svg", "ladder-speedup.svg"} < drawn
    whole = render(loaded, table.build(loaded))
    assert '<section><h2 id="ladder">' in whole, "what is `more` is not printed"
    # What takes no learning of order, where the task knows it, stands before the pictures.
    assert "To compare with" not in html
    for record in loaded.records.values():
        record["known_losses"] = {"each token's frequency": 9.25, "a stranger's <b>": "x"}
    html = section(loaded, style_of(["AdamW", "Lion", "SGD"]))
    assert html.index("each token&#x27;s frequency: a test loss of 9.250.") < html.index("<svg") and "<b>x" not in html
    assert "stranger" not in html
    # A study without tuning never speaks of a tuned baseline.
    given = replace(loaded, plan=replace(loaded.plan, tuning=None, ladder={**loaded.plan.ladder, "rates": "tuned"}))
    untuned = section(given, style_of(["AdamW", "Lion", "SGD"]))
    assert "Speed-up over untuned AdamW" in untuned and "over tuned" not in untuned and "tokens tuned" not in untuned


def test_a_dry_run_says_what_every_rung_costs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "s.yaml").write_text(YAML, encoding="utf-8")
    assert study(str(tmp_path / "s.yaml"), output=str(tmp_path / "out"), dry_run=True) == 0
    shown, planned = capsys.readouterr().out, expand()
    assert planned.ladder is not None and not (tmp_path / "out").exists()
    for rung in planned.ladder["rungs"]:
        assert (
            f"{rung['task']}: {stages.planned_on(planned)[rung['task']]} runs, each {rung['steps']:,} steps, " in shown
        )
    assert "in all " in shown


def test_the_page_is_made_of_the_numbers_that_are_kept(climbed: tuple[Path, Ladder]) -> None:
    spec = importlib.util.spec_from_file_location("build_ladder_docs", ROOT / "scripts" / "build_ladder_docs.py")
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    ladders, batches = (json.loads(file.read_text(encoding="utf-8")) for file in (script.KEPT, script.BATCHES))
    assert script.page(ladders, batches) == script.PAGE.read_text(encoding="utf-8")
    data = script.kept(climbed[0], draw=False)
    text = script.page(data, batches)
    assert "{{" not in text and "nan" not in text.lower()
    assert "| Lion | better |" in text and "| SGD * | worse |" in text


def test_a_baseline_that_longer_training_hardly_helps_gives_a_report(tmp_path: Path, monkeypatch: Any) -> None:
    """Its slope divides: e to the power of what came out was no number, and there was no report."""

    def saturated(run: Run, rung: dict[str, Any], carried: bool) -> float:
        noise = random.Random(f"{run.seed} {run.optimizer}").gauss(0, 1e-9)
        return 3.0 + 0.02 / rung["tokens"] - 0.1 * (run.optimizer == "Lion") + noise

    monkeypatch.setattr(sys.modules[__name__], "loss", saturated)
    findings = run_all(expand(YAML.replace("rates: both", "rates: tuned")), tmp_path / "s")
    assert "Lion" not in {trend.optimizer for trend in findings.speed_trends}
    loaded = results.load(tmp_path / "s")
    assert '<h2 id="ladder">' in render(loaded, table.build(loaded))


@pytest.mark.parametrize("kind", ["seconds", "common rungs"])
def test_what_a_ladder_lacks_keeps_nothing_else_from_its_report(
    climbed: tuple[Path, Ladder], tmp_path: Path, kind: str
) -> None:
    """Runs that took no time, or whose baseline failed wherever the others ran, ended it in a traceback."""
    folder = shutil.copytree(climbed[0], tmp_path / "s")
    common = {rung["steps"] for rung in (expand().ladder or {})["rungs"] if rung["all"]}
    for file in folder.glob("runs/*/record.json"):
        record = json.loads(file.read_text())
        if kind == "seconds":
            record["time"].pop("train_seconds") if record["spec"]["seed"] else record["time"].update(train_seconds=0)
        elif record["spec"]["optimizer"]["name"] == "adamw" and record["spec"]["overrides"]["steps"] in common:
            del record["metrics"]["test_loss"]
        file.write_text(json.dumps(record))
    assert main(["report", str(folder)]) in (0, 1)
    assert '<h2 id="ladder">' in (folder / "report.html").read_text()
    assert main(["export", str(folder), "--figure", "svg", "--output", str(tmp_path / "drawn")]) == 0


def test_what_was_not_measured_has_no_place_in_a_chart(climbed: tuple[Path, Ladder], tmp_path: Path) -> None:
    """Trials that were chosen by another metric, and have no loss, put the names of the curves nowhere."""
    folder = tmp_path / "s"
    shutil.copytree(climbed[0], folder)
    made = json.loads((folder / "plan.json").read_text())
    for task in made["tasks"]:
        task["primary"]["name"] = "test_x"
    write_json(folder, "plan.json", made)
    for number, file in enumerate(sorted(folder.glob("runs/*/record.json"))):
        record = json.loads(file.read_text())
        loss = record["metrics"]["validation_loss"]
        record["metrics"] = {"test_x": loss, "validation_x": loss} | ({"validation_loss": loss} if number % 2 else {})
        write_json(file.parent, "record.json", record)
    loaded = results.load(folder)
    drawn = section(loaded, style_of([o["label"] for o in made["optimizers"]]))
    assert "loss over its rate" in drawn and not re.search(r"\bnan\b", drawn)


def test_a_rate_that_has_no_logarithm_is_left_out(tmp_path: Path) -> None:
    text = YAML.replace("AdamW: {lr: [1e-4, 0.1, log]}", "AdamW: {lr: {choices: [0, 0.1]}}")
    findings = run_all(expand(text.replace("rates: both", "rates: tuned")), tmp_path / "s")
    assert {rate.optimizer for rate in findings.rates} >= {"Lion"}
    assert all(value > 0 for rate in findings.rates for value, _ in rate.tried)

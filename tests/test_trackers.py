"""Trackers for whole studies: the runs stand grouped in them, and are the same runs."""

from __future__ import annotations

import json
import os
import random
import sqlite3
import sys
import types
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from transformers import TrainerCallback
from transformers.integrations import integration_utils

from hf_optim.commands import train as train_command
from hf_optim.commands.main import main
from hf_optim.core import importing
from hf_optim.errors import UserError
from hf_optim.experiment import feeding, trackers
from hf_optim.experiment.disk import check_error
from hf_optim.experiment.files import Refused, remove
from hf_optim.experiment.spec import RunSpec
from hf_optim.experiment.trackers import Tracked, following, names
from hf_optim.experiment.training import train
from hf_optim.study import conduct
from hf_optim.study.folder.changes import read_plan
from hf_optim.study.launch import jobs, worker
from hf_optim.study.launch.follow import Stage
from hf_optim.study.launch.launcher import Execution
from hf_optim.study.launch.messages import Request

YAML = """name: mine
seeds: 1
tasks: [{task: vision, model: mlp, size: smoke, overrides: {steps: 2}, label: ../digits}]
optimizers: [{name: adamw}, {name: sgd, label: plain sgd}]
"""
SPEC = RunSpec(task="vision", model="mlp", size="smoke", optimizer={"name": "adamw"}, overrides={"steps": 2})


def tracked(folder: Path, *report_to: str, optimizer: str = "adamw") -> Tracked:
    return Tracked(report_to, str(folder), "mine", "digits", optimizer, 0, SPEC.id)


def test_a_studys_runs_stand_grouped_and_no_run_is_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorBoard's files, and trackio's local database, of a study that one worker executes."""
    pytest.importorskip("trackio")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer

    (tmp_path / "s.yaml").write_text(YAML)
    out = tmp_path / "study"
    arguments = [str(tmp_path / "s.yaml"), "--output", str(out), "--jobs", "1"]
    assert main(["study", *arguments, "--report-to", "tensorboard,trackio"]) == 0
    plan = read_plan(out)
    seen = EventMultiplexer().AddRunsFromDirectory(str(out / "trackers" / "tensorboard")).Reload()
    assert sorted(seen.Runs()) == sorted(f"-digits/{run.optimizer.replace(' ', '-')}/0-{run.id}" for run in plan.runs)
    for run in plan.runs:
        record = json.loads((out / "runs" / run.id / "record.json").read_text())
        name = next(name for name in seen.Runs() if name.endswith(run.id))
        shown = seen.Scalars(name, "eval/measured_loss")[-1]
        assert shown.step == 2 and shown.value == pytest.approx(record["metrics"]["validation_loss"], rel=1e-6)
        assert not [p for p in (out / "runs" / run.id).rglob("*tfevents*")]
    with sqlite3.connect(tmp_path / "trackio" / "mine.db") as database:
        logged = {row[0] for row in database.execute("select distinct run_name from metrics")}
    assert logged == {f"{run.optimizer}/{run.seed}/{run.id}" for run in plan.runs}
    assert main(["study", *arguments]) == 0  # nothing is left to run: tracked or not, they are the same runs
    assert read_plan(out).runs == plan.runs


def test_the_short_way_to_a_study_is_tracked_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """`compare` hands trackers to what the test above runs."""
    given: list[dict[str, Any]] = []
    monkeypatch.setattr(conduct, "study", lambda *_, **options: given.append(options) or 0)
    command = ["compare", "adamw", "sgd", "--task", "vision", "--size", "smoke"]
    assert main([*command, "--report-to", "tensorboard, wandb"]) == main(command) == 0
    assert [options["report_to"] for options in given] == [("tensorboard", "wandb"), ()]


def test_an_unknown_tracker_is_said_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "s.yaml").write_text(YAML)
    for name, why in (("tensorbord", "is no tracker"), ("mlflow", "is not installed: pip install mlflow")):
        assert main(["study", str(tmp_path / "s.yaml"), "--output", str(tmp_path / "o"), "--report-to", name]) == 2
        assert why in (err := capsys.readouterr().err) and err.count("\n") == 1
    assert not (tmp_path / "o").exists() and names(" tensorboard, wandb,") == ("tensorboard", "wandb")


def test_wandb_is_told_group_and_name_and_is_offline_and_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What W&B reads, without W&B: a project a person named stays, a mode too, and afterwards nothing is left."""
    ended: list[str | None] = []
    fake = types.ModuleType("wandb")
    fake.finish = lambda: ended.append(os.environ.get("WANDB_NAME"))
    monkeypatch.setitem(sys.modules, "wandb", fake)
    for key in [key for key in os.environ if key.startswith("WANDB_")]:
        monkeypatch.delenv(key)
    monkeypatch.setenv("WANDB_PROJECT", "my-project")
    with pytest.raises(RuntimeError), following(tracked(tmp_path, "wandb")) as options:
        told = {key: value for key, value in os.environ.items() if key.startswith("WANDB_")}
        raise RuntimeError  # a run that fails ends its run in the tracker too
    assert told == {
        "WANDB_MODE": "offline", "WANDB_DISABLE_GIT": "true", "WANDB_PROJECT": "my-project",
        "WANDB_DIR": str(tmp_path / "trackers"), "WANDB_RUN_GROUP": "mine", "WANDB_JOB_TYPE": "digits",
        "WANDB_NAME": f"adamw/0/{SPEC.id}",
    }  # fmt: skip
    assert options == {"report_to": ("wandb",), "run_name": f"adamw/0/{SPEC.id}", "project": "mine"}
    assert ended == [f"adamw/0/{SPEC.id}"]
    assert [key for key in os.environ if key.startswith("WANDB_")] == ["WANDB_PROJECT"]
    monkeypatch.setenv("WANDB_MODE", "online")
    assert tracked(tmp_path, "wandb").environment()["WANDB_MODE"] == "online"


class Meddler(TrainerCallback):
    """A tracker that seeds the random states, as ClearML does, or that fails at an event."""

    fails_at = ""

    def __init__(self) -> None:
        self._meet("made")

    def on_train_begin(self, *_: object, **__: object) -> None:
        self._meet("begin")

    def on_log(self, *_: object, **__: object) -> None:
        self._meet("log")

    def _meet(self, event: str) -> None:
        random.seed(1337), numpy.random.seed(1337), torch.manual_seed(1337)
        if event == self.fails_at:
            raise RuntimeError("no server")


@pytest.fixture
def meddler(monkeypatch: pytest.MonkeyPatch) -> type[Meddler]:
    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "azure_ml", Meddler)
    available = integration_utils.get_available_reporting_integrations
    monkeypatch.setattr(integration_utils, "get_available_reporting_integrations", lambda: [*available(), "azure_ml"])
    monkeypatch.setattr(Meddler, "fails_at", "")
    return Meddler


def states() -> tuple[object, ...]:
    return random.getstate(), numpy.random.get_state()[1].tolist(), torch.get_rng_state().tolist()


@pytest.mark.parametrize("fails_at", ["", "made", "begin", "log"])
def test_a_tracker_changes_nothing_about_a_run(
    fails_at: str,
    tmp_path: Path,
    meddler: type[Meddler],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """ClearML seeds what a run draws, and a tracker without its server was a failed run."""
    alone = train(SPEC, tmp_path / "alone", progress=False)
    drawn = states()
    monkeypatch.setattr(meddler, "fails_at", fails_at)
    fed = train(SPEC, tmp_path / "fed", progress=False, report_to=["azure_ml"])
    assert (fed["status"], fed["metrics"], states()) == ("ok", alone["metrics"], drawn)
    said = "warning: report_to: azure_ml failed and is fed no more, and the run goes on (RuntimeError: no server)\n"
    assert capsys.readouterr().err == (said if fails_at else "")


def test_a_tracker_that_fails_takes_no_checkpoint(
    tmp_path: Path, meddler: type[Meddler], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was a damaged one, and a study removed it."""
    train(SPEC, tmp_path, progress=False, checkpoint_every=1)
    remove(tmp_path, "record.json"), remove(tmp_path, "checkpoint-2")
    monkeypatch.setattr(meddler, "fails_at", "begin")
    options: dict[str, Any] = {"progress": False, "checkpoint_every": 1, "resume": True, "report_to": ["azure_ml"]}
    assert train(SPEC, tmp_path, **options)["status"] == "ok"


def test_clearml_and_neptune_look_at_no_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    """ClearML starts git beside the run's script, and reads all Python of that repository, as a run waits; Neptune
    starts it in the current folder.
    """
    told: list[str] = []
    clearml = types.ModuleType("clearml")
    clearml.Task = types.SimpleNamespace(force_store_standalone_script=lambda: told.append("standalone"))
    monkeypatch.setitem(sys.modules, "clearml", clearml)
    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "clearml", lambda: told.append("made"))
    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "neptune", lambda git_ref: told.append(str(git_ref)))
    feeding.callbacks(["clearml", "neptune"], torch.device("cpu"))
    assert told == ["standalone", "made", "False"]


def test_what_is_open_in_a_tracker_is_ended_with_its_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next run of the process would go on in it."""
    ended: list[str] = []
    task = types.SimpleNamespace(close=lambda: ended.append("clearml"))
    fakes: dict[str, dict[str, Any]] = {
        "mlflow": {"end_run": lambda status: ended.append(f"mlflow {status}")},
        "clearml": {"Task": types.SimpleNamespace(current_task=lambda: task)},
        "comet_ml": {"end": lambda: 1 / 0},
        "swanlab": {"finish": lambda: ended.append("swanlab")},
    }
    monkeypatch.setattr(importing, "_asked", set())
    for name, members in fakes.items():
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
        vars(sys.modules[name]).update(members)
    with following(tracked(tmp_path, "tensorboard", *fakes)):
        pass
    assert ended == ["mlflow FAILED", "clearml", "swanlab"]  # what fails to end is a line


def test_a_studys_runs_stand_under_its_name_in_every_tracker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for key in ("MLFLOW_EXPERIMENT_NAME", "CLEARML_PROJECT", "CLEARML_LOG_MODEL", "SWANLAB_PROJECT"):
        monkeypatch.delenv(key, raising=False)
    monkeypatch.setenv("COMET_PROJECT_NAME", "my-project")
    assert tracked(tmp_path, "mlflow").environment()["MLFLOW_EXPERIMENT_NAME"] == "mine"
    assert tracked(tmp_path, "swanlab").environment() == {"SWANLAB_PROJECT": "mine"}
    assert tracked(tmp_path, "comet_ml").environment()["COMET_PROJECT_NAME"] == "my-project"
    told = tracked(tmp_path, "clearml").environment()
    assert told == {"CLEARML_PROJECT": "mine", "CLEARML_TASK": f"adamw/0/{SPEC.id}", "CLEARML_LOG_MODEL": "false"}


def test_a_label_is_no_path(tmp_path: Path) -> None:
    place = tracked(tmp_path, "tensorboard", optimizer="../../x").environment()["TENSORBOARD_LOGGING_DIR"]
    assert Path(place).resolve().is_relative_to(tmp_path / "trackers") and place.endswith(f"-x/0-{SPEC.id}")


@pytest.mark.parametrize("name", ["wandb", ".wandb"])
def test_wandb_is_led_nowhere_by_a_link(tmp_path: Path, name: str) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / trackers.FOLDER).mkdir()
    (tmp_path / trackers.FOLDER / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="is a link or no folder, and is not written through"):
        trackers.Tracked(("wandb",), str(tmp_path), "s", "vision", "adamw", 0, "abc").environment()


@pytest.mark.parametrize("place", ["trackers", "trackers/tensorboard"])
def test_what_stands_in_a_trackers_place_is_no_failed_run(tmp_path: Path, place: str) -> None:
    """Every run of the study was a failed one, and what it had done until then, its checkpoint, was gone."""
    (tmp_path / place).parent.mkdir(exist_ok=True)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / place).symlink_to(tmp_path / "elsewhere")
    (home := tmp_path / "runs" / SPEC.id / "checkpoint-1").mkdir(parents=True)
    request = Request(tmp_path, SPEC.id, SPEC.to_dict(), checkpoint_every=1, tracked=tracked(tmp_path, "tensorboard"))
    with pytest.raises(UserError, match=f"{place}: is a link or no folder, and is not written through: remove it"):
        worker.execute(request)
    assert [path.name for path in home.parent.iterdir()] == [home.name] and not [*(tmp_path / "elsewhere").iterdir()]
    with pytest.raises(UserError, match="samples: is a link: remove it"):  # of whatever a run writes
        check_error(tmp_path, Refused("samples", "is a link"))


def test_a_job_passes_trackers_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[tuple[str, ...]] = []
    monkeypatch.setattr(jobs.run, "execute", lambda todo, folder, how, **_: given.append(how.report_to) or {})
    monkeypatch.setattr(jobs, "read_plan", lambda folder: None)
    monkeypatch.setattr(jobs, "follow", lambda plan, folder: [Stage("runs", (), (), 1)])
    assert jobs.Share("/s", Execution(report_to=("wandb",)))()["problem"] == "" and given == [("wandb",)]


# --- what the current folder would tell trackers ---


def test_a_server_that_a_folder_names_is_not_sent_a_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "wandb").mkdir()
    trackers.check_settings(["wandb"], tmp_path)
    (tmp_path / "wandb" / "settings").write_text("[default]\nbase_url = http://them\n")
    trackers.check_settings(["tensorboard"], tmp_path)
    with pytest.raises(UserError, match="may send your key elsewhere"):
        trackers.check_settings(["wandb"], tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="W&B heeds wandb/settings"):
        trackers.check_settings(["wandb"], tmp_path / "study" / "trackers")


@pytest.mark.parametrize(
    ("name", "file"), [(name, file) for name, files in trackers._SETTINGS.items() for file in files]
)
def test_a_server_that_the_current_folder_names_is_not_sent_a_key(
    name: str, file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    trackers.check_settings([name], tmp_path / "study")
    (tmp_path / file).touch()
    trackers.check_settings(["tensorboard"], tmp_path / "study")
    run = tracked(tmp_path, name)
    for looks in (lambda: trackers.check_settings([name], tmp_path), lambda: trackers.check([name])):
        with pytest.raises(UserError, match="may send your key elsewhere"):
            looks()
    for within in (trackers.alone([name]), following(run)):  # before it is imported: that alone heeds them
        with pytest.raises(UserError, match="may send your key elsewhere"), within:
            pass


def test_wandb_writes_where_no_link_leads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It puts links in the place of a `debug.log` and of others that are called so there."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "wandb").symlink_to("../mine")
    monkeypatch.chdir(tmp_path / "theirs")
    monkeypatch.delenv("WANDB_DIR", raising=False)
    monkeypatch.setattr(trackers, "check", lambda _: None)
    with pytest.raises(UserError, match="W&B would write where wandb leads, which is a link"):
        train(SPEC, tmp_path / "run", report_to=["wandb"])
    trackers.check_settings(["tensorboard"], Path("."))
    trackers.check_settings(["wandb"], tmp_path / "mine")


def test_comet_asks_no_git_unless_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It applies the filters that the `.git/config` of the current folder names, which are programs."""
    monkeypatch.setattr(importing, "_asked", set())
    monkeypatch.setenv("COMET_AUTO_LOG_GIT_METADATA", "true")
    monkeypatch.delenv("COMET_AUTO_LOG_GIT_PATCH", raising=False)
    for within in (trackers.alone(["comet_ml"]), following(tracked(tmp_path, "comet_ml"))):
        with within:
            told = [os.environ.get(f"COMET_AUTO_LOG_GIT_{what}") for what in ("METADATA", "PATCH")]
        assert told == ["true", "false"] and importing._asked == {"comet_ml"}


def test_wandb_starts_no_git_and_sends_nothing_unless_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """git starts what the `.git/config` of the current folder says (core.fsmonitor, diff.external)."""
    for key in ("WANDB_MODE", "WANDB_DISABLE_GIT"):
        monkeypatch.delenv(key, raising=False)
    monkeypatch.setenv("RANK", "1")  # which prints nothing
    seen: list[tuple[str | None, str | None]] = []

    def trained(*_: object, **__: object) -> dict[str, object]:
        seen.append((os.environ.get("WANDB_MODE"), os.environ.get("WANDB_DISABLE_GIT")))
        return {"status": "ok"}

    monkeypatch.setattr("hf_optim.experiment.training.train", trained)
    line = ["--task", "vision", "--size", "smoke", "--optimizer", "adamw", "--quiet", "--output", str(tmp_path / "run")]
    train_command.main([*line, "--report-to", "wandb"])
    monkeypatch.setenv("WANDB_DISABLE_GIT", "false")
    train_command.main([*line, "--report-to", "wandb"])
    train_command.main(line)
    assert seen == [("offline", "true"), ("offline", "false"), (None, "false")]

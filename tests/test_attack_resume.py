"""A run that goes on from a checkpoint which is not what it wrote: that is said, and is no result of the run's."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from attack_parts import SPEC, Code, interrupted_run
from safetensors.torch import load_file, save_file
from study_fakes import make_study
from transformers import Trainer

from hf_optim.errors import DamagedCheckpoint, UserError
from hf_optim.experiment import checkpoint as checkpoints
from hf_optim.experiment import files
from hf_optim.experiment.checkpoint import last_checkpoint
from hf_optim.experiment.stopping import Pruned, Pruner
from hf_optim.experiment.task import Primary, load
from hf_optim.experiment.training import train
from hf_optim.hub import companion
from hf_optim.study.launch import worker
from hf_optim.study.launch.messages import Request


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return interrupted_run(tmp_path_factory.mktemp("run"))


def changed(name: str, change: Callable[[Any], Any]) -> Callable[[Path], Any]:
    def apply(checkpoint: Path) -> None:
        file = checkpoint / name
        torch.save(change(torch.load(file, weights_only=False)), file)

    return apply


def grouped(**values: Any) -> Callable[[Path], Any]:
    return changed("optimizer.pt", lambda v: {**v, "param_groups": [{**g, **values} for g in v["param_groups"]]})


def scheduled(**values: Any) -> Callable[[Path], Any]:
    return changed("scheduler.pt", lambda v: {**v, **values})


def others(checkpoint: Path) -> None:
    save_file({"another": torch.zeros(2)}, checkpoint / "model.safetensors", {"format": "pt"})


def lacking(kept: str, *told: str) -> Callable[[Path], Any]:
    """One tensor away, of weights in the file `kept`; what `told` says to hold it nonetheless."""

    def apply(checkpoint: Path) -> None:
        weights = load_file(checkpoint / "model.safetensors")
        (checkpoint / "model.safetensors").unlink()
        index = {"metadata": {}, "weight_map": dict.fromkeys(weights, kept)}
        weights.popitem()
        if kept.endswith(".bin"):
            torch.save(weights, checkpoint / kept)
        else:
            save_file(weights, checkpoint / kept, {"format": "pt"})
        for name in told:
            (checkpoint / name).write_text(json.dumps(index))

    return apply


def told(**more: Any) -> Callable[[Path], Any]:
    """Trainer's state says so, too."""

    def apply(checkpoint: Path) -> None:
        file = checkpoint / "trainer_state.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **more}))

    return apply


DAMAGED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "code": (changed("optimizer.pt", lambda _: Code()), "asks for .*system"),
    "code in random states": (changed("rng_state.pth", lambda _: Code()), "asks for .*system"),
    "no file of torch's": (lambda checkpoint: (checkpoint / "scheduler.pt").write_text("hello"), "no file of torch"),
    "a rate in words": (grouped(lr="x"), "lr must be a number"),
    "an initial rate in words": (grouped(initial_lr="x"), "initial_lr is no number"),
    "another rate": (grouped(lr=0.1), r"has the rates \[0.1, 0.1\], and its schedule \[0.001"),
    "other settings": (grouped(betas=(0.5, 0.5)), r"has betas = \(0.5, 0.5\), and the run \(0.9, 0.999\)"),
    "uphill": (grouped(maximize=True), "has maximize = True, and the run False"),
    "a schedule of other rates": (scheduled(base_lrs=[1.0, 1.0]), r"of the rates \[1.0, 1.0\]"),
    "a schedule of fewer rates": (scheduled(base_lrs=[0.001]), r"of the rates \[0.001\]"),
    "a schedule that begins anew": (scheduled(last_epoch=0), "its schedule is at step 0"),
    "a schedule that has had no rates": (scheduled(_last_lr=[]), r"and its schedule \[\]"),
    "a schedule's optimizer": (scheduled(optimizer=3), "scheduler.pt names optimizer"),
    "a short random state": (changed("rng_state.pth", lambda v: {**v, "cpu": v["cpu"][:3]}), "size"),
    "a state of others": (told(foo=1), "unexpected keyword argument 'foo'"),
    "a state of a search, whose name is a folder to write to": (told(is_hyper_param_search=True), "is of no search"),
    "a state of a trial": (told(trial_name="/elsewhere"), "trial_name: expected null"),
    "a state that asks what there is": (told(best_model_checkpoint="/elsewhere"), "checkpoint: expected null"),
    "a state that Trainer could not write again": (told(stateful_callbacks={}), "TrainerControl"),
    "a tensor away": (lacking("model.safetensors"), "lacks 1 tensors"),
    "and an index that has it": (lacking("model.safetensors", "model.safetensors.index.json"), "lacks 1 tensors"),
    "a tensor away in a shard": (lacking("model-1.safetensors", "model.safetensors.index.json"), "lacks 1 tensors"),
    "a tensor away of torch.save": (lacking("pytorch_model.bin"), "lacks 1 tensors"),
    "weights of others": (others, "lacks 4 tensors of MLPForImageClassification"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_checkpoint_is_no_failed_run(
    tmp_path: Path, interrupted: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch's own advice about code in a file is how to run it, and is not passed on."""
    damage, why = DAMAGED[name]
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / SPEC.id
    shutil.copytree(interrupted, folder)
    damage(folder / "checkpoint-2")
    with pytest.raises(DamagedCheckpoint, match=why) as error:
        train(SPEC, folder, progress=False, checkpoint_every=2, resume=True)
    assert "checkpoint-2 cannot be gone on with" in str(error.value) and "weights_only" not in str(error.value)
    assert not (folder / "record.json").exists() and not (tmp_path / "ran").exists()


def test_a_run_of_a_study_begins_anew_where_its_checkpoint_is_damaged(
    tmp_path: Path, interrupted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home = tmp_path / "runs" / SPEC.id
    shutil.copytree(interrupted, home)
    DAMAGED["code"][0](home / "checkpoint-2")
    assert worker.execute(Request(tmp_path, SPEC.id, SPEC.to_dict(), checkpoint_every=2)) == "ok"
    assert "optimizer.pt is no file of torch.save" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("file", "holds"),
    [
        ("spec.json", "{"),
        ("spec.json", json.dumps({**SPEC.to_dict(), "seed": 7})),
        ("checkpoint-2/x.index.json", "["),
        ("checkpoint-1/pytorch_model.bin.index.json", '{"weight_map": {"a": "../x"}}'),
    ],
)
def test_a_run_of_a_study_does_not_fail_by_what_lies_beside_its_checkpoint(
    tmp_path: Path, interrupted: Path, file: str, holds: str
) -> None:
    home = shutil.copytree(interrupted, tmp_path / "runs" / SPEC.id)
    (home / file).parent.mkdir(exist_ok=True)
    (home / file).write_text(holds)
    with pytest.raises(UserError, match="resume: "):
        train(SPEC, home, progress=False, checkpoint_every=2, resume=True)
    assert (home / "checkpoint-2").is_dir()
    assert worker.execute(Request(tmp_path, SPEC.id, SPEC.to_dict(), checkpoint_every=2)) == "ok"


def test_a_folder_in_the_place_of_a_runs_log_is_no_failed_run(tmp_path: Path, interrupted: Path) -> None:
    home = shutil.copytree(interrupted, tmp_path / "runs" / SPEC.id)
    (home / "log.txt").mkdir()
    with pytest.raises(UserError, match="log.txt: is a folder, and is not replaced: remove it"):
        worker.execute(Request(tmp_path, SPEC.id, SPEC.to_dict(), checkpoint_every=2))
    assert (home / "checkpoint-2").is_dir() and not (home / "record.json").exists()


@pytest.mark.parametrize("name", ["", "config.json", "model.safetensors", "hf_optim.json", "trainer_state.json"])
def test_what_stands_where_a_run_writes_its_next_checkpoint_is_no_failed_run(
    tmp_path: Path, interrupted: Path, name: str
) -> None:
    home = shutil.copytree(interrupted, tmp_path / "runs" / SPEC.id)
    later = home / "checkpoint-4"
    if name:
        (later / name).mkdir(parents=True)
        (later / "adapter").mkdir()
    else:
        later.write_text("")
    with pytest.raises(DamagedCheckpoint, match=f"checkpoint-4{'/' if name else ''}{name} stands where the run writes"):
        train(SPEC, home, progress=False, checkpoint_every=2, resume=True)
    assert (home / "checkpoint-2").is_dir() and not (home / "record.json").exists()
    assert worker.execute(Request(tmp_path, SPEC.id, SPEC.to_dict(), checkpoint_every=2)) == "ok"


def test_a_run_is_logged_and_kept_as_often_as_it_is_asked_to(tmp_path: Path, interrupted: Path) -> None:
    """A checkpoint said how often, and an edited one kept a run from being evaluated, and from stopping early."""
    rows = []
    for name, more in (("as it was", {}), ("edited", {"eval_steps": 900, "logging_steps": 900, "save_steps": 900})):
        folder = shutil.copytree(interrupted, tmp_path / name)
        told(**more)(folder / "checkpoint-2")
        assert train(SPEC, folder, progress=False, checkpoint_every=1, resume=True)["status"] == "ok"
        kept = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
        rows.append([{k: v for k, v in row.items() if "second" not in k and "runtime" not in k} for row in kept])
        assert (folder / "checkpoint-3").is_dir()
    assert rows[0] == rows[1]


def test_a_checkpoint_beyond_the_run_is_not_its_end(tmp_path: Path, interrupted: Path) -> None:
    folder = tmp_path / SPEC.id
    shutil.copytree(interrupted, folder)
    (folder / "checkpoint-2").rename(folder / "checkpoint-9000")
    state = folder / "checkpoint-9000" / "trainer_state.json"
    state.write_text(json.dumps({**json.loads(state.read_text()), "global_step": 9000}))
    with pytest.raises(UserError, match="is beyond the run's 4 steps"):
        train(SPEC, folder, progress=False, checkpoint_every=2, resume=True)


@pytest.mark.parametrize(
    ("ends", "steps"),
    [({"steps": 4}, 4), ({"steps": 90, "passes": 7}, 4), ({"steps": 4, "eval_every": 1, "patience": 1}, 1)],
    ids=str,
)
def test_a_run_that_goes_on_from_its_end_is_trained_no_further(
    tmp_path: Path, ends: dict[str, int], steps: int
) -> None:
    """Killed as it was evaluated, it was trained for a step more than planned, and said the better for it."""
    spec = replace(SPEC, optimizer={"name": "sgd", "lr": 0.0 if "patience" in ends else 0.1}, overrides=ends)
    whole = train(spec, tmp_path, progress=False, checkpoint_every=1)
    (tmp_path / "record.json").unlink()
    again = train(spec, tmp_path, progress=False, checkpoint_every=1, resume=True)
    assert whole["status"] == "ok" and whole["time"]["steps"] == again["time"]["steps"] == steps
    assert again["metrics"] == whole["metrics"]


def test_a_search_stops_a_resumed_run_by_all_that_it_had() -> None:
    """What it had reached before it was interrupted was forgotten."""
    rows = [{"step": step, "eval_accuracy": value} for step, value in ((0, 0.95), (2, 0.9), (4, 0.5))]
    for limit, stopped in ((0.8, False), (0.92, True)):
        pruner = Pruner(Primary("test_accuracy", True), [[4, limit]])
        with pytest.raises(Pruned) if stopped else nullcontext():
            pruner.on_evaluate(None, SimpleNamespace(log_history=rows, global_step=4), None)


@pytest.mark.parametrize("missing", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
@pytest.mark.parametrize("left", ["", ".part"])
def test_what_a_run_goes_on_from_is_all_there(tmp_path: Path, interrupted: Path, missing: str, left: str) -> None:
    """Trainer would begin anew with what is missing, and say nothing. A copy that was cut short leaves a file under a
    name of its own, which Trainer does not read.
    """
    shutil.copytree(interrupted, tmp_path / "run")
    assert last_checkpoint(tmp_path / "run", training=True)
    file = tmp_path / "run" / "checkpoint-2" / missing
    file.rename(f"{file}{left}") if left else file.unlink()
    assert last_checkpoint(tmp_path / "run", training=True) is None and last_checkpoint(tmp_path / "run")


def test_random_states_of_other_processes_are_told(
    tmp_path: Path, interrupted: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Trainer goes on without any, and does not say so."""
    for written, told in ((["rng_state_0.pth", "rng_state_1.pth"], True), (["rng_state.pth"], False)):
        folder = tmp_path / written[0] / SPEC.id
        saved = shutil.copytree(interrupted, folder) / "checkpoint-2"
        state = (saved / "rng_state.pth").read_bytes()
        (saved / "rng_state.pth").unlink()
        for name in written:
            (saved / name).write_bytes(state)
        assert train(SPEC, folder, checkpoint_every=2, resume=True)["status"] == "ok"
        assert ("was written by another number of processes: from there on" in capfd.readouterr().err) == told


def test_weights_that_a_checkpoint_lacks_are_not_drawn(tmp_path: Path, interrupted: Path) -> None:
    theirs = tmp_path / "theirs"
    shutil.copytree(interrupted / "checkpoint-2", theirs)
    weights = load_file(theirs / "model.safetensors")
    assert checkpoints.read_model(load("vision"), "mlp", theirs) is not None
    save_file({**weights, "classifier.bias": torch.zeros(3, 4)}, theirs / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"holds classifier.bias as \(3, 4\), which is \(10,\) in MLPForImage"):
        checkpoints.read_model(load("vision"), "mlp", theirs)
    weights.pop(next(iter(weights)))
    save_file(weights, theirs / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="lacks 1 tensors of MLPForImageClassification"):
        checkpoints.read_model(load("vision"), "mlp", theirs)
    config = json.loads((theirs / "config.json").read_text())
    (theirs / "config.json").write_text(json.dumps({**config, "num_labels": 9_000_000}))
    with pytest.raises(UserError, match="counts beyond what its files hold"):
        checkpoints.read_model(load("vision"), "mlp", theirs)


def test_what_a_checkpoint_says_of_its_run_moves_no_cursor(tmp_path: Path) -> None:
    (tmp_path / companion.FILE).write_text(json.dumps({"processes": "\x1b]0;theirs\x07", "step_samples": "\n\x1b[2J"}))
    args = SimpleNamespace(world_size=1, train_batch_size=1, gradient_accumulation_steps=1)
    said = companion.differences(args, {"name": "sgd"}, str(tmp_path))
    assert said and not any(letter in line for line in said for letter in "\x1b\x07\n")


def test_what_we_say_beside_a_checkpoint_is_not_written_through_a_link(tmp_path: Path) -> None:
    mine, made_before = tmp_path / "mine", tmp_path / "checkpoint-4"
    mine.write_text("keep")
    made_before.mkdir()
    (made_before / companion.FILE).symlink_to(mine)
    args = SimpleNamespace(
        world_size=1, train_batch_size=1, gradient_accumulation_steps=1, process_index=0, output_dir=str(tmp_path)
    )
    companion.write(args, {"name": "sgd"}, 4)
    assert mine.read_text() == "keep" and not (made_before / companion.FILE).is_symlink()
    assert companion.differences(args, {"name": "adamw"}, str(made_before))


def test_a_record_that_the_disk_does_not_give_is_not_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A network file system that is away for a moment, too many open files, another user's record: the run's folder was
    thrown away with its record, and the run begun anew.
    """
    study = make_study(tmp_path / "study", ("adamw", "sgd"), seeds=2)
    run = json.loads((study / "plan.json").read_text())["runs"][0]
    file = study / "runs" / run["id"] / "record.json"
    before, read_bytes = file.read_bytes(), files.read_bytes

    def away(folder: Path, name: str, *most: int) -> bytes:
        if study.resolve() in (folder / name).resolve().parents and name.endswith("record.json"):
            raise OSError(errno.EIO, "Input/output error")
        return read_bytes(folder, name, *most)

    monkeypatch.setattr(files, "read_bytes", away)
    with pytest.raises(UserError, match="Input/output error.*nothing was removed"):
        worker.execute(Request(study, run["id"], run["spec"]))
    assert file.read_bytes() == before


def _held(file: str, error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on a checkpoint's file of that name cannot be read."""
    read_bytes, opened, load_model = files.read_bytes, Path.open, Trainer._load_from_checkpoint

    def read(folder: Path, name: str, *most: int) -> bytes:
        if name.endswith(file):
            raise error
        return read_bytes(folder, name, *most)

    def open_(path: Path, *how: Any, **more: Any) -> Any:
        if path.name == file:
            raise error
        return opened(path, *how, **more)

    def load(*given: Any, **more: Any) -> None:
        if file == "the model":
            raise error
        load_model(*given, **more)

    monkeypatch.setattr(files, "read_bytes", read)
    monkeypatch.setattr(Path, "open", open_)
    monkeypatch.setattr(Trainer, "_load_from_checkpoint", load)


@pytest.mark.parametrize(
    ("file", "error"),
    [
        ("trainer_state.json", OSError(errno.EIO, "Input/output error")),
        ("optimizer.pt", OSError(errno.EMFILE, "Too many open files")),
        ("scheduler.pt", PermissionError(errno.EACCES, "Permission denied")),
        ("the model", torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")),
    ],
)
def test_a_checkpoint_that_the_machine_does_not_give_is_not_taken_away(
    tmp_path: Path, interrupted: Path, monkeypatch: pytest.MonkeyPatch, file: str, error: BaseException
) -> None:
    """It counted as damaged: the run was begun anew, and all its checkpoints were gone."""
    home = shutil.copytree(interrupted, tmp_path / "runs" / SPEC.id)
    before = sorted(path.relative_to(home) for path in home.glob("checkpoint-*/*"))
    request = Request(tmp_path, SPEC.id, SPEC.to_dict(), checkpoint_every=2)
    with monkeypatch.context() as now:
        _held(file, error, now)
        with pytest.raises(UserError, match=r"resume: .*cannot be read now \(.*nothing was removed"):
            train(SPEC, home, progress=False, checkpoint_every=2, resume=True)
        if isinstance(error, OSError):
            with pytest.raises(UserError, match="nothing was removed"):
                worker.execute(request)
        else:
            assert worker.execute(replace(request, last=False)) == "fault"  # which is tried again, alone
            assert worker.execute(request) == "failed"
            (home / "record.json").unlink()  # as --retry-failed does
    assert sorted(path.relative_to(home) for path in home.glob("checkpoint-*/*")) == before
    assert not (home / "record.json").exists()
    assert worker.execute(request) == "ok"


@pytest.mark.parametrize("status", ["busy", "fault", "broken", "stopped", True, ["ok"]])
def test_a_record_answers_nothing_but_how_a_run_has_ended(tmp_path: Path, status: object) -> None:
    """A launcher that reads "busy" waits for whoever is at the run, without end."""
    (home := tmp_path / "runs" / SPEC.id).mkdir(parents=True)
    (home / "record.json").write_text(json.dumps({"status": status}))
    with pytest.raises(UserError, match="record.json: not a record of a run; remove it"):
        worker.execute(Request(tmp_path, SPEC.id, SPEC.to_dict()))


def test_a_state_under_a_name_that_trainer_does_not_read_is_told_as_lacking(tmp_path: Path) -> None:
    for name in ("optimizer.pt", "scheduler.pt"):
        (tmp_path / name).touch()
    assert companion.lost(tmp_path) is None
    (tmp_path / "optimizer.pt").rename(tmp_path / "optimizer.pt.part")
    assert "has no optimizer state" in str(companion.lost(tmp_path))
    (tmp_path / "optimizer_0").mkdir()
    assert companion.lost(tmp_path) is None

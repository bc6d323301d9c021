"""Run specifications, schedules, and how tasks are found."""

import dataclasses
import math

import pytest

from hf_optim.errors import UserError
from hf_optim.experiment import task
from hf_optim.experiment.spec import SIZES, RunSpec
from hf_optim.experiment.task import check_run
from hf_optim.hub import schedules


def test_the_id_depends_on_every_field_and_nothing_else() -> None:
    base = RunSpec(task="vision", model="mlp", optimizer={"name": "adamw", "lr": 0.1})
    assert RunSpec.from_dict(base.to_dict()) == base
    assert RunSpec(task="vision", model="mlp", optimizer={"lr": 0.1, "name": "adamw"}).id == base.id
    changes = {
        "task": "other", "model": "resnet", "size": "smoke", "optimizer": {"name": "adamw", "lr": 0.2}, "seed": 1,
        "data": "emoji", "schedule": {"name": "cosine"}, "overrides": {"epochs": 2},
        "options": {"hidden_size": 8}, "pruning": [[2, 0.5]],
    }  # fmt: skip
    assert set(changes) == {field.name for field in dataclasses.fields(RunSpec)}
    ids = {dataclasses.replace(base, **{key: value}).id for key, value in changes.items()}
    assert len(ids | {base.id}) == len(changes) + 1
    assert len(base.id) == 12 and int(base.id, 16) >= 0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"task": "vision", "optimizer": "adamw", "sede": 1}, "unknown key 'sede' .*valid: task, model, size"),
        ({"task": "vision"}, "missing key 'optimizer'"),
        ({"task": "vision", "optimizer": {"lr": 1}}, "a mapping with a name"),
        ({"task": "vision", "optimizer": "adamw", "seed": True}, "seed: expected an integer"),
        ({"task": "vision", "optimizer": "adamw", "seed": -1}, "seed: expected an integer"),
        ({"task": "vision", "optimizer": "adamw", "size": "huge"}, "size must be smoke, small or paper, got 'huge'"),
        ({"task": "vision", "optimizer": "adamw", "overrides": {"epoch": 1}}, "unknown key 'epoch' .*valid: steps"),
        ({"task": "vision", "optimizer": "adamw", "overrides": {"epochs": 0}}, "epochs must be 1 or more"),
        ({"task": "vision", "optimizer": "adamw", "overrides": {"epochs": 1.5}}, "epochs must be a number"),
        ({"task": "vision", "optimizer": "adamw", "overrides": {"epochs": 1, "steps": 2}}, "give one of them"),
        ({"task": "vision", "optimizer": "adamw", "schedule": "cosin"}, "unknown name 'cosin' .*valid: constant"),
        ({"task": "vision", "optimizer": "adamw", "schedule": {"name": "linear", "at": 1}}, "valid: warmup, end"),
    ],
)
def test_bad_specs_say_what_is_wrong(values, message) -> None:
    with pytest.raises(UserError, match=message):
        RunSpec.from_dict(values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": "visoin"}, "unknown task 'visoin' .*choose from .*vision"),
        ({"model": "vit"}, "no model 'vit' .*choose from mlp, resnet"),
        ({"optimizer": "smarn"}, "smaran"),
        ({"optimizer": {"name": "smaran", "gama": 1}}, "gamma"),
    ],
)
def test_check_names_what_is_unknown(change, message) -> None:
    with pytest.raises(UserError, match=message):
        check_run(RunSpec.from_dict({"task": "vision", "optimizer": "adamw", **change}))


def test_a_task_of_ones_own_file(tmp_path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("from hf_optim.tasks.vision import Vision\nMINE = Vision()\nOTHER = 3\n")
    assert task.load(f"{file}:MINE").name == "vision"
    for name, message in (
        (f"{file}:NO", "has no NO"),
        (f"{file}:OTHER", "not an instance"),
        (f"{tmp_path}/no.py:A", "no file"),
    ):
        with pytest.raises(UserError, match=message):
            task.load(name)


def test_every_preset_value_says_where_it_is_from() -> None:
    described = task.describe("vision")
    assert described["models"][:2] == ["mlp", "resnet"] and described["primary"]["name"] == "test_accuracy"
    assert set(described["sizes"]) == set(SIZES)
    for size in described["sizes"].values():
        for preset in size["presets"].values():
            assert {entry["source"] for entry in preset.values()} <= {"paper", "code", "ours"}
    tlr = described["sizes"]["paper"]["presets"]["mlp"]
    assert (tlr["epochs"]["value"], tlr["batch_size"]["value"], tlr["epochs"]["source"]) == (20, 128, "paper")
    assert tlr["optimizer"]["value"] == {"name": "sgd", "lr": 0.1}
    smaran = described["sizes"]["paper"]["presets"]["resnet50@smaran-cifar10"]
    assert (smaran["epochs"]["value"], smaran["schedule"]["value"]["name"]) == (100, "constant")


@pytest.mark.parametrize(
    ("schedule", "late"),
    [
        ({"name": "multistep", "at": [0.5, 30, 99, 100]}, "at 100"),
        ({"name": "cosine", "warmup": 500}, "warmup 500"),
        ({"name": "step", "every": 100}, "every 100"),
        ({"name": "wsd", "warmup": 0.1}, ""),
    ],
)
def test_what_of_a_schedule_a_run_ends_before(schedule, late) -> None:
    said = schedules.unreached(schedule, 100)
    assert said.startswith(f"the run ends after 100 steps, before its schedule's {late}: ") if late else said == ""


def test_schedules_at_their_corners() -> None:
    def at(schedule, step, total=100) -> float:
        return schedules.factor({"name": schedule} if isinstance(schedule, str) else schedule, total)(step)

    assert [at("constant", step) for step in (0, 50, 99)] == [1, 1, 1]
    assert (at("linear", 0), at("linear", 50), at("linear", 100)) == (1, 0.5, 0)
    assert at("cosine", 50) == pytest.approx(0.5) and at("cosine", 100) == pytest.approx(0)
    assert at({"name": "cosine", "cycles": 2}, 50) == pytest.approx(1) and at("cosine", 0) == 1
    assert [at("multistep", step) for step in (49, 50, 74, 75)] == pytest.approx([1, 0.1, 0.1, 0.01])
    assert at({"name": "multistep", "at": [60, 120], "gamma": 0.2}, 130, 200) == pytest.approx(0.04)
    assert at({"name": "step", "every": 30}, 65) == pytest.approx(0.01)
    warm = [at({"name": "linear", "warmup": 0.1}, step) for step in range(11)]
    assert warm[0] > 0 and warm == sorted(warm) and warm[10] == 1
    assert math.isclose(warm[4], 5 / 11)


@pytest.mark.parametrize("name", task.names())
def test_tasks_declare_which_way_is_better(name) -> None:
    loaded = task.load(name)
    stems = [metric.name for metric in (*loaded.metrics, *task.EVERY_RUN)]
    assert len(stems) == len(set(stems))
    for metric in loaded.metrics:
        if metric.name == loaded.primary.stem:
            assert metric.greater_is_better is loaded.primary.greater_is_better
    primary = loaded.metric(loaded.primary.name)
    assert primary is not None and primary.greater_is_better is loaded.primary.greater_is_better
    assert loaded.metric("validation_loss").greater_is_better is False and loaded.metric("test_nothing") is None

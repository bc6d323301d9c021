"""No file of a run or a study, whatever became of it, ends in a traceback: it is read, or refused in one line.

A part of what `scripts/mutate_files.py` does with a thousand mutations of each kind.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from mutated import mutated, mutated_bytes
from study_fakes import make_study
from tuning_fakes import YAML, expand, whole

import hf_optim
from hf_optim import registry
from hf_optim.core import importing
from hf_optim.errors import UserError
from hf_optim.experiment import checkpoint as checkpoints
from hf_optim.experiment.preparation import check_kept
from hf_optim.experiment.spec import RunSpec
from hf_optim.experiment.task import check_run
from hf_optim.hub import schedules
from hf_optim.study import conduct
from hf_optim.study.folder import results, rows
from hf_optim.study.plan import values
from hf_optim.study.plan.source import parse
from hf_optim.study.report import exports

EXAMPLES = int(os.environ.get("MUTATIONS", "12"))
many = settings(
    max_examples=EXAMPLES,
    derandomize="MUTATIONS" not in os.environ,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
WITH_BLOCKS = (
    YAML.replace("seeds: 3", "seeds: 2").replace("trials: 6", "trials: 2\n  steps: 1000\n  prune: median")
    + "sensitivity: {values: [0.01, 0.1]}\nvariance: {seeds: 2}\nmargin: 0.01\n"
    "targets: {MLP: {metric: validation_accuracy, value: 0.5}}\n"
)


def quietly(act: Callable[[], Any]) -> str:
    """What `act` printed; a UserError is printed too, in one line, and nothing else may be raised."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        try:
            act()
        except UserError as error:
            assert "\n" not in str(error) and 0 < len(str(error)) < 2000, str(error)[:300]
            print(f"error: {error}")
    text = out.getvalue()
    text.encode()
    assert not any(ord(c) < 32 and c != "\n" for c in text)
    return text


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_study(tmp_path_factory.mktemp("plain") / "s", ("adamw", "smaran"), seeds=2, steps=20)


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return whole(expand(WITH_BLOCKS), tmp_path_factory.mktemp("tuned") / "s")


@contextlib.contextmanager
def put(file: Path, content: bytes) -> Iterator[None]:
    """`file` with another content meanwhile."""
    before = file.read_bytes()
    file.write_bytes(content)
    try:
        yield
    finally:
        file.write_bytes(before)


def look(folder: Path) -> str:
    """The report, the rows and each export."""

    def every() -> None:
        conduct.finish(folder)
        table = rows.of(results.load(folder))
        for write in (exports.csv, exports.markdown, exports.latex):
            write(table, rows.columns(table)).encode()

    return quietly(every)


def victim(folder: Path) -> Path:
    return sorted((folder / "runs").iterdir())[0]


@many
@given(st.data())
def test_records(plain: Path, data: st.DataObject) -> None:
    file = victim(plain) / "record.json"
    content = data.draw(mutated(file.read_text()))
    with put(file, content):
        said = look(plain)
    assert "Report: " in said  # of the rest
    page = (plain / "report.html").read_text()
    assert "<script>alert" not in page and "\x1b" not in page


@many
@given(st.data())
def test_histories(plain: Path, data: st.DataObject) -> None:
    file = victim(plain) / "history.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    number = data.draw(st.integers(0, len(lines) - 1))
    lines[number] = data.draw(mutated(lines[number])).decode(errors="surrogateescape") + "\n"
    content = "".join(lines).encode(errors="surrogateescape")
    if data.draw(st.booleans()):
        content = data.draw(mutated_bytes(content))
    with put(file, content):
        assert "Report: " in look(plain)


@many
@given(st.data())
def test_plans(plain: Path, tuned: Path, data: st.DataObject) -> None:
    folder = data.draw(st.sampled_from([plain, tuned]))
    file = folder / "plan.json"
    with put(file, data.draw(mutated(file.read_text()))):
        said = look(folder)
    assert ("Report: " in said) != said.startswith("error: ")


@pytest.mark.parametrize(
    "damage",
    ["a wrapper without a base", "a setting of the run that is a number", "a search that is missing", "a new source"],
)
def test_plans_whose_settings_cannot_be_put_together(tuned: Path, damage: str) -> None:
    file = tuned / "plan.json"
    plan = json.loads(file.read_text())
    if damage == "a wrapper without a base":
        next(o for o in plan["optimizers"] if "base" in o["spec"])["spec"]["base"] = None
    elif damage == "a search that is missing":
        del plan["tuning"]["cells"][0]
    elif damage == "a new source":
        plan["variance"]["sources"][0] = "weather"
    else:
        cell = plan["tuning"]["cells"][0]
        cell["space"]["run"] = cell["space"].pop("lr")
        for point in cell["points"]:
            point["run"] = point.pop("lr")
    with put(file, json.dumps(plan).encode()):
        said = look(tuned)
    assert ("Report: " in said) != said.startswith("error: ")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda plan: plan["tasks"][0].update(steps=None), "the steps of 'MLP'"),
        (lambda plan: plan["tasks"][0].update(steps=0), "the steps of 'MLP'"),
        (lambda plan: plan["tasks"][0].pop("steps"), "the steps of 'MLP'"),
        (lambda plan: plan["margin"].update(MLP=0) or plan.update(family="score"), "a margin is 1e-150 at least"),
        (lambda plan: plan["sensitivity"].update(values=[]), "two at least"),
        (lambda plan: plan.update(speedup={"budgets": [0, 1]}), "budgets"),
        (lambda plan: plan.update(speedup={"budgets": [1], "in": "passes"}), "no passes"),
        (lambda plan: plan["tuning"]["cells"][0]["points"][0].update(lr=0), "the cell of"),
    ],
)
def test_numbers_that_no_yaml_could_give_are_one_line(tuned: Path, damage: Callable[[Any], Any], said: str) -> None:
    file = tuned / "plan.json"
    plan = json.loads(file.read_text())
    damage(plan)
    with put(file, json.dumps(plan).encode()):
        assert look(tuned).startswith("error: ") and said in look(tuned)


@many
@given(st.data())
def test_records_of_trials(tuned: Path, data: st.DataObject) -> None:
    home = data.draw(st.sampled_from(sorted((tuned / "runs").iterdir())))
    file = home / data.draw(st.sampled_from(["record.json", "history.jsonl"]))
    text = file.read_text()
    content = data.draw(mutated(text) if file.suffix == ".json" else mutated_bytes(text.encode()))
    with put(file, content):
        look(tuned)


SPEC = RunSpec(task="vision", model="mlp", size="smoke", optimizer={"name": "tlr", "gamma": 0.3,
    "base": {"name": "sgd"}},
               schedule={"name": "cosine", "warmup": 0.1}, overrides={"steps": 3},
               options={"hidden_size": 8})  # fmt: skip


@many
@given(st.data())
def test_specifications(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("run")
    (folder / "checkpoint-1").mkdir()
    (folder / "checkpoint-1" / "config.json").write_text("{}")
    (folder / "spec.json").write_bytes(data.draw(mutated(json.dumps(SPEC.to_dict()))))

    def act() -> None:
        with importing.refused("nobody asked"):
            check_run(checkpoints.specification(folder / "checkpoint-1", None))

    quietly(act)
    quietly(lambda: check_kept(folder, SPEC))
    shutil.rmtree(folder)


@many
@given(st.data())
def test_yamls(data: st.DataObject) -> None:
    text = data.draw(st.one_of(
        mutated_bytes(WITH_BLOCKS.encode()),
        mutated(json.dumps(parse(WITH_BLOCKS, "s.yaml").value)),  # JSON is YAML
    ))  # fmt: skip

    def act() -> None:
        source = parse(text.decode("utf-8", errors="replace"), "s.yaml")
        with importing.refused("nobody asked"):
            values.check_values(conduct.planning.expand(source), source)

    said = quietly(act)
    assert not said or said.startswith("error: s.yaml") or "error: [" in said, said


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of a task in the folder of a checkpoint."""
    task, model, preset = check_run(SPEC)
    folder = tmp_path_factory.mktemp("saved") / "checkpoint-1"
    task.model(model, preset, task.data(preset, None)).save_pretrained(folder)
    (folder / "trainer_state.json").write_text(
        json.dumps({"global_step": 1, "log_history": [{"step": 1, "loss": 2.0}]})
    )
    return folder


@many
@given(st.data())
def test_checkpoints(saved: Path, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(["config.json", "config.json", "trainer_state.json", "model.safetensors"]))
    file = saved / name
    content = data.draw(mutated_bytes(file.read_bytes()) if file.suffix != ".json" else mutated(file.read_text()))
    task = check_run(SPEC)[0]

    def act() -> None:
        checkpoints.check_checkpoint(saved)
        checkpoints.read_model(task, "mlp", saved)

    with put(file, content):
        checkpoints.last_checkpoint(saved.parent)
        quietly(act)


JUNK: list[Any] = [None, True, -1, 3.5, float("nan"), float("inf"), 10**30, "x", [], {}, [1], torch.zeros(2),
    torch.zeros(()),
                   torch.zeros(7, 7), torch.zeros(2, dtype=torch.int64), torch.tensor(float("nan"))]  # fmt: skip


@many
@given(st.data())
def test_states_of_optimizers(data: st.DataObject) -> None:
    """What `load_state_dict` refuses has changed nothing; what it takes, it can step with or refuse in words."""
    name = data.draw(st.sampled_from(["smaran", "adamw", "lion", "hd_adam"]))

    def build() -> tuple[torch.nn.Linear, Any]:
        torch.manual_seed(0)
        model = torch.nn.Linear(3, 2)
        optimizer = registry.create(name, model.parameters(), **({} if name == "smaran" else {"lr": 0.1}))
        return model, optimizer

    def step(model: torch.nn.Linear, optimizer: Any) -> None:
        loss = model(torch.ones(4, 3)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step(lambda: loss)

    model, optimizer = build()
    step(model, optimizer)
    state = optimizer.state_dict()
    ways = [("state",), ("param_groups",), ("param_groups", 0)]
    ways += [("param_groups", 0, key) for key in state["param_groups"][0]]
    ways += [("state", i) for i in state["state"]] + [
        ("state", i, k) for i, entry in state["state"].items() for k in entry
    ]
    way, new = data.draw(st.sampled_from(ways)), data.draw(st.sampled_from(JUNK))
    holder = state
    for key in way[:-1]:
        holder = holder[key]
    if data.draw(st.integers(0, 3)) == 0 and isinstance(holder, dict):
        del holder[way[-1]]
    else:
        holder[way[-1]] = new
    model, other = build()
    step(model, other)
    before = repr(other.state_dict())
    try:
        other.load_state_dict(state)
    except UserError as error:
        assert "\n" not in str(error) and repr(other.state_dict()) == before
        return
    with contextlib.suppress(UserError):
        step(model, other)


# --- what a thousand mutations found once ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "bounds",
    [[], ["log"], ["log", 1.0], ["linear", 0, 1, 2], ["log", 0.0, 1.0], ["log", 2.0, 1.0], ["choice"], ["choice", []]],
)
def test_a_search_space_with_other_than_its_kind_and_ends_is_a_damaged_plan(tuned: Path, bounds: list[Any]) -> None:
    plan = json.loads((tuned / "plan.json").read_text())
    cell = next(cell for cell in plan["tuning"]["cells"] if cell["space"])
    cell["space"][next(iter(cell["space"]))] = bounds
    with put(tuned / "plan.json", json.dumps(plan).encode()):
        assert "is damaged" in look(tuned)


def test_a_name_of_30000_letters_is_shortened() -> None:
    said = str(UserError(f"there is no optimizer {'y' * 30_000!r}; others are there"))
    assert len(said) < 300 and said.endswith("(30003 letters) others are there")


def test_a_required_key_without_a_value_is_named_with_its_line() -> None:
    with pytest.raises(UserError, match="s.yaml, line 2: trials has no value"):
        parse("tuning:\n  trials: \n", "s.yaml").check_keys(("tuning",), {"trials": None}, ("trials",), ("trials",))


@pytest.mark.parametrize(("name", "key"), [("adamw", "amsgrad"), ("adamw", "betas"), ("rmsprop", "centered")])
def test_a_tensor_in_the_place_of_an_option_is_refused_in_words(name: str, key: str) -> None:
    opt = hf_optim.create(name, [torch.nn.Parameter(torch.ones(2))])
    state = opt.state_dict()
    state["param_groups"][0][key] = torch.zeros(2)
    with pytest.raises(UserError, match=key):
        opt.load_state_dict(state)


def test_a_step_that_no_float_holds_is_left_out_of_the_curves(plain: Path) -> None:
    file = victim(plain) / "history.jsonl"
    lines = file.read_text().splitlines()
    with put(file, "\n".join([f'{{"step": {10**400}, "train_loss": 1.0}}', *lines]).encode()):
        assert "Report: " in look(plain)


def test_a_tuning_without_its_budget_is_a_damaged_plan(tuned: Path) -> None:
    plan = json.loads((tuned / "plan.json").read_text())
    del plan["tuning"]["steps"]
    with put(tuned / "plan.json", json.dumps(plan).encode()):
        assert look(tuned).startswith("error: ")


def test_a_warm_up_that_no_float_holds_is_refused() -> None:
    with pytest.raises(UserError, match="warmup must be a finite number"):
        schedules.check_schedule({"name": "cosine", "warmup": 10**400})


def test_an_architecture_that_is_no_name_is_no_traceback(saved: Path) -> None:
    config = json.loads((saved / "config.json").read_text())
    with put(saved / "config.json", json.dumps({**config, "architectures": [[["x"]]]}).encode()):
        quietly(lambda: checkpoints.read_model(check_run(SPEC)[0], "mlp", saved))


def test_a_tensor_in_the_place_of_the_rules_name_is_refused() -> None:
    opt = hf_optim.create("adamw", [torch.nn.Parameter(torch.ones(2))])
    state = opt.state_dict()
    state["param_groups"][0]["made_by"] = torch.zeros(3, 2)
    with pytest.raises(UserError, match="another optimizer"):
        opt.load_state_dict(state)


def test_a_tensor_is_shown_in_one_line() -> None:
    assert str(UserError(f"lr must be a number, got {torch.zeros(2, 2)}")).endswith("got tensor([[0., 0.], [0., 0.]])")

"""Who may have code run: the user who names it, and no file that does."""

from __future__ import annotations

import importlib.util
import json
import py_compile
import re
import resource
from pathlib import Path
from typing import Any

import pytest
from study_fakes import make_study, replan
from tuning_fakes import write

from hf_optim import registry
from hf_optim.commands.main import main
from hf_optim.core import importing
from hf_optim.errors import UserError
from hf_optim.experiment.checkpoint import specification
from hf_optim.experiment.spec import RunSpec
from hf_optim.study import conduct
from hf_optim.study.launch import launcher, worker
from hf_optim.study.launch.messages import Request

CODE = """
import pathlib, torch
pathlib.Path({mark!r}).write_text("ran")
class Mine(torch.optim.SGD):
    def __init__(self, params, lr=0.1):
        super().__init__(params, lr)
class Never(torch.optim.SGD):
    def __init__(self, params, lr=0.1):
        raise OSError("no licence")
TASK = None
"""


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    return tmp_path / "it ran"


@pytest.fixture
def code(tmp_path: Path, mark: Path) -> str:
    file = tmp_path / "theirs.py"
    file.write_text(CODE.format(mark=str(mark)))
    return f"{file}:Mine"


def yaml(code: str, task: str = "vision") -> str:
    task = f"{{task: '{task}', model: mlp, size: smoke, overrides: {{steps: 2}}}}"
    return f"name: s\nseeds: 1\ntasks:\n  - {task}\noptimizers:\n  - adamw\n  - {{name: '{code}', label: theirs}}\n"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether the workers were told to trust, instead of workers."""
    told: list[bool] = []

    def execute(todo: Any, folder: Path, how: launcher.Execution, **_: Any) -> dict[str, str]:
        told.append(how.trust)
        for run in todo:
            write(run, folder, {"test_accuracy": 0.5, "validation_accuracy": 0.5, "validation_loss": 0.7})
        return {}

    monkeypatch.setattr(launcher, "execute", execute)
    return told


def run(*arguments: object) -> int:
    return main([str(word) for word in arguments])


def test_a_yaml_that_is_named_may_have_its_code_run(tmp_path: Path, code: str, mark: Path, asked: list[bool]) -> None:
    (tmp_path / "s.yaml").write_text(yaml(code))
    assert run("study", tmp_path / "s.yaml", "--output", tmp_path / "out") == 0
    assert mark.exists() and asked == [True]


def test_a_dry_run_runs_nothing_that_is_not_ours(
    tmp_path: Path, code: str, mark: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "s.yaml").write_text(yaml(code))
    assert run("study", tmp_path / "s.yaml", "--output", tmp_path / "out", "--dry-run") == 0
    out = capsys.readouterr().out
    assert not mark.exists() and f"not checked: theirs: {code} is code, which was not run" in out
    (tmp_path / "t.yaml").write_text(yaml("sgd", task=code.replace("Mine", "TASK")))
    assert run("study", tmp_path / "t.yaml", "--dry-run") == 2
    assert not mark.exists() and "t.yaml, line 4: " in (err := capsys.readouterr().err) and "--trust runs it" in err
    assert run("study", tmp_path / "s.yaml", "--output", tmp_path / "out", "--dry-run", "--trust") == 0
    assert mark.exists() and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("option", "said"),
    [("--config {} --dry-run", ""), ("--config={} --dry-run", ""), ("--config {}", "dry_run: true\n")],
)
def test_a_dry_run_of_one_run_runs_nothing_that_its_file_names(
    tmp_path: Path, code: str, mark: Path, option: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file, asked = tmp_path / "run.yaml", ["train", *option.format(tmp_path / "run.yaml").split()]
    file.write_text(f"task: vision\nsize: smoke\noptimizer: {{name: '{code}'}}\n{said}")
    assert run(*asked) == 0 and "a dry run of a file runs none" in capsys.readouterr().out
    file.write_text(f"task: '{code}'\n{said}")
    assert run(*asked) == 2
    assert "a dry run of a file runs none: without --dry-run it is run" in capsys.readouterr().err
    assert not mark.exists()
    assert run("train", "--task", "vision", "--size", "smoke", "--optimizer", code, "--dry-run") == 0 and mark.exists()


def test_a_folder_that_names_code_goes_on_with_its_yaml_or_a_word(
    tmp_path: Path, code: str, mark: Path, asked: list[bool], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "theirs"
    folder.mkdir()
    (folder / "study.yaml").write_text(yaml(code))
    assert run("study", folder, "--output", tmp_path / "out") == 2
    err = capsys.readouterr().err
    assert not mark.exists() and not asked and code in err and "add --trust" in err and err.count("\n") == 1
    assert not (tmp_path / "out").exists()
    assert run("study", folder, "--output", tmp_path / "out", "--trust") == 0
    assert run("study", folder / "study.yaml", "--output", tmp_path / "two") == 0
    assert asked == [True, True]


@pytest.mark.parametrize("key", ["grad_transform", "base.grad_transform"])
def test_a_folder_whose_search_names_code_needs_a_word(
    key: str, tmp_path: Path, code: str, mark: Path, asked: list[bool], capsys: pytest.CaptureFixture[str]
) -> None:
    """Its trials became failed records, and a verdict stood on what was left of the search."""
    folder = tmp_path / "theirs"
    folder.mkdir()
    one = "{name: tlr, base: sgd, label: one}" if "." in key else "{name: sgd, label: one}"
    space = f"tuning: {{trials: 4, space: {{one: {{{key}: {{choices: ['{code}', agr]}}}}, two: {{}}}}}}\n"
    optimizers = f"optimizers:\n  - {one}\n  - {{name: adamw, label: two}}\n"
    text = f"name: s\nseeds: 1\ntasks: [{{task: vision, size: smoke}}]\n{optimizers}{space}"
    (folder / "study.yaml").write_text(text)
    assert run("study", folder, "--output", tmp_path / "out") == 2
    err = capsys.readouterr().err
    assert not mark.exists() and not asked and code in err and "add --trust" in err and err.count("\n") == 1


def test_a_file_of_code_that_is_a_hole_is_not_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It takes no disk, and took twice its length of memory."""
    with (tmp_path / "big.py").open("wb") as file:
        file.truncate(1 << 33)
    (tmp_path / "s.yaml").write_text(yaml(f"{tmp_path / 'big.py'}:Mine"))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    run("study", tmp_path / "s.yaml", "--dry-run", "--output", tmp_path / "out")
    assert "it has more than 16 MB" in "".join(capsys.readouterr())
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 20


def test_a_folder_without_code_needs_no_word(tmp_path: Path, asked: list[bool]) -> None:
    folder = tmp_path / "theirs"
    folder.mkdir()
    (folder / "study.yaml").write_text(yaml("sgd"))
    assert run("study", folder, "--output", tmp_path / "out") == 0 and asked == [False]


def test_a_worker_runs_what_its_launcher_trusts(tmp_path: Path, code: str, mark: Path) -> None:
    spec = RunSpec(task="vision", model="mlp", size="smoke", optimizer={"name": code}, overrides={"steps": 2})
    assert worker.execute(Request(tmp_path / "s", spec.id, spec.to_dict())) == "failed"
    error = json.loads((tmp_path / "s" / "runs" / spec.id / "record.json").read_text())["error"]
    assert not mark.exists() and f"{code} is code" in error
    assert worker.execute(Request(tmp_path / "t", spec.id, spec.to_dict(), trust=True)) == "ok" and mark.exists()


@pytest.mark.parametrize("place", ["name", "base", "transform", "task"])
def test_no_stored_file_runs_code(tmp_path: Path, code: str, mark: Path, place: str, capsys: Any) -> None:
    """plan, records and spec.json, with the code in each place that an import path may stand."""
    optimizer = {
        "name": {"name": code},
        "base": {"name": "tlr", "gamma": 0.3, "base": {"name": code}},
        "transform": {"name": "adamw", "grad_transform": {"name": code}},
        "task": {"name": "adamw"},
    }[place]
    task = code.replace("Mine", "TASK") if place == "task" else "vision"
    spec = RunSpec(task=task, model="mlp", size="smoke", optimizer=optimizer)
    folder = make_study(tmp_path / "study", ("adamw", "smaran"), seeds=1)

    def name(plan: dict[str, Any]) -> None:
        plan["optimizers"][0]["spec"] = optimizer
        plan["tasks"][0]["task"] = task

    replan(folder, name)
    for arguments in (["report", folder], ["results", folder], ["results", folder, "--merge", tmp_path / "into"]):
        assert run(*arguments) == 0
    checkpoint = tmp_path / "run" / "checkpoint-1"
    checkpoint.mkdir(parents=True)
    (checkpoint / "config.json").write_text("{}")
    (checkpoint.parent / "spec.json").write_text(json.dumps(spec.to_dict()))
    capsys.readouterr()
    assert run("inspect", checkpoint) == 2
    err = capsys.readouterr().err
    assert not mark.exists() and err.count("\n") == 1
    if place == "task":  # the others are not even asked for: a checkpoint's model does not depend on them
        assert "theirs.py:TASK is code, and only a spec.json says that it is to be run" in err


@pytest.mark.parametrize("key", ["auto_map", "attn_implementation", "_attn_implementation", "quantization_config"])
def test_a_checkpoint_brings_no_code(tmp_path: Path, key: str, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = tmp_path / "checkpoint-1"
    checkpoint.mkdir()
    for inner in ({key: "them/kernel"}, {"text_config": {key: {"AutoModel": "evil.Model"}}}):
        (checkpoint / "config.json").write_text(json.dumps({"architectures": ["X"], **inner}))
        assert run("inspect", checkpoint, "--task", "vision", "--model", "mlp", "--size", "smoke") == 2
        assert f"config.json asks for code or files of others ({key})" in capsys.readouterr().err
    (checkpoint / "config.json").write_text("{}")
    (checkpoint / "adapter_config.json").write_text('{"base_model_name_or_path": "/etc"}')
    assert run("inspect", checkpoint, "--task", "vision", "--model", "mlp", "--size", "smoke") == 2
    assert "adapter_config.json" in capsys.readouterr().err
    (checkpoint / "adapter_config.json").unlink()
    (checkpoint / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../../x.safetensors"}}')
    assert run("inspect", checkpoint, "--task", "vision", "--model", "mlp", "--size", "smoke") == 2
    assert "model.safetensors.index.json names a file that is not beside it" in capsys.readouterr().err


def test_import_paths_are_found_wherever_they_stand() -> None:
    spec = {"name": "tlr", "base": {"name": "a:B", "grad_transform": {"name": "c.py:D"}}, "label": "x:y"}
    assert importing.paths([spec, {"task": "t.py:TASK"}, {"base": "e:F"}]) == ["a:B", "c.py:D", "t.py:TASK", "e:F"]
    with importing.refused("nobody asked"), pytest.raises(UserError, match="math:pi is code, and nobody asked"):
        importing.import_path("math:pi")
    with importing.refused("", trust=True):
        assert importing.import_path("math:pi") > 3


def test_a_foreign_optimizer_that_cannot_be_made_is_said_and_ends_nothing(
    tmp_path: Path, code: str, asked: list[bool], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "s.yaml").write_text(yaml(code.replace("Mine", "Never")))
    assert run("study", tmp_path / "s.yaml", "--output", tmp_path / "out") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert re.search(r"cannot be made: theirs: \S*theirs.py:Never: OSError: no licence; its runs will fail", said)
    assert asked == [True]


@pytest.mark.parametrize(("text", "why"), [(b"class Mine(:", "invalid syntax, line 1"), (b"a\0", "null byte")])
def test_a_dry_run_says_of_a_file_that_it_is_no_python(
    tmp_path: Path, text: bytes, why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "theirs.py").write_bytes(text)
    (tmp_path / "s.yaml").write_text(yaml(f"{tmp_path / 'theirs.py'}:Mine"))
    assert run("study", tmp_path / "s.yaml", "--output", tmp_path / "out", "--dry-run") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "cannot be made: theirs: " in said and "theirs.py is no Python" in said and why in said


def test_what_is_run_is_what_the_file_says(tmp_path: Path) -> None:
    """Python takes what lies compiled beside it, and such a file may say that it is never to be compared."""
    other, file = tmp_path / "other.py", tmp_path / "theirs.py"
    other.write_text("NAME = 'unseen'\n")
    file.write_text("NAME = 'seen'\n")
    place, unchecked = importlib.util.cache_from_source(str(file)), py_compile.PycInvalidationMode.UNCHECKED_HASH
    py_compile.compile(str(other), cfile=place, invalidation_mode=unchecked)
    assert importing.import_path(f"{file}:NAME") == "seen"


def test_the_library_itself_imports_what_the_caller_names(code: str) -> None:
    import torch

    assert type(registry.create(code, [torch.nn.Parameter(torch.zeros(2))])).__name__ == "Mine"
    assert conduct.study.__kwdefaults__["trust"] is False


def test_files_of_this_machine_are_not_read_because_a_folder_names_them(
    tmp_path: Path, asked: list[bool], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine").mkdir()
    for entry in ("data: ../mine", f"data: '{tmp_path}/mine'", "options: {hidden_size: /etc/passwd}"):
        folder = tmp_path / "theirs"
        folder.mkdir(exist_ok=True)
        (folder / "study.yaml").write_text(yaml("sgd").replace("size: smoke", f"size: smoke, {entry}"))
        assert run("study", folder, "--output", tmp_path / "out") == 2 and asked == []
        assert "files of this machine, and only" in capsys.readouterr().err
    checkpoint = tmp_path / "run" / "checkpoint-1"
    checkpoint.mkdir(parents=True)
    (checkpoint / "config.json").write_text("{}")
    spec = RunSpec(task="vision", model="mlp", size="smoke", optimizer={"name": "sgd"}, data="/etc/hostname")
    (checkpoint.parent / "spec.json").write_text(json.dumps(spec.to_dict()))
    assert run("inspect", checkpoint) == 2
    assert "/etc/hostname is a file of this machine, and only a spec.json" in capsys.readouterr().err
    monkeypatch.chdir(tmp_path)
    for change in ({"data": "mine"}, {"options": {"hidden_size": "mine"}}):  # a name that the current folder has
        (checkpoint.parent / "spec.json").write_text(json.dumps({**spec.to_dict(), "data": None, **change}))
        assert run("inspect", checkpoint) == 2
        assert "mine is a file of this machine, and only a spec.json" in capsys.readouterr().err


def test_a_file_starts_no_processes_that_it_asks_for(tmp_path: Path) -> None:
    spec = RunSpec(
        "vision", "mlp", "smoke", {"name": "sgd"}, overrides={"steps": 1, "workers": 9, "compile_model": True}
    )
    (tmp_path / "spec.json").write_text(json.dumps(spec.to_dict()))
    assert specification(tmp_path / "checkpoint-1", None).overrides == {"steps": 1}
    with pytest.raises(UserError, match="workers must be at most 256"):
        RunSpec("vision", "mlp", "smoke", {"name": "sgd"}, overrides={"workers": 10**6})


def test_a_journal_that_is_not_ours_is_set_aside(tmp_path: Path) -> None:
    from tuning_fakes import expand, whole

    planned = expand()
    (tmp_path / "s").mkdir()
    theirs = ['{"op_code": 99}\n', '{"op_code": 0, "worker_id": "x"}\n', "[]\n", '{"op_code": 4, "trial_id": 7}\n']
    for text in theirs:
        (tmp_path / "s" / "tuning.journal").write_text(text)
        whole(planned, tmp_path / "s")
    kept = ["tuning.damaged", *(f"tuning-{number}.damaged" for number in (2, 3, 4))]
    assert [(tmp_path / "s" / name).read_text() for name in kept] == theirs  # none in another's place


def test_a_journal_in_which_others_trials_wait_is_set_aside(tmp_path: Path) -> None:
    """Each was asked for with a look at all: a few megabytes of them took hours."""
    from tuning_fakes import expand, whole

    planned = expand()
    whole(planned, tmp_path / "s")
    journal = tmp_path / "s" / "tuning.journal"
    first = next(line for line in journal.read_text().splitlines() if '"op_code":4' in line)
    waiting = json.loads(first) | {"user_attrs": {"number": 10**6}}
    theirs = journal.read_text() + f"{json.dumps(waiting)}\n" * 50
    journal.write_text(theirs)
    whole(planned, tmp_path / "s")
    assert (tmp_path / "s" / "tuning.damaged").read_text().startswith(theirs)
    assert "1000000" not in journal.read_text()

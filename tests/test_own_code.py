"""What lives in a user's own file is known as what comes along is: its class by every command, its function's mistakes
at once; and what can be read of it is read without running it."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from test_plugin import HEAVY_BALL

from hf_optim import registry
from hf_optim.commands.main import main
from hf_optim.core import importing
from hf_optim.errors import UserError
from hf_optim.experiment import forecast, record
from hf_optim.study.folder.store import read_status
from hf_optim.study.launch import launcher, worker
from hf_optim.study.launch.messages import Request
from hf_optim.study.plan import plan, source, values

RUNS = "raise RuntimeError('this file ran')\n"
CITED = '    cited = ("Polyak, Boris", "Some Methods", "USSR Journal", 1964)\n'


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main(arguments)
    return (code, *capsys.readouterr())


# --- a class ---------------------------------------------------------------------------------------------------------


def test_a_class_in_a_file_is_known_to_info_list_and_cite_and_is_not_run(folder, capsys):
    Path("heavy.py").write_text(HEAVY_BALL + RUNS)
    code, out, _ = told(capsys, "info", "heavy.py:HeavyBall")
    assert code == 0 and "lr=0.1, beta=0.9, weight_decay=0" in out and "lr 0.0001 to 1, logarithmic" in out
    assert "4 bytes a parameter" in out and "Equation 9" in out
    code, out, _ = told(capsys, "list", "heavy.py:HeavyBall")
    assert code == 0 and out.splitlines()[1].split()[:2] == ["heavy.py:HeavyBall", "plain"]
    code, out, err = told(capsys, "cite", "heavy.py:HeavyBall")
    assert code == 0 and "author = {Polyak}" in out and "year = {1964}" in out and err == ""
    Path("whole.py").write_text(HEAVY_BALL.replace("    slots =", f"{CITED}    slots =") + RUNS)
    code, out, err = told(capsys, "cite", "whole.py:HeavyBall")
    assert "title = {Some Methods}" in out and "author = {Polyak, Boris}" in out and err == ""
    Path("bare.py").write_text(HEAVY_BALL.replace(" (Polyak 1964)", "") + RUNS)
    code, out, err = told(capsys, "cite", "bare.py:HeavyBall")
    assert "declares no author and no year" in err and "cited = (" in err


@pytest.mark.parametrize("space", ["[0.0, 0.5, 0.9]", '("choices", [0.0, 0.5])', '("log", 0, 1)'])
def test_info_says_what_is_no_search_space(folder, capsys, space):
    Path("heavy.py").write_text(HEAVY_BALL.replace('("log", 1e-4, 1.0)', space) + RUNS)
    assert space in Path("heavy.py").read_text()
    code, out, _ = told(capsys, "info", "heavy.py:HeavyBall")
    assert code == 0 and "search_space of lr must be ('log', low, high) above 0" in " ".join(out.split())


def test_a_class_that_cannot_be_read_is_asked_itself(folder, capsys):
    Path("sub.py").write_text('from hf_optim import AdamW\n\n\nclass Sub(AdamW):\n    """A child."""\n')
    known = registry.about("sub.py:Sub")
    assert known.defaults == registry.info("adamw").defaults and known.doc == "A child."
    with importing.refused("a test"), pytest.raises(importing.Untrusted):
        registry.about("sub.py:Sub")
    assert told(capsys, "info", "sub.py:Sob")[0] == 2 and told(capsys, "info", "none.py:Sub")[0] == 2


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("from hf_optim.bases.optimizer import Optimizer", "from torch.optim import Optimizer"),
        ("beta: float = 0.9,", "beta: float = len('nine') / 5,"),
        ("state_dtype: str | None = None,", "state_dtype: str | None = None,\n        **rest: Any,"),
    ],
)
def test_what_reading_does_not_tell_for_certain_is_left_to_the_code(old, new, folder):
    assert HEAVY_BALL.count(old) == 1
    Path("odd.py").write_text(HEAVY_BALL.replace(old, new) + RUNS)
    with pytest.raises(UserError, match="this file ran"):
        registry.about("odd.py:HeavyBall")


@pytest.mark.parametrize("ends", ["import sys\nsys.exit(4)\n", "raise SystemExit('no')\n"])
def test_a_file_that_ends_the_program_is_one_that_cannot_be_imported(ends, folder, capsys):
    """The command ended with the file's own code, and said nothing."""
    Path("ends.py").write_text(ends)
    for words in (["info", "ends.py:X"], ["check", "ends.py:X"], ["train", "--task", "ends.py"]):
        code, _, err = told(capsys, *words)
        assert code == 2 and "cannot import ends.py (SystemExit: " in err.splitlines()[-1]
    Path("stopped.py").write_text("raise KeyboardInterrupt\n")
    with pytest.raises(KeyboardInterrupt):
        importing.import_path("stopped.py:X")


def test_nothing_is_even_read_where_a_stranger_may_have_written_the_name(folder):
    Path("heavy.py").write_text(HEAVY_BALL)
    with importing.refused("a test"), pytest.raises(importing.Untrusted):
        registry.about("heavy.py:HeavyBall")
    with importing.refused("a test", read=True):
        assert registry.about("heavy.py:HeavyBall").defaults["beta"] == 0.9


STUDY = """name: s
seeds: 2
tasks: [{task: vision, model: mlp, size: smoke}]
optimizers: [adamw, 'FILE:HeavyBall']
tuning: {trials: 2}
"""


def expand(text: str) -> plan.Plan:
    return plan.expand(source.parse(text, "s.yaml"))


def test_tuning_searches_what_a_file_of_ones_own_declares(folder):
    Path("heavy.py").write_text(HEAVY_BALL)
    cells = expand(STUDY.replace("FILE", "heavy.py")).tuning["cells"]
    assert cells[1]["space"] == {"lr": ["log", 1e-4, 1.0]} and len(cells[1]["points"]) == 2
    Path("odd.py").write_text(HEAVY_BALL.replace('("log", 1e-4, 1.0)', '("logg", 1e-4, 1.0)'))
    with pytest.raises(UserError, match=r"search_space of lr must be \('log', low, high\)"):
        expand(STUDY.replace("FILE", "odd.py"))


@pytest.mark.parametrize("given", ["tuning: {trials: 2, space: {'FILE:HeavyBall': {lrr: [1e-4, 0.1, log]}}}", ""])
def test_a_misspelt_name_is_refused_before_anything_runs_and_by_a_dry_run(given, folder):
    Path("heavy.py").write_text(HEAVY_BALL + RUNS)
    text = STUDY.replace("tuning: {trials: 2}\n", given)
    text = text if given else text.replace("'FILE:HeavyBall'", "{name: 'FILE:HeavyBall', lrr: 0.1}")
    with importing.refused("a dry run", read=True), pytest.raises(UserError, match=r"'lrr' \(did you mean lr\?\)"):
        expand(text.replace("FILE", "heavy.py"))


def test_a_misspelt_name_of_a_class_that_has_to_run_is_refused_too(folder):
    Path("sub.py").write_text("from hf_optim import AdamW\n\n\nclass HeavyBall(AdamW):\n    pass\n")
    text = STUDY.replace("FILE", "sub.py").replace("'sub.py:HeavyBall'", "{name: 'sub.py:HeavyBall', lrr: 0.1}")
    parsed = source.parse(text.replace("tuning: {trials: 2}\n", ""), "s.yaml")
    with pytest.raises(UserError, match=r"line 4: .*'lrr' \(did you mean lr\?\)"):
        values.check_values(plan.expand(parsed), parsed)


# --- a function ------------------------------------------------------------------------------------------------------

FUNCTION = """from hf_optim import study

@study.training(metric="test_loss", greater_is_better=False)
def mine(optimizer, seed, log):
    return RESULT
"""
WRONG = {
    "{'tst_loss': 1.0}": "returned tst_loss, and no test_loss, by which it is judged: return that figure by this name",
    "None": "returned nothing: it has to return its figures by name",
    "{'test_loss': 'small'}": "returned test_loss = 'small', which is no number",
    "{'test_loss': 1.0, 'log': [{'loss': 1.0}] * 99}": r"log = \[.{,120}\.\.\.\], which is no number: .* figures, log;",
    "{'test_loss': 1.0, **{f'test_{i}': 1.0 for i in range(5000)}}": "returned more than 4,000 figures by name",
    "({'test_loss': 1.0}, [{'step': 1, f'a{i}': 1.0} for i in range(5000)])": "returned a log of more than 4,000",
    "[log(1, **{f'a{i}': 1.0}) for i in range(5000)]": "logged more than 4,000 figures by name",
}


@pytest.fixture
def run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    monkeypatch.setattr(record, "environment", lambda *_: {})

    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    file = folder / "mine.py"

    def execute(result: str, seed: int, asks: str | None = None) -> str:
        file.write_text(FUNCTION.replace("RESULT", result))
        for name in [k for k, module in sys.modules.items() if getattr(module, "__file__", None) == str(file)]:
            del sys.modules[name]  # as a worker, which is another process
        spec: dict[str, Any] = {"task": f"{file}:mine", "optimizer": {"name": "sgd"}, "seed": seed}
        return worker.execute(Request(folder / "study", f"run{seed}", spec, trust=True, asks=asks))

    return execute


@pytest.mark.parametrize("result", WRONG)
def test_a_function_that_returns_something_else_stops_the_study_at_its_first_run(result, run, folder):
    with pytest.raises(UserError, match=f"{WRONG[result]}.*every run would end so: mend it"):
        run(result, 0)
    assert read_status(folder / "study" / "runs" / "run0") is None
    assert run("{'test_loss': 1.0}", 0) == "ok"  # the same command, mended


@pytest.mark.parametrize(
    ("step", "value", "said"),
    [("1", "object()", "loss = <object"), ("1", "10**400", "loss = 1000"), ("10**30", "1.0", r"step = 1e\+30")],
)
def test_what_no_history_holds_is_named(step, value, said, run):
    """`train` ended in a traceback of json's, or the study with a record that nobody could read."""
    with pytest.raises(UserError, match=f"mine logged {said}"):
        run(f"(log({step}, loss={value}), {{'test_loss': 1.0}})[1]", 0)


def test_a_tensor_that_is_logged_is_its_number(run, folder):
    assert run("(log(1, loss=__import__('torch').tensor(0.5), lr=[1, None]), {'test_loss': 1.0})[1]", 0) == "ok"
    (row,) = map(json.loads, (folder / "study" / "runs" / "run0" / "history.jsonl").read_text().splitlines())
    assert (row["step"], row["loss"], row["lr"]) == (1, 0.5, [1, None])


def test_a_function_without_the_figure_that_tuning_asks_for_stops_it_too(run, folder):
    with pytest.raises(UserError, match="returned test_loss, and no validation_loss, by which tuning chooses"):
        run("{'test_loss': 1.0}", 0, asks="validation_loss")
    assert run("{'test_loss': 1.0, 'validation_loss': 1.0}", 0, asks="validation_loss") == "ok"


def test_a_training_function_is_no_optimizer_wherever_one_is_named(folder, capsys):
    Path("mine.py").write_text(FUNCTION)
    for command in (("info", "mine.py:mine"), ("compare", "adamw", "mine.py:mine", "--task", "logistic", "--dry-run")):
        code, _, err = told(capsys, *command)
        assert code == 2 and "mine.py:mine is no torch.optim.Optimizer; what makes one must ask for" in err


def test_what_the_library_refuses_in_a_file_is_told_with_the_file(folder):
    Path("mine.py").write_text(FUNCTION.replace("test_loss", "eval_loss"))
    with pytest.raises(UserError, match=r"^mine.py: metric: a study judges on the test split.*'eval_loss'$"):
        importing.import_path("mine.py:mine")


def test_what_a_function_raises_or_diverges_to_is_a_failed_run(run):
    assert run("1 / 0", 0) == "failed"
    assert run("{'test_loss': float('nan')}", 1) == "failed"


def test_a_wrong_result_beside_good_ones_is_a_failed_run(run):
    assert run("{'test_loss': 1.0}", 0) == "ok"
    assert run("{}", 1) == "failed"


def test_a_forecast_says_why_a_function_has_no_cost(folder):
    Path("mine.py").write_text(FUNCTION.replace("RESULT", "{'test_loss': 1.0}"))
    spec = {"task": f"{folder / 'mine.py'}:mine", "model": "own", "optimizer": {"name": "sgd"}}
    lines = forecast.lines([("mine", spec, 3)], None)
    assert "only its function knows what a run does" in lines[1] and lines[-1] == "  in all unknown"


# --- a wrapper without its base --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tlr", "tlr_legacy", "hdk", "lookahead"])
def test_a_wrapper_alone_is_told_every_spelling(name):
    with pytest.raises(UserError, match=f"{name} wraps another optimizer") as error:
        registry.check_spec(name)
    said = str(error.value)
    assert 'base="adamw"' in said and f"{{name: {name}, base: adamw}}" in said and f"'{name}(adamw)'" in said
    ready = [k for k in registry.list_optimizers(f"{name}_*") if registry.info(k).base is not None]
    assert all(k in said for k in ready)
    with pytest.raises(UserError, match=rf"{name}\(adamw\): write it as {name} with base='adamw'"):
        registry.check_spec(f"{name}(adamw)")


# --- a name that its file does not have ------------------------------------------------------------------------------

MISSPELT = "name: s\nseeds: 2\ntasks:\n  - {task: logistic, size: smoke}\noptimizers:\n  - adamw\n  - {name: 'PATH'}\n"


@pytest.mark.parametrize("trust", [(), ("--trust",)])
@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("mine.py:HeavyBal", r"mine.py has no HeavyBal (did you mean HeavyBall?)"),
        ("mine.py:Momentum", "mine.py has no Momentum"),
        ("mien.py:HeavyBall", "there is no file mien.py"),
    ],
)
def test_a_misspelt_class_is_told_before_anything_runs(
    folder: Path, capsys: pytest.CaptureFixture[str], path: str, said: str, trust: tuple[str, ...]
) -> None:
    (folder / "mine.py").write_text(HEAVY_BALL)
    (folder / "s.yaml").write_text(MISSPELT.replace("PATH", path))
    for command in (
        ("study", "s.yaml", "--dry-run", *trust),
        ("study", "s.yaml"),
        ("compare", "adamw", path, "--task", "logistic", "--size", "smoke", "--dry-run"),
        ("train", "--task", "logistic", "--size", "smoke", "--optimizer", path, "--dry-run"),
        ("train", "--task", "logistic", "--size", "smoke", "--optimizer", "tlr", "--optimizer.base", path, "--dry-run"),
    ):
        code, out, err = told(capsys, *command)
        assert (code, out) == (2, "") and said in err and err.count("\n") == 1, command
    assert not (folder / "studies").exists()


@pytest.mark.parametrize("text", ["HeavyBall = make()", "from elsewhere import *", "globals()['HeavyBall'] = 1"])
def test_a_name_that_only_running_would_show_is_left_to_it(
    folder: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    (folder / "mine.py").write_text(f"{RUNS}{text}\n")
    (folder / "s.yaml").write_text(MISSPELT.replace("PATH", "mine.py:HeavyBall"))
    code, out, _ = told(capsys, "study", "s.yaml", "--dry-run")
    assert code == 0 and "mine.py:HeavyBall is code, which was not run" in out


# --- a file that lies deep -------------------------------------------------------------------------------------------


def test_a_long_path_is_compared_under_the_name_of_its_class(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A label has 40 characters and a study's name 80, and who has folders is not asked to count them."""
    deep = folder / "experiments" / "optimizers" / "candidates" / "of_this_year"
    deep.mkdir(parents=True)
    (deep / "mine.py").write_text(HEAVY_BALL)
    (folder / "mine.py").write_text(HEAVY_BALL)
    for path, label in ((f"{deep}/mine.py:HeavyBall", "HeavyBall"), ("mine.py:HeavyBall", "mine.py:HeavyBall")):
        task = ("--task", "logistic", "--size", "smoke", "--trials", "2", "--dry-run")
        code, out, err = told(capsys, "compare", "adamw", path, f"tlr({path})", *task)
        assert code == 0, err
        assert f"  {label}: {path}" in out and f"  tlr({label}): tlr" in out
        name = "adamw-vs-" + label.replace(":", "-")
        assert out.startswith(f"{name}-vs-tlr-") and "-logistic-smoke-tuned2: " in out
    code, _, err = told(
        capsys, "compare", f"{deep}/mine.py:HeavyBall", f"{deep}/../of_this_year/mine.py:HeavyBall", *task
    )
    assert code == 2 and "the label 'HeavyBall' is used twice" in err


def test_a_label_that_is_too_long_says_what_to_do(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "s.yaml").write_text(MISSPELT.replace("'PATH'", f"nadamw, label: {'x' * 41}"))
    code, _, err = told(capsys, "study", "s.yaml", "--dry-run")
    assert code == 2 and "1 to 40 characters" in err and err.rstrip().endswith("give a label:")


# --- two arms of one optimizer ---------------------------------------------------------------------------------------


def test_compare_takes_two_settings_of_one_optimizer_and_their_labels(folder, capsys):
    task = ("--task", "logistic", "--size", "smoke", "--seeds", "2", "--dry-run")
    code, out, err = told(capsys, "compare", "adamw", "{name: adamw, lr: 0.01}", *task)
    assert code == 0, err
    assert out.startswith("adamw-vs-adamw-lr-0.01-logistic-smoke: ") and "  adamw lr=0.01: adamw lr=0.01" in out
    code, out, err = told(capsys, "compare", "adamw", "{name: adamw, lr: 0.01, label: fast one}", *task)
    assert code == 0, err
    assert out.startswith("adamw-vs-fast-one-logistic-smoke: ") and "  fast one: adamw lr=0.01" in out


# --- what a script imports beside it ---------------------------------------------------------------------------------


def test_a_task_that_cannot_be_imported_stops_the_study_at_its_first_run(run, folder):
    """Its runs would be records of failures, which nothing runs again by itself."""
    (folder / "broken.py").write_text("import not_there\n")
    spec: dict[str, Any] = {"task": f"{folder / 'broken.py'}:mine", "optimizer": {"name": "sgd"}, "seed": 0}
    with pytest.raises(UserError, match="No module named 'not_there'.*every run would end so: mend it"):
        worker.execute(Request(folder / "study", "run0", spec, trust=True))
    assert read_status(folder / "study" / "runs" / "run0") is None


def test_a_worker_finds_what_the_users_script_finds_beside_itself(folder, monkeypatch):
    script = ModuleType("__main__")
    script.__file__, script.__spec__ = str(folder / "go.py"), None
    monkeypatch.setitem(sys.modules, "__main__", script)
    monkeypatch.setattr(sys, "path", [str(folder), *sys.path])
    (environment,) = launcher.environments(1)
    assert str(folder) in environment["PYTHONPATH"].split(os.pathsep)
    script.__file__ = None  # a notebook's: the folder that it happens to be in is nobody's
    assert str(folder) not in launcher.environments(1)[0]["PYTHONPATH"].split(os.pathsep)

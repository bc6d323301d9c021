"""The command line: exit codes, one line for every error, and nothing imported that is not needed."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import threading
import types
from pathlib import Path
from typing import Any

import pytest
from study_fakes import make_study

from hf_optim.commands import main as main_module
from hf_optim.commands.main import main
from hf_optim.core import notes
from hf_optim.errors import one_line
from hf_optim.registry import info, list_optimizers

ROOT = Path(__file__).resolve().parents[1]
HEAVY = ("torch", "numpy", "transformers", "rich", "yaml", "scipy", "accelerate", "datasets")


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    try:
        code = main(arguments)
    except SystemExit as end:
        code = int(end.code or 0)
    out, err = capsys.readouterr()
    return code, out, err


@pytest.mark.parametrize(
    "arguments",
    [
        ("--help",),
        ("list",),
        ("list", "--tasks"),
        ("list", "--studies"),
        ("list", "--claims"),
        ("list", "--models"),
        ("info", "smaran"),
        ("info", "vision"),
        ("--version",),
    ],
)
def test_overviews_import_nothing_heavy(arguments: tuple[str, ...]) -> None:
    script = (
        "import sys\nfrom hf_optim.commands.main import main\n"
        "try:\n    code = main(sys.argv[1:])\nexcept SystemExit as end:\n    code = end.code or 0\n"
        f"print('HEAVY', code, [m for m in {HEAVY} if m in sys.modules])"
    )
    process = subprocess.run(
        [sys.executable, "-c", script, *arguments], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert process.stdout.splitlines()[-1] == "HEAVY 0 []", process.stdout


def test_a_report_comes_from_records_without_torch(tmp_path: Path) -> None:
    make_study(tmp_path)
    script = (
        "import sys\nfrom hf_optim.commands.main import main\n"
        "assert main(sys.argv[1:]) == 0 and 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script, "report", str(tmp_path)], cwd=ROOT, capture_output=True, check=True)
    assert (tmp_path / "report.html").is_file()


BAD = {
    ("compare", "adamw", "smaran", "--task", "vision", "--report-to", "tensorbord"): "tensorboard",
    ("study", "no_such_study"): "quickstart",
    ("study", "smoke", "--jobs", "0"): "--jobs must be at least 1",
    ("study", "smoke", "--seeds", "0", "--dry-run"): "--seeds must be at least 1",
    ("study", "smoke", "--job", "2"): "unrecognized arguments",
    ("report", "/no/such/folder"): "no folder",
    ("results", "/no/such/folder"): "no study in",
    ("results",): "required: DIR",
    ("study", "smoke", "--array", "3"): "--array belongs to jobs",
    ("study", "smoke", "--checkpoint-every", "0"): "--checkpoint-every must be at least 1",
    ("info", "smarann"): "smaran",
    ("list", "zzz*"): "no optimizer matches",
    ("list", "adm"): "(did you mean adam",
    ("list", "--models", "vitt"): "(did you mean vit?)",
    ("list", "--family", "matrx"): "(did you mean matrix?)",
    ("list", "--tasks", "--needs", "loss"): "filters optimizers",
    ("info", "visoin"): "(did you mean vision",
    ("info", "AGR"): "(did you mean adamw_agr, adan_agr or sgd_agr?)",
    ("study", "quikstart"): "(did you mean quickstart",
    ("train", "--task", "vison"): "(did you mean vision?)",
    ("train", "--task", "vision", "--model", "mpl"): "(did you mean mlp",
    ("train", "--task", "vision", "--size", "smal"): "(did you mean small",
    ("train", "--task", "vision", "--schedule", "cosin"): "(did you mean cosine",
    ("reproduce", "tlr-tabel1"): "(did you mean tlr-table1",
    ("check", "sgd", "--checks", "resum"): "(did you mean resume",
    ("check", "sgd", "--optimizer.lr", "0.1"): "(did you mean --hyper '{\"lr\": ...}'?)",
    ("check", "sgd", "--momntum", "0.1"): "(did you mean --hyper '{\"momentum\": ...}'",
    ("launch", "--optimizer", "smaran", "--out", "x"): "it has no option --out; a script's own stand behind it",
    ("launch", "--optimzer", "smaran", "x.py"): "--optimzer (did you mean --optimizer?)",
    ("landscape", "beal"): "(did you mean beale",
    ("compare", "adamw", "--task", "lm"): "give two optimizers or more",
    ("compare", "adamw", "sgd", "--task", "lm", "--space", "{}"): "give --trials N, too",
    ("compare", "adamw", "sgd", "--task", "lm", "--trials", "2", "--space", "{"): "--space {: not YAML",
    ("compare", "adamw", "smarann", "--task", "lm", "--dry-run"): "(did you mean smaran",
    ("compare", "adamw", "smaran", "--task", "ln", "--dry-run"): "(did you mean lm",
    ("list", "zzz*", "--tasks"): "no task matches",
    (
        "compare",
        "adamw",
        "sgd",
        "--task",
        "vision",
        "--model",
        "mlpp",
        "--dry-run",
    ): "error: task 'vision' has no model",
    ("train", "--task", "vision", "--data", "digts", "--output", "/no/such/o"): "(did you mean digits?)",
    ("compare", "adamw", "sgd", "--task", "vision", "--data", "digts", "--dry-run"): "(did you mean digits?)",
    ("study", "smoke", "--dry-run", "--card", "H10"): "(did you mean H100?)",
    ("info", "test_acuracy"): "(did you mean accuracy",
    ("inspect", "/no/such"): "there is no folder '/no/such'",
    ("evaluate", "/no/such"): "there is no folder '/no/such'",
    ("stdy",): "there is no command 'stdy' (did you mean study",
    (): "required",
}


@pytest.mark.parametrize("arguments", BAD)
def test_errors_are_one_line_and_2(capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]) -> None:
    code, out, err = run(capsys, *arguments)
    assert code == 2 and out == ""
    assert err.startswith("error: ") and err.count("\n") == 1 and BAD[arguments] in err


def test_a_bad_yaml_leaves_nothing_behind(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    study = tmp_path / "s.yaml"
    study.write_text("name: x\nseeds: 1\ntasks: [{task: vision, size: smoke}]\noptimizers: [{name: smaran, gama: 1}]\n")
    code, _, err = run(capsys, "study", str(study), "--output", str(tmp_path / "out"))
    assert code == 2 and "s.yaml, line 4" in err and "gamma" in err
    assert [p.name for p in tmp_path.iterdir()] == ["s.yaml"]


def test_dry_run_writes_nothing(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, out, _ = run(capsys, "study", "smoke", "--dry-run", "--seeds", "4", "--output", str(tmp_path / "out"))
    assert code == 0 and "12 runs, seeds 0, 1, 2, 3" in out and "tlr(sgd)" in out
    assert list(tmp_path.iterdir()) == []


def test_list_fits_the_terminal_and_filters(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    code, out, _ = run(capsys, "list")
    assert code == 0 and max(map(len, out.splitlines())) <= 80
    assert len(out.splitlines()) == len(list_optimizers()) + 1
    _, some, _ = run(capsys, "list", "*_agr")
    assert {line.split()[0] for line in some.splitlines()[1:]} == set(list_optimizers("*_agr"))
    _, part, _ = run(capsys, "list", "agr")
    assert {line.split()[0] for line in part.splitlines()[1:]} == set(list_optimizers("*agr*"))
    for filters, holds in (
        (("--needs", "loss"), lambda info: "loss" in info.needs),
        (("--needs", "nothing", "--bytes", "4"), lambda info: not info.needs and info.state_bytes <= 4),
        (("--family", "wrapper"), lambda info: info.family == "wrapper"),
    ):
        _, out, _ = run(capsys, "list", *filters)
        assert {line.split()[0] for line in out.splitlines()[1:]} == {n for n in list_optimizers() if holds(info(n))}


@pytest.mark.parametrize("kind", ["tasks", "models", "metrics", "studies", "claims"])
def test_what_is_listed_fits_80_columns_and_has_an_info_page(capsys, monkeypatch, kind: str) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    code, out, _ = run(capsys, "list", f"--{kind}")
    lines = out.splitlines()
    assert code == 0 and len(lines) > 3 and max(map(len, lines)) <= 80
    names = [line.split()[0] for line in lines[1:]]
    for name in names[:: max(1, len(names) // 6)]:
        code, page, _ = run(capsys, "info", name)
        assert code == 0 and name in page and len(page.splitlines()) > 2


def test_compare_is_a_study(capsys, tmp_path: Path) -> None:
    given = ("compare", "adamw", "tlr(sgd)", "{name: smaran, lr: 0.05}", "--task", "vision", "--size", "smoke")
    code, out, _ = run(capsys, *given, "--seeds", "2", "--output", str(tmp_path / "out"), "--dry-run")
    assert code == 0 and "6 runs, seeds 0, 1, baseline adamw" in out and "smaran lr=0.05" in out
    code, out, _ = run(capsys, *given, "--trials", "3", "--output", str(tmp_path / "out"), "--dry-run")
    assert code == 0 and "9 trials, 15 runs" in out and list(tmp_path.iterdir()) == []
    labelled = ("{name: adamw, label: β}", "{name: sgd, label: .a}", "--task", "logistic", "--size", "smoke")
    code, out, _ = run(capsys, "compare", *labelled, "--dry-run")
    assert code == 0 and re.search("in studies/vs-.a-[0-9a-f]{6}-logistic-smoke", out)


def test_the_study_that_compare_writes_down_begins_with_the_whole_command(monkeypatch: pytest.MonkeyPatch) -> None:
    from hf_optim.study import conduct

    texts: list[str] = []
    monkeypatch.setattr(conduct, "study", lambda *_, source, **__: texts.append(source.text) or 0)
    asked = ("adamw", "tlr(sgd)", "--task", "logistic", "--size", "smoke", "--seeds", "3", "--trials", "2")
    assert main(["compare", *asked]) == 0
    command = shlex.split(texts[0].splitlines()[0].removeprefix("# hf-optim "))
    assert command == ["compare", *asked] and main(command) == 0
    assert texts[0] == texts[1]


def test_compare_tunes_an_optimizer_that_declares_nothing(capsys, tmp_path: Path) -> None:
    given = ("compare", "adamw", "torch.optim:NAdam", "--task", "logistic", "--size", "smoke", "--dry-run")
    given += ("--trials", "2", "--seeds", "2", "--output", str(tmp_path / "out"))
    code, _, err = run(capsys, *given)
    assert code == 2 and "nothing to tune" in err and "--space" in err
    code, out, _ = run(capsys, *given, "--space", "{torch.optim:NAdam: {lr: [1e-4, 0.1, log]}}")
    assert code == 0 and "4 trials, 4 runs" in out


def test_doctor_says_what_is_used(capsys) -> None:
    code, out, _ = run(capsys, "doctor")
    assert code == 0 and "a step on cpu" in out and str(Path.home()) + "/" not in out
    for topic in ("torch", "C++ compiler", "triton", "GPU", "kernel cache"):
        assert any(line[2:].startswith(topic) for line in out.splitlines()), topic


def test_a_metric_has_its_page_under_the_name_that_records_have(capsys: pytest.CaptureFixture[str]) -> None:
    code, page, _ = run(capsys, "info", "accuracy")
    assert code == 0
    for name, says in (("test_accuracy", "accuracy on the test"), ("best_validation_accuracy", "the best accuracy on")):
        code, out, _ = run(capsys, "info", name)
        assert code == 0 and out.startswith(f"{name}: {says}") and out.endswith(page)


def test_info_tells_algorithm_defaults_and_needs(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "info", "smaran")
    assert code == 0
    for part in ("hf_optim.SMARAN", "needs:        loss", "gamma=0.9", "ghat = g / (||g|| + eps)", "lr 0.001 to 1, "):
        assert part in out


def test_every_optimizer_has_an_info_page_that_loses_nothing_on_a_terminal_of_80_columns(capsys, monkeypatch) -> None:
    for name in list_optimizers():
        pages = []
        for columns in ("80", "500"):
            monkeypatch.setenv("COLUMNS", columns)
            code, out, _ = run(capsys, "info", name)
            assert code == 0 and out.startswith(name + "\n") and len(out.splitlines()) > 8, name
            assert max(map(len, out.splitlines())) <= int(columns), name
            pages.append(out)
        assert pages[0].split() == pages[1].split() and info(name).doc in pages[1], name
        for option in {"compile", "grad_transform", "state_dtype"} & set(info(name).options):
            shared = pages[1].split("\noptions that rules share\n")[1]
            assert re.search(rf"^  {option}: +\S+ \S+ \S+", shared, re.M), name


def test_a_reader_that_leaves_is_no_error() -> None:
    script = f"{sys.executable} -m hf_optim.commands.main list | head -1; exit ${{PIPESTATUS[0]}}"
    process = subprocess.run(["bash", "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert process.returncode == 0 and process.stderr == ""


@pytest.mark.parametrize(
    ("before", "command", "after", "code", "told"),
    [
        ("", "list", ">&-", 0, ""),
        ("", "list", "<&- >/dev/null", 0, ""),
        ("", "list", ">/dev/full", 2, "error: output: No space left on device"),
        ("", "--help", ">/dev/full", 0, ""),
        ("PYTHONIOENCODING=ascii", "list", ">/dev/null", 0, ""),
        ("LC_ALL=C PYTHONUTF8=0 PYTHONCOERCECLOCALE=0", "list", ">/dev/null", 0, ""),
    ],
)
def test_streams_that_take_nothing_end_in_no_traceback(
    before: str, command: str, after: str, code: int, told: str
) -> None:
    script = f"{before} {sys.executable} -m hf_optim {command} {after}"
    process = subprocess.run(["bash", "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert process.returncode == code and process.stderr.strip() == told, process.stderr


def test_a_user_without_a_home_has_no_caches_in_the_current_folder(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("os.getuid", lambda: 54321)
    assert run(capsys, "doctor") == (2, "", "error: this user has no home folder: set HOME to one, from / on\n")


def test_what_no_command_looks_for_is_one_line(capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    from hf_optim.commands import cite

    for error, told in (
        (PermissionError(13, "Permission denied", "secret\x1b[31m.json"), "secret�[31m.json: Permission denied"),
        (MemoryError("Unable to allocate 9 TiB"), "there is not enough memory (Unable to allocate 9 TiB)"),
    ):
        monkeypatch.setattr(cite, "main", lambda _, error=error: (_ for _ in ()).throw(error))
        assert main(["cite"]) == 2 and capsys.readouterr().err == f"error: {told}\n"
    assert one_line(MemoryError()) == "MemoryError: there is not enough memory"  # what a worker's reason is


def test_a_value_out_of_range_ends_a_study_before_anything_is_written(tmp_path, capsys):
    from hf_optim.commands.main import main

    file = tmp_path / "bad.yaml"
    file.write_text(
        "name: x\nbaseline: adam\nseeds: 2\ntasks: [{task: vision, model: mlp, size: smoke}]\n"
        "optimizers: [adam, {name: smaran, gamma: 1.5}]\n"
    )
    assert main(["study", str(file), "--output", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.strip() == f"error: {file}, line 5: smaran: gamma = 1.5 is outside [0, 1)"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("seconds", "busy", "told"), [(0.4, True, 1), (0.0, True, 0), (0.4, False, 0)])
def test_a_terminal_is_told_once_why_nothing_moves(seconds, busy, told, monkeypatch, capsys):
    monkeypatch.setattr(notes, "PATIENCE", 0.1)
    over = threading.Event()
    for terminal in (True, False):
        monkeypatch.setattr(sys.stderr, "isatty", lambda terminal=terminal: terminal)
        with notes.waiting("at it", busy=lambda: busy):
            over.wait(seconds)
        assert capsys.readouterr().err == "at it\n" * (told and terminal)


def test_a_command_tells_that_a_large_package_is_being_imported(monkeypatch):
    spec = types.SimpleNamespace(_initializing=True)
    monkeypatch.setitem(sys.modules, "optuna", types.SimpleNamespace(__spec__=spec))
    assert main_module._loading()
    spec._initializing = False
    assert not main_module._loading()

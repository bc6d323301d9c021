"""The scripts' environment: made once, noticed when it is half made, and one line where nothing can be had."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """environment.py with a pip that says what it was asked for, and makes environments without pip."""
    module = script("environment")
    module.asked = []
    real = subprocess.run

    def run(command: list[object], **options: object) -> object:
        words = [str(word) for word in command]
        if words[1:3] == ["-m", "venv"]:
            words.insert(3, "--without-pip")
        return real(words, **options)  # type: ignore[call-overload]

    def pip(venv: Path, *arguments: str, **_: object) -> int:
        module.asked.append(arguments)
        return 0

    monkeypatch.setattr(module.subprocess, "run", run)
    monkeypatch.setattr(module, "pip", pip)
    return module


def make(module: ModuleType, venv: Path, *more: str) -> int:
    return int(module.main(["--venv", str(venv), "--extras", "dev", "--torch", script("lock").TORCH, *more]))


def test_made_once_and_left_alone(environment: ModuleType, tmp_path: Path) -> None:
    venv = tmp_path / "a path with spaces" / "env"
    assert make(environment, venv) == 0 and (venv / "installed-dev").is_file() and not (venv / "being-made").exists()
    asked = [words[:1] for words in environment.asked]
    assert asked[0] == ("download",) and len(asked) >= 3
    locked = environment.lock_of(script("lock").TORCH, "dev")
    assert (locked is None) or any("--require-hashes" in words for words in environment.asked)
    environment.asked.clear()
    assert make(environment, venv) == 0 and environment.asked == []


def test_a_lock_that_does_not_fit_is_said_and_left(
    environment: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lock = tmp_path / "dev.txt"
    monkeypatch.setattr(environment, "ROOT", tmp_path)
    monkeypatch.setattr(environment, "lock_of", lambda *_: lock)
    seen: list[tuple[str, ...]] = []
    monkeypatch.setattr(
        environment, "pip", lambda _, *words, **__: seen.append(words) or int("--require-hashes" in words)
    )
    environment.prepare(tmp_path / "env", False)
    environment.install(tmp_path / "env", "torch==2.14.1 torchvision==0.29.1", "dev")
    assert "dev.txt does not fit this machine or its index" in capsys.readouterr().out
    assert seen[1:] == [("install", "--quiet", "torch==2.14.1", "torchvision==0.29.1"),
                        ("install", "--quiet", "--editable", ".[dev]")]  # fmt: skip
    monkeypatch.undo()
    assert script("environment").lock_of("torch==2.7.0", "dev") is None


def test_half_of_a_package_is_never_left_for_a_whole_one(
    environment: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    venv, codes = tmp_path / "env", iter([0, -9, 0, 1, 0, 0])
    monkeypatch.setattr(environment, "lock_of", lambda *_: ROOT / "scripts" / "locked" / "dev.txt")

    def pip(_: Path, *words: str, **__: object) -> int:
        if "--require-hashes" in words:
            (venv / "half").write_text("")
        return next(codes)

    monkeypatch.setattr(environment, "pip", pip)
    assert make(environment, venv) == 2  # reached, then killed
    assert "error: pip was ended by signal 9" in capsys.readouterr().err
    assert make(environment, venv) == 0  # reached, the lock did not fit, two steps without it
    said = capsys.readouterr().out
    assert "its making was interrupted" in said and "a package may be half there" in said
    assert not (venv / "half").exists() and next(codes, None) is None


def test_an_interrupted_one_is_made_anew(
    environment: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    venv = tmp_path / "env"
    assert make(environment, venv) == 0
    (venv / "being-made").write_text("")  # as a kill leaves it
    (venv / "half").write_text("")
    assert make(environment, venv) == 0
    assert "anew: its making was interrupted" in capsys.readouterr().out and not (venv / "half").exists()
    (venv / "bin" / "python").unlink()
    (venv / "bin" / "python").write_text("#!/bin/sh\necho 3.9\n")
    (venv / "bin" / "python").chmod(0o755)
    assert (
        make(environment, venv) == 0 and "anew" not in capsys.readouterr().out
    )  # another's, and nobody asked for this
    assert make(environment, venv, "--chosen") == 0 and "it has Python 3.9, and " in capsys.readouterr().out


def test_what_is_no_environment_is_let_be(
    environment: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_text("")
    assert make(environment, tmp_path / "photos") == 2
    assert "is no environment: name another" in capsys.readouterr().err and (tmp_path / "photos" / "cat.jpg").exists()


def test_two_at_once_wait_for_each_other(environment: ModuleType, tmp_path: Path) -> None:
    order: list[str] = []
    with environment.alone(tmp_path / "env"):
        other = threading.Thread(target=lambda: (make(environment, tmp_path / "env"), order.append("other")))
        other.start()
        time.sleep(0.3)
        order.append("first")
    other.join(60)
    assert order == ["first", "other"]


def test_without_a_network_there_is_one_line_soon(tmp_path: Path) -> None:
    """A pip that hangs, in place of the environment's: what an unreachable index looks like."""
    module = script("environment")
    module.REACHED_SECONDS = 1
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").write_text("#!/bin/sh\nexec sleep 30\n")
    (tmp_path / "bin" / "python").chmod(0o755)
    with pytest.raises(module.Problem, match="no package index can be reached"):
        module.reach(tmp_path)
    assert script("environment").REACHED_SECONDS < 20


def test_the_locks_are_locks() -> None:
    lock = script("lock")
    for extra in lock.EXTRAS:
        text = (lock.FOLDER / f"{extra}.txt").read_text()
        assert lock.unsatisfied(extra, text) == [], "run python scripts/lock.py"
        packages = re.split(r"\n(?=[\w.-]+==)", text.partition("\n")[2])
        assert len(packages) > 30 and all("--hash=sha256:" in line for line in packages if "==" in line)
        assert "://" not in text and "index-url" not in text


def test_the_scripts_still_begin_with_it() -> None:
    for name in ("test.sh", "quickstart.sh"):
        assert ". scripts/environment.sh" in (ROOT / "scripts" / name).read_text()
    for python in ("/nowhere/python", "true"):  # what says yes to everything is no Python
        start = f"PYTHON={python} . scripts/environment.sh"
        done = subprocess.run(["bash", "-c", start], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 2 and done.stderr.count("\n") == 1 and "Python 3.11 or newer" in done.stderr
    assert sys.version_info >= (3, 11)

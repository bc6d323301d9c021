"""The new folder of a published copy, or of a merge: there when all of it is, and in nobody's place."""

from __future__ import annotations

import errno
import json
import os
import signal
import stat
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from study_fakes import make_study

from hf_optim.commands.main import main
from hf_optim.errors import UserError
from hf_optim.experiment import files, leftovers
from hf_optim.experiment.files import whole
from hf_optim.study.folder.publish import publish

KILLED = """
import os, signal, sys
from hf_optim.commands.main import main
from hf_optim.study import conduct
conduct.finish = lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM)
main(["publish", *sys.argv[1:]])
"""


def test_a_publish_that_is_killed_leaves_nothing_in_the_way(tmp_path: Path) -> None:
    study, into = make_study(tmp_path / "study", seeds=2), tmp_path / "public"
    killed = subprocess.run([sys.executable, "-c", KILLED, study, into], check=False)
    (left,) = tmp_path.glob(".public.*.tmp")
    assert killed.returncode == -signal.SIGTERM and (left / "plan.json").is_file() and not into.exists()
    own = tmp_path / f".other.{'0' * 32}.tmp"
    own.mkdir()
    assert main(["publish", str(study), str(into)]) == 0
    assert (into / "README.md").is_file() and {*tmp_path.iterdir()} == {study, into, own}


def test_what_another_publish_is_at_stays(tmp_path: Path) -> None:
    with files.whole_folder(tmp_path, "public") as (writing, _):
        leftovers.sweep_folders(tmp_path, "public")
        assert writing.is_dir()
    assert [path.name for path in tmp_path.iterdir()] == ["public"]


def test_the_current_folder_is_no_place_to_publish_into(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for here in (".", "../here"):
        assert main(["publish", str(make_study(tmp_path / "study", seeds=2)), here]) == 2
        assert "is the current folder" in capsys.readouterr().err


def test_what_somebody_puts_into_the_new_folder_meanwhile_stays(tmp_path: Path) -> None:
    study, into = make_study(tmp_path / "study", seeds=2), tmp_path / "public"

    def meanwhile(*_: object) -> None:
        into.mkdir()
        (into / "mine").write_text("mine")

    with pytest.raises(UserError, match="not empty"):
        publish(study, into, meanwhile)
    assert [path.name for path in into.iterdir()] == ["mine"] and not [*tmp_path.glob(".public*")]


def test_a_sample_that_the_disk_has_no_room_for_is_not_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The copy took its place without it, and the command gave 0."""
    study = make_study(tmp_path / "study", ("adamw",), seeds=1)
    (home,) = (study / "runs").iterdir()
    (home / "samples").mkdir()
    (home / "samples" / "a.txt").write_text("text")
    record = json.loads((home / "record.json").read_text())
    (home / "record.json").write_text(json.dumps({**record, "samples": ["samples/a.txt"]}))
    whole = files.whole

    def full(folder: Path, name: str) -> Any:
        if name == "samples/a.txt":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return whole(folder, name)

    monkeypatch.setattr(files, "whole", full)
    assert main(["publish", str(study), str(tmp_path / "public")]) == 2
    assert "the disk is full" in capsys.readouterr().err and not (tmp_path / "public").exists()


@pytest.mark.parametrize("command", [["publish", "study", "new"], ["results", "study", "--merge", "new"]])
def test_an_empty_folder_is_as_open_to_others_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    """One made for oneself alone was replaced by one that everybody reads."""
    monkeypatch.chdir(tmp_path)
    make_study(tmp_path / "study", ("adamw",), seeds=1)
    (tmp_path / "new").mkdir(mode=0o700)
    assert main(command) == 0
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o700 and (tmp_path / "new" / "report.html").is_file()


@pytest.mark.parametrize(
    ("before", "own", "after"),
    [(0o600, True, 0o600), (0o664, True, 0o664), (0o4755, True, 0o755), (0o640, False, 0o640), (0o666, False, 0o644)],
)
def test_a_file_that_is_replaced_is_as_open_to_others_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: int, own: bool, after: int
) -> None:
    """What was private became a file that everybody reads; one of another user's opens nothing of ours."""
    study = make_study(tmp_path / "study", ("adamw",), seeds=1)
    (file := tmp_path / "out.csv").write_text("mine")
    file.chmod(before)
    if not own:
        monkeypatch.setattr("os.geteuid", lambda: file.stat().st_uid + 1)
    umask = os.umask(0o022)
    try:
        assert main(["export", str(study), "--table", "csv", "--output", str(file)]) == 0
        (link := tmp_path / "link.csv").symlink_to(file)
        assert main(["export", str(study), "--table", "csv", "--output", str(link)]) == 0
    finally:
        os.umask(umask)
    assert stat.S_IMODE(file.stat().st_mode) == after and file.read_text() == link.read_text() != "mine"
    assert not link.is_symlink() and stat.S_IMODE(link.stat().st_mode) == 0o644


def test_nothing_of_a_private_file_is_open_to_others_while_it_is_written(tmp_path: Path) -> None:
    (file := tmp_path / "mine.json").write_text("mine")
    file.chmod(0o600)
    with whole(tmp_path, file.name):
        assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {0o600}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives a file to any group")
@pytest.mark.parametrize("kept", [True, False])
def test_what_is_replaced_stays_its_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: bool) -> None:
    """What colleagues shared became the whole primary group's."""

    def refused(*_: Any) -> None:
        raise PermissionError

    for name, mode in (("file", 0o660), ("folder", 0o770)):
        (path := tmp_path / name).mkdir() if name == "folder" else (path := tmp_path / name).touch()
        os.chown(path, -1, 4321)
        path.chmod(mode)
    if not kept:
        monkeypatch.setattr("os.fchown", refused)
    with whole(tmp_path, "file") as file, files.whole_folder(tmp_path, "folder"):
        file.write(b"new")
    for name, mode in (("file", 0o660), ("folder", 0o770)):
        there = (tmp_path / name).stat()
        assert (there.st_gid == 4321) == kept and stat.S_IMODE(there.st_mode) == (mode if kept else mode & ~0o070)


def _access(*entries: tuple[int, int, int]) -> bytes:
    """Linux's form of an access list: tag, rights and whose, where it is nobody's by name -1."""
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHi", *entry) for entry in entries)


@pytest.mark.skipif(os.geteuid() != 0 or not hasattr(os, "setxattr"), reason="root of Linux may give files to others")
@pytest.mark.parametrize("kept", [True, False])
def test_what_is_replaced_keeps_its_access_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: bool) -> None:
    """The mode's bits of the group are then a mask: the group had no right, and got all of it."""
    listed, name = _access((1, 6, -1), (2, 4, 101), (4, 0, -1), (16, 6, -1), (32, 0, -1)), "system.posix_acl_access"
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    try:
        for path in tmp_path.iterdir():
            os.setxattr(path, name, listed)
    except OSError:
        pytest.skip("a file system without access lists")
    if not kept:
        monkeypatch.setattr("os.setxattr", Mock(side_effect=OSError))
    with whole(tmp_path, "file") as file, files.whole_folder(tmp_path, "folder"):
        file.write(b"new")
    for path in tmp_path.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == (0o660 if kept else 0o600)
        assert (name in os.listxattr(path) and os.getxattr(path, name) == listed) == kept


@pytest.mark.skipif(os.geteuid() != 0 or not hasattr(os, "setxattr"), reason="root of Linux may give files to others")
def test_what_is_replaced_takes_no_access_list_of_its_folder(tmp_path: Path) -> None:
    (file := tmp_path / "file").write_text("mine")
    file.chmod(0o640)
    named = _access((1, 7, -1), (2, 7, 101), (4, 0, -1), (16, 7, -1), (32, 0, -1))
    try:
        os.setxattr(tmp_path, "system.posix_acl_default", named)
    except OSError:
        pytest.skip("a file system without access lists")
    with whole(tmp_path, "file") as new:
        new.write(b"new")
    assert not os.listxattr(file) and stat.S_IMODE(file.stat().st_mode) == 0o640


def test_what_a_private_folder_is_to_hold_is_private_meanwhile(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir(mode=0o700)
    for name, mode in (("mine", 0o700), ("new", 0o777 & ~_umask())):
        with files.whole_folder(tmp_path, name) as (meanwhile, _):
            assert stat.S_IMODE(meanwhile.stat().st_mode) == mode
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == mode


def _umask() -> int:
    os.umask(mask := os.umask(0))
    return mask

"""What a study keeps: on a full or read-only disk, and when its YAML changes."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import tuning_fakes as tuned
from study_fakes import make_study

import hf_optim.experiment.training
from hf_optim.commands.main import main
from hf_optim.errors import UserError
from hf_optim.experiment.disk import check_disk, check_error
from hf_optim.study.folder import changes, rows
from hf_optim.study.folder import results as records
from hf_optim.study.folder.locks import Lock, check_shared
from hf_optim.study.folder.store import read_status
from hf_optim.study.launch import beginning, worker
from hf_optim.study.launch.messages import Request
from hf_optim.study.plan.plan import Plan

ROOT = Path(__file__).resolve().parents[1]
SPEC = {"task": "vision", "optimizer": {"name": "adamw"}, "seed": 0}
YAML = """name: s
seeds: 2
tasks: [{task: vision, model: mlp, size: smoke}]
optimizers: [{name: adamw, lr: 1e-3}]
"""


def command(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main(arguments)
    out, err = capsys.readouterr()
    return code, out, err


# --- disks ---


@contextmanager
def mounted(folder: Path, size: str) -> Iterator[Path]:
    """A small disk of its own; skips where this process may not mount one."""
    folder.mkdir()
    mounting = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True)
    if mounting.returncode:
        pytest.skip(f"cannot mount a tmpfs here: {mounting.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(disk: Path) -> Path:
    """Writes until the disk is full."""
    ballast = disk / "ballast"
    with pytest.raises(OSError), open(ballast, "wb", buffering=0) as file:
        while True:
            file.write(bytes(1 << 16))
    return ballast


def finished(spec: object, home: Path, **_: object) -> None:
    """Stands for a training run: leaves its record."""
    (Path(home) / "record.json").write_text(json.dumps({"id": "one", "status": "ok", "metrics": {}}))


def test_a_disk_that_fills_in_a_run_leaves_no_record_and_the_study_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with mounted(tmp_path / "disk", "8m") as disk:
        folder = disk / "study"

        def trains_until_the_disk_is_full(spec: object, home: Path, **_: object) -> None:
            fill(disk)
            raise RuntimeError("unexpected pos 64 vs 0")  # how a library tells of it, and not as an OSError

        def catches_it(spec: object, home: Path, **_: object) -> None:
            finished(spec, home)
            record = {"id": "one", "status": "failed", "error": "OSError: [Errno 28]", "metrics": {}}
            (Path(home) / "record.json").write_text(json.dumps(record))
            fill(disk)

        for bad in (trains_until_the_disk_is_full, catches_it):
            monkeypatch.setattr(hf_optim.experiment.training, "train", bad)
            with pytest.raises(UserError, match="the disk is full.*the same command again"):
                worker.execute(Request(folder, "one", SPEC))
            assert read_status(folder / "runs" / "one") is None
            # Nothing is begun on a disk that is nearly full.
            with pytest.raises(UserError, match="the disk is full.*are free"):
                worker.execute(Request(folder, "one", SPEC))
            (disk / "ballast").unlink()
        monkeypatch.setattr(hf_optim.experiment.training, "train", finished)
        assert worker.execute(Request(folder, "one", SPEC)) == "ok"
        assert worker.execute(Request(folder, "one", SPEC)) == "ok"


def test_a_failure_of_the_run_itself_is_its_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("no")

    monkeypatch.setattr(hf_optim.experiment.training, "train", fails)
    assert worker.execute(Request(tmp_path, "one", SPEC)) == "failed"
    assert read_status(tmp_path / "runs" / "one") == "failed"


@pytest.mark.parametrize(
    "said",
    [
        "OSError: [Errno 27] File too large",
        "SafetensorError: I/O error: File too large (os error 27)",
        "RuntimeError: [enforce fail at inline_container.cc:672] . unexpected pos 202880 vs 202768",
    ],
)
def test_a_checkpoint_that_the_disk_does_not_take_is_no_failure_of_the_optimizers(
    said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a limit on the size of files AdamW failed, which keeps two tensors a parameter, and SGD did not."""

    def cut(spec: object, home: Path, **_: object) -> None:
        (Path(home) / "record.json").write_text(json.dumps({"id": "one", "status": "failed", "error": said}))

    monkeypatch.setattr(hf_optim.experiment.training, "train", cut)
    with pytest.raises(UserError, match="the disk is full.*the same command again"):
        worker.execute(Request(tmp_path, "one", SPEC))
    assert read_status(tmp_path / "runs" / "one") is None


@pytest.mark.parametrize(("name", "told"), [("/data/own.bin", "/data/own.bin"), (".x.tmp", "{}"), ("{}/x", "{}")])
def test_the_disk_that_is_named_is_the_one_that_refused(name: str, told: str, tmp_path: Path) -> None:
    """A read-only file system of a training's own was said to be the study's folder."""
    with pytest.raises(UserError) as error:
        check_error(tmp_path, OSError(errno.EROFS, "Read-only file system", name.format(tmp_path)))
    assert str(error.value).startswith(f"{told.format(tmp_path)}: cannot be written")


def test_a_limit_on_the_size_of_files_is_a_full_disk(tmp_path: Path) -> None:
    script = (
        "import resource, sys; from pathlib import Path; from hf_optim.experiment.disk import check_disk\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try: check_disk(Path(sys.argv[1]))\nexcept ValueError as error: print(error)"
    )
    process = subprocess.run(
        [sys.executable, "-c", script, tmp_path], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "the disk is full" in process.stdout and list(tmp_path.iterdir()) == []
    check_disk(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_command_on_a_full_disk_says_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = tmp_path / "s.yaml"
    study.write_text(YAML)
    with mounted(tmp_path / "disk", "6m") as disk:
        ballast = disk / "ballast"
        ballast.write_bytes(bytes(5 << 20))
        code, _, err = command(capsys, "study", str(study), "--output", str(disk / "out"), "--jobs", "1")
        assert code == 2 and err.count("\n") == 1, err
        assert err.startswith("error: ") and "the disk is full" in err
        assert not list((disk / "out").glob("runs/*/record.json"))
        ballast.unlink()
        make_study(disk / "fake", seeds=1, steps=10)
        fill(disk)
        code, _, err = command(capsys, "report", str(disk / "fake"))
        assert code == 2 and err.count("\n") == 1 and "the disk is full" in err, err


OWN = """
import sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from test_study_store import fill
from hf_optim import study

@study.training(metric="test_loss", greater_is_better=False)
def mine(optimizer, seed, log):
    log(1, loss=0.5)
    fill(Path({disk!r}))
    return {{"test_loss": 0.5}}
"""


@pytest.mark.parametrize("filled", ["before", "meanwhile"])
@pytest.mark.parametrize("own", [False, True], ids=["ours", "own"])
def test_a_run_from_the_command_line_whose_disk_is_full_says_one_line(
    own: bool, filled: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was trained to its end, and then said `output: No space left on device`."""
    with mounted(tmp_path / "disk", "8m") as disk:
        (tmp_path / "own.py").write_text(OWN.format(tests=str(ROOT / "tests"), disk=str(disk)))
        task = (f"{tmp_path}/own.py:mine",) if own else ("vision", "--model", "mlp", "--size", "smoke", "--steps", "2")
        if filled == "before":
            fill(disk)
        elif not own:
            whole = hf_optim.experiment.training._trained
            monkeypatch.setattr(hf_optim.experiment.training, "_trained", lambda *a: (whole(*a), fill(disk))[0])
        code, _, err = command(
            capsys, "train", "--task", *task, "--optimizer", "adamw", "--output", f"{disk}/o", "--quiet"
        )
        assert code == 2 and err.count("\n") == 1, err
        assert err.startswith(f"error: {disk}/o: the disk is full"), err
        assert filled == "meanwhile" or "are free" in err  # before it is trained
        assert not (disk / "o" / "record.json").exists()


def test_a_read_only_folder_says_one_line_and_can_still_be_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = tmp_path / "s.yaml"
    study.write_text(YAML)
    with mounted(tmp_path / "disk", "8m") as disk:
        make_study(disk / "fake", steps=10)
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        for arguments in (("study", str(study), "--output", str(disk / "out")), ("report", str(disk / "fake"))):
            code, _, err = command(capsys, *arguments)
            assert code == 2 and err.count("\n") == 1, err
            assert err.startswith("error: ") and "cannot be written" in err
        code, out, _ = command(capsys, "results", str(disk / "fake"))
        assert code == 0 and len(out.splitlines()) == 10


def test_a_file_system_without_locks_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno
    import fcntl

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", refuse)
    with pytest.raises(UserError, match="gives no locks"):
        Lock(tmp_path, "one").acquire()


@pytest.mark.parametrize(
    ("line", "bad"),
    [
        ("nfs4 server:/x rw,vers=4.2,local_lock=none", ""),
        ("nfs server:/x rw,vers=3,nolock,local_lock=all", "local_lock=all"),
        ("nfs server:/x rw,local_lock=posix", "local_lock=posix"),
        ("lustre x rw,flock", ""),
        ("lustre x rw,seclabel", "noflock"),
        ("lustre x rw,localflock", "localflock"),
        ("ext4 /dev/vda rw", ""),
    ],
)
def test_a_network_file_system_that_keeps_locks_to_itself_is_refused(tmp_path: Path, line: str, bad: str) -> None:
    home = str(tmp_path.resolve())
    mounts = f"21 1 254:0 / / rw - ext4 /dev/root rw\n30 21 0:9 / {home} rw shared:1 - {line}\n"
    if not bad:
        check_shared(tmp_path, mounts)
        return
    with pytest.raises(UserError, match=bad):
        check_shared(tmp_path, mounts)
    check_shared(tmp_path.parent, mounts)


# --- a study that changed ---


def plan_of(folder: Path) -> Plan:
    return changes.read_plan(folder)


def test_a_changed_study_says_which_runs_still_count(tmp_path: Path) -> None:
    old = plan_of(make_study(tmp_path / "a", missing=[("adan", 2)]))
    new = plan_of(make_study(tmp_path / "b", labels=("adamw", "smaran", "lion"), seeds=3))
    change = changes.since(tmp_path / "a", new)
    assert change is not None
    assert (len(change.still), len(change.new), len(change.gone)) == (6, 3, 3)
    text = change.sentence()
    assert "6 of 9 runs still count (6 finished), 3 are new, 3 are no longer in the plan (2 finished" in text
    assert "first: adan on MLP, seed 0 is left out" in text and "\n" not in text
    assert "  new: lion on MLP, seeds 0, 1, 2" in change.lines()

    before = (tmp_path / "a" / "plan.json").read_bytes()
    with pytest.raises(UserError, match="--accept-change goes on"):
        beginning.prepare(new, "name: b\n", tmp_path / "a")
    assert (tmp_path / "a" / "plan.json").read_bytes() == before
    beginning.prepare(new, "name: b\n", tmp_path / "a", accept_change=True)
    results = records.load(tmp_path / "a")
    assert [r.optimizer for r in results.plan.runs[:3]] == ["adamw", "smaran", "lion"]
    assert len(results.records) == 6
    # The records of runs that are not planned any more are kept, out of the table.
    kept = [row for row in rows.of(results) if row["stage"] == "none"]
    assert sorted(row["id"] for row in kept) == sorted(r.id for r in old.runs if r.optimizer == "adan" and r.seed < 2)


def test_a_study_that_only_grows_needs_no_word(tmp_path: Path) -> None:
    make_study(tmp_path / "a", seeds=2)
    grown = plan_of(make_study(tmp_path / "b", seeds=3))
    beginning.prepare(grown, "name: b\n", tmp_path / "a")
    assert len(records.load(tmp_path / "a").records) == 6


def test_a_tuned_study_that_only_grows_needs_no_word_either(tmp_path: Path) -> None:
    text = tuned.YAML.replace("seeds: 3\n", "").replace("trials: 6", "trials: 2\n  repetitions: 3")
    tuned.whole(tuned.expand(text), tmp_path, tuned.even)
    for more in ("[3, 6]", "6"):
        change = changes.since(tmp_path, tuned.expand(text.replace("repetitions: 3", f"repetitions: {more}")))
        assert change is not None and not change.gone and len(change.recorded) == len(change.still) == 27
        assert "  still counts: SMARAN on MLP, seeds 0, 1, 2, 1000, 1001, 1002 (9 finished)" in change.lines()


def test_the_command_tells_the_first_difference(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from hf_optim.study.plan import plan as planning
    from hf_optim.study.plan.source import parse

    folder = tmp_path / "out"
    beginning.prepare(planning.expand(parse(YAML, "s.yaml")), YAML, folder)
    study = tmp_path / "s.yaml"
    study.write_text(YAML.replace("1e-3", "3e-3"))
    code, out, err = command(capsys, "study", str(study), "--output", str(folder))
    assert code == 2 and out == "" and err.count("\n") == 1
    assert "0 of 2 runs still count, 2 are new" in err
    assert "adamw on vision/mlp/smoke, seed 0: optimizer.lr: 0.001 there, 0.003 here" in err
    code, out, _ = command(capsys, "study", str(study), "--output", str(folder), "--dry-run")
    assert code == 0 and "no longer in the plan: adamw on vision/mlp/smoke, seeds 0, 1" in out

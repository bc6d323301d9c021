"""Makes the virtual environment of the scripts, once: what is there and whole is left alone, in no time.

    python scripts/environment.py --venv .venv --extras dev --torch "torch==2.14.1 torchvision==0.29.1"

The versions of scripts/locked are installed, with their hashes, where they fit this machine and the torch that is asked
for; else, and it says so, the newest that pyproject.toml allows. An environment whose making was interrupted, or that
another Python has made, is made anew. Two that are started at once wait for each other. Exit code 2, after one line,
where there is no network.
"""

from __future__ import annotations

import argparse
import contextlib
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
#: stands in an environment while it is being made
BEGUN = "being-made"
REACHED_SECONDS = 15


class Problem(Exception):
    """One line for the user."""


@contextlib.contextmanager
def alone(venv: Path) -> Iterator[None]:
    """Held by one process at a time; the kernel lets go of it when the process ends in any way."""
    import fcntl

    venv.parent.mkdir(parents=True, exist_ok=True)
    with open(venv.with_name(f"{venv.name}.lock"), "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            print(f"another process is making {venv}: waiting for it", flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def wanted(torch: str, extras: str) -> str:
    """What an environment is made of; it is installed into again when this has changed."""
    lock = lock_of(torch, extras)
    return "\n".join([torch, (ROOT / "pyproject.toml").read_text(), lock.read_text() if lock else ""])


def lock_of(torch: str, extras: str) -> Path | None:
    """The lock for these extras, if it holds this torch and is for this kind of machine."""
    file = ROOT / "scripts" / "locked" / f"{extras}.txt"
    if not file.is_file() or sys.platform != "linux" or platform.machine() != "x86_64":
        return None
    text = file.read_text()
    return file if all(re.search(rf"^{re.escape(package)}\s", text, re.M) for package in torch.split()) else None


def made_by(venv: Path) -> str:
    """The version (3.11) of the Python in an environment; empty if it does not run."""
    show = "import sys; print('%d.%d' % sys.version_info[:2])"
    try:
        done = subprocess.run([venv / "bin" / "python", "-c", show], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip()


def unfit(venv: Path, chosen: bool) -> str:
    """Why an environment is not the one that is asked for: it does not run, or another Python was `chosen`."""
    mine, its = platform.python_version().rpartition(".")[0], made_by(venv)
    if not its:
        return "its Python does not run"
    return f"it has Python {its}, and {mine} is asked for" if chosen and its != mine else ""


def prepare(venv: Path, chosen: bool, why: str = "") -> None:
    """Leaves an environment of this Python, whose making has begun; `why` it is to be made anew, if it is."""
    ours = (venv / "pyvenv.cfg").is_file() or (venv / BEGUN).is_file()
    if venv.exists() and not ours and (not venv.is_dir() or any(venv.iterdir())):
        raise Problem(f"{venv} is there and is no environment: name another with VENV=...")
    why = why or ("its making was interrupted" if (venv / BEGUN).is_file() else unfit(venv, chosen) if ours else "")
    if why:
        print(f"making the environment {venv} anew: {why}", flush=True)
        for path in list(venv.iterdir()):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    if not (venv / "bin" / "python").exists():
        print(f"making the environment {venv}", flush=True)
        venv.mkdir(parents=True, exist_ok=True)
        (venv / BEGUN).write_text("")
        subprocess.run([sys.executable, "-m", "venv", venv], check=True)
    (venv / BEGUN).write_text("")


def pip(venv: Path, *arguments: str, **options: object) -> int:
    """The exit code of pip in the environment."""
    command = [str(venv / "bin" / "python"), "-m", "pip", *arguments]
    return subprocess.run(command, cwd=ROOT, **options).returncode  # type: ignore[call-overload, no-any-return]


def reach(venv: Path) -> None:
    """Raises Problem, within 20 seconds, where no package can be had: minutes of attempts would say the same."""
    to = venv / "reached"
    asked = [
        "download",
        "--quiet",
        "--no-deps",
        "--no-cache-dir",
        "--timeout",
        "5",
        "--retries",
        "0",
        "--dest",
        str(to),
    ]
    try:
        code = pip(venv, *asked, "setuptools>=77", capture_output=True, timeout=REACHED_SECONDS)
    except subprocess.TimeoutExpired:
        code = 1
    shutil.rmtree(to, ignore_errors=True)
    if code:
        raise Problem("no package index can be reached: is there a network? (pip's settings say which index)")


def install(venv: Path, torch: str, extras: str) -> None:
    """Everything, locked where a lock fits."""
    lock = lock_of(torch, extras)
    if lock is not None:
        code = pip(venv, "install", "--quiet", "--require-hashes", "-r", str(lock))
        if code == 0:
            if pip(venv, "install", "--quiet", "--no-deps", "--editable", "."):
                raise Problem("the package itself could not be installed: see above")
            return
        if code < 0:
            raise Problem(f"pip was ended by signal {-code} (9: too little memory?); the same command makes it anew")
        print(f"{lock.relative_to(ROOT)} does not fit this machine or its index: installing what pyproject.toml allows")
        prepare(venv, False, "a package may be half there")  # pip takes one without its list of files for a whole one
    else:
        print(f"no lock for {torch} with [{extras}] on this kind of machine: installing what pyproject.toml allows")
    if pip(venv, "install", "--quiet", *torch.split()) or pip(venv, "install", "--quiet", "--editable", f".[{extras}]"):
        raise Problem("not everything could be installed: see above; the same command makes it anew")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--venv", type=Path, required=True)
    parser.add_argument("--extras", required=True)
    parser.add_argument("--torch", required=True)
    parser.add_argument("--chosen", action="store_true", help="this interpreter was asked for: no other will do")
    given = parser.parse_args(argv)
    venv: Path = given.venv
    try:
        with alone(venv):
            asked, mark = wanted(given.torch, given.extras), venv / f"installed-{given.extras}"
            whole = mark.is_file() and mark.read_text() == asked and not (venv / BEGUN).exists()
            if whole and not unfit(venv, given.chosen):
                return 0
            prepare(venv, given.chosen)
            reach(venv)
            print("installing (a few minutes the first time)", flush=True)
            install(venv, given.torch, given.extras)
            mark.write_text(asked)  # one file an extra: an environment may hold both
            (venv / BEGUN).unlink()
    except Problem as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {venv} cannot be made: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

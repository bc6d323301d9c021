"""Kills the launcher of a study at random moments, and compares the tables with those of a study that was left alone.

    python scripts/kill_study.py [--kills 10] [--study smoke] [--jobs 1] [--seeds 8] [--seed 0] [--launchers 1]

Each time SIGKILL comes at a random moment: in turn while the launcher starts, in its first run, and after it has
finished one; and it comes to the launcher alone (its workers have to notice), or, one time in three, to one of its
workers first. With several launchers all work in the folder at once, and the first one is killed. Only what hit a
process is counted: a study that comes to its end is compared, and the next kill is one of the same study in a new
folder. Prints what was found in place at each kill, and ends with exit code 1 if a finished run was run again, a
process went on alone, a hidden file was left behind at the end, or a table differs by a byte.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TABLES = ("table.md", "table.csv", "runs.csv")


def start(options: argparse.Namespace, folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "hf_optim.commands.main", "study", options.study, "--output", str(folder)]
    command += ["--jobs", str(options.jobs), "--seeds", str(options.seeds)]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ}
    )


def records(folder: Path) -> dict[str, int]:
    """Each record and when it was written: a run that was made twice would have a newer one."""
    return {path.parent.name: path.stat().st_mtime_ns for path in folder.glob("runs/*/record.json")}


def begun(folder: Path) -> int:
    """How many runs somebody is at, or was when it was killed."""
    return sum(not (home / "record.json").exists() and any(home.iterdir()) for home in folder.glob("runs/*"))


def workers(process: int) -> list[int]:
    """The processes below a launcher (Linux only: elsewhere none are found)."""
    pids: list[int] = []
    for children in Path(f"/proc/{process}/task").glob("*/children"):
        try:
            pids += map(int, children.read_text().split())
        except OSError:
            continue
    return pids + [descendant for child in pids for descendant in workers(child)]


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def orphans(processes: list[int], seconds: float = 20) -> list[int]:
    """Those of `processes` that still run after so long."""
    until = time.monotonic() + seconds
    while (left := [process for process in processes if alive(process)]) and time.monotonic() < until:
        time.sleep(0.05)
    return left


def hidden(folder: Path) -> list[str]:
    """What a writer that was killed has left."""
    return sorted(str(p.relative_to(folder)) for p in folder.rglob(".*") if p.name != ".lock")


def wait_for_a_run(launcher: subprocess.Popen[str], folder: Path, before: float) -> float:
    """Waits until a run has begun after the moment `before` (or the launcher has ended); gives the seconds it took."""
    started = time.monotonic()
    while launcher.poll() is None:
        try:
            if any(log.stat().st_mtime > before for log in folder.glob("runs/*/log.txt")):
                break
        except FileNotFoundError:  # a new worker clears what an old one left
            pass
        time.sleep(0.02)
    return time.monotonic() - started


@dataclass(frozen=True)
class Pace:
    """Seconds of a study that is left alone: to start, in its first run (which pays for the imports), in the others."""

    starting: float
    first: float
    length: float


@dataclass
class Faults:
    again: int = 0
    alone: int = 0
    left: list[str] = field(default_factory=list)
    differing: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.again or self.alone or self.left or self.differing)


def leave_alone(options: argparse.Namespace, folder: Path) -> Pace | None:
    """Runs the study undisturbed; None where it makes no table, after what it printed."""
    launcher = start(options, folder)
    starting, begin = wait_for_a_run(launcher, folder, 0.0), time.time()
    text, _ = launcher.communicate()
    if not (folder / "table.md").exists():
        print(text)
        return None
    ends = sorted(when / 1e9 for when in records(folder).values())
    pace = Pace(starting, ends[0] - begin, (ends[-1] - ends[0]) / max(1, len(ends) - 1))
    took = f"{pace.starting:.1f} s to start, {pace.first:.1f} s the first, {pace.length:.1f} s the others"
    print(f"left alone: {len(ends)} runs, {took}", flush=True)
    return pace


def strike(options: argparse.Namespace, folder: Path, turn: int, pace: Pace, chance: random.Random) -> list[int] | None:
    """Starts the study and kills it at a moment: the processes that went on alone, or None where it had ended."""
    before, moment = records(folder), time.time()
    launcher = start(options, folder)
    more = [start(options, folder) for _ in range(options.launchers - 1)]
    if turn % 3 == 0:
        wait, stage = chance.uniform(0, pace.starting), "after its start"
    elif turn % 3 == 1:
        wait_for_a_run(launcher, folder, moment)
        wait, stage = chance.uniform(0, pace.first), "into its first run"
    else:
        while launcher.poll() is None and len(records(folder)) == len(before):
            time.sleep(0.02)
        wait, stage = chance.uniform(0, 2 * pace.length), "after it finished a run"
    left: list[int] | None = None
    try:
        launcher.communicate(timeout=wait)
        ended = "it had ended"
    except subprocess.TimeoutExpired:
        below = workers(launcher.pid)
        if below and chance.random() < 1 / 3:
            os.kill(chance.choice(below), signal.SIGKILL)
            time.sleep(chance.uniform(0, pace.length))
            below += workers(launcher.pid)
        launcher.kill()
        launcher.communicate()
        left = orphans(below)
        ended = f"killed, {len(left)} GO ON ALONE" if left else "killed"
    for other in more:
        other.communicate()
    print(f"{ended} {wait:.1f} s {stage}: {len(records(folder))} finished, {begun(folder)} half", flush=True)
    return left


def changed(folder: Path, before: dict[str, int]) -> int:
    """How many of the runs that were finished before have been run again."""
    after = records(folder)
    return sum(after.get(name) != when for name, when in before.items())


def finish(options: argparse.Namespace, folder: Path, whole: Path, faults: Faults) -> None:
    """Lets the study come to its end, and compares its tables with those of the one that was left alone."""
    before = records(folder)
    start(options, folder).communicate()
    faults.again += changed(folder, before)
    faults.left += hidden(folder)
    made = {name: folder / name for name in TABLES}
    differs = [n for n, path in made.items() if not path.exists() or path.read_bytes() != (whole / n).read_bytes()]
    faults.differing += differs
    print(f"{folder.name}: from {len(before)} to {len(records(folder))} finished;", end=" ")
    print(f"tables {'DIFFER: ' + ', '.join(differs) if differs else 'the same bytes'}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--kills", type=int, default=10, help="how often (default: 10)")
    parser.add_argument("--study", default="smoke", help="a shipped study or a YAML file (default: smoke)")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time (default: 1)")
    parser.add_argument("--seeds", type=int, default=8, help="the study's seeds (default: 8)")
    parser.add_argument("--seed", type=int, default=0, help="of the random moments (default: 0)")
    parser.add_argument("--launchers", type=int, default=1, help="so many at once in the folder (default: 1)")
    options = parser.parse_args()
    chance, faults, kills = random.Random(options.seed), Faults(), 0
    with tempfile.TemporaryDirectory() as temporary:
        whole = Path(temporary) / "whole"
        pace = leave_alone(options, whole)
        if pace is None:
            return 1
        turn, studies = 0, 1
        folder = Path(temporary) / "killed-1"
        while kills < options.kills:
            before = records(folder)
            print(f"{kills + 1}:", end=" ")
            left = strike(options, folder, turn, pace, chance)
            turn += 1
            faults.again += changed(folder, before)
            if left is not None:
                kills, faults.alone = kills + 1, faults.alone + len(left)
                continue
            finish(options, folder, whole, faults)
            studies += 1
            folder = Path(temporary) / f"killed-{studies}"
        finish(options, folder, whole, faults)
    print(f"kills that hit: {kills}, in {studies} studies")
    print(f"finished runs that were run again: {faults.again}; processes that went on alone: {faults.alone}")
    print(f"hidden files left behind: {', '.join(faults.left) or 'none'}")
    return 1 if faults else 0


if __name__ == "__main__":
    raise SystemExit(main())

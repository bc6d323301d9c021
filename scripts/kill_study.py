"""Kills the launcher of a study at random moments, and compares the tables with those of a study that was left alone.

    python scripts/kill_study.py [--kills 10] [--study smoke] [--jobs 1] [--seeds 8] [--seed 0] [--launchers 1]

Each time SIGKILL comes at a random moment: in turn while the launcher starts, in its first run, and after it has
finished one; and it comes to the launcher alone (its workers have to notice), or, one time in three, to one of its
workers first. With several launchers all work in the folder at once, and the first one is killed. Prints what was
found in place at each kill, and ends with exit code 1 if a finished run was run again, a process went on alone, a
hidden file was left behind at the end, or a table differs by a byte.
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
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TABLES = ("table.md", "table.csv", "runs.csv")


def start(study: str, folder: Path, jobs: int, seeds: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "hf_optim.commands.main", "study", study, "--output", str(folder)]
    command += ["--jobs", str(jobs), "--seeds", str(seeds)]
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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--kills", type=int, default=10, help="how often (default: 10)")
    parser.add_argument("--study", default="smoke", help="a shipped study or a YAML file (default: smoke)")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time (default: 1)")
    parser.add_argument("--seeds", type=int, default=8, help="the study's seeds (default: 8)")
    parser.add_argument("--seed", type=int, default=0, help="of the random moments (default: 0)")
    parser.add_argument("--launchers", type=int, default=1, help="so many at once in the folder (default: 1)")
    options = parser.parse_args()
    moments = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as temporary:
        whole, folder = Path(temporary) / "whole", Path(temporary) / "killed"
        launcher = start(options.study, whole, options.jobs, options.seeds)
        starting, begin = wait_for_a_run(launcher, whole, 0.0), time.time()
        text, _ = launcher.communicate()
        if not (whole / "table.md").exists():
            print(text)
            return 1
        ends = sorted(when / 1e9 for when in records(whole).values())
        # The first run pays for the imports.
        first, length = ends[0] - begin, (ends[-1] - ends[0]) / max(1, len(ends) - 1)
        took = f"{starting:.1f} s to start, {first:.1f} s the first, {length:.1f} s the others"
        print(f"left alone: {len(ends)} runs, {took}", flush=True)
        again, alone = 0, 0
        for kill in range(options.kills):
            before, moment = records(folder), time.time()
            launcher = start(options.study, folder, options.jobs, options.seeds)
            more = [start(options.study, folder, options.jobs, options.seeds) for _ in range(options.launchers - 1)]
            if kill % 3 == 0:
                wait, stage = moments.uniform(0, starting), "after its start"
            elif kill % 3 == 1:
                wait_for_a_run(launcher, folder, moment)
                wait, stage = moments.uniform(0, first), "into its first run"
            else:
                while launcher.poll() is None and len(records(folder)) == len(before):
                    time.sleep(0.02)
                wait, stage = moments.uniform(0, 2 * length), "after it finished a run"
            try:
                launcher.communicate(timeout=wait)
                ended = "it had ended"
            except subprocess.TimeoutExpired:
                below = workers(launcher.pid)
                if below and moments.random() < 1 / 3:
                    os.kill(moments.choice(below), signal.SIGKILL)
                    time.sleep(moments.uniform(0, length))
                    below += workers(launcher.pid)
                launcher.kill()
                launcher.communicate()
                alone += len(left := orphans(below))
                ended = f"killed, {len(left)} GO ON ALONE" if left else "killed"
            for other in more:
                other.communicate()
            after = records(folder)
            again += sum(after.get(name) != when for name, when in before.items())
            print(f"{kill + 1}: {ended} {wait:.1f} s {stage}: {len(after)} finished, {begun(folder)} half", flush=True)
        before = records(folder)
        text, _ = start(options.study, folder, options.jobs, options.seeds).communicate()
        after = records(folder)
        again += sum(after.get(name) != when for name, when in before.items())
        print(f"left alone at last: from {len(before)} to {len(after)} finished")
        same = [name for name in TABLES if (whole / name).read_bytes() == (folder / name).read_bytes()]
        for name in TABLES:
            print(f"{name}: {'the same bytes' if name in same else 'DIFFERS'}")
        print(f"finished runs that were run again: {again}; processes that went on alone: {alone}")
        print(f"hidden files left behind: {', '.join(hidden(folder)) or 'none'}")
        return 0 if len(same) == len(TABLES) and not (again or alone or hidden(folder)) else 1


if __name__ == "__main__":
    raise SystemExit(main())

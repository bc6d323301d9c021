"""Tries a wheel in empty environments, one for the core and one for each extra that a user may want alone.

    python scripts/try_wheels.py dist/hf_optim-0.1.0-py3-none-any.whl [--only core --only study]

Each environment gets the wheel with one extra and nothing else, and does what that extra is for; what belongs to
another extra must be one line that names it.

That is several GB of downloads without a cache: a release runs it, the suite does not.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

STEP = (
    "import torch, hf_optim; w = torch.nn.Parameter(torch.ones(3)); o = hf_optim.create('adamw', [w]); "
    "w.grad = torch.ones(3); o.step(); assert (w < 1).all()"
)
#: extra -> (commands that work, commands that end with one line, exit code 2, and the extra that is missing)
TRIED: dict[str, tuple[list[list[str]], list[tuple[list[str], str]]]] = {
    "core": (
        [["-c", STEP], ["-m", "hf_optim", "list"], ["-m", "hf_optim", "info", "smaran"]],
        [(["-m", "hf_optim", "study", "smoke"], "hf-optim[study]")],
    ),
    "hf": (
        [["-c", STEP], ["-c", "import hf_optim, transformers; hf_optim.factory('adamw')"]],
        [(["-m", "hf_optim", "study", "smoke"], "hf-optim[study]")],
    ),
    "study": ([["-m", "hf_optim", "study", "smoke", "--jobs", "1"], ["-m", "hf_optim", "doctor"]], []),
}


def tried(wheel: Path, extra: str, folder: Path) -> list[str]:
    """What went wrong with one extra; empty if nothing did."""
    subprocess.run([sys.executable, "-m", "venv", folder / "env"], check=True)
    python = folder / "env" / "bin" / "python"
    wanted = str(wheel) if extra == "core" else f"{wheel}[{extra}]"
    subprocess.run([python, "-m", "pip", "install", "--quiet", wanted], check=True)
    told = []
    works, misses = TRIED[extra]
    for arguments in works:
        done = subprocess.run([python, *arguments], cwd=folder, capture_output=True, text=True)
        if done.returncode:
            told.append(f"{extra}: {' '.join(arguments)}: {(done.stderr.strip().splitlines() or ['?'])[-1]}")
    for arguments, says in misses:
        done = subprocess.run([python, *arguments], cwd=folder, capture_output=True, text=True)
        if done.returncode != 2 or says not in done.stderr or done.stderr.count("\n") != 1:
            told.append(f"{extra}: {' '.join(arguments)} should say {says} in one line: {done.stderr[-300:]}")
    return told


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--only", action="append", choices=TRIED)
    given = parser.parse_args()
    told = []
    for extra in given.only or TRIED:
        with tempfile.TemporaryDirectory() as folder:
            told += tried(given.wheel.resolve(), extra, Path(folder))
        print(f"{extra}: tried", flush=True)
    print("\n".join(told) or "each does what it is for, and says what it lacks")
    return int(bool(told))


if __name__ == "__main__":
    raise SystemExit(main())

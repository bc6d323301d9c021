"""Draws studies over every two options that a study can have together, makes up their runs, and reads them every way.

    python scripts/draw_studies.py [--studies 1000] [--seed 0]

The check is tests/test_study_draws.py, of which the suite draws a few. It ends when every pair of options was there, or
after so many studies; each takes some seconds of one core.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--studies", type=int, default=1000, help="at most so many (default: 1000)")
    parser.add_argument("--seed", type=int, default=0, help="of the drawing (default: 0)")
    given = parser.parse_args()
    command = [sys.executable, "-m", "pytest", "-v", "tests/test_study_draws.py"]
    drawn = {"HF_OPTIM_STUDIES": str(given.studies), "HF_OPTIM_STUDIES_SEED": str(given.seed), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, env={**os.environ, **drawn}).returncode


if __name__ == "__main__":
    raise SystemExit(main())

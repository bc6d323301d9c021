"""Changes files of runs and studies at random, a thousand times each kind, and looks for anything but one clear line.

    python scripts/mutate_files.py [--mutations 1000] [--only records]

The kinds are the tests of tests/test_mutated_files.py, of which the suite runs a dozen mutations each.
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
    parser.add_argument("--mutations", type=int, default=1000, help="of each kind (default: 1000)")
    parser.add_argument("--only", default="", metavar="KIND", help="records, histories, plans, yamls, checkpoints, ...")
    given = parser.parse_args()
    command = [sys.executable, "-m", "pytest", "-v", "tests/test_mutated_files.py", "-k", given.only]
    environment = {**os.environ, "MUTATIONS": str(given.mutations), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment).returncode


if __name__ == "__main__":
    raise SystemExit(main())

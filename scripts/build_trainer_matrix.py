"""Writes docs/trainer-matrix.md from the results of tests/test_hub_matrix.py, which it runs.

python scripts/build_trainer_matrix.py
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "trainer-matrix.md"
TESTS = ROOT / "tests" / "test_hub_matrix.py"

HEAD = """# What works in a Trainer

Written by `scripts/build_trainer_matrix.py` from the results of `tests/test_hub_matrix.py`: a cell says "yes" because \
its test trained a model in that situation and checked what came out. `hf_optim.attach(trainer, NAME)` was the only \
line added each time.

"""
FOOT = """
"Line search" stands for rules that evaluate the loss at trial points, "closure" for optimizers whose `step` takes a
closure with gradients, here torch's LBFGS. Two processes, TRL's trainers with and without adapters, and Accelerate
loops have tests of their own: `tests/test_hub_distributed.py`, `test_hub_trl.py`, `test_hub_session.py`.
"""

Cells = dict[tuple[str, str], str]


def page(cells: Cells, families: list[str], situations: list[str] | None = None) -> str:
    """The page of these cells; a missing one ends the program."""
    titles = list(dict.fromkeys(t for t, _ in cells)) if situations is None else situations
    missing = [f"{t} x {f}" for t in titles for f in families if (t, f) not in cells]
    if missing:
        raise SystemExit(f"error: no result for {', '.join(missing)}")
    lines = [f"| | {' | '.join(families)} |", "|---" * (len(families) + 1) + "|"]
    lines += [f"| {t} | {' | '.join(cells[t, f] for f in families)} |" for t in titles]
    return HEAD + "\n".join(lines) + "\n" + FOOT


def read(text: str) -> Cells:
    """The cells of a page."""
    table = [[c.strip() for c in line.strip("|\n").split("|")] for line in text.splitlines() if line.startswith("|")]
    if len(table) < 3:
        return {}
    families = table[0][1:]
    return {(row[0], f): value for row in table[2:] for f, value in zip(families, row[1:], strict=True)}


def run() -> tuple[Cells, int]:
    """The outcomes of the tests of cells, and how many tests of cells did not pass."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        subprocess.run(
            [sys.executable, "-m", "pytest", "-q", str(TESTS), "-k", "test_cell", f"--junitxml={report}"], cwd=ROOT
        )
        tree = ElementTree.parse(report)
    cells: Cells = {}
    failed = 0
    for case in tree.iter("testcase"):
        if any(case.find(kind) is not None for kind in ("failure", "error", "skipped")):
            failed += 1
            continue
        for item in case.iter("property"):
            if item.get("name") == "cell":
                title, family, outcome = (item.get("value") or "").split("|")
                cells[title, family] = outcome
    return cells, failed


def main() -> int:
    """Write the page; 1, and none is left, where a cell did not pass."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    PAGE.unlink(missing_ok=True)
    cells, failed = run()
    if failed or not cells:
        print(f"error: {failed} cells did not pass; {PAGE.name} was not written", file=sys.stderr)
        return 1
    PAGE.write_text(page(cells, list(dict.fromkeys(f for _, f in cells))), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

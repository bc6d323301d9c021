"""A folder of pages that a script writes from the code: which are stale, and the command line that writes them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def stale(wanted: Mapping[str, str], folder: Path) -> list[str]:
    """Names of files that differ from what is wanted, are missing, or describe nothing."""
    there = {f.name: f.read_text(encoding="utf-8") for f in folder.glob("*.md")} if folder.is_dir() else {}
    return sorted(name for name in {*wanted, *there} if wanted.get(name) != there.get(name))


def write(wanted: Mapping[str, str], folder: Path, script: str) -> int:
    """The command line of `script`: writes what is stale, or with --check only names it. 0, or 1 for a stale page."""
    where = folder.relative_to(ROOT)
    parser = argparse.ArgumentParser(description=f"Write {where} from the code.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a page is out of date")
    names = stale(wanted, folder)
    if parser.parse_args().check:
        if names:
            print(f"out of date: {', '.join(names)}; run python scripts/{script}.py", file=sys.stderr)
        return 1 if names else 0
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        if name in wanted:
            (folder / name).write_text(wanted[name], encoding="utf-8")
        else:
            (folder / name).unlink()
    print(f"{len(names)} of {len(wanted)} pages written in {where}")
    return 0

"""Prints the lowest versions that pyproject.toml allows, as constraints for pip, so that a job can try just those.

    python scripts/minimum.py > minimum.txt
    python -m pip install -c minimum.txt "torchvision==0.21.0" -e ".[study,slurm,vision]" pytest hypothesis
    python -m pytest                      with what the tests need that nobody else does at its newest

`dev` and `docs` are left out: they are tools, and no user is held to their versions. Where two extras name a package,
the higher of their lowest versions counts. What the packages themselves depend on is the newest that they accept.
"""

from __future__ import annotations

import argparse
import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

PYPROJECT = Path(__file__).resolve().parents[1] / "pyproject.toml"
TOOLS = ("dev", "docs")


def minimums(project: dict) -> dict[str, Version]:
    """The lowest version of each package that a [project] table names."""
    extras = project["optional-dependencies"]
    listed = [*project["dependencies"], *(line for name in extras if name not in TOOLS for line in extras[name])]
    lowest: dict[str, Version] = {}
    for requirement in map(Requirement, listed):
        name = canonicalize_name(requirement.name)
        if name == canonicalize_name(project["name"]):
            continue
        bounds = [Version(bound.version) for bound in requirement.specifier if bound.operator == ">="]
        if len(bounds) != 1:
            raise SystemExit(f"error: {requirement} in {PYPROJECT.name} does not say from which version on")
        lowest[name] = max(bounds[0], lowest.get(name, bounds[0]))
    return lowest


def main() -> int:
    """Print them; gives 0."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    project = tomllib.loads(PYPROJECT.read_text())["project"]
    for name, version in sorted(minimums(project).items()):
        print(f"{name}=={version}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
